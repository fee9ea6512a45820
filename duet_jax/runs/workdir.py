"""The directory of a run: its owner, its configuration and its data set."""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pathlib
import shlex
import socket
import time
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import ml_collections

from duet_jax import loggers
from duet_jax.config import checks, loading, naming
from duet_jax.errors import UsageError
from duet_jax.runs.history import Extension, History, Source
from duet_jax.runtime import files, provenance
from duet_jax.types import DatasetFacts, same_images

_log = logging.getLogger(__name__)

# Locked by the process that trains in the directory, and names that process.
_LOCK = ".lock"
_NOTHING = History()
# What every config.json contains, whatever the method.
_SECTIONS = ("method", "dataset", "augmentation", "encoder", "projector", "batch_size")


def check(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    source: Source | None = None,
    extend: bool = False,
) -> None:
    """Raises a UsageError if `workdir` cannot be used for a training.

    That is if it holds another run, if another process trains there, or if it cannot be
    written. Changes nothing: a run that is refused later leaves no trace.

    Args:
      config: resolved.
      workdir: of the run.
      source: of the first weights; None if they are drawn.
      extend: True if the run may have been begun with fewer epochs.
    """
    try:
        _check_place(workdir)
        _check_free(workdir)
        _check_run(config, workdir, source, extend)
    except OSError as error:
        raise _unusable(workdir, error) from error


def _check_run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    source: Source | None,
    extend: bool,
) -> None:
    """Raises a UsageError if `workdir` holds another run, or the remains of one."""
    old, history = load_history(workdir)
    if not steps(workdir):
        _check_not_lost(workdir, old)
    if not is_started(workdir):
        if extend:
            raise UsageError(
                f"--extend: {workdir} holds no run that has saved anything; leave it "
                "out, or name the --workdir of one."
            )
        return  # a run that never saved anything, say for lack of memory
    if old is None:
        raise UsageError(
            f"{workdir} holds checkpoints without their config.json; choose another "
            "--workdir."
        )
    new = json.loads(config.to_json())
    before, epochs = old.get("epochs"), new["epochs"]
    longer = isinstance(before, int) and epochs > before
    # Compared apart: --extend is for nothing else.
    others = checks.differences(old, new | {"epochs": before})
    others += _other_source(history, source)
    if extend and not others:
        if not longer and not (epochs == before and history.extensions):
            raise UsageError(
                f"--extend: config.epochs={epochs} is not more than the {before} of "
                f"the run in {workdir}; raise it, or leave --extend out."
            )
    elif others or epochs != before:
        changed = [f"epochs: {before} -> {epochs}"] if epochs != before else []
        more = "" if others or not longer else "add --extend to train on, "
        raise UsageError(
            f"{workdir} holds a run with another configuration ("
            f"{'; '.join(changed + others)}); {more}choose another, such as "
            f"--workdir={shlex.quote(str(_free(old, new, workdir, source)))}, or "
            "repeat its values."
        )


def _other_source(history: History, source: Source | None) -> list[str]:
    """Lists the difference between where weights came from and are to come from."""
    origin = history.origin
    if source is None and origin is None:
        return []
    if source and origin and origin.is_of(source):
        return []
    return [f"init_from: {origin} -> {source}"]


def _free(
    old: dict, new: dict, workdir: pathlib.Path, source: Source | None
) -> pathlib.Path:
    """Returns a directory beside `workdir` without another run, named by what differs.

    Args:
      old: configuration of the run in `workdir`, as read from its config.json.
      new: likewise, of the run that needs a place.
      workdir: of the old run.
      source: of the first weights of the new run.
    """
    if workdir.name in ("", ".."):
        workdir = workdir.resolve()
    # Fields that the old run did not read have no value there.
    defaults = dict(checks.fields(json.loads(loading.schema().to_json())))
    before = defaults | dict(checks.fields(old))
    others = {"init_from": source.short} if source else {}
    name = naming.run_name(workdir.name, before, new, **others)
    for end in itertools.chain([""], map("-{}".format, itertools.count(2))):
        place = workdir.parent / f"{name}{end}"
        if not place.exists():
            return place
        with contextlib.suppress(UsageError):  # damaged
            there, history = load_history(place)
            others = _other_source(history, source)
            if there and not checks.differences(there, new) and not others:
                return place  # begun before, by the same command


def _check_not_lost(workdir: pathlib.Path, config: dict | None) -> None:
    """Raises a UsageError if a run has records but no longer any checkpoint.

    Starting over would overwrite the records.
    """
    path = workdir / "metrics.jsonl"
    rows = loggers.read_rows(path) if config and path.exists() else []
    epochs = [row.get("epoch") for row in rows]
    last = max((e for e in epochs if isinstance(e, int | float)), default=0)
    # Nothing later is recorded before the first checkpoint is complete.
    if rows and (
        not (workdir / "checkpoints").exists()
        or is_started(workdir)
        or last > config.get("checkpoint", {}).get("every", 0)
    ):
        raise UsageError(
            f"{workdir} holds the records of a run up to epoch {last:g} but none of "
            "its checkpoints; restore them, or choose another --workdir: nothing is "
            "started over."
        )


