"""Loads configuration files below `configs/`, and experiments, which have rows.

A file defines `get_config()`. An experiment defines `ROWS`, a dict by the name of the
row, and `get_config(row)`. One row is named `configs/figure4.py:duet-rot`, or
`configs/figure4.py:duet-rot@short` at another scale. An experiment may define
`MEASURES`: the modes of `main.py` that follow each training, and their flags; and
`CODES`, a dict from the row to the codes, such as "rot,hue", that are measured of it
when they are others than its `learned`.
"""

import contextlib
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from duet_jax.augmentations import LEARNABLE, split_codes
from duet_jax.config import checks
from duet_jax.errors import UsageError, lookup, suggestion

# What holds `configs/`: an installed package itself, else the clone that it is in.
_INSTALLED = pathlib.Path(__file__).parents[1] / "presets"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1]
_BASE = _ROOT / "configs" / "base.py"
_SCALES = _ROOT / "configs" / "_scales.py"
_SHOWN_ROWS = 3
_STANDARD = _ROOT / "configs" / "standard.py"
DEFAULT = str(_ROOT / "configs" / "digits_duet_rot.py")
"""What `--config` is when it is not given."""

# The default of MEASURES. Equivariance is measured for the code of the row.
_MEASURES = {"linear_probe": {}, "knn": {}, "equivariance": {"measures": "basic"}}


class Experiment(NamedTuple):
    """A file with rows.

    Attributes:
      path: of the file.
      rows: name of the row -> dotted field -> value.
      measures: mode -> flag -> value.
      codes: name of the row -> the augmentations that are measured, where they are
        others than the row learns.
    """

    path: str
    rows: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Mapping[str, str]]
    codes: Mapping[str, tuple[str, ...]] = {}


@contextlib.contextmanager
def _our_configs() -> Iterator[None]:
    """Lets files import `configs`, and have ours by that name."""

    def taken() -> dict[str, Any]:
        names = [name for name in sys.modules if name.split(".")[0] == "configs"]
        return {name: sys.modules.pop(name) for name in names}

    others = taken()  # a program that calls us may have a package of that name
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        taken()
        sys.modules.update(others)


def _run(path: str | os.PathLike) -> dict[str, Any]:
    """Runs a file and returns its globals."""
    with _our_configs():
        return runpy.run_path(str(path))


def schema() -> ml_collections.ConfigDict:
    """Returns all fields with their defaults: `configs/base.py`."""
    return _run(_BASE)["get_config"]()


def scales() -> tuple[str, ...]:
    """Returns the names of the scales at which the rows of an experiment can be run."""
    return tuple(_run(_SCALES)["SCALES"])


def load(name: str) -> ml_collections.ConfigDict:
    """Returns the configuration that `--config=<name>` means, before any override.

    Args:
      name: path of a file, with `:<row>` or `:<row>@<scale>` after an experiment; or
        the name of one in `configs/`, such as cifar10_duet_rot, figure4:duet-rot or
        recipes/cifar10_race.

    Raises:
      UsageError: there is no such file or row, it fails, or its fields are not those of
        `configs/base.py`.
    """
    path, row = _standard(*_split(name))
    _check_file(path, "--config", name)
    with _reading(f"--config={name}", "get_config() like configs/base.py"):
        module = _run(path)
        if "ROWS" in module:
            _check_row(path, row, module["ROWS"])
            config = module["get_config"](row)
        elif row:
            raise UsageError(f"{path} has no rows; leave out :{row}.")
        else:
            config = module["get_config"]()
        checks.check_schema(config, schema())
    return config


