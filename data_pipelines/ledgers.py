"""The ledger of a run: a JSON-lines file that names every undecodable video once, {"path", "error"}."""

import fcntl
import json
import os
from collections.abc import Mapping


def of_process(ledger: str | None, process_index: int) -> str | None:
    if ledger is None or process_index == 0:
        return ledger
    stem, suffix = os.path.splitext(ledger)
    return f"{stem}.{process_index}{suffix}"


def record(ledger: str | None, path: str, error: str) -> None:
    """Names a video in the ledger, unless it is there already. Safe across threads, workers and restarts."""
    if ledger is None:
        return
    with open(ledger, "ab+") as file:  # O_APPEND: a line is written whole
        fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if path in (entry.get("path") for entry in map(_parse_entry, lines)):
            return
        torn = lines and not lines[-1].endswith(b"\n")
        entry = json.dumps({"path": path, "error": error}, ensure_ascii=False)
        file.write((b"\n" if torn else b"") + entry.encode() + b"\n")


def _parse_entry(line: bytes) -> Mapping[str, str]:
    """An entry of the ledger; empty for a line torn by a crash."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
