"""Lookup in the literal tables that hold the project's choices."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from duet_jax.errors import UsageError

T = TypeVar("T")


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the choice closest to `name`, or ""."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, T], name: str, field: str) -> T:
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
