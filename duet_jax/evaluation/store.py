"""Results on disk: `eval/<name>.json` of a work directory, and its pictures."""

import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from duet_jax.evaluation.result import Result
from duet_jax.figures import Drawing
from duet_jax.figures.style import remove, save, small_print
from duet_jax.runs import workdir
from duet_jax.runtime import files, provenance

_log = logging.getLogger(__name__)


def read(directory: pathlib.Path, stem: str) -> dict[str, Any] | None:
    """Returns the result in `<directory>/<stem>.json`; None if it holds no result.

    Pictures are kept only if their names are plain file names: a result may have been
    edited, and must not lead to files outside of `directory`.
    """
    try:
        found = json.loads((directory / f"{stem}.json").read_text())
        whole = (
            isinstance(found["mode"], str)
            and isinstance(found["options"], dict)
            and isinstance(found["results"], dict)
            and bool(found["results"])
            and bool(found["tables"])
            and all(_is_table(**table) for table in found["tables"])
        )
        names = found["pictures"]
        plain_names = [name for name in names if pathlib.PurePath(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found | {"pictures": plain_names} if whole else None


def write(
    directory: pathlib.Path, stem: str, about: Mapping[str, Any], result: Result
) -> dict[str, Any]:
    """Writes a result: first the pictures, then the numbers, each file atomically.

    Args:
      directory: `eval/` of the work directory.
      stem: name of the file without suffix.
      about: what was measured, and how; `method`, `dataset`, `step` and `seed` are the
        small print of the pictures.
      result: of the evaluator.

    Returns:
      The content of the .json file.

    Raises:
      UsageError: the directory cannot be written.
    """
    content = plain(
        {
            **about,
            "results": result.values,
            "tables": [table._asdict() for table in result.tables],
            "pictures": [f"{stem}_{name}.png" for name in result.figures],
            "drawings": {
                name: drawn.stored()
                for name, drawn in result.figures.items()
                if isinstance(drawn, Drawing)
            },
            "provenance": provenance.describe(),
        }
    )
    with workdir.writing(directory, "--workdir"):
        directory.mkdir(parents=True, exist_ok=True)
        old = read(directory, stem) or {"pictures": []}
        for name, drawn in result.figures.items():
            figure = drawn.figure() if isinstance(drawn, Drawing) else drawn
            save(directory / f"{stem}_{name}.png", figure, about_run(content))
        with files.replacing(directory / f"{stem}.json") as partial:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        if gone := sorted(set(old["pictures"]) - set(content["pictures"])):
            _log.info("replaced     an earlier %s with %s", stem, ", ".join(gone))
        for name in gone:
            remove(directory / name)
    return content


def about_run(content: Mapping[str, Any]) -> str:
    """Returns the small print of the pictures of a result."""
    return small_print(
        content["method"],
        content["dataset"]["name"],
        content["step"],
        content.get("seed", 0),
    )


def plain(value: Any) -> Any:
    """Returns `value` as JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_table(header: list, rows: list, title: str, note: str, about: str = "") -> bool:
    """Returns True if the fields of a stored table make a `Table`."""
    lines = [header, *rows, [title, note, about]]
    return all(
        isinstance(line, list) and all(isinstance(cell, str) for cell in line)
        for line in lines
    ) and all(len(row) == len(header) for row in rows)
