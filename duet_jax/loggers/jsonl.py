"""Rows as JSON Lines."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from duet_jax.errors import UsageError
from duet_jax.runtime import files


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Returns the rows of a metrics file, oldest first.

    Incomplete lines are skipped: a run that is killed may leave one at the end.

    Args:
      path: a file written by `JsonLines`.

    Returns:
      One dict per row. Values that were not finite are None.

    Raises:
      UsageError: the file does not exist.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UsageError(
            f"{os.fspath(path)!r} does not exist; give the metrics.jsonl of a run."
        ) from None
    return [row for row in map(_parse, text.splitlines()) if row is not None]


def _parse(line: str) -> dict | None:
    """Returns the row in a line, or None if it is incomplete."""
    try:
        row = json.loads(line)
        complete = isinstance(row["step"], int) and isinstance(row["split"], str)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return row if complete else None


def _plain(value: object) -> float | int | str | None:
    """Returns a scalar of Python, NumPy or JAX as a JSON value."""
    value = np.asarray(value).item()
    if isinstance(value, str | int):
        return value
    # Most readers refuse the tokens that Python writes for NaN and infinity.
    return float(value) if math.isfinite(value) else None


def scalars(row: Mapping[str, float | int | str]) -> dict[str, float]:
    """Returns the numbers of a row, named "<split>/<name>", without step and epoch."""
    return {
        f"{row['split']}/{name}": float(value)
        for name, value in row.items()
        if name not in ("step", "epoch") and not isinstance(value, str)
    }


class JsonLines:
    """Appends rows to a file, one JSON object per line, each flushed at once.

    Values that are not finite are written as null, so that every line is valid JSON.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int | None) -> None:
        """Opens the file.

        Args:
          path: the file; its directory is created if missing.
          resume_step: step of the checkpoint that training resumes from. Rows of later
            steps are dropped, because they will be measured again, and so is an
            incomplete last line. None starts an empty file.
        """
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_rows(path) if resume_step is not None and path.exists() else []
        with files.replacing(path) as partial, partial.open("w") as file:
            kept = (row for row in rows if row.get("step", 0) <= resume_step)
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Appends `row`; its values are scalars of Python, NumPy or JAX."""
        plain = {name: _plain(value) for name, value in row.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint must not outlive its rows

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Does nothing: the figure is a file already."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
