"""Rows as TensorBoard event files, written without TensorFlow."""

import os
from collections.abc import Mapping

import numpy as np
import tensorboardX
from PIL import Image

# Entries of a row that place it on the axes and are no curve of their own.
AXES = ("step", "epoch", "split")


class TensorBoard:
    """Writes one scalar per measured value, tagged "<split>/<name>"."""

    def __init__(self, directory: str | os.PathLike, resume_step: int | None) -> None:
        """Opens a new event file beside those of earlier parts of the run.

        Args:
          directory: where TensorBoard looks; created where it is missing.
          resume_step: the step of the checkpoint that training goes on from, None
            for a new run. TensorBoard hides what earlier files say of later steps.
        """
        first_step = 0 if resume_step is None else resume_step + 1
        self._writer = tensorboardX.SummaryWriter(
            os.fspath(directory),
            purge_step=first_step,
            flush_secs=10,
            # The rest of the name is the time in whole seconds: without this a run
            # resumed within its first second would overwrite its own file.
            filename_suffix=f".{first_step:09d}",
        )

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Adds the numbers of `row` at `row["step"]`."""
        for name, value in row.items():
            if name not in AXES and not isinstance(value, str):
                tag = f"{row['split']}/{name}"
                self._writer.add_scalar(tag, float(value), int(row["step"]))

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Adds the image file at `path` under the tag `name`."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        self._writer.close()
