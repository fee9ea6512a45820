"""The exceptions a user is meant to read, and the lookup of a name that raises them."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

_T = TypeVar("_T")


class UsageError(ValueError):
    """Something the user can put right: a setting, a path, a file.

    The message is a single line that names the field and its value, says what is
    wrong, lists the choices and gives the remedy. `main.py` prints it without a
    traceback; every other exception is a defect of the program.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on, such as one whose loss is no longer finite.

    The message is a single line, printed like a `UsageError`.
    """


class InterruptionError(Exception):
    """The user or a scheduler has asked the program to end.

    The message is a single line.

    Attributes:
      status: with which the program exits, 128 and the number of the signal.
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
      field: the configuration field it came from, for the message.

    Raises:
      UsageError: `name` is not in the table; the message lists the choices.
    """
    if name not in table:
        raise UsageError(
            f"{field}={name!r} is not known; choose one of {', '.join(table)}."
            f"{suggestion(name, table)}"
        )
    return table[name]
