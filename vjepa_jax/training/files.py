"""Writing a run's files atomically: a kill leaves the old file or the new one, never half of one."""

import json
import os
import pathlib
import socket
from typing import Any


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Replace `path` with `data`. Raises OSError and leaves the old file where it cannot be written; a kill, or a
    machine that goes down, leaves one of the two whole.

    Several processes of a run may write the same file at once: the last one's stays.
    """
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:  # its name is this process's own: nobody would write over what an error leaves
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replace `path` with indented JSON."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())
