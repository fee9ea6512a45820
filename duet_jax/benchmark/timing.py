"""Times of compiled functions, each call waited for."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

# A function is called for about so long, and so often.
_SECONDS = 10.0
_MOST_CALLS = 200
_FEWEST_CALLS = 5


class Times(NamedTuple):
    """Seconds of a call: median, fastest and slowest, and how many were measured."""

    median: float
    fastest: float
    slowest: float
    calls: int


def times(call: Callable[[], object], seconds: float = _SECONDS) -> Times:
    """Measures a call that has been compiled.

    Args:
      call: returns arrays; it is over when they are computed.
      seconds: to spend on it, within limits.
    """
    for _ in range(2):  # the first one also loads the program
        first = _one(call)
    calls = min(_MOST_CALLS, max(_FEWEST_CALLS, int(seconds / max(first, 1e-9))))
    found = [_one(call) for _ in range(calls)]
    return Times(statistics.median(found), min(found), max(found), calls)


def _one(call: Callable[[], object]) -> float:
    clock = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - clock
