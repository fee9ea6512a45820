"""Evaluation: from a work directory to what its checkpoint is worth.

Restores the encoder, lets an evaluator measure it, and leaves the result in `eval/` of
the work directory: `<name>.json`, its pictures, and a table on the terminal.
"""

import importlib.metadata
import json
import logging
import math
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from duet_jax.config.checks import fields
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS, Evaluation, Result, Table
from duet_jax.figures.style import save
from duet_jax.runs import trained_run, workdir
from duet_jax.runtime import devices, files
from duet_jax.runtime.terminal import printable

_log = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def evaluate(
    names: Sequence[str],
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    step: int | str | None = None,
    **options: str,
) -> None:
    """Measures the run in `directory` and stores and prints the results.

    Args:
      names: keys of EVALUATORS, in order. They share the restored encoder and the
        representations it gives.
      config: of the run, from `settings.check`.
      directory: the run's work directory; receives eval/<name>.json and pictures.
      step: of the checkpoint: a number, "newest" (None) or "best".
      **options: flags of the evaluators; each is given its own.

    Raises:
      UsageError: anything the user can put right; nothing has been overwritten then.
    """
    workdir.check_writable(directory / "eval", "--workdir")
    devices.select(config.device)
    devices.check(config.device)
    devices.enable_compilation_cache(config.compilation_cache)
    run = trained_run.restore(config, directory, step)
    _log.info("devices      %s", devices.describe())
    _log.info("checkpoint   step %d of %s, %s", run.step, directory, config.method)
    evaluation = Evaluation(run, directory / "eval", valid, perform)
    for name in names:
        own = {k: v for k, v in options.items() if k in EVALUATORS[name].flags}
        found = perform(evaluation, name, own)
        for table in found["tables"]:
            print(as_text(Table(**table)))
            print()
        stem = workdir.result_name(name, own)
        _log.info("results in   %s", directory / "eval" / f"{stem}.json")


def valid(evaluation: Evaluation, stem: str) -> dict[str, Any] | None:
    """Returns what `eval/<stem>.json` holds, if that still holds.

    None where it is of another checkpoint, of other settings or other images, or is no
    result at all.
    """
    try:
        found = json.loads((evaluation.directory / f"{stem}.json").read_text())
        of = _plain(_origin(evaluation, found["mode"], found["options"]))
        same = all(found[key] == value for key, value in of.items())
        whole = (
            isinstance(found["results"], dict)
            and bool(found["results"])
            and bool(found["tables"])
            and all(_is_table(**table) for table in found["tables"])
            and all(isinstance(picture, str) for picture in found["pictures"])
        )
    except UsageError as error:
        _log.info("%-12s as stored does not count: %s", stem, error)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if whole and not same:
        others = [key for key, value in of.items() if found[key] != value]
        _log.info("%-12s as stored is of other %s", stem, " and ".join(others))
    return found if same and whole else None


def _is_table(header: list, rows: list, title: str, note: str) -> bool:
    """Returns whether what a file holds can be shown as a `Table`."""
    lines = [header, *rows, [title, note]]
    return all(
        isinstance(line, list) and all(isinstance(cell, str) for cell in line)
        for line in lines
    ) and all(len(row) == len(header) for row in rows)


def perform(
    evaluation: Evaluation, name: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Runs an evaluator, writes its files and returns what its .json holds."""
    start = time.perf_counter()
    with evaluation.own_seconds() as parts:
        result = EVALUATORS[name].measure(evaluation, **options)
    seconds = {**parts, "total": time.perf_counter() - start}
    found = _plain(_record(evaluation, name, options, result, seconds))
    with workdir.writing(evaluation.directory, "--workdir"):
        _write(evaluation.directory, workdir.result_name(name, options), found, result)
    return found


def _origin(
    evaluation: Evaluation, name: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """What a result is of: weights, fields of the configuration, images."""
    run, evaluator = evaluation.run, EVALUATORS[name]
    known = dict(fields(run.config))
    return {
        "step": run.step,
        "weights": run.fingerprint,
        "settings": {field: known[field] for field in evaluator.fields},
        "images": evaluation.identities(evaluator.images(run.config.dataset, options)),
    }


def _record(
    evaluation: Evaluation,
    name: str,
    options: Mapping[str, str],
    result: Result,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    run, stem = evaluation.run, workdir.result_name(name, options)
    return {
        "mode": name,
        "options": options,
        **_origin(evaluation, name, options),
        "method": run.config.method,
        "dataset": evaluation.facts._asdict(),
        "results": result.values,
        "tables": [table._asdict() for table in result.tables],
        "pictures": [f"{stem}_{each}.png" for each in result.figures],
        "seconds": seconds,
        "device": devices.describe(),
        "versions": {
            "python": platform.python_version(),
            **{each: importlib.metadata.version(each) for each in _PACKAGES},
        },
    }


def _write(
    directory: pathlib.Path, stem: str, found: dict[str, Any], result: Result
) -> None:
    """Writes pictures and then the numbers, each file whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    old = _pictures(directory / f"{stem}.json")
    for each, figure in result.figures.items():
        save(directory / f"{stem}_{each}.png", figure)
    with files.replacing(directory / f"{stem}.json") as partial:
        partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    for name in old - set(found["pictures"]):
        (directory / name).unlink(missing_ok=True)


def _pictures(path: pathlib.Path) -> set[str]:
    """Returns the names of the pictures of a stored result."""
    try:
        names = json.loads(path.read_text())["pictures"]
        return {name for name in names if pathlib.PurePath(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _plain(value: Any) -> Any:
    """Returns JSON's own types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_text(table: Table) -> str:
    """Returns a table in columns, the first to the left, the others to the right."""
    rows = [tuple(map(printable, row)) for row in (table.header, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]

    def line(row: tuple[str, ...]) -> str:
        first, *others = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [table.title, line(rows[0]), rule, *map(line, rows[1:])]
    return "\n".join(lines + ([table.note] if table.note else []))
