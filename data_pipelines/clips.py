"""Which frames of a video make up a clip. Pure functions of the video's length and rate, a spec and a generator.

Unlike the sampler of V-JEPA (facebookresearch/vjepa2, src/datasets/video_dataset.py), the spacing is exact and each
frame is rounded on its own: 4 fps from a 30 fps video takes frames 0, 8, 15, 23, ... instead of every 7th. A video
of a lower rate than asked for repeats frames.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipSpec:
    """How clips are cut. Exactly one of `fps` (frames a second) and `frame_step` (frames of the video) is set.

    A video is divided into `clips` equal parts, one clip from each.
    """

    num_frames: int
    fps: float | None = None
    frame_step: int | None = None
    clips: int = 1

    def __post_init__(self):
        if (self.fps is None) == (self.frame_step is None):
            raise ValueError("set exactly one of fps and frame_step (the other one to None)")
        if min(self.num_frames, self.clips) < 1 or (self.frame_step if self.fps is None else self.fps) <= 0:
            raise ValueError(f"num_frames, clips and fps or frame_step must be positive, got {self}")


def frame_offsets(fps: float, spec: ClipSpec) -> np.ndarray:
    """Frames of a clip counted from its first one, in a video of `fps` frames a second: int64[T], ascending."""
    step = spec.frame_step if spec.frame_step is not None else fps / spec.fps
    return np.floor(np.arange(spec.num_frames) * step + 0.5).astype(np.int64)


def clip_indices(
    num_frames: int, fps: float, spec: ClipSpec, clip: int = 0, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Frames of one clip of a video.

    The clip lies in part `clip` of the video: at random with `rng`, else in the middle. Where the part is too short,
    the clip reaches over its borders evenly, as far as the video goes; where the video is too short, the clip starts
    with it and repeats the last frame.

    Args:
      num_frames: frames of the video, at least 1.
      fps: frames a second of the video.
      clip: which of the `spec.clips` parts.
      rng: randomness (training), or None (evaluation).

    Returns:
      int64[spec.num_frames], ascending, in [0, num_frames).
    """
    offsets = frame_offsets(fps, spec)
    span = int(offsets[-1]) + 1
    start, end = clip * num_frames // spec.clips, (clip + 1) * num_frames // spec.clips
    slack = end - start - span
    if slack >= 0:
        start += int(rng.integers(slack + 1)) if rng is not None else slack // 2
    else:
        start = min(max(start + slack // 2, 0), max(num_frames - span, 0))
    return np.minimum(start + offsets, num_frames - 1)
