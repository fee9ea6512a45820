"""The directory of a run: its owner, its configuration and its data set."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TextIO

import ml_collections

from duet_jax import loggers
from duet_jax.config import checks, loading
from duet_jax.errors import UsageError
from duet_jax.runtime import files
from duet_jax.types import DatasetFacts, same_images

_log = logging.getLogger(__name__)

# Locked by the process that trains in the directory, and names that process.
_LOCK = ".lock"
# What every config.json contains, whatever the method.
_SECTIONS = ("method", "dataset", "augmentation", "encoder", "projector", "batch_size")


def check(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a UsageError if `workdir` cannot be used for a training.

    That is if it holds another run, if another process trains there, or if it cannot be
    written. Changes nothing: a run that is refused later leaves no trace.
    """
    try:
        _check_place(workdir)
        _check_free(workdir)
        _check_run(config, workdir)
    except OSError as error:
        raise _unusable(workdir, error) from error


def _check_run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a UsageError if `workdir` holds another run, or the remains of one."""
    old = _read_json(workdir / "config.json")
    if not _steps(workdir):
        _check_not_lost(workdir, old)
    if not is_started(workdir):
        return  # a run that never saved anything, say for lack of memory
    if old is None:
        raise UsageError(
            f"{workdir} holds checkpoints without their config.json; choose another "
            "--workdir."
        )
    changed = checks.differences(old, json.loads(config.to_json()))
    if changed:
        raise UsageError(
            f"{workdir} holds a run with another configuration ("
            f"{'; '.join(changed)}); choose another --workdir or repeat its values."
        )


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
    return bool(_steps(workdir)) or any((workdir / "checkpoints").glob("damaged-*"))


def _steps(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a run, without unfinished ones."""
    found = (workdir / "checkpoints").glob("[0-9]*")
    return [path for path in found if path.name.isdecimal()]


@contextlib.contextmanager
def claimed(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainings out of `workdir`, which is created if necessary.

    The system releases the lock when the process ends, however it ends.

    Raises:
      UsageError: another process trains there, or has trained something else there
        since `check`.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / _LOCK).open("a+"))
            _lock(workdir, file)
            _check_run(config, workdir)
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
    config = _read_json(workdir / "config.json")
    if config is None:
        raise UsageError(
            f"--workdir={workdir} holds no run (no config.json); name the --workdir of "
            "a training."
        )
    missing = [name for name in _SECTIONS if name not in config]
    if missing:
        raise _damaged(workdir / "config.json", f"it has no {', '.join(missing)}")
    try:
        saved = ml_collections.ConfigDict(_with_tuples(config))
        return checks.completed(saved, loading.schema())
    except UsageError as error:  # before ValueError, of which it is one
        raise UsageError(f"{workdir}: {error}") from error
    except ValueError as error:
        raise _damaged(workdir / "config.json", error) from error


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
    if set(values) | {*DatasetFacts._field_defaults} != set(DatasetFacts._fields):
        raise _damaged(path, f"its entries are {', '.join(values)}")
    facts = DatasetFacts(**_with_tuples(values))
    for name, kind in DatasetFacts.__annotations__.items():
        value = getattr(facts, name)
        # Tuples hold strings: class names, digests.
        parts, kind = (value, str) if isinstance(value, tuple) else ((value,), kind)
        if not all(type(part) is kind for part in parts):
            raise _damaged(path, f"{name} is {value!r}")
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
) -> None:
    """Creates the directory and writes `config.json` and `dataset.json`.

    Each file is written whole or not at all. If a run has started there, harmless
    changes of its configuration are added to `changes.jsonl`.

    Args:
      config: resolved.
      facts: of the training's images.
      workdir: of the run.
      step: from which the run continues.

    Raises:
      UsageError: the directory or a file cannot be written.
    """
    try:
        if is_started(workdir):
            _record_changes(config, workdir, step)
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("config.json", config.to_json(indent=2)),
            ("dataset.json", json.dumps(facts._asdict(), indent=2)),
        ):
            with files.replacing(workdir / name) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise _unusable(workdir, error) from error


def _record_changes(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, step: int
) -> None:
    old, new = _read_json(workdir / "config.json"), json.loads(config.to_json())
    changes = checks.changes(old, new)
    if changes:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"step": step, "time": now, "changes": changes})
        with (workdir / "changes.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        _log.info("changed      %s", "; ".join(changes))
