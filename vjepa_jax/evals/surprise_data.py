"""Matched pairs of a possible and an impossible video: of the embedded world, IntPhys, GRASP and InfLevel."""

import csv
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import augment
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import DataError
from data_pipelines.world_spec import WorldSpec, violation_spec
from data_pipelines.world_truth import render_group
from vjepa_jax.config import ConfigError
from vjepa_jax.evals.worlds import Clip, sized

# IntPhys as its archives unpack (four videos a scene, two of them possible). GRASP and InfLevel: layouts of our own,
# to sort their videos into. Videos of a pair have the same name, or the same group.
LAYOUTS = {
    "intphys": "PATH/O1/01/1/status.json and PATH/O1/01/1/scene/scene_001.png ... (block O1, scene 01, video 1 to 4)",
    "grasp": "PATH/<property>/possible/<name>.mp4 and PATH/<property>/impossible/<name>.mp4",
    "inflevel": "PATH/pairs.csv with the columns path,property,group,possible (0 or 1), paths relative to PATH",
}
_VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv")


@dataclasses.dataclass(frozen=True)
class Pair:
    """`load()` gives the possible and the impossible video, uint8 [T, H, W, 3] each, of the encoder's size."""

    kind: str  # the property that is violated
    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


def world_pairs(clip: Clip, count: int, frames: int | None, seed: int = 0) -> list[Pair]:
    """Pairs of the embedded world, every violation equally often; see `violations`."""
    spec = violations(clip, frames or 2 * clip.frames)

    def load(group: int) -> tuple[np.ndarray, np.ndarray]:
        (possible, _), (impossible, _) = render_group(spec, seed, group)
        return possible, impossible

    kinds = [render_group(spec, seed, group)[1][1].violation for group in range(count)]
    return [Pair(kind, f"world {group}", functools.partial(load, group)) for group, kind in enumerate(kinds)]


def violations(clip: Clip, frames: int) -> WorldSpec:
    """world_spec.violation_spec for videos of any length: an object crosses 70 to 80 % of the frame, whatever the time.

    Raises:
      ConfigError: too few frames or pixels for an object to hide and come out again.
    """
    steps, side = frames - 1, clip.side
    # what world_spec asks of motion "occlude", and a margin of 2 %
    most = min(0.08, (0.7 * np.sqrt(0.5) - 2 * 0.7 / max(steps, 1)) / 3 - 0.005)
    if most * side < 1.5:
        raise ConfigError(
            f"surprise: violations do not fit into {frames} frames of {side} pixels: set surprise.frames higher, or "
            "leave surprise out"
        )
    spec = violation_spec(64, 16)  # its numbers are replaced
    return sized(
        dataclasses.replace(
            spec,
            size=side,
            num_frames=frames,
            radius=(max(1.5, 0.8 * most * side), most * side),
            speeds=tuple(share * side / steps for share in (0.7, 0.75, 0.8)),
        ),
        clip,
    )


def read_pairs(cfg: Any, clip: Clip) -> list[Pair]:
    """Pairs of a data set; `cfg` is surprise.Config.

    Raises:
      DataError: the folder is not laid out as LAYOUTS says.
    """
    root = Path(cfg.path)
    if not cfg.path or not root.is_dir():
        raise _wrong(cfg.layout, f"surprise.path={cfg.path!r} is not a folder")
    read = {"intphys": _intphys, "grasp": _grasp, "inflevel": _inflevel}[cfg.layout]
    frames = functools.partial(read_frames, size=clip.size, step=cfg.frame_step)
    pairs = list(read(root, frames))
    if not pairs:
        raise _wrong(cfg.layout, f"{root} holds no matched pair")
    return pairs


def _wrong(layout: str, what: str) -> DataError:
    return DataError(f"{what}: {layout} is laid out as {LAYOUTS[layout]}")


def _pair(kind: str, name: str, frames: Callable[[Path], np.ndarray], possible: Path, impossible: Path) -> Pair:
    return Pair(kind, name, lambda: (frames(possible), frames(impossible)))