def load_config(
    name: str = "digits_duet_rot", fields: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Returns the resolved configuration of a training, to be given to `train`.

        config = load_config("cifar10_duet_rot", {"batch_size": 512})

    Args:
      name: as `--config` takes it: a file, or the name of one in `configs/`.
      fields: values by dotted field, as `--config.<field>=<value>` sets them.

    Raises:
      UsageError: there is no such file or field, or a value is wrong.
    """
    return checks.with_fields(load(name), fields or {})


def load_experiment(path: str) -> Experiment:
    """Returns the rows of an experiment and what is measured of them.

    Raises:
      UsageError: there is no such file, it fails, it has no rows, or it measures rows
        or codes that there are not.
    """
    given, path = path, _located(path)
    _check_file(path, "--experiment", given)
    needs = "ROWS and get_config(row) like configs/figure4.py"
    with _reading(f"--experiment={path}", needs):
        module = _run(path)
        rows = {name: dict(row) for name, row in dict(module.get("ROWS", {})).items()}
        measures = {
            mode: {flag: str(value) for flag, value in dict(flags).items()}
            for mode, flags in dict(module.get("MEASURES", _MEASURES)).items()
        }
        for row in rows:
            if not re.fullmatch(r"[\w+-][\w.+-]*", row):
                raise UsageError(
                    f"the row {row!r} cannot be a file's name; use letters, digits and "
                    "_ - + . only."
                )
        if not rows:
            raise UsageError(
                "it has no ROWS, as configs/figure4.py has; train what it describes "
                f"with --config={path}."
            )
        codes = _codes(module.get("CODES", {}), rows)
        if codes and any("codes" in flags for flags in measures.values()):
            raise UsageError(
                "CODES and the codes of MEASURES say what is measured of a row; leave "
                "out one of them."
            )
    return Experiment(path, rows, measures, codes)


def _codes(given: Any, rows: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the CODES of an experiment, checked."""
    if not isinstance(given, Mapping):
        raise UsageError(
            "its CODES must be a dict from a row to the codes that are measured of it, "
            'such as {"duet-rot": "rot,hue"}; give anything else another name.'
        )
    codes = {}
    for row, text in given.items():
        lookup(rows, row, "CODES: row")
        found = split_codes(str(text))
        for code in found or ("",):
            lookup(dict.fromkeys(LEARNABLE), code, f"CODES: {row}")
        codes[row] = tuple(dict.fromkeys(found))
    return codes


@contextlib.contextmanager
def _reading(shown: str, needs: str) -> Iterator[None]:
    """Turns an error of a file, which is a program, into a UsageError."""
    try:
        with _our_configs():
            yield
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{shown} cannot be read ({reason}); it must define {needs}."
        ) from error


def stem(name: str) -> str:
    """Returns the name of the run of `--config=<name>`: figure4-duet-rot."""
    path, row = _split(name)
    stem = pathlib.Path(path).stem
    return f"{stem}-{row}" if row else stem


def _split(name: str) -> tuple[str, str]:
    """Returns the path of a file and the row in it, or ""."""
    if os.path.isfile(name):
        return name, ""
    path, _, row = name.rpartition(":")
    path, row = (path, row) if path else (name, "")
    return _located(path), row


def _located(path: str) -> str:
    """Returns the path of a file; a name without .py is that of one in `configs/`."""
    if os.path.isfile(path) or (path not in _names() and not _is_bare(path)):
        return path
    return str(_configs() / f"{path}.py")


def _is_bare(path: str) -> bool:
    file = pathlib.Path(path)
    return file.name == path and not file.suffix


def _names() -> dict[str, pathlib.Path]:
    """Returns the files that are ours: recipes/cifar10_race -> its path."""
    root = _BASE.parent
    files = sorted(root.glob("[!_]*.py")) + sorted(root.glob("[!_]*/[!_]*.py"))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def _configs() -> pathlib.Path:
    """Returns the directory of the configurations, relative if that is shorter."""
    directory = _BASE.parent
    if directory.parent == pathlib.Path.cwd():
        return pathlib.Path(directory.name)
    return directory


def _standard(path: str, row: str) -> tuple[str, str]:
    """Returns where configs/cifar10_simclr.py is: a row of `configs/standard.py`."""
    file = pathlib.Path(path)
    if not (row or os.path.isfile(path)) and file.parent.name == _STANDARD.parent.name:
        for name in _run(_STANDARD)["ROWS"]:
            if file.name == f"{name.replace('-', '_')}.py":
                return str(_STANDARD), name
    return path, row


def overview(*, experiments: bool = False) -> str:
    """Returns the configurations in `configs/`, and some of their rows.

    Args:
      experiments: only those with rows.
    """
    lines, names = [], _names()
    width = max(map(len, names))
    for name, file in names.items():
        module = _run(file)
        rows = [*module.get("ROWS", {})]
        if rows or not experiments:
            lines.append(f"{name:<{width}} {module['__doc__'].partition(chr(10))[0]}")
        if rows:
            more = f" ... {len(rows)} in all" if len(rows) > _SHOWN_ROWS else ""
            lines.append(f"{'':<{width}} rows: {' '.join(rows[:_SHOWN_ROWS])}{more}")
    return "\n".join(lines)


def _check_file(path: str, flag: str, given: str) -> None:
    if not os.path.isfile(path):
        found = _names().items()
        if flag == "--experiment":
            found = (x for x in found if "\nROWS = " in x[1].read_text("utf-8"))
        names = [name for name, _ in found]
        file, _, _ = given.partition(":")
        short = file.removeprefix("configs/").removesuffix(".py")
        raise UsageError(
            f"{flag}={given} is not a file; choose one of {', '.join(names)}."
            f"{suggestion(short, names)}"
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
