"""Rows as TensorBoard event files, written without TensorFlow."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from duet_jax.loggers.jsonl import scalars


class TensorBoard:
    """Writes one scalar per value, tagged "<split>/<name>".

    Each row is in the file when `write` returns. TensorboardX's own writer uses a
    thread, which a full disk ends; after that, every write would block forever.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int | None) -> None:
        """Opens a new event file, beside those of earlier parts of the run.

        Args:
          directory: of the event files; created if missing.
          resume_step: step of the checkpoint that training resumes from, None for a
            new run. TensorBoard hides later steps of earlier files.
        """
        first_step = 0 if resume_step is None else resume_step + 1
        os.makedirs(directory, exist_ok=True)
        self._file = EventsWriter(
            os.path.join(directory, "events"),
            # The rest of the name is the time in whole seconds: without this, a run
            # that is resumed within a second would overwrite its own file.
            filename_suffix=f".{first_step:09d}",
        )
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Adds the numbers of `row` at `row["step"]`."""
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in scalars(row).items()
        ]
        self._add(int(row["step"]), summary=Summary(value=values))

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Adds the image file at `path` under the tag `name`."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._add(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def _add(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
