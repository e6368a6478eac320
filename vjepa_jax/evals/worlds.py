"""The embedded world for evaluations: rendered in memory, at the clip length and size that an encoder was trained on.

Nothing is compressed or written: video i of a spec and a seed is the same on every machine.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import world_truth
from data_pipelines.world_spec import WorldSpec, demo_spec
from data_pipelines.world_truth import Truth
from vjepa_jax.config import ConfigError
from vjepa_jax.evals.controls import TRAINED


@dataclasses.dataclass(frozen=True)
class Clip:
    """What an encoder takes in: frames, pixels (height, width), and the frames and pixels a side of a token."""

    frames: int
    size: tuple[int, int]
    tubelet: int
    patch: int

    @property
    def steps(self) -> int:
        """Tokens along time."""
        return self.frames // self.tubelet

    @property
    def places(self) -> int:
        """Tokens of one time step."""
        return self.size[0] // self.patch * (self.size[1] // self.patch)

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.size)


def clip_of(encoders: Mapping[str, Sequence[Any]], protocol: str, least_steps: int = 2) -> Clip:
    """The clips that the trained encoder was trained on.

    Raises:
      ConfigError: they have fewer than `least_steps` time steps.
    """
    run = encoders[TRAINED][0].run
    clip = Clip(run.data.num_frames, tuple(run.data.size), run.model.tubelet_size, run.model.patch_size)
    if clip.steps < least_steps:
        raise ConfigError(
            f"{protocol} needs clips of at least {least_steps} time steps, this encoder was trained on {clip.frames} "
            f"frames, {clip.tubelet} a step: leave {protocol} out"
        )
    return clip


def sized(spec: WorldSpec, clip: Clip) -> WorldSpec:
    """A spec made for a square of the shorter side, over the whole frame."""
    return dataclasses.replace(spec, size=clip.size)


def travelling(clip: Clip, frames: int | None = None, **changes: Any) -> WorldSpec:
    """One bright object on a torus in one of 8 directions (world_spec.demo_spec), with `changes`."""
    return dataclasses.replace(sized(demo_spec(clip.side, frames or clip.frames), clip), **changes)


def render(spec: WorldSpec, count: int, seed: int) -> tuple[np.ndarray, list[Truth]]:
    """The first `count` videos of a world: uint8 [count, T, H, W, 3] and the ground truth of each.

    Raises:
      WorldError: the objects find no room.
    """
    groups = range(-(-count // spec.videos_per_group))
    videos = [pair for group in groups for pair in world_truth.render_group(spec, seed, group)][:count]
    return np.stack([video for video, _ in videos]), [truth for _, truth in videos]


def in_batches(function: Callable[..., Any], batch_size: int, *arrays: np.ndarray) -> Any:
    """function(rows of every array) over all rows, `batch_size` at a time; arrays (or tuples of them), joined.

    The last batch is filled up with copies of its last row, so that shapes never change.
    """
    results = []
    for start in range(0, len(arrays[0]), batch_size):
        parts = [array[start : start + batch_size] for array in arrays]
        size = len(parts[0])
        if size < batch_size:
            parts = [np.concatenate([part, np.repeat(part[-1:], batch_size - size, 0)]) for part in parts]
        result = function(*parts)
        several = isinstance(result, tuple)
        results.append([np.asarray(each)[:size] for each in (result if several else (result,))])
    joined = tuple(np.concatenate(each) for each in zip(*results, strict=True))
    return joined if several else joined[0]
