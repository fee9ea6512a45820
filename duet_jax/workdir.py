"""The directory of a run: whose it is, and the configuration in it."""

import json
import os
import pathlib

import ml_collections

from duet_jax import settings
from duet_jax.errors import UsageError


def check(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a UsageError where `workdir` holds another run or cannot be written.

    Nothing is changed: a run that is refused later leaves no trace.
    """
    try:
        _check_place(workdir)
        old = _read_config(workdir)
        started = any((workdir / "checkpoints").glob("[0-9]*"))
        orphans = old is None and started
    except OSError as error:
        raise _unusable(workdir, error) from error
    if orphans:
        raise UsageError(
            f"{workdir} holds checkpoints without their config.json; choose another "
            "--workdir."
        )
    # A run that never saved anything, say for want of memory, may be started anew.
    changed = []
    if old and started:
        changed = settings.differences(old, json.loads(config.to_json()))
    if changed:
        raise UsageError(
            f"{workdir} holds a run with another configuration ("
            f"{'; '.join(changed)}); choose another --workdir or repeat its values."
        )


def _check_place(workdir: pathlib.Path) -> None:
    """Raises an OSError if `workdir` is no directory or could not be made one."""
    nearest = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(0, f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(0, f"{nearest} is not writable")


def _read_config(workdir: pathlib.Path) -> dict | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}); choose another --workdir."
        ) from error


def _unusable(workdir: pathlib.Path, error: OSError) -> UsageError:
    return UsageError(
        f"--workdir={workdir} cannot be used ({error.strerror}); choose another."
    )


def write_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the directory and writes the resolved configuration to `config.json`.

    The file is written whole or not at all.

    Raises:
      UsageError: the directory or the file cannot be made.
    """
    temporary = workdir / "config.json.tmp"
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        temporary.write_text(config.to_json(indent=2) + "\n")
        os.replace(temporary, workdir / "config.json")
    except OSError as error:
        raise _unusable(workdir, error) from error
