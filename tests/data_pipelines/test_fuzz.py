"""Damaged videos and shards through the real example path, in a process of its own with a time limit for each.

VJEPA_FUZZ_CLIPS=10000 makes the test of memory long.
"""

import functools
import hashlib
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest

from data_pipelines import array_records, examples, masking
from data_pipelines.index import IndexSource, IndexWriter
from data_pipelines.sources import Row, open_source
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

CASES = 500
CLIPS = int(os.environ.get("VJEPA_FUZZ_CLIPS", "1500"))
LIMIT_S = 60  # for one case, on a machine that does other things too
LEAK_BYTES = 8 << 20  # what memory may grow by from the first third on

KINDS = {
    "h264.mp4": {"gop": 6},
    "h264.mkv": {"gop": 6},
    "h264.ts": {"gop": 4},
    "h264.h264": {"gop": 4},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 5},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "gop": 6},
}


def run_config(folder):
    data = DataConfig(path=str(folder), num_frames=4, fps=10.0, resolution=32)
    masks = MaskConfig(groups=(MaskGroupConfig(kind="tube", ratio=0.5, context=16, target=16),))
    return RunConfig(steps=1, batch_size=1, data=data, model=ModelConfig(patch_size=8), masks=masks)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three damages: flipped bits, a cut, zeros, pieces that change places or come twice, and noise."""
    data = np.frombuffer(content, np.uint8).copy()
    for _ in range(rng.integers(1, 4)):
        n = len(data)
        if not n:
            break
        a, b = sorted(rng.integers(0, n + 1, 2))
        # Headers are short and decide much: half of the damages lie in the first 256 bytes.
        if rng.random() < 0.5:
            a, b = (min(x, n) for x in sorted(rng.integers(0, 257, 2)))
        match rng.integers(6):
            case 0:
                places = rng.integers(0, min(n, 256) if rng.random() < 0.5 else n, rng.integers(1, 50))
                data[places] ^= np.uint8(1) << rng.integers(0, 8, len(places)).astype(np.uint8)
            case 1:
                data = data[:b]
            case 2:
                data[a:b] = 0
            case 3:
                data = np.concatenate([data[:a], data[b:], data[a:b]])
            case 4:
                data = np.concatenate([data[:b], data[a:]])
            case 5:
                data[a:b] = rng.integers(0, 256, b - a)
    return data.tobytes()


class Fuzzer:
    """Examples from damaged copies of the videos in a folder, which also gets a shard of them all with its index."""

    def __init__(self, folder: pathlib.Path):
        self.clean = [str(folder / name) for name in KINDS]
        self.folder, self.ledger = folder, folder / "bad_videos.jsonl"
        self.work = folder / "work"
        self.work.mkdir()
        shutil.copy(self.clean[0], self.work / "good.mp4")
        self.plan = masking.make_plan(run_config(folder))
        videos = [pathlib.Path(path).read_bytes() for path in self.clean]
        self.shard, self.good_shard = self.work / "0.array_record", folder / "0.array_record"
        spans = array_records.write(str(self.good_shard), videos)
        for name, with_checksum in (("checked.arrow", True), ("unchecked.arrow", False)):
            with IndexWriter(str(self.work / name)) as writer:
                for _ in KINDS:  # so that a replacement is soon found
                    writer.write(Row("good.mp4"))
                for video, (offset, length) in zip(videos, spans, strict=True):
                    sha256 = hashlib.sha256(video).digest() if with_checksum else bytes(32)
                    writer.write(Row(self.shard.name, offset=offset, length=length, sha256=sha256, id=str(offset)))

    @functools.cached_property
    def indexes(self):
        return {checked: IndexSource(str(self.work / f"{checked}.arrow")) for checked in ("checked", "unchecked")}

    def example(self, source, row, seed):
        example = examples.train_example(
            (0, 0, row), np.random.default_rng(seed), sources=[source], data=run_config(self.folder).data,
            plan=self.plan, seed=0, ledger=str(self.ledger),
        )  # fmt: skip
        assert example["video"].shape == (4, 32, 32, 3) and example["video"].dtype == np.uint8
        assert 0 <= example["substituted"] <= 32
        return example

    def case(self, number: int) -> bool:
        """One damaged file, or one damaged shard in every fourth case; returns whether it was replaced."""
        rng = np.random.default_rng([17, number])
        self.ledger.unlink(missing_ok=True)
        if number % 4:
            path = self.clean[number % len(self.clean)]
            damaged = self.work / f"damaged{os.path.splitext(path)[1]}"
            damaged.write_bytes(mutate(pathlib.Path(path).read_bytes(), rng))
            manifest = self.work / "list.txt"
            manifest.write_text(f"good.mp4\n{damaged.name}\n")
            source, row = open_source(str(manifest)), 1
        else:
            self.shard.write_bytes(mutate(self.good_shard.read_bytes(), rng))
            source, row = self.indexes["checked" if number % 8 else "unchecked"], len(KINDS) + number // 8 % len(KINDS)
        example = self.example(source, row, number)
        named = self.ledger.read_text() if self.ledger.exists() else ""
        assert (example["substituted"] > 0) == (f'{{"path": "{source.name(row)}", "error": ' in named), named
        if source is self.indexes["checked"]:  # what is damaged never gets through
            self.check_bytes(source, row, example)
        return bool(example["substituted"])

    def check_bytes(self, source, row, example):
        good = pathlib.Path(self.clean[row - len(KINDS)]).read_bytes()
        place = source.row(row)
        try:
            whole = array_records.read(str(self.shard), place.offset, place.length) == good
        except OSError:
            whole = False
        assert whole == (example["substituted"] == 0)


def say(**values):
    print(json.dumps(values), flush=True)


def main(folder: str, task: str) -> None:
    """What the process does: a line before each case, so that the last one names the culprit."""
    fuzzer = Fuzzer(pathlib.Path(folder))
    replaced = 0
    if task == "cases":
        for number in range(CASES):
            say(case=number)
            replaced += fuzzer.case(number)
        say(replaced=replaced)
    else:
        memory = []
        for number in range(CLIPS):
            if number % 50 == 0:
                memory.append(psutil.Process().memory_info().rss)
                say(clip=number)
            fuzzer.case(number % 100)
        say(memory=memory)


def watched(folder: pathlib.Path, task: str) -> dict:
    """The last line of the process. Fails where it ends badly, or says nothing for LIMIT_S."""
    from .videos import write_video

    for video, (name, options) in enumerate(KINDS.items()):
        write_video(folder / name, 12, video=video, **options)
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), task], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: queue.Queue[str] = queue.Queue()

    def pump():
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=pump, daemon=True).start()
    last = "{}"
    try:
        while line := lines.get(timeout=LIMIT_S):
            last = line
    except queue.Empty:
        pytest.fail(f"nothing for {LIMIT_S} s after {last}")
    finally:
        process.kill()
        error = process.communicate()[1]
    assert process.returncode == 0, f"ended with {process.returncode} after {last}: {error[-2000:]}"
    return json.loads(last)


def test_damaged_videos_are_decoded_or_replaced_and_named(tmp_path):
    replaced = watched(tmp_path, "cases")["replaced"]
    assert CASES / 4 < replaced < CASES  # the damage is neither trivial nor total


def test_memory_stays_flat(tmp_path):
    memory = watched(tmp_path, "memory")["memory"]
    third = len(memory) // 3
    assert max(memory[2 * third :]) - max(memory[:third]) < LEAK_BYTES, memory


if __name__ == "__main__":
    main(*sys.argv[1:])
