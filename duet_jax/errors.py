"""Exceptions with a message for the user, and the lookup of a name that raises one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

_T = TypeVar("_T")


class UsageError(ValueError):
    """A mistake that the user can fix: a setting, a path, a file.

    The message is one line: the field and its value, what is wrong, the choices and the
    remedy. `main.py` prints it without a traceback.
    """


class TrainingError(RuntimeError):
    """A run that cannot continue, say because its loss is no longer finite.

    The message is one line, printed like that of a `UsageError`.
    """


class InterruptionError(Exception):
    """The user or a scheduler asks the program to end.

    The message is one line.

    Attributes:
      status: exit status of the program, 128 + the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the choice closest to `name`, or ""."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, _T], name: str, field: str) -> _T:
    """Returns `table[name]`.

    Args:
      table: choices by name.
      name: the user's choice.
      field: name of the field or flag, for the message.

    Raises:
      UsageError: `name` is not in the table; the message lists the choices.
    """
    if name not in table:
        raise UsageError(
            f"{field}={name!r} is not known; choose one of {', '.join(table)}."
            f"{suggestion(name, table)}"
        )
    return table[name]
