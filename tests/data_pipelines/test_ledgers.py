"""The ledger of undecodable videos: each one once, whoever writes; every line is read once."""

import json
import threading

from data_pipelines import ledgers


def named(path):
    return [json.loads(line)["path"] for line in path.read_text().splitlines()]


def test_what_others_write_is_seen(tmp_path):
    path = tmp_path / "bad.jsonl"
    ledgers.record(str(path), "a.mp4", "broken")
    with path.open("a") as file:  # as another process does
        file.write('{"path": "b.mp4", "error": "broken"}\n')
    for name in ("b.mp4", "a.mp4", "c.mp4"):
        ledgers.record(str(path), name, "broken")
    assert named(path) == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_new_file_starts_anew(tmp_path):
    path = tmp_path / "bad.jsonl"
    for _ in range(2):
        for name in ("a.mp4", "b.mp4", "a.mp4"):
            ledgers.record(str(path), name, "broken")
        assert named(path) == ["a.mp4", "b.mp4"]
        path.unlink()


def test_lines_are_read_once(tmp_path, monkeypatch):
    """Else a thousand broken videos would mean half a million lines."""
    parsed, parse = [], ledgers._parse_path
    monkeypatch.setattr(ledgers, "_parse_path", lambda line: parsed.append(line) or parse(line))
    for i in range(300):
        ledgers.record(str(tmp_path / "bad.jsonl"), f"{i}.mp4", "broken")
    assert len(parsed) == len(set(parsed)) == 299


def test_threads_name_each_video_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    names = [f"{i}.mp4" for i in range(50)]
    threads = [threading.Thread(target=lambda: [ledgers.record(str(path), n, "x") for n in names]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(named(path)) == sorted(names)
