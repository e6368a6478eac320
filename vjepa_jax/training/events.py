"""TensorBoard events, written at once and in the caller's thread.

tensorboardX's SummaryWriter hands events to a thread through a bounded queue; when that thread dies of a full disk, the
next event waits for ever and the training with it. The same file format is written here without thread and queue.
"""

import os
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """One event file of a run. Every method raises OSError where the file cannot be written."""

    def __init__(self, folder: str | os.PathLike[str], first_step: int):
        """Events of earlier files from `first_step` on are hidden by TensorBoard: a restart logs these steps again."""
        os.makedirs(folder, exist_ok=True)
        # names hold whole seconds only: a quick restart would overwrite
        self._writer = EventsWriter(os.path.join(os.fspath(folder), "events"), f".{first_step}")
        self._write(Event(file_version="brain.Event:2"), first_step)
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), first_step)
        self._writer.flush()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One point of each curve."""
        for tag, value in values.items():
            self._write(Event(summary=summary.scalar(tag, value)), step)
        self._writer.flush()

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """uint8[H,W,3]."""
        self._write(Event(summary=summary.image(tag, np.asarray(image), dataformats="HWC")), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self._writer.write_event(event)
