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

# Entries of a row that place it on the axes and are no curve of their own.
AXES = ("step", "epoch", "split")


class TensorBoard:
    """Writes one scalar per measured value, tagged "<split>/<name>".

    Each row is in the file when `write` returns. TensorboardX's own writer leaves it to
    a thread, which a full disk ends; after that, whoever writes would wait for ever.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int | None) -> None:
        """Opens a new event file beside those of earlier parts of the run.

        Args:
          directory: where TensorBoard looks; created where it is missing.
          resume_step: the step of the checkpoint that training goes on from, None
            for a new run. TensorBoard hides what earlier files say of later steps.
        """
        first_step = 0 if resume_step is None else resume_step + 1
        os.makedirs(directory, exist_ok=True)
        self._file = EventsWriter(
            os.path.join(directory, "events"),
            # The rest of the name is the time in whole seconds: without this a run
            # resumed within its first second would overwrite its own file.
            filename_suffix=f".{first_step:09d}",
        )
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Adds the numbers of `row` at `row["step"]`."""
        values = [
            Summary.Value(tag=f"{row['split']}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name not in AXES and not isinstance(value, str)
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
