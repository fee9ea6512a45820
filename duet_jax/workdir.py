"""The directory of a run: whose it is, and the configuration in it."""

import json
import os
import pathlib

import ml_collections

from duet_jax import settings
from duet_jax.errors import UsageError


def check(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a UsageError where `workdir` holds another run or cannot be written."""
    path = workdir / "config.json"
    if path.exists():
        old = json.loads(path.read_text())
        changed = settings.differences(old, json.loads(config.to_json()))
        if changed:
            raise UsageError(
                f"{workdir} holds a run with another configuration ("
                f"{'; '.join(changed)}); choose another --workdir or repeat its values."
            )
    elif (workdir / "checkpoints").exists():
        raise UsageError(
            f"{workdir} holds checkpoints without their config.json; choose another "
            "--workdir."
        )
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be created ({error.strerror}); choose another."
        ) from error


def write_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes the resolved configuration to `config.json`, whole or not at all."""
    temporary = workdir / "config.json.tmp"
    temporary.write_text(config.to_json(indent=2) + "\n")
    os.replace(temporary, workdir / "config.json")
