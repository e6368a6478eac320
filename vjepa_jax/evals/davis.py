"""Video object segmentation on DAVIS by label propagation, J and F in the semi-supervised mode (arXiv 1704.00675).

Folders of DAVIS 2016, whose masks are black and white, are a benchmark of their own: its numbers are not those of 2017.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint
from vjepa_jax.evals import vos
from vjepa_jax.evals.davis_metrics import boundary_accuracy, region_similarity
from vjepa_jax.evals.scores import OnScore, Score
from vjepa_jax.evals.worlds import clip_of

__all__ = ["Config", "boundary_accuracy", "region_similarity", "run"]

LAYOUT = "{path}/JPEGImages/480p/SEQUENCE/00000.jpg ... and {path}/Annotations/480p/SEQUENCE/00000.png ..."
METRICS = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")
LISTS = {True: ("2017",), False: ("2016", "480p")}  # folders of ImageSets, by whether masks hold object numbers


@dataclasses.dataclass(frozen=True)
class Config(vos.Settings):
    """Settings, besides those of vos.Settings.

    path: a folder of DAVIS 2017, or of 2016.
    split: of its ImageSets; where it has no such folder, all its sequences.
    sequences: by name, instead of a split.
    tune_split: the split that a search chooses settings by, less the sequences that are scored.
    """

    path: str = ""
    split: str = "val"
    sequences: tuple[str, ...] = ()
    tune_split: str = "train"


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """J&F, J and F with mean, recall and decay over all objects of all sequences, of every encoder and of the first
    mask copied to all frames. Intervals resample sequences.

    Raises:
      ConfigError: a wrong setting or layout.
    """
    vos.check(cfg, "davis")
    names = sequence_names(cfg)
    name_of = benchmark(Path(cfg.path), names)
    group, clip = vos.models(encoders, cfg, "davis"), clip_of(encoders, "davis", least_steps=1)
    if cfg.search:
        others = (read_sequence(Path(cfg.path), name) for name in tuning_names(cfg, names))
        group = vos.searched(others, group, clip, cfg, "davis")
    videos = (read_sequence(Path(cfg.path), name) for name in names)
    found, copied = vos.evaluate(videos, group, clip, cfg, "davis")
    scores: list[Score] = []
    for model, seeds in [*zip(group, found, strict=True), (None, [copied])]:
        for row in vos.rows(name_of, METRICS, cfg, model, seeds):
            scores.append(row)
            if on_score:
                on_score(row)
    return scores


def sequence_names(cfg: Config) -> list[str]:
    """Names of the sequences that are evaluated.

    Raises:
      ConfigError: which shows the layout, where there is none; an unknown split.
    """
    root, layout = Path(cfg.path), LAYOUT.format(path=cfg.path or "PATH")
    images, annotations = root / "JPEGImages/480p", root / "Annotations/480p"
    if not cfg.path or not images.is_dir() or not annotations.is_dir():
        raise ConfigError(f"davis.path={cfg.path!r} is no folder of DAVIS: expected {layout}")
    names = list(cfg.sequences) or _listed(root, cfg.split)
    if not names:
        raise ConfigError(f"davis.path={cfg.path!r} holds no sequence: expected {layout}")
    _check_frames(root, names)
    return names


def tuning_names(cfg: Config, scored: Sequence[str]) -> list[str]:
    """Names of the sequences that a search chooses settings by. Raises ConfigError as `sequence_names`."""
    names = [name for name in _listed(Path(cfg.path), cfg.tune_split, "tune_split") if name not in scored]
    _check_frames(Path(cfg.path), names[: cfg.tune_videos])
    return names[: cfg.tune_videos]


def _check_frames(root: Path, names: Sequence[str]) -> None:
    images, annotations = root / "JPEGImages/480p", root / "Annotations/480p"
    for name in names:
        frames, masks = (
            {path.stem for path in (folder / name).glob(pattern)}
            for folder, pattern in ((images, "*.jpg"), (annotations, "*.png"))
        )
        if len(frames) < 3 or frames != masks:
            raise ConfigError(
                f"davis: sequence {name} has {len(frames)} frames and {len(masks)} masks, it needs a mask for each "
                f"and at least 3: expected {LAYOUT.format(path=root)}"
            )


def _listed(root: Path, split: str, key: str = "split") -> list[str]:
    """Names of a split of the year that the masks are of; where there are no lists, all sequences."""
    there = sorted(path.name for path in (root / "Annotations/480p").iterdir() if path.is_dir())
    folder, masks = root / "ImageSets", [path for name in there for path in _masks(root, name)[:1]]
    if not folder.is_dir() or not masks:
        return there
    years = LISTS[vos.has_palette(masks[0])]
    lists = {path.stem: path for year in years[::-1] for path in (folder / year).glob("*.txt")}
    if split not in lists:
        raise ConfigError(
            f"davis.{key}={split!r} is no list of {folder}/{years[0]}: there is {', '.join(sorted(lists)) or 'none'}"
            f"{hint(split, lists)}; expected {folder}/{years[0]}/{split or 'val'}.txt, or davis.sequences"
        )
    lines = [line.split()[0] for line in lists[split].read_text().splitlines() if line.strip()]
    return list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))


def benchmark(root: Path, names: Sequence[str]) -> str:
    """davis2017 where masks hold object numbers, davis2016 where they are black and white.

    Raises:
      ConfigError: where there are both.
    """
    kinds = {vos.has_palette(_masks(root, name)[0]): name for name in names}
    if len(kinds) > 1:
        raise ConfigError(
            f"davis: {kinds[False]} has black and white masks (DAVIS 2016), {kinds[True]} masks of object numbers "
            "(2017): name sequences of one kind with davis.sequences"
        )
    return "davis2017" if True in kinds else "davis2016"


def read_sequence(root: Path, name: str) -> vos.Video:
    """A sequence. Objects of its first frame are scored in every frame but the first and the last, as the official code
    does.

    Raises:
      ConfigError: masks of another size than the frames, or no object.
    """
    pictures = sorted((root / "JPEGImages/480p" / name).glob("*.jpg"))
    size = vos.picture_size(pictures[0])
    annotations = {frame: vos.read_mask(path) for frame, path in enumerate(_masks(root, name))}
    shapes = {mask.shape for mask in annotations.values()}
    if shapes != {size}:
        raise ConfigError(f"davis: masks of {name} have shapes {shapes}, its frames {size}")
    numbers = sorted(set(annotations[0].reshape(-1).tolist()) - {0})
    if not numbers:
        raise ConfigError(f"davis: the first mask of {name} is empty: there is no object to follow")
    inner = list(range(1, len(pictures) - 1))
    given, scored = {0: annotations[0]}, {number: inner for number in numbers}
    return vos.Video(name, pictures, size, annotations, given, scored)


def _masks(root: Path, name: str) -> list[Path]:
    return sorted((root / "Annotations/480p" / name).glob("*.png"))
