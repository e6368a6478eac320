"""Video object segmentation on YouTube-VOS (arXiv 1809.03327) by label propagation, on a local split of the train set.

The labels of the official valid set are hidden: its numbers come from a server alone, which takes the masks that this
writes (`submission`). Scores that are computed here are of train videos that are held out, and are never to be compared
with those of the server. Objects that appear later enter in the first annotated frame that shows them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint
from vjepa_jax.evals import vos
from vjepa_jax.evals.controls import TRAINED
from vjepa_jax.evals.scores import OnScore, Score
from vjepa_jax.evals.worlds import Clip, clip_of

BENCHMARK = "youtube_vos"
NOTE = "local split, never to be compared with server numbers"
METRICS = ("J&F", "J mean", "F mean")
LAYOUT = (
    "{path}/meta.json, {path}/JPEGImages/VIDEO/00000.jpg ... and {path}/Annotations/VIDEO/00000.png ... "
    "(palette images of object numbers)"
)
META = '{"videos": {VIDEO: {"objects": {"1": {"frames": ["00000", ...]}}}}}'
_PARTS = 10  # one of so many is held out

Objects = Mapping[int, Sequence[str]]  # of a video in meta.json: the names of their frames, by object number


@dataclasses.dataclass(frozen=True)
class Config(vos.Settings):
    """Settings, besides those of vos.Settings.

    path: the official train folder, of which the videos of `held_out` are scored.
    videos: by name, instead of those held out.
    valid, submission: the official valid folder, and the folder that the trained encoder's masks of it are written to,
      submission/Annotations/VIDEO/FRAME.png (with frames=both: submission/repeated/..., submission/windows/...).
    """

    path: str = ""
    videos: tuple[str, ...] = ()
    valid: str = ""
    submission: str = ""


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """J&F, and J and F, of the mean over all objects of all videos of each object's mean, of every encoder and of the
    first masks copied to all later frames. Intervals resample videos. Writes a submission where one is asked for.

    Raises:
      ConfigError: a wrong setting or layout.
    """
    vos.check(cfg, BENCHMARK)
    if bool(cfg.valid) != bool(cfg.submission):
        raise ConfigError(
            f"{BENCHMARK}.valid={cfg.valid!r} and {BENCHMARK}.submission={cfg.submission!r} go together: the official "
            "valid folder, and a folder to write masks to"
        )
    if cfg.path or cfg.search or not cfg.valid:
        objects = chosen(cfg)
    if cfg.valid:
        hidden = read_objects(cfg.valid, "valid")
        check_layout(cfg.valid, "valid", hidden)
    group, clip = vos.models(encoders, cfg, BENCHMARK), clip_of(encoders, BENCHMARK, least_steps=1)
    if cfg.search:
        group = vos.searched(read_videos(cfg.path, tuning(cfg, objects)), group, clip, cfg, BENCHMARK)
    scores: list[Score] = []
    if cfg.path:
        for row in _scores(read_videos(cfg.path, objects), group, clip, cfg):
            scores.append(row)
            if on_score:
                on_score(row)
    if cfg.valid:
        submit(hidden, [model for model in group if model.name == TRAINED], clip, cfg)
    return scores


def _scores(videos: Iterable[vos.Video], group: Sequence[vos.Model], clip: Clip, cfg: Config) -> Iterator[Score]:
    found, copied = vos.evaluate((v for v in videos if v.scored), group, clip, cfg, BENCHMARK)
    if not copied:
        raise ConfigError(
            f"{BENCHMARK}.path={cfg.path!r}: no object has a mask after its first one: expected "
            f"{LAYOUT.format(path=cfg.path)}"
        )
    for model, seeds in [*zip(group, found, strict=True), (None, [copied])]:
        yield from vos.rows(BENCHMARK, METRICS, cfg, model, seeds, NOTE)


def held_out(name: str) -> bool:
    """Whether a train video is held out: sha256 of its name mod 10 is 0, so that it never changes."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % _PARTS == 0


def chosen(cfg: Config) -> dict[str, Objects]:
    """Objects of the videos that are scored: those named, or those held out.

    Raises:
      ConfigError: no such layout, or no such video.
    """
    objects = read_objects(cfg.path, "path")
    if unknown := [name for name in cfg.videos if name not in objects]:
        raise ConfigError(f"{BENCHMARK}.videos: {unknown[0]} is not in {cfg.path}/meta.json{hint(unknown[0], objects)}")
    names = cfg.videos or [name for name in objects if held_out(name)]
    if not names:
        raise ConfigError(
            f"{BENCHMARK}.path={cfg.path!r}: none of its {len(objects)} videos is held out (sha256 of the name mod "
            f"{_PARTS} = 0): give the whole train folder, or name some with {BENCHMARK}.videos"
        )
    objects = {name: objects[name] for name in names}
    check_layout(cfg.path, "path", objects)
    return objects


