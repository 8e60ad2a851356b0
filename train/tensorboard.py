"""A run's curves, and its sample predictions beside their images, for TensorBoard.

tensorboardX's `SummaryWriter` hands events to a thread; where the disk is full the thread dies, and the training loop
then waits for it for ever. So its parts are used here without the thread: what cannot be written raises.
"""

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


class TensorBoard:
    """Event files in `directory`, one per process that wrote there, made when there is something to write.

    Every method raises OSError where the disk does not take it; the next call starts another file.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path):
        import tensorboardX  # noqa: F401 - now, not at the first step

        self.directory = directory
        self.records: Any = None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Points of curves, by tag."""
        from tensorboardX import summary

        self._write(step, [summary.scalar(tag, value) for tag, value in values.items()])

    def sample(self, step: int, tag: str, text: str, images: list[np.ndarray]) -> None:
        """Markdown, and the uint8 `[height, width, 3]` images that belong to it."""
        from tensorboardX import summary

        pictures = [summary.image(f"{tag}/{i}", image, dataformats="HWC") for i, image in enumerate(images)]
        text = text.encode(errors="replace").decode()  # half a surrogate pair is no UTF-8
        self._write(step, [summary.text(tag, text), *pictures])

    def close(self) -> None:
        """Ends the file."""
        if self.records is not None:
            self.records.close()
            self.records = None

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import RecordWriter

        events = [Event(wall_time=time.time(), step=step, summary=summary) for summary in summaries]
        try:
            if self.records is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}"
                self.records = RecordWriter(str(self.directory / name))
                # A run that goes on: what an earlier process wrote from this step on was lost, and is not shown.
                restart = Event(step=step, session_log=SessionLog(status=SessionLog.START))
                events = [Event(wall_time=time.time(), file_version="brain.Event:2"), restart, *events]
            for event in events:
                self.records.write(event.SerializeToString())
            self.records.flush()
        except OSError:
            with suppress(OSError):  # the file ends in the middle of a record, so nothing can follow there
                self.close()
            self.records = None
            raise
