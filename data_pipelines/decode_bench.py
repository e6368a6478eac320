"""Clips a second and core: this pipeline beside the loops that one writes with PyAV, decord2 and OpenCV.

A clip is 16 frames, 4 apart, from a random place of a video of 10 s, cut by a random box and resized to 256 x 256,
uint8. All ways read the same files with one thread, take turns, and draw the same clips. The peers resize with
cv2.resize (bilinear, not antialiased; without OpenCV PyAV's frames are resized by Pillow), which is what one would take
and cheaper than the antialiased resize of this pipeline.
"""

import importlib
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipelines import augment, masking
from data_pipelines.clips import ClipSpec, clip_indices
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.pipeline import train_batches
from data_pipelines.sources import DataError, open_source
from data_pipelines.world import write_world
from data_pipelines.world_spec import WorldSpec
from vjepa_jax.config import DataConfig, RunConfig

SIZES = ((240, 320), (720, 1280))  # height, width
GOPS = (12, 30, 250)
CLIP = ClipSpec(num_frames=16, frame_step=4)
OUT = (256, 256)
SCALE, ASPECT = (0.3, 1.0), (0.75, 1.35)
FPS = 30
LOADERS = tuple(itertools.product(("num_threads", "num_workers"), sorted({1, 2, os.cpu_count() or 1})))

Way = Callable[[str, np.random.Generator], np.ndarray]


