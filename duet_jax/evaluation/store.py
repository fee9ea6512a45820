"""Results on disk: `eval/<name>.json` of a work directory, with its pictures."""

import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from duet_jax.evaluation.result import Result
from duet_jax.figures.style import save
from duet_jax.runs import workdir
from duet_jax.runtime import files

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def read(directory: pathlib.Path, stem: str) -> dict[str, Any] | None:
    """Returns what `<directory>/<stem>.json` holds; None if that is no result."""
    try:
        found = json.loads((directory / f"{stem}.json").read_text())
        whole = (
            isinstance(found["mode"], str)
            and isinstance(found["options"], dict)
            and isinstance(found["results"], dict)
            and bool(found["results"])
            and bool(found["tables"])
            and all(_is_table(**table) for table in found["tables"])
            and all(isinstance(picture, str) for picture in found["pictures"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if whole else None


def write(
    directory: pathlib.Path, stem: str, about: Mapping[str, Any], result: Result
) -> dict[str, Any]:
    """Writes a result: first the pictures, then the numbers, each file whole.

    Args:
      directory: `eval/` of the work directory.
      stem: name of the file.
      about: what the result is of, and how it was measured.
      result: of the evaluator.

    Returns:
      What the file holds.

    Raises:
      UsageError: the directory cannot be written.
    """
    found = plain(
        {
            **about,
            "results": result.values,
            "tables": [table._asdict() for table in result.tables],
            "pictures": [f"{stem}_{each}.png" for each in result.figures],
            "versions": {
                "python": platform.python_version(),
                **{each: importlib.metadata.version(each) for each in _PACKAGES},
            },
        }
    )
    with workdir.writing(directory, "--workdir"):
        directory.mkdir(parents=True, exist_ok=True)
        old = _pictures(directory / f"{stem}.json")
        for each, figure in result.figures.items():
            save(directory / f"{stem}_{each}.png", figure)
        with files.replacing(directory / f"{stem}.json") as partial:
            partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        for name in old - set(found["pictures"]):
            (directory / name).unlink(missing_ok=True)
    return found


def plain(value: Any) -> Any:
    """Returns `value` in JSON's own types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_table(header: list, rows: list, title: str, note: str) -> bool:
    """Returns whether what a file holds can be shown as a `Table`."""
    lines = [header, *rows, [title, note]]
    return all(
        isinstance(line, list) and all(isinstance(cell, str) for cell in line)
        for line in lines
    ) and all(len(row) == len(header) for row in rows)


def _pictures(path: pathlib.Path) -> set[str]:
    """Returns the names of the pictures of a stored result."""
    try:
        names = json.loads(path.read_text())["pictures"]
        return {name for name in names if pathlib.PurePath(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