def tuning(cfg: Config, scored: Mapping[str, Objects]) -> dict[str, Objects]:
    """Objects of the videos that a search chooses settings by: the first ones that are neither scored nor held out."""
    every = read_objects(cfg.path, "path")
    names = [name for name in every if name not in scored and not held_out(name)][: cfg.tune_videos]
    check_layout(cfg.path, "path", names)
    return {name: every[name] for name in names}


def read_objects(path: str, key: str) -> dict[str, Objects]:
    """Videos of meta.json, in the order of their names. Raises ConfigError, which shows the layout."""
    file = Path(path) / "meta.json"
    if not path or not file.is_file():
        layout = LAYOUT.format(path=path or "PATH")
        raise ConfigError(f"{BENCHMARK}.{key}={path!r} is no folder of YouTube-VOS: expected {layout}")
    try:
        videos = json.loads(file.read_text(encoding="utf-8"))["videos"]
        return {
            name: {int(number): list(map(str, each.get("frames", ()))) for number, each in video["objects"].items()}
            for name, video in sorted(videos.items())
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({error!r}): expected {META}") from None


def check_layout(path: str, key: str, videos: Iterable[str]) -> None:
    """Raises ConfigError, which shows the layout, unless every video has frames, and masks only of its frames."""
    for name in videos:
        frames, masks = ({file.stem for file in files} for files in _files(path, name))
        if not masks or not masks <= frames:
            lost = f", {min(masks - frames)} without a frame" if masks - frames else ""
            raise ConfigError(
                f"{BENCHMARK}.{key}: video {name} has {len(frames)} frames and {len(masks)} masks{lost}: expected "
                f"{LAYOUT.format(path=path)}"
            )


def read_videos(path: str, objects: Mapping[str, Objects]) -> Iterator[vos.Video]:
    """Videos one by one, from the first frame on that shows an object.

    An object is given in the first annotated frame that shows it, and scored in all annotated ones after that, whether
    it is still there or not. Numbers that meta.json does not list count as background.

    Raises:
      ConfigError: masks that are no palette images, of another size than the frames, or without an object.
    """
    for name, numbers in objects.items():
        pictures, masks = _files(path, name)
        size = vos.picture_size(pictures[0])
        place = {picture.stem: frame for frame, picture in enumerate(pictures)}
        annotations = {place[file.stem]: _numbers(file, size, numbers) for file in masks}
        first = {n: next((f for f, mask in annotations.items() if (mask == n).any()), None) for n in sorted(numbers)}
        first = {n: frame for n, frame in first.items() if frame is not None}
        if not first:
            raise ConfigError(f"{BENCHMARK}: no mask of {name} shows an object that {path}/meta.json lists for it")
        start = min(first.values())
        given: dict[int, np.ndarray] = {}
        for number, frame in first.items():
            mask = annotations[frame] == number
            given.setdefault(frame - start, np.zeros(size, np.uint8))[mask] = number
        later = {n: [f - start for f in annotations if f > first[n]] for n in first}
        yield vos.Video(
            *(name, pictures[start:], size, {f - start: mask for f, mask in annotations.items() if f >= start}),
            *(given, {n: frames for n, frames in later.items() if frames}),
        )


def _files(path: str, name: str) -> tuple[list[Path], list[Path]]:
    """Frames and masks of a video, in order."""
    root = Path(path)
    return sorted((root / "JPEGImages" / name).glob("*.jpg")), sorted((root / "Annotations" / name).glob("*.png"))


def _numbers(file: Path, size: tuple[int, int], numbers: Objects) -> np.ndarray:
    if not vos.has_palette(file):
        raise ConfigError(f"{BENCHMARK}: {file} is no palette image: keep the masks as the official archives have them")
    mask = vos.read_mask(file)
    if mask.shape != size:
        raise ConfigError(f"{BENCHMARK}: {file} has shape {mask.shape}, the frames of its video {size}")
    return np.where(np.isin(mask, list(numbers)), mask, 0)


def submit(objects: Mapping[str, Objects], group: Sequence[vos.Model], clip: Clip, cfg: Config) -> None:
    """Masks of the valid set, Annotations/VIDEO/FRAME.png in the palette of those given, for every frame that meta.json
    names (all frames of a video where it names none)."""
    for video in read_videos(cfg.valid, objects):
        wanted = {frame for frames in objects[video.name].values() for frame in frames}
        with Image.open(_files(cfg.valid, video.name)[1][0]) as image:
            palette = image.getpalette()
        pixels = vos.read_pictures(video.pictures, vos.input_size(video.size, clip.patch, cfg, BENCHMARK))
        for model in group:
            folder = Path(cfg.submission) / (model.way if len(group) > 1 else "") / "Annotations" / video.name
            folder.mkdir(parents=True, exist_ok=True)
            features = vos.frame_features(model.seeds[0], pixels, clip, model.way, cfg.batch_size)
            found = vos.segment(features, video, pixels.shape[1:3], model.how)
            for picture, mask in zip(video.pictures, found, strict=True):
                if picture.stem in wanted or not wanted:
                    image = Image.fromarray(mask)
                    image.putpalette(palette)
                    image.save(folder / f"{picture.stem}.png")
