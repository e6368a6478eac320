"""The ledger of a run: a JSON-lines file that names every undecodable video once, {"path", "error"}."""

import dataclasses
import fcntl
import json
import os
import threading


@dataclasses.dataclass
class _Known:
    """What this process has read of a ledger: videos named before byte `end` of the file."""

    inode: int
    end: int = 0
    paths: set[str] = dataclasses.field(default_factory=set)


_known: dict[str, _Known] = {}
_lock = threading.Lock()


def of_process(ledger: str | None, process_index: int) -> str | None:
    if ledger is None or process_index == 0:
        return ledger
    stem, suffix = os.path.splitext(ledger)
    return f"{stem}.{process_index}{suffix}"


def record(ledger: str | None, path: str, error: str) -> None:
    """Names a video in the ledger, unless it is there already. Safe across threads, workers and restarts.

    Each process reads every line once: a data set of millions has thousands of broken videos, each met once an epoch.
    """
    if ledger is None:
        return
    with _lock, open(ledger, "ab+") as file:  # O_APPEND: a line is written whole
        fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed
        status, known = os.fstat(file.fileno()), _known.get(ledger)
        if known is None or known.inode != status.st_ino or known.end > status.st_size:
            known = _known[ledger] = _Known(status.st_ino)
        file.seek(known.end)
        lines = file.read().splitlines(keepends=True)
        known.paths.update(map(_parse_path, lines))
        known.end += sum(len(line) for line in lines if line.endswith(b"\n"))  # a torn line is looked at again
        if path in known.paths:
            return
        torn = lines and not lines[-1].endswith(b"\n")
        entry = json.dumps({"path": path, "error": error}, ensure_ascii=False)
        file.write((b"\n" if torn else b"") + entry.encode() + b"\n")


def _parse_path(line: bytes) -> str:
    """The path of an entry; empty for a line torn by a crash."""
    try:
        return str(json.loads(line)["path"])
    except (ValueError, KeyError, TypeError):
        return ""
