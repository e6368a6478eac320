"""EPIC-Kitchens-100 for action anticipation: its annotations, and the clip that ends some time before an action.

Where the clip ends is read in two ways. The paper (arXiv 2506.09985) has an anticipation point of 0 at the first frame
of the action; the released code (vjepa2 evals/action_anticipation_frozen) computes
start * point + stop * (1 - point) - ahead, which for 0 is `ahead` seconds before the END of the action. Published
numbers presumably come from the code.
"""

import csv
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from data_pipelines import augment, examples, ledgers, loading
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import DataError
from vjepa_jax.config import DataConfig

FILES = {"train": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv"}
COLUMNS = ("participant_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
LAYOUT = (
    "{path}/EPIC_100_train.csv and EPIC_100_validation.csv with the columns " + ", ".join(COLUMNS) + " (times as "
    "00:01:23.45), and the videos as {path}/P01/videos/P01_01.MP4 or {path}/videos/P01_01.mp4"
)
READINGS = ("code", "paper")


@dataclass(frozen=True)
class Action:
    """An annotated action; seconds of its video, numbers of its classes."""

    video: str
    start: float
    stop: float
    verb: int
    noun: int


@dataclass(frozen=True)
class Window:
    """What is seen of an action: `frames` at `fps`, ahead of it by `ahead` seconds, at `point` of it.

    ahead and point: (lowest, highest), drawn in training; in evaluation the two are equal.
    """

    frames: int
    fps: float
    ahead: tuple[float, float]
    point: tuple[float, float]
    reading: str

    def end(self, action: Action, rng: np.random.Generator | None = None) -> tuple[float, float]:
        """Where the clip ends in the video, and how far ahead that is, in seconds. Draws ahead, then point."""
        ahead, point = (low if rng is None else float(rng.uniform(low, high)) for low, high in (self.ahead, self.point))
        share = point if self.reading == "paper" else 1.0 - point
        return action.start + share * (action.stop - action.start) - ahead, ahead


def indices(end: float, window: Window, num_frames: int, fps: float) -> np.ndarray:
    """Frames of the clip that ends at `end` seconds of a video, int64 [T]; before its first frame that is repeated."""
    last = int(end * fps)
    steps = np.arange(-window.frames, 0) * (fps / window.fps)
    return np.clip(last + np.floor(steps + 0.5).astype(np.int64), 0, num_frames - 1)


def read_actions(path: str, part: str) -> list[Action]:
    """The actions of FILES[part], in its order. Raises DataError where it is not laid out as LAYOUT says."""
    root, layout = Path(path), LAYOUT.format(path=path)
    file = root / FILES[part]
    if not file.is_file():
        raise DataError(f"{file} does not exist: expected {layout}")
    videos: dict[str, str] = {}
    actions = []
    with open(file, newline="", encoding="utf-8") as text:
        rows = csv.DictReader(text)
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise DataError(f"{file} has no column {missing[0]!r}: expected {layout}")
        for number, row in enumerate(rows, start=2):
            name = row["video_id"]
            if name not in videos:
                videos[name] = _find(root, row["participant_id"], name, layout)
            try:
                start, stop = _seconds(row["start_timestamp"]), _seconds(row["stop_timestamp"])
                verb, noun = int(row["verb_class"]), int(row["noun_class"])
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{file}, line {number}: {error}: expected {layout}") from None
            actions.append(Action(videos[name], start, stop, verb, noun))
    if not actions:
        raise DataError(f"{file} has no action: expected {layout}")
    return actions


def _find(root: Path, participant: str, name: str, layout: str) -> str:
    for folder in (root / participant / "videos", root / "videos"):
        for suffix in (".MP4", ".mp4"):
            if (folder / f"{name}{suffix}").is_file():
                return str(folder / f"{name}{suffix}")
    raise DataError(f"{root} has no video {name}: expected {layout}")


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def training_batches(
    actions: Sequence[Action],
    window: Window,
    data: DataConfig,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    ledger: str | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """`epochs` passes in fresh random order, each clip cut and augmented afresh (as `data` says); an undecodable one is
    replaced by that of another action.

    Yields:
      "video" uint8[B, T, H, W, 3]; "ahead" float32[B], seconds; "index" int64[B], the row of `actions`.

    Raises:
      DataError: fewer actions than a batch; while iterating, 32 undecodable videos in a row.
    """
    if len(actions) * epochs < batch_size:
        raise DataError(f"{len(actions)} actions to train on are fewer than a batch of {batch_size}: lower batch_size")
    example = functools.partial(_training_example, actions=actions, window=window, data=data, ledger=ledger)
    order = grain.MapDataset.range(len(actions)).shuffle(seed=seed % 2**32).repeat(epochs)
    batches = order.random_map(example, seed=seed % 2**32).batch(batch_size, drop_remainder=True)
    clip = window.frames * data.size[0] * data.size[1] * 3
    return loading.iterate(batches, data.num_workers, data.num_threads, data.buffer_size, batch_size * clip)


def _training_example(
    row: int,
    rng: np.random.Generator,
    *,
    actions: Sequence[Action],
    window: Window,
    data: DataConfig,
    ledger: str | None,
) -> dict[str, np.ndarray]:
    row = int(row)
    for _ in range(examples.MAX_SUBSTITUTIONS + 1):
        end, ahead = window.end(actions[row], rng)
        try:
            with _reader(actions[row].video) as reader:
                video = examples.augmented(reader, indices(end, window, reader.num_frames, reader.fps), data, rng)
            return {"video": video, "ahead": np.float32(ahead), "index": np.int64(row)}
        except DecodeError as error:
            broken = f"{actions[row].video}: {error}"
            ledgers.record(ledger, actions[row].video, str(error))
            row = int(rng.integers(len(actions)))
    raise DataError(f"{examples.MAX_SUBSTITUTIONS} videos in a row cannot be decoded; the last one: {broken}")


def eval_batches(
    actions: Sequence[Action],
    window: Window,
    size: tuple[int, int],
    *,
    batch_size: int,
    num_workers: int = 0,
    num_threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Every action once, in order, the centre of its frames; as `training_batches`, with "failed" bool[B] where a video
    cannot be decoded. Rows that fill up the last batch have index -1."""
    padded = -(-len(actions) // batch_size) * batch_size
    example = functools.partial(_eval_example, actions=actions, window=window, size=tuple(size))
    batches = grain.MapDataset.range(padded).map(example).batch(batch_size, drop_remainder=True)
    return loading.iterate(batches, num_workers, num_threads, 2, batch_size * window.frames * size[0] * size[1] * 3)


def _eval_example(row: int, *, actions: Sequence[Action], window: Window, size: tuple[int, int]) -> dict:
    row, video, ahead = int(row), np.zeros((window.frames, *size, 3), np.uint8), 0.0
    index, failed = (row if row < len(actions) else -1), False
    if index >= 0:
        end, ahead = window.end(actions[row])
        choose = lambda height, width: augment.center_box(height, width, size)
        try:
            with _reader(actions[row].video) as reader:
                video = reader.crops(indices(end, window, reader.num_frames, reader.fps), choose, size)
        except DecodeError:
            failed = True
    return {"video": video, "ahead": np.float32(ahead), "index": np.int64(index), "failed": np.bool_(failed)}


def _reader(path: str) -> VideoReader:
    try:
        return VideoReader(path)
    except OSError as error:
        raise DecodeError(str(error)) from error
