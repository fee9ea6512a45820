"""Configuration files: `configs/<name>.py`, and rows of those that hold several.

A file defines `get_config()`. An experiment has rows: its file defines `ROWS`, whose
keys are their names, and `get_config(row)`, and is named with one of them,
`configs/figure4.py:duet-rot`, or `configs/figure4.py:duet-rot@short` at another scale.
It may define `MEASURES`, what is measured of each row when it is trained: flags by the
mode of `main.py`.
"""

import os
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from duet_jax.config import checks
from duet_jax.errors import UsageError, lookup, suggestion

_ROOT = pathlib.Path(__file__).parents[2]
_BASE = _ROOT / "configs" / "base.py"
_SCALES = _ROOT / "configs" / "_scales.py"
_STANDARD = _ROOT / "configs" / "standard.py"

# Of an experiment that does not say: modes of main.py and their flags. The equivariance
# is that to the code which the row is about.
_MEASURES = {"linear_probe": {}, "knn": {}, "equivariance": {}}


class Experiment(NamedTuple):
    """A file of rows.

    Attributes:
      path: of the file.
      rows: what each of them changes, by name and dotted field.
      measures: what is measured of each: flags by mode.
    """

    path: str
    rows: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Mapping[str, str]]


def schema() -> ml_collections.ConfigDict:
    """Returns every field there is, with its default: `configs/base.py`."""
    return runpy.run_path(str(_BASE))["get_config"]()


def scales() -> tuple[str, ...]:
    """Returns the names of the scales at which the rows of an experiment can be run."""
    return tuple(runpy.run_path(str(_SCALES))["SCALES"])


def load(name: str) -> ml_collections.ConfigDict:
    """Returns the configuration that `--config=<name>` means, before any override.

    Args:
      name: path of a file, with `:<row>` or `:<row>@<scale>` after an experiment.

    Raises:
      UsageError: there is no such file or row, it fails, or its fields are not those of
        `configs/base.py`.
    """
    path, row = _standard(*_split(name))
    _check_file(path, "--config", name)
    try:
        module = runpy.run_path(path)
        if "ROWS" in module:
            _check_row(path, row, module["ROWS"])
            config = module["get_config"](row)
        else:
            if row:
                raise UsageError(f"{path} has no rows; leave out :{row}.")
            config = module["get_config"]()
        checks.check_schema(config, schema())
    except UsageError as error:
        raise UsageError(f"--config={name}: {error}") from error
    except (Exception, SystemExit) as error:  # it is a program: anything can happen
        raise UsageError(
            f"--config={name} cannot be read ({_in_words(error)}); it must define "
            "get_config() like configs/base.py."
        ) from error
    return config


def load_experiment(path: str) -> Experiment:
    """Returns what is in the file of an experiment.

    Raises:
      UsageError: there is no such file, it fails, or it has no rows.
    """
    _check_file(path, "--experiment", path)
    try:
        module = runpy.run_path(path)
        rows = {name: dict(row) for name, row in dict(module.get("ROWS", {})).items()}
        measures = {
            mode: {flag: str(value) for flag, value in dict(flags).items()}
            for mode, flags in dict(module.get("MEASURES", _MEASURES)).items()
        }
        bad = [row for row in rows if not re.fullmatch(r"[\w+-][\w.+-]*", row)]
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--experiment={path} cannot be read ({_in_words(error)}); it must define "
            "ROWS and get_config(row) like configs/figure4.py."
        ) from error
    if bad:
        raise UsageError(
            f"--experiment={path}: the row {bad[0]!r} cannot be a file's name; use "
            "letters, digits and _ - + . only."
        )
    if not rows:
        raise UsageError(
            f"--experiment={path} has no ROWS, as configs/figure4.py has; "
            f"python main.py --config={path} trains what it describes."
        )
    return Experiment(path, rows, measures)


def stem(name: str) -> str:
    """Returns the name of a run of `--config=<name>`: figure4-duet-rot."""
    path, row = _split(name)
    return "-".join([pathlib.Path(path).stem, *([row] if row else [])])


def _split(name: str) -> tuple[str, str]:
    """Returns the path of a file and the row in it, or ""."""
    if os.path.isfile(name):
        return name, ""
    path, _, row = name.rpartition(":")
    return (path, row) if path else (name, "")


def _standard(path: str, row: str) -> tuple[str, str]:
    """Returns where configs/cifar10_simclr.py is: a row of `configs/standard.py`."""
    file = pathlib.Path(path)
    if row or os.path.isfile(path) or file.parent.name != _STANDARD.parent.name:
        return path, row
    rows = runpy.run_path(str(_STANDARD))["ROWS"]
    old_names = {f"{name.replace('-', '_')}.py": name for name in rows}
    return (
        (str(_STANDARD), old_names[file.name])
        if file.name in old_names
        else (path, row)
    )


def _check_file(path: str, flag: str, given: str) -> None:
    if not os.path.isfile(path):
        found = _BASE.parent.glob("[!_]*.py")
        if flag == "--experiment":
            found = (p for p in found if "\nROWS = " in p.read_text(encoding="utf-8"))
        files = sorted(f"configs/{p.name}" for p in found)
        raise UsageError(
            f"{flag}={given} is not a file; choose one of {', '.join(files)}."
            f"{suggestion(path, files)}"
        )


def _check_row(path: str, row: str, rows: Mapping[str, Any]) -> None:
    name, at, scale = row.partition("@")
    if not name:
        raise UsageError(
            f"name one of its rows, such as {path}:{next(iter(rows))}; they are "
            f"{', '.join(rows)}."
        )
    lookup(rows, name, "row")
    if at:
        lookup(dict.fromkeys(scales()), scale, "scale")


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