def is_started(workdir: pathlib.Path) -> bool:
    """Returns whether a run in `workdir` has ever saved anything, damaged or not."""
    return bool(steps(workdir)) or any((workdir / "checkpoints").glob("damaged-*"))


def steps(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a run, without unfinished ones."""
    found = (workdir / "checkpoints").glob("[0-9]*")
    return [path for path in found if path.name.isdecimal()]


@contextlib.contextmanager
def claimed(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    source: Source | None = None,
    extend: bool = False,
) -> Iterator[None]:
    """Keeps other trainings out of `workdir`, which is created if necessary.

    The system releases the lock when the process ends, however it ends.

    Args:
      config: resolved.
      workdir: of the run.
      source: as in `check`.
      extend: likewise.

    Raises:
      UsageError: another process trains there, or has trained something else there
        since `check`.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / _LOCK).open("a+"))
            _lock(workdir, file)
            _check_run(config, workdir, source, extend)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:
            raise _unusable(workdir, error) from error
        yield


def is_in_use(workdir: pathlib.Path) -> bool:
    """Returns whether a process trains in `workdir`."""
    try:
        _check_free(workdir)
    except UsageError:
        return True
    except OSError:  # nobody can tell
        return False
    return False


def _check_free(workdir: pathlib.Path) -> None:
    """Raises a UsageError if another process trains in `workdir`."""
    with contextlib.suppress(FileNotFoundError), (workdir / _LOCK).open("r+") as file:
        # Shared: processes that only check do not exclude each other.
        _lock(workdir, file, fcntl.LOCK_SH)


def _lock(workdir: pathlib.Path, file: TextIO, kind: int = fcntl.LOCK_EX) -> None:
    """Locks a file until it is closed.

    With `lockf`, not `flock`: a child that outlives this process must not keep it.

    Raises:
      UsageError: another process holds the lock.
    """
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.readline().strip() or "another process"
        raise UsageError(
            f"--workdir={workdir} is in use: {holder} trains there; wait until it "
            "ends, or choose another."
        ) from None
    except OSError as error:  # a file system without locks
        _log.warning(
            "%s cannot be locked (%s): do not start two runs there",
            workdir,
            error.strerror,
        )


def check_writable(directory: pathlib.Path, flag: str, name: str = "") -> None:
    """Raises a UsageError that names `flag` if `directory` cannot be written.

    Args:
      directory: for the files; it need not exist.
      flag: of the command line that chose it.
      name: of the file to be written, if there is only one.
    """
    try:
        _check_place(directory)
        if name and (directory / name).is_dir():
            raise IsADirectoryError(0, f"{name} in it is a directory")
    except OSError as error:
        raise UsageError(
            f"{flag}: {directory} cannot be written ({error.strerror}); choose another "
            "place."
        ) from error


@contextlib.contextmanager
def writing(place: pathlib.Path, flag: str) -> Iterator[None]:
    """Turns errors while writing `place` into a UsageError that names `flag`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{flag}: {place} cannot be written ({error.strerror or error}); free "
            "some space, or choose another place."
        ) from error


def _check_place(workdir: pathlib.Path) -> None:
    """Raises an OSError if `workdir` is not a directory and cannot be created."""
    nearest = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(0, f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(0, f"{nearest} is not writable")


def check_dataset(facts: DatasetFacts, workdir: pathlib.Path) -> None:
    """Raises a UsageError if `workdir` holds a run on other images."""
    old = _read_facts(workdir)
    if old is None or not is_started(workdir):
        return
    changed = [
        f"{name}: {getattr(old, name)} -> {value}"
        for name, value in facts._asdict().items()
        if name not in ("content", "digests") and getattr(old, name) != value
    ]
    if not changed and not same_images(old.identity, facts.identity):
        changed = ["as many of the same classes, in other files"]
    if changed:
        raise UsageError(
            f"{workdir} holds a run on other images ({'; '.join(changed)}); restore "
            "its data, or choose another --workdir."
        )


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the configuration of the run in `workdir`, with every field there is.

    Raises:
      UsageError: there is no run, or its config.json is damaged.
    """
    config, _ = load_history(workdir)
    if config is None:
        raise UsageError(
            f"--workdir={workdir} holds no run (no config.json); name the --workdir of "
            "a training."
        )
    try:
        return completed_config(config)
    except UsageError as error:  # before ValueError, of which it is one
        raise UsageError(f"{workdir}: {error}") from error
    except ValueError as error:
        raise _damaged(workdir / "config.json", error) from error