def _intphys(root: Path, frames: Callable[[Path], np.ndarray]) -> Iterator[Pair]:
    for scene in sorted(path for path in root.glob("*/*") if path.is_dir()):
        videos = sorted(path for path in scene.iterdir() if (path / "scene").is_dir())
        possible, impossible = [], []
        for video in videos:
            try:
                status = json.loads((video / "status.json").read_text())
                (possible if status["header"]["is_possible"] else impossible).append(video / "scene")
            except (OSError, ValueError, KeyError, TypeError):
                raise _wrong(
                    "intphys", f'{video}/status.json does not say {{"header": {{"is_possible": ...}}}}'
                ) from None
        if not videos:
            continue
        if len(possible) != 2 or len(impossible) != 2:
            raise _wrong("intphys", f"{scene} holds {len(possible)} possible and {len(impossible)} impossible videos")
        for number, (good, bad) in enumerate(match(possible, impossible, first_difference)):
            yield _pair(scene.parent.name, f"{scene.parent.name}/{scene.name}/{number}", frames, good, bad)


def match(possible: list[Any], impossible: list[Any], common: Callable[[Any, Any], int]) -> list[tuple[Any, Any]]:
    """The pairing of a quadruplet whose twins are equal the longest: `common` tells how many frames two share."""
    ways = [list(zip(order, impossible, strict=True)) for order in itertools.permutations(possible)]
    return max(ways, key=lambda way: sum(common(*pair) for pair in way))


def first_difference(a: Path, b: Path) -> int:
    """The first frame in which two folders of pictures differ; their number of frames where none does."""
    pictures_a, pictures_b = _pictures(a), _pictures(b)
    for number, (x, y) in enumerate(zip(pictures_a, pictures_b, strict=False)):
        if x.read_bytes() != y.read_bytes() and not np.array_equal(_rgb(x), _rgb(y)):
            return number
    return min(len(pictures_a), len(pictures_b))


def _grasp(root: Path, frames: Callable[[Path], np.ndarray]) -> Iterator[Pair]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        sides = []
        for side in ("possible", "impossible"):
            if not (folder / side).is_dir():
                raise _wrong("grasp", f"{folder} has no folder {side!r}")
            sides.append({p.stem: p for p in sorted((folder / side).iterdir()) if p.suffix.lower() in _VIDEOS})
        possible, impossible = sides
        if alone := sorted(possible.keys() ^ impossible.keys()):
            raise _wrong("grasp", f"{folder}: {alone[0]} has no twin of the same name")
        for name in possible:
            yield _pair(folder.name, f"{folder.name}/{name}", frames, possible[name], impossible[name])


def _inflevel(root: Path, frames: Callable[[Path], np.ndarray]) -> Iterator[Pair]:
    path = root / "pairs.csv"
    if not path.is_file():
        raise _wrong("inflevel", f"{path} does not exist")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if missing := [c for c in ("path", "property", "group", "possible") if not rows or c not in rows[0]]:
        raise _wrong("inflevel", f"{path} has no column {missing[0]!r}")
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for number, row in enumerate(rows, start=2):
        if row["possible"] not in ("0", "1"):
            raise _wrong("inflevel", f"{path}, line {number}: possible is {row['possible']!r}")
        sides = groups.setdefault((row["property"], row["group"]), {"0": [], "1": []})
        sides[row["possible"]].append(root / row["path"])
    for (kind, group), sides in groups.items():
        if len(sides["0"]) != len(sides["1"]):
            raise _wrong(
                "inflevel", f"{path}: group {group!r} has {len(sides['1'])} possible and {len(sides['0'])} not"
            )
        for number, (good, bad) in enumerate(zip(sides["1"], sides["0"], strict=True)):
            yield _pair(kind, f"{kind}/{group}/{number}", frames, good, bad)


def read_frames(path: Path, size: tuple[int, int], step: int) -> np.ndarray:
    """Every `step`-th frame of a video or a folder of pictures, centre crop: uint8 [T, H, W, 3]."""
    choose = lambda height, width: augment.center_box(height, width, size)
    if path.is_dir():
        return augment.crop_clip((_rgb(p) for p in _pictures(path)[::step]), choose, size)
    try:
        with VideoReader(path) as reader:
            return augment.crop_clip(_all(reader, step), choose, size)
    except (DecodeError, OSError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): a pair lacks one of its videos") from None


def _all(reader: VideoReader, step: int) -> Iterable[np.ndarray]:
    return reader.frames(range(0, reader.num_frames, step))


def _pictures(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise DataError(f"{folder} holds no pictures: intphys is laid out as {LAYOUTS['intphys']}")
    return found


def _rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
