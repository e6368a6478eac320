"""`vjepa data index`, `shard`, `check` and `show` as a user meets them."""

import ctypes
import operator
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import contact_sheet, data_cli, pool
from data_pipelines.shards import write_shards
from data_pipelines.sources import DataError, open_source
from vjepa_jax import cli

from .videos import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_video(root / "ab"[i % 2] / f"{i}.mp4", 20, video=i, height=64)
    return root


def run(capsys, *argv):
    """Exit code, lines of standard output, lines of standard error."""
    try:
        code = cli.main(["data", *map(str, argv)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


@pytest.mark.parametrize("verb", ["index", "shard", "check", "show"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"example: vjepa data {verb}" in " ".join(out)


def test_from_a_folder_to_checked_shards(folder, tmp_path, capsys):
    (folder / "a" / "bad.mp4").write_bytes(b"no video")
    index, dst = tmp_path / "videos.arrow", tmp_path / "shards"
    code, out, err = run(capsys, "index", folder, index, "--workers", 0, "--checksums")
    assert (code, out) == (0, [f"{index}: 3 videos, 1 broken ones left out"])
    assert len(err) == 1 and err[0].startswith(f"{folder / 'a' / 'bad.mp4'}: ")
    code, out, err = run(capsys, "check", folder, "--workers", 0)
    assert code == 1 and out[0].startswith(f"{folder / 'a' / 'bad.mp4'}: ") and "1 of 4 videos are broken" in out[1]
    (folder / "a" / "bad.mp4").unlink()
    code, out, err = run(capsys, "shard", index, dst, "--short-side", 32, "--shard-size", "1KB", "--workers", 0)
    assert (code, out, err) == (0, [f"{dst / 'index.arrow'}: 3 videos"], [])
    assert open_source(str(dst)).row(0).height == 32
    assert run(capsys, "check", dst, "--workers", 0) == (0, [f"{dst}: 0 of 3 videos are broken"], [])


def test_check_names_what_is_broken(folder, tmp_path, capsys):
    """One flipped byte that decodes all the same; a video that the index describes otherwise."""
    write_shards(str(folder), str(tmp_path / "shards"), workers=0)
    source = open_source(str(tmp_path / "shards"))
    row = source.row(1)
    data = bytearray(pathlib.Path(row.path).read_bytes())
    data[row.offset + row.length - 1] ^= 1
    pathlib.Path(row.path).write_bytes(data)
    code, out, _ = run(capsys, "check", tmp_path / "shards", "--workers", 0)
    assert code == 1 and len(out) == 2
    assert out[0].startswith(source.name(1)) and "do not have the checksum of the index" in out[0]

    for i in range(2):
        write_video(tmp_path / "files" / f"{i}.mp4", 5, video=i)
    index = tmp_path / "files.arrow"
    run(capsys, "index", tmp_path / "files", index, "--workers", 0)
    write_video(tmp_path / "files" / "1.mp4", 6)
    code, out, _ = run(capsys, "check", index, "--workers", 1)
    assert code == 1 and "1.mp4: it has 6 frames of 48 x 64 (height x width), the index says 5 of 48 x 64" in out[0]


def test_a_contact_sheet(folder, tmp_path, capsys, repo):
    """As many clips as asked for, those of the first training batch, in rows that are as high as the clip."""
    picture = tmp_path / "sheet.png"
    config = repo / "experiments" / "pretrain" / "folder.py"
    code, out, err = run(capsys, "show", folder, picture, "--config", config, "--clips", 2, "--config.data.fps=30")
    assert (code, out, err) == (0, [str(picture)], [])
    two = read(picture)
    assert run(capsys, "show", folder, picture, "--config", config, "--clips", 1, "--config.data.fps=30")[0] == 0
    one = read(picture)
    # A clip has a row of 128 pixel frames and one for each of the two mask groups, with gaps of 3 pixels.
    clip_height = 3 * (128 + 3) - 3
    assert two.shape[1] == one.shape[1] and two.shape[0] - one.shape[0] == clip_height + 20 + 24
    assert run(capsys, "show", folder, picture, "--clips", 1)[0] == 0  # with the defaults of V-JEPA 2
    assert read(picture).shape[1] > 1000


def read(picture):
    with Image.open(picture) as image:
        return np.asarray(image)


def test_a_sheet_shows_the_batch(folder):
    """The pixels of the clip are on the page, and every group is drawn by the function given."""
    run = contact_sheet.default_run(str(folder))
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8, 3), np.uint8)
    ids = np.arange(4)[None]
    batch = {"video": video, "index": np.array([2]), "masks": [{"context": ids, "target": ids}] * 2}
    drawn = []

    def draw(clip, masks, grid):
        drawn.append((clip, masks, grid))
        return np.concatenate([clip[0]] * 3)

    page = contact_sheet.draw_sheet(batch, [open_source(str(folder))], run, draw)
    assert drawn[0][0] is not None and len(drawn[0][1]) == 2 and drawn[0][2] == run.grid
    windows = np.lib.stride_tricks.sliding_window_view(page, (8, 8, 3))[:, :, 0]
    assert (windows == video[0, 0]).all((2, 3, 4)).sum() == 3


ERRORS = {
    "the name of an index ends with .arrow, x.csv does not": ("index", "{folder}", "x.csv"),
    "no such file or folder: ": ("check", "{folder}/absent"),
    "--shard-size 12XB is no size: write it as in 256MB": ("shard", "{folder}", "{tmp}/s", "--shard-size", "12XB"),
    "crf between 0 and 51": ("shard", "{folder}", "{tmp}/s", "--crf", "99"),
    "--beam-options are for --beam": ("shard", "{folder}", "{tmp}/s", "--beam-options=--x"),
    "cannot be written (": ("index", "{folder}", "{tmp}/absent/x.arrow", "--workers", "0"),
    "--clips 0 must be at least 1": ("show", "{folder}", "{tmp}/x.png", "--clips", "0"),
    "overrides a key of a config file: name one with --config": ("show", "{folder}", "x.png", "--config.data.fps=3"),
    "x.png cannot be written: ": ("show", "{folder}", "{tmp}/absent/x.png", "--clips", "1"),
    "unknown option --clip": ("show", "{folder}", "x.png", "--clip", "1"),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_clear_line(message, folder, tmp_path, capsys):
    code, _, err = run(capsys, *(word.format(folder=folder, tmp=tmp_path) for word in ERRORS[message]))
    assert code == cli.USAGE_ERROR and message in err[-1]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("256MB", 256 << 20), ("1G", 1 << 30), ("500 KiB", 500 << 10), ("12", 12), ("7b", 7)]
)
def test_sizes(text, size):
    assert data_cli._size(text) == size


def test_progress_in_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(data_cli, "_PLAIN_SECONDS", 0.0)
    with data_cli.progress("checked", 2000) as update:
        update(1000)
        update(5, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["checked 1,000 of 2,000 videos in 0 s", "checked 5 of 10 videos in 0 s"]


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with data_cli.progress("checked", 20) as update:
        update(20)
    assert "20/20 videos" in re.sub("\x1b[^m]*m", "", capsys.readouterr().err)


def test_pool_keeps_the_order():
    tasks = list(range(40))
    assert list(pool.each(operator.mul, 2, iter(tasks), workers=2)) == [2 * t for t in tasks]
    assert list(pool.each(operator.mul, 2, iter(tasks), workers=0)) == [2 * t for t in tasks]
    assert [list(r) for r in pool.ranges(5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_killed_worker_is_one_clear_line():
    """Workers read from an address that is not theirs."""
    with pytest.raises(DataError, match="a worker process was killed, most likely for want of memory"):
        list(pool.each(ctypes.string_at, 8, [1, 1], workers=1))


def test_data_verbs_load_neither_jax_nor_pyarrow():
    """A worker starts fast, and help is instant."""
    code = "import sys, data_pipelines.data_cli; print([m for m in ('jax', 'grain', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