def completed_config(record: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a configuration with every field there is from those of a config.json.

    Raises:
      UsageError: a field is unknown, or its value is not one that it takes.
      ValueError: sections are missing.
    """
    missing = [name for name in _SECTIONS if name not in record]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    saved = ml_collections.ConfigDict(_with_tuples(dict(record)))
    return checks.completed(saved, loading.schema())


def extended(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, step: int
) -> History:
    """Returns the history of the run in `workdir`, which continues from `step`.

    If `config` has more epochs than the run had so far, that is its last extension.

    Raises:
      UsageError: config.json is damaged.
    """
    old, history = load_history(workdir)
    before = old["epochs"]
    if config.epochs == before:
        return history
    longer = Extension(step, before, config.epochs)
    return history._replace(extensions=(*history.extensions, longer))


def load_history(workdir: pathlib.Path) -> tuple[dict | None, History]:
    """Returns the fields in config.json, None without one, and the run's history."""
    path = workdir / "config.json"
    config = _read_json(path)
    if config is None:
        return None, History()
    try:
        history = History.from_json(config.pop("history", {}))
    except ValueError as error:
        raise _damaged(path, error) from error
    if history.extensions and history.extensions[-1].after != config.get("epochs"):
        raise _damaged(path, "its epochs are not those of its last extension")
    return config, history


def load_facts(workdir: pathlib.Path) -> DatasetFacts:
    """Returns the facts of the images that the run in `workdir` was trained on.

    Raises:
      UsageError: dataset.json is missing or damaged.
    """
    facts = _read_facts(workdir)
    if facts is None:
        raise UsageError(
            f"{workdir / 'dataset.json'} is missing: the run was not trained by this "
            "version; repeat its training command, which writes the file."
        )
    return facts


def _with_tuples(value):
    """Turns lists, which JSON has instead of tuples, back into tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _read_facts(workdir: pathlib.Path) -> DatasetFacts | None:
    path = workdir / "dataset.json"
    values = _read_json(path)
    if values is None:
        return None
    try:
        return checked_facts(values)
    except ValueError as error:
        raise _damaged(path, error) from error


def checked_facts(values: Mapping[str, Any]) -> DatasetFacts:
    """Returns the facts of images from the entries of a dataset.json.

    Raises:
      ValueError: these are others, or of other types.
    """
    if set(values) | {*DatasetFacts._field_defaults} != set(DatasetFacts._fields):
        raise ValueError(f"its entries are {', '.join(values)}")
    facts = DatasetFacts(**_with_tuples(dict(values)))
    for name, kind in DatasetFacts.__annotations__.items():
        value = getattr(facts, name)
        # Tuples hold strings: class names, digests.
        parts, kind = (value, str) if isinstance(value, tuple) else ((value,), kind)
        if not all(type(part) is kind for part in parts):
            raise ValueError(f"{name} is {value!r}")
    # File systems write accents in different ways; data sets use this one.
    names = (unicodedata.normalize("NFC", name) for name in facts.class_names)
    return facts._replace(class_names=tuple(names))


def _read_json(path: pathlib.Path) -> dict | None:
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path.parent, error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(record, dict):
        raise _damaged(path, "it is not a JSON object")
    return record


def _damaged(path: pathlib.Path, reason: object) -> UsageError:
    return UsageError(f"{path} is damaged ({reason}); choose another --workdir.")


def _unusable(workdir: pathlib.Path, error: OSError) -> UsageError:
    return UsageError(
        f"--workdir={workdir} cannot be used ({error.strerror}); choose another."
    )


def result_name(mode: str, options: Mapping[str, str]) -> str:
    """Returns the stem of a result's files in eval/.

    Args:
      mode: the evaluation.
      options: its flags; another protocol is another result.
    """
    protocol = options.get("protocol", "lbfgs")
    return mode if protocol == "lbfgs" else f"{mode}_{protocol}"


def write_run(
    config: ml_collections.ConfigDict,
    facts: DatasetFacts,
    workdir: pathlib.Path,
    step: int = 0,
    history: History = _NOTHING,
) -> None:
    """Creates the directory and writes `config.json` and `dataset.json`.

    Each file is written whole or not at all. If a run has started there, harmless
    changes of its configuration are added to `changes.jsonl`. What starts or continues
    here, by which code and command, is added to `provenance.jsonl`.

    Args:
      config: resolved.
      facts: of the training's images.
      workdir: of the run.
      step: from which the run continues.
      history: of the run.

    Raises:
      UsageError: the directory or a file cannot be written.
    """
    try:
        if is_started(workdir):
            _record_changes(config, workdir, step)
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        record = json.loads(config.to_json())
        if history != _NOTHING:
            record["history"] = history.as_json()
        for name, content in (
            ("config.json", record),
            ("dataset.json", facts._asdict()),
        ):
            with files.replacing(workdir / name) as partial:
                text = json.dumps(content, indent=2)
                partial.write_text(text + "\n", encoding="utf-8")
        line = json.dumps({"step": step, **provenance.describe()})
        files.append_line(workdir / "provenance.jsonl", line)
    except OSError as error:
        raise _unusable(workdir, error) from error


def _record_changes(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, step: int
) -> None:
    old, new = load_history(workdir)[0], json.loads(config.to_json())
    # The only one that alters the run is an extension; see `check`.
    changes = [*checks.differences(old, new), *checks.changes(old, new)]
    if changes:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"step": step, "time": now, "changes": changes})
        files.append_line(workdir / "changes.jsonl", line)
        _log.info("changed      %s", "; ".join(changes))
