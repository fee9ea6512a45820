"""Times of compiled functions, each call waited for."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from duet_jax.runtime import processes

_MOST_CALLS = 200
_FEWEST_CALLS = 5


class Times(NamedTuple):
    """Seconds of a call: median, fastest and slowest, and how many were measured."""

    median: float
    fastest: float
    slowest: float
    calls: int


def times(call: Callable[[], object], seconds: float) -> Times:
    """Measures a call that has been compiled.

    Args:
      call: returns arrays; it is over when they are computed.
      seconds: to spend on it, within limits.
    """
    return times_in_turn({"it": call}, seconds)["it"]


def times_in_turn(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, Times]:
    """Measures several calls in turn, so that a slow moment is one for all of them.

    Args:
      calls: by name; see `times`.
      seconds: to spend on all of them, within limits.
    """
    for call in calls.values():  # the first call also loads the program
        _one(call)
    first = sum(_one(call) for call in calls.values())
    rounds = calls_in(seconds, first)
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_one(call))
    return {
        name: Times(statistics.median(each), min(each), max(each), rounds)
        for name, each in found.items()
    }


def calls_in(seconds: float, one: float) -> int:
    """Returns how many calls of `one` second take `seconds`, within limits."""
    return processes.broadcast(
        min(_MOST_CALLS, max(_FEWEST_CALLS, int(seconds / max(one, 1e-9))))
    )


def _one(call: Callable[[], object]) -> float:
    clock = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - clock
