"""The embedded world: short generated videos with exact ground truth, written as real H.264 files.

    spec = demo_spec(size=32)
    video, truth = render(spec, seed=0, index=7)                      # uint8[T, H, W, 3], Truth
    manifest = write_world("world", spec, num_videos={"train": 4000, "test": 1000})
    arrays = read_truth("world", "test")                              # {"tracks": float32[N, T, O, 2], ...}

Video i depends on (spec, seed, i) only. The spec is in world_spec.py, motion in world_physics.py, pictures in
world_render.py, one video in world_truth.py; this file keeps worlds on disk:

    world.json             spec, seed, number of videos: what makes this world this world
    manifest.csv           path,label,split,shape,motion,direction,speed,group,index,violation,break_frame
    videos/<split>/*.mp4   one video each
    truth/part-*.npz       the ground truth of _PART videos each (read_truth)
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_pipelines.world_spec import (
    BACKGROUNDS,
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    OCCLUDER_ID,
    PALETTES,
    PRESETS,
    SHAPES,
    VIOLATIONS,
    WorldError,
    WorldSpec,
    demo_spec,
    motions_spec,
    tracking_spec,
    violation_spec,
)
from data_pipelines.world_truth import Truth, concatenate, render, render_group, rows, stack

__all__ = [
    "BACKGROUNDS", "DIRECTIONS", "EVENTS", "LABELS", "MOTIONS", "OCCLUDER_ID", "PRESETS", "SHAPES", "VIOLATIONS",
    "Truth", "WorldError", "WorldSpec", "add_arguments", "demo_spec", "encode", "motions_spec", "read_spec",
    "read_truth", "render", "render_group", "run", "tracking_spec", "violation_spec", "write_world",
]  # fmt: skip

LABELS = ("direction", "shape", "motion", "speed", "possible")
_FORMAT = 1  # raise it when the same spec and seed would give other pixels or other files
_PART = 64  # videos a unit of work; even, so that pairs stay together
_GOP = 16
_COLUMNS = (
    "path",
    "label",
    "split",
    "shape",
    "motion",
    "direction",
    "speed",
    "group",
    "index",
    "violation",
    "break_frame",
)


def encode(path: str | os.PathLike, video: np.ndarray, *, fps: int, crf: int = 15) -> None:
    """Write uint8[T, H, W, 3] as H.264 (yuv420p, no B-frames, a key frame every 16) in an MP4 file.

    No frame is encoded with knowledge of later ones, so that equal beginnings of two videos decode to equal frames.
    """
    # fastdecode (no CABAC) halves the time to decode noisy 64 pixel videos, but its tables take 2 ms to set up.
    tune = "zerolatency,fastdecode" if video[..., 0].size > 20_000 else "zerolatency"
    options = {"preset": "superfast", "tune": tune, "crf": str(crf), "g": str(_GOP)}
    with av.open(os.fspath(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in video:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            # One thread: the default starts threads for every frame, which takes far longer than the conversion.
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())


def write_world(
    dst: str | os.PathLike,
    spec: WorldSpec,
    *,
    num_videos: int | Mapping[str, int],
    seed: int = 0,
    label: str = "direction",
    crf: int = 15,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a world to a folder and return the path of its manifest. A finished world is left as it is.

    An interrupted world is completed. With worker processes the caller's main module must be importable (the usual
    `if __name__ == "__main__"`).

    Args:
      num_videos: per split, in order; a number means one split "train". Indices run on through the splits. Multiples of
        8 balance the directions exactly; even numbers in a world of pairs.
      label: what the manifest's label column holds, one of LABELS: an index into DIRECTIONS, spec.shapes, spec.motions
        or spec.speeds, or 1 for possible videos and 0 for impossible ones.
      crf: quality of H.264, 0 (lossless) to 51.
      workers: processes; 0 works in this one, None takes one per core where that pays.
      progress: called with (videos done, videos in all).

    Raises:
      WorldError: bad arguments, or the folder holds something else.
    """
    counts = {"train": num_videos} if isinstance(num_videos, int) else dict(num_videos)
    _check_arguments(spec, counts, seed, label)
    dst = Path(dst)
    identity = _identity(spec, counts, seed, label, crf)
    if _open_world(dst, identity):
        return dst / "manifest.csv"
    total = sum(counts.values())
    for folder in ("truth", *(f"videos/{split}" for split in counts)):
        (dst / folder).mkdir(parents=True, exist_ok=True)
    parts = [p for p in range(-(-total // _PART)) if not _part_path(dst, p).exists()]
    done = total - sum(min(_PART, total - p * _PART) for p in parts)
    for part in _each(_write_part, [(dst, spec, counts, seed, crf, p) for p in parts], workers):
        done += min(_PART, total - part * _PART)
        if progress:
            progress(done, total)
    _replace(dst / "manifest.csv", _manifest(dst, spec, counts, label).encode())
    _replace(dst / "world.json", _json(identity | {"complete": True}))
    return dst / "manifest.csv"


def read_spec(folder: str | os.PathLike) -> tuple[WorldSpec, int]:
    """Spec and seed of a written world: `render(*read_spec(folder), index)` is video `index` before compression.

    Raises:
      WorldError: no world in the folder.
    """
    saved = _read_json(Path(folder) / "world.json")
    try:
        spec = WorldSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["spec"].items()})
        return spec, saved["seed"]
    except (KeyError, TypeError, AttributeError) as error:
        raise WorldError(f"{folder}/world.json is of another version ({error}): write the world again") from None


def read_truth(folder: str | os.PathLike, split: str = "", *, masks: bool = True) -> dict[str, np.ndarray]:
    """Ground truth of a written world (of one split if named), rows in the manifest's order.

    Returns:
      The fields of Truth with a leading axis of videos. Videos with fewer objects than others are padded: present and
      visible False, shapes -1, other numbers 0; `num_objects` int32[N] says how many there are. Events are in one list
      for all videos, with `event_video` int32[E], the row of each event's video.

    Raises:
      WorldError: no finished world in the folder, or no such split.
    """
    folder = Path(folder)
    saved = _read_json(folder / "world.json")
    if not saved.get("complete"):
        raise WorldError(f"{folder} holds no finished world: write it with write_world or `vjepa data world --out`")
    counts = saved["num_videos"]
    if split and split not in counts:
        raise WorldError(f"{folder} has no split {split!r}: it has {', '.join(counts)}")
    first = sum(list(counts.values())[: list(counts).index(split)]) if split else 0
    last = first + counts[split] if split else sum(counts.values())
    parts = range(first // _PART, -(-last // _PART))
    return rows(_read_parts(folder, parts, masks), first - parts[0] * _PART, last - parts[0] * _PART)


def _read_parts(folder: Path, parts: range, masks: bool) -> dict[str, np.ndarray]:
    pieces = []
    for part in parts:
        try:
            with np.load(_part_path(folder, part)) as arrays:
                pieces.append({k: arrays[k] for k in arrays.files if masks or k != "masks"})
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            path = _part_path(folder, part)
            raise WorldError(f"{path} cannot be read ({error}): delete it and manifest.csv, write again") from None
    return concatenate(pieces)


def _check_arguments(spec: WorldSpec, counts: dict[str, int], seed: int, label: str) -> None:
    if label not in LABELS:
        raise WorldError(f"world: label {label!r} is not one of {', '.join(LABELS)}")
    if label == "possible" and not spec.violations:
        raise WorldError("world: label 'possible' needs violations in the spec")
    if seed < 0:
        raise WorldError(f"world: seed={seed} must not be negative")
    if not counts:
        raise WorldError("world: num_videos names no split")
    for split, count in counts.items():
        if not split.isidentifier():
            raise WorldError(f"world: split {split!r} must be a plain word, it names a folder")
        if count < 1 or count % spec.videos_per_group:
            pairs = " even," if spec.videos_per_group == 2 else ""
            raise WorldError(f"world: num_videos of split {split!r} is {count}, it must be{pairs} at least 1")


def _identity(spec: WorldSpec, counts: dict[str, int], seed: int, label: str, crf: int) -> dict:
    """What must agree for two worlds to be the same, as JSON reads it back."""
    values = dict(format=_FORMAT, spec=dataclasses.asdict(spec), seed=seed, num_videos=counts, label=label, crf=crf)
    return json.loads(json.dumps(values))


def _json(values: dict) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise WorldError(f"{path.parent} holds no world: there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} cannot be read ({error}): delete the folder and write the world again") from None
    if not isinstance(values, dict):
        raise WorldError(f"{path} cannot be read (no JSON object): delete the folder and write the world again")
    return values


def _open_world(dst: Path, identity: dict) -> bool:
    """True if the folder holds this world, finished; False if it is to be written (its world.json then exists)."""
    if not (dst / "world.json").exists():
        if dst.exists() and (not dst.is_dir() or any(path.suffix != ".tmp" for path in dst.iterdir())):
            raise WorldError(f"{dst} exists and is not a world: name a new or empty folder")
        dst.mkdir(parents=True, exist_ok=True)
        _replace(dst / "world.json", _json(identity | {"complete": False}))
        return False
    saved = _read_json(dst / "world.json")
    complete = saved.pop("complete", False)
    for key, now in _flat(identity).items():
        before = _flat(saved).get(key, "absent")
        if before != now:
            raise WorldError(f"{dst} holds another world ({key}: {before} there, {now} asked): name another folder")
    return complete and (dst / "manifest.csv").exists()


def _flat(values: dict) -> dict:
    """{"spec": {"size": 32}, "seed": 0} -> {"spec.size": 32, "seed": 0}; splits stay together, in order."""
    return {f"spec.{k}": v for k, v in values.get("spec", {}).items()} | {
        k: list(v.items()) if isinstance(v, dict) else v for k, v in values.items() if k != "spec"
    }


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write a file, so that it is at its place whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    with _whole(path) as temporary:
        temporary.write_bytes(content)


def _part_path(dst: Path, part: int) -> Path:
    return dst / "truth" / f"part-{part:05d}.npz"


def _video_paths(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """(split, path in the folder) of every video, by index."""
    return [(split, f"videos/{split}/{i:06d}.mp4") for split, count in counts.items() for i in range(count)]


def _each(function: Callable, tasks: list[tuple], workers: int | None) -> Iterator:
    """function(*task) of every task, as they are finished."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if len(tasks) > 4 else 0
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(*task)
        return
    # Spawned, not forked: the caller may hold threads (jax, grain) that do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, *zip(*tasks, strict=True))


def _write_part(dst: Path, spec: WorldSpec, counts: dict[str, int], seed: int, crf: int, part: int) -> int:
    """Write videos [part * _PART, (part + 1) * _PART), then their truth, whose presence says that all are there."""
    paths = _video_paths(counts)
    per_group, truths = spec.videos_per_group, []
    for group in range(part * _PART // per_group, min((part + 1) * _PART, len(paths)) // per_group):
        for video, truth in render_group(spec, seed, group):
            with _whole(dst / paths[truth.index][1]) as path:
                encode(path, video, fps=spec.fps, crf=crf)
            truths.append(truth)
    _replace(_part_path(dst, part), _npz(stack(truths, spec.objects[1])))
    return part


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """np.savez_compressed at the fastest level: masks shrink nearly as much, in a fraction of the time."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return content.getvalue()


def _manifest(dst: Path, spec: WorldSpec, counts: dict[str, int], label: str) -> str:
    """The text of manifest.csv; paths relative to its folder."""
    truth = _read_parts(dst, range(-(-sum(counts.values()) // _PART)), masks=False)
    names = {"direction": truth["direction"], "possible": (truth["violation"] == "").astype(int)}
    for key, known in (("shape", spec.shapes), ("motion", spec.motions), ("speed", spec.speeds)):
        names[key] = [known.index(value) for value in truth[key].tolist()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for i, (split, path) in enumerate(_video_paths(counts)):
        known = {"path": path, "label": int(names[label][i]), "split": split}
        writer.writerow([known[c] if c in known else truth[c][i] for c in _COLUMNS])
    return text.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data world`."""
    parser.description = "Write a world of generated videos with exact ground truth."
    parser.epilog = "example: vjepa data world --out world --preset demo --size 32 --num train=4000 test=1000"
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--preset", default="demo", choices=sorted(PRESETS), help="kind of world (default: demo)")
    parser.add_argument("--num", nargs="+", default=["train=1000"], metavar="SPLIT=N", help="videos of each split")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--num-frames", type=int, help="frames of a video")
    parser.add_argument("--noise", type=float, help="background noise, standard deviation as a share of the full range")
    parser.add_argument("--palette", choices=PALETTES, help="colours: random, or bright objects on a dark background")
    parser.add_argument("--background", choices=BACKGROUNDS, help="plain colour, static or moving texture")
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, help="kinds of motion")
    parser.add_argument("--objects", nargs=2, type=int, metavar=("FEWEST", "MOST"), help="moving objects in a video")
    parser.add_argument("--label", default="direction", choices=LABELS, help="the label column (default: direction)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes; 0 works in this one (default: one per core)")


def run(args: argparse.Namespace) -> Path:
    """Write the world that parsed arguments ask for; prints what was written. Raises WorldError."""
    counts = {}
    for word in args.num:
        split, _, count = word.partition("=")
        if not count.isdecimal():
            raise WorldError(f"world: --num {word} must be SPLIT=N, as in --num train=4000 test=1000")
        counts[split] = int(count)
    given = {k: getattr(args, k) for k in ("size", "num_frames", "noise") if getattr(args, k) is not None}
    spec = PRESETS[args.preset](**given)
    changes = {
        k: getattr(args, k) for k in ("palette", "background", "motions", "objects") if getattr(args, k) is not None
    }
    spec = dataclasses.replace(spec, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
    start = time.perf_counter()
    manifest = write_world(args.out, spec, num_videos=counts, seed=args.seed, label=args.label, workers=args.workers)
    seconds = time.perf_counter() - start
    print(f"{manifest}: {sum(counts.values())} videos of {spec.num_frames} frames, {seconds:.1f} s", flush=True)
    return manifest