def benchmark(source: str = "", *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Records of all measurements; `source`: a folder of videos to make the test videos from, else the embedded world.

    Yields:
      For each size and distance of key frames "what", "shape" (of a clip), "video" (what it shows), "mbit_s",
      "clips_per_core_s" and "clips_per_s" (by way: from the median of processor time, and of wall time; or "not
      installed"), "rounds", "ratio" (to the best peer, processor time). Then for each size the split of this pipeline,
      "ms" of processor time for a clip by part; then threads and worker processes, "clips_per_s" in wall time. All
      carry "load" (of the machine, over a minute), "rss_mb" and "versions".

    Raises:
      DataError: the folder holds no videos that decode.
    """
    sizes, gops = SIZES, (30,) if quick else GOPS
    frames, rounds = (90, 1) if quick else (300, 9)
    with tempfile.TemporaryDirectory(prefix="vjepa-bench-") as folder:
        files = {}
        for size in sizes:
            images = _source_frames(source, size, frames, folder)
            for gop in gops:
                files[size, gop] = _encode(Path(folder) / f"{size[1]}x{size[0]}" / f"{gop}" / "video.mp4", images, gop)
            del images
        shown = os.path.basename(os.path.normpath(source)) if source else "embedded world"
        common = {"shape": [CLIP.num_frames, *OUT, 3], "video": shown}
        for size in sizes:
            yield common | _split(files[size, 30], size, clips=2 if quick else 24) | _machine()
        for size in sizes:
            yield from (common | r | _machine() for r in _loaders(files[size, 30], size, 4 if quick else 48))
        for (size, gop), path in files.items():
            name = f"decode {size[1]}x{size[0]} gop {gop}"
            rate = {"mbit_s": round(8e-6 * os.path.getsize(path) * FPS / frames, 2)}
            yield common | {"what": name} | rate | _compare(str(path), rounds, size) | _machine()


def _machine() -> dict[str, Any]:
    names = {"av": "av", "numpy": "numpy", "grain": "grain", "decord2": "decord2", "opencv": "opencv-python-headless"}
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if os.path.exists("/proc/self/statm") else 0
    return {
        "load": round(os.getloadavg()[0], 2),
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20),
        "versions": {key: _version(name) for key, name in names.items()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _source_frames(source: str, size: tuple[int, int], count: int, folder: str) -> list[np.ndarray]:
    """`count` frames, uint8[*size, 3]: two seconds from the middle of each video, one video after the other."""
    if not source:
        spec = WorldSpec(num_frames=2 * FPS)
        source = str(write_world(Path(folder) / "world", spec, num_videos=8, workers=0).parent / "videos")
    images = []
    videos = open_source(source)
    for row in range(len(videos)):
        try:
            with VideoReader(videos.open(row)) as reader:
                start = max(0, reader.num_frames // 2 - FPS)
                middle = range(start, min(start + 2 * FPS, reader.num_frames))
                images += list(reader.crops(middle, lambda h, w: augment.center_box(h, w, size), size))
        except DecodeError:
            continue
        if len(images) >= count:
            return images[:count]
    if not images:
        raise DataError(f"no video in {source} can be decoded: give --source a folder of videos")
    return list(itertools.islice(itertools.cycle(images), count))


def _encode(path: Path, images: list[np.ndarray], gop: int) -> Path:
    """H.264 as FFmpeg makes it unless told otherwise (x264 medium, crf 23), a key frame every `gop` frames."""
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        stream.gop_size = gop
        stream.options = {"crf": "23", "preset": "medium", "x264-params": "scenecut=0"}
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _box(height: int, width: int, rng: np.random.Generator) -> augment.Box:
    return augment.random_box(height, width, SCALE, ASPECT, rng)


def ours(path: str, rng: np.random.Generator) -> np.ndarray:
    with VideoReader(path) as reader:
        indices = clip_indices(reader.num_frames, reader.fps, CLIP, rng=rng)
        return reader.crops(indices, lambda h, w: _box(h, w, rng), OUT)


def with_pyav(path: str, rng: np.random.Generator) -> np.ndarray:
    """Seek, decode, convert the wanted frames."""
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        wanted = clip_indices(stream.frames, float(stream.average_rate), CLIP, rng=rng).tolist()
        container.seek(int(wanted[0] / stream.average_rate / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * stream.time_base * stream.average_rate)
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= wanted[-1]:
                return _crop_and_resize(frames, rng)
    raise DecodeError(f"PyAV finds no frame {wanted[-1]}")


def with_decord(path: str, rng: np.random.Generator) -> np.ndarray:
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(path, num_threads=1)
    indices = clip_indices(len(reader), reader.get_avg_fps(), CLIP, rng=rng)
    return _crop_and_resize(reader.get_batch(indices.tolist()).asnumpy(), rng)


def with_opencv(path: str, rng: np.random.Generator) -> np.ndarray:
    """`grab` decodes, `retrieve` converts."""
    cv2 = importlib.import_module("cv2")
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    count, fps = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
    wanted = clip_indices(count, fps, CLIP, rng=rng).tolist()
    video.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
    frames = []
    for number in range(wanted[0], wanted[-1] + 1):
        video.grab()
        if number in wanted:
            frames.append(video.retrieve()[1])
    return np.ascontiguousarray(_crop_and_resize(frames, rng)[..., ::-1])  # BGR


def _crop_and_resize(frames: np.ndarray | list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = _box(*frames[0].shape[:2], rng)
    parts = [frame[top : top + height, left : left + width] for frame in frames]
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        resample = Image.Resampling.BILINEAR
        return np.stack([np.asarray(Image.fromarray(part).resize(OUT[::-1], resample)) for part in parts])
    return np.stack([cv2.resize(part, OUT[::-1]) for part in parts])


WAYS = {"vjepa_jax": (ours, "av"), "pyav": (with_pyav, "av"), "decord2": (with_decord, "decord"),
        "opencv": (with_opencv, "cv2")}  # fmt: skip


def _compare(path: str, rounds: int, size: tuple[int, int]) -> dict[str, Any]:
    """Rounds in which every way reads the same clips, in turn, after one round to warm up."""
    clips = 4 if max(size) < 640 else 1  # in a row: small clips are over too soon to be timed alone
    ways = {name: way for name, (way, module) in WAYS.items() if _is_installed(module)}
    if "opencv" in ways:
        importlib.import_module("cv2").setNumThreads(1)
    cpu, wall = {name: [] for name in ways}, {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            for clip in range(clips):
                way(path, np.random.default_rng([turn, clip]))
            cpu[name].append((time.process_time() - cpu_start) / clips)
            wall[name].append((time.perf_counter() - start) / clips)
    rates = [{n: round(1 / statistics.median(t[1:]), 2) for n, t in times.items()} for times in (cpu, wall)]
    absent = {name: "not installed" for name in WAYS if name not in ways}
    best = max(rate for name, rate in rates[0].items() if name != "vjepa_jax")
    return {
        "clips_per_core_s": rates[0] | absent,
        "clips_per_s": rates[1] | absent,
        "ratio": round(rates[0]["vjepa_jax"] / best, 2),
        "rounds": rounds,
    }


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _split(path: Path, size: tuple[int, int], clips: int) -> dict[str, Any]:
    """Processor time of each part, median over clips. Decoding is the same clip with boxes of one pixel."""
    run = RunConfig(steps=1, batch_size=1, data=DataConfig(path=str(path)))
    plan = masking.make_plan(run)
    parts = {"open": [], "decode": [], "crop, resize": [], "masks": [], "batch": []}
    for clip in range(clips + 1):
        times = [time.process_time()]
        with VideoReader(path) as reader:
            times.append(time.process_time())
            indices = clip_indices(reader.num_frames, reader.fps, CLIP, rng=np.random.default_rng(clip))
            reader.crops(indices, lambda h, w: (0, 0, 1, 1), (1, 1))
        times.append(time.process_time())
        video = ours(str(path), np.random.default_rng(clip))
        times.append(time.process_time())
        masking.draw_masks(plan, np.random.default_rng(clip))
        times.append(time.process_time())
        np.stack([video] * 8)
        times.append(time.process_time())
        spent = dict(zip(parts, np.diff(times).tolist(), strict=True))
        spent["crop, resize"] -= spent["open"] + spent["decode"]
        spent["batch"] /= 8
        for part, seconds in spent.items():
            parts[part].append(seconds)
    medians = {part: round(1e3 * statistics.median(seconds[1:]), 3) for part, seconds in parts.items()}
    return {"what": f"split {size[1]}x{size[0]} gop 30", "ms": medians}


def _loaders(path: Path, size: tuple[int, int], clips: int) -> Iterator[dict[str, Any]]:
    """Whole batches, wall time: threads of this process, and worker processes. The first batches, which were made
    while others started, do not count."""
    for key, number in LOADERS:
        data = DataConfig(path=str(path), frame_step=CLIP.frame_step, resolution=OUT[0], **{key: number})
        batches = train_batches(RunConfig(steps=1, batch_size=2, data=data))
        for _ in range(2 * number + 2):
            next(batches)
        start = time.perf_counter()
        for _ in range(clips // 2):
            next(batches)
        rate = clips / (time.perf_counter() - start)
        batches.close()
        yield {"what": f"batches {size[1]}x{size[0]} gop 30, {number} {key[4:]}", "clips_per_s": round(rate, 2)}
