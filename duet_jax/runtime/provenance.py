"""Where a result comes from: commit, versions, device, date and command."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from duet_jax.runtime import devices

# The directory that holds the package: of a clone, its root.
_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SECONDS = 2.0  # that git may take

# A flag or field that holds a secret, and a password in an address.
_SECRET = re.compile(r"(?i)(--?[\w.]*(?:key|password|secret|token)[\w.]*)(=.*)?", re.S)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")


class Commit(NamedTuple):
    """The commit of the code.

    Attributes:
      hash: 40 hexadecimal digits; None if unknown.
      clean: False if files of the commit have changed; None if unknown.
    """

    hash: str | None
    clean: bool | None

    def __str__(self) -> str:
        """Returns the first digits, with a + if files have changed; "" if unknown."""
        return f"{self.hash[:7]}{'' if self.clean else '+'}" if self.hash else ""


def commit() -> Commit:
    """Returns the commit of the directory that holds the package.

    Unknown if that directory is no clone, as where the package is installed, or if git
    is missing, refuses, or takes too long.
    """
    if not (_ROOT / ".git").exists():
        return Commit(None, None)
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), "status"]
    command += ["--porcelain=v2", "--branch", "--untracked-files=no"]
    # In a hook of git these name the repository of the hook.
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    options = {"capture_output": True, "text": True, "check": True, "env": own}
    try:
        done = subprocess.run(command, timeout=_SECONDS, **options)
    except (OSError, ValueError, subprocess.SubprocessError):
        return Commit(None, None)
    lines = done.stdout.splitlines()
    found = re.search(r"^# branch\.oid ([0-9a-f]{40,})$", done.stdout, re.MULTILINE)
    if found is None:  # without a first commit
        return Commit(None, None)
    return Commit(found[1], all(line.startswith("# ") for line in lines))


def program(name: str, python: str = "python") -> list[str]:
    """Returns how a program was called: the beginning of its command line.

    Args:
      name: `sys.argv[0]`.
      python: what stands for Python.
    """
    path = pathlib.Path(name)
    if path.name == "__main__.py" and path.is_relative_to(_ROOT):
        return [python, "-m", ".".join(path.parent.relative_to(_ROOT).parts)]
    if path.suffix == ".py":
        return [python, name]
    return [path.name if shutil.which(path.name) == name else name]


def command_line(arguments: Sequence[str]) -> str:
    """Returns a command line to paste, with the values of secrets left out.

    Args:
      arguments: as in `sys.argv`.
    """
    shown, hidden = program(arguments[0]), False
    for argument in arguments[1:]:
        found = _SECRET.fullmatch(argument)
        if found and found[2]:
            argument = f"{found[1]}=..."
        elif hidden and not argument.startswith("-"):
            argument = "..."
        hidden = bool(found and not found[2])
        shown.append(_PASSWORD.sub("...@", argument))
    return shlex.join(shown)


def describe() -> dict[str, Any]:
    """Returns where a result of this process comes from, as JSON types.

    Returns:
      "commit" and "clean" as in `Commit`, "versions" of Python and packages by name,
      "device" as `devices.describe` says it, "date" in UTC by ISO 8601, and "command",
      the command line of the process.
    """
    now = datetime.datetime.now(datetime.UTC)
    code = commit()
    return {
        "commit": code.hash,
        "clean": code.clean,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "device": devices.describe(),
        "date": now.isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
    }
