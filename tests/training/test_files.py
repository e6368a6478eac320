"""Files of a run, written by one process or by several at once."""

import json
import os

import pytest

from vjepa_jax.training import files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_two_processes_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    """The other one writes all of its file between our writing and our renaming."""
    path, replace = tmp_path / "a.json", os.replace

    def interrupted(source, target):
        with monkeypatch.context() as other:
            other.setattr(os, "replace", replace)
            other.setattr(os, "getpid", lambda: 1)
            files.write_bytes(path, b"theirs")
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    files.write_bytes(path, b"ours")
    assert path.read_bytes() == b"ours" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.write_bytes(tmp_path / "folder", b"x")
    assert (tmp_path / "folder").is_dir() and len(list(tmp_path.iterdir())) == 1
