"""Timing of compiled functions."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from duet_jax.runtime import processes

_MOST_CALLS = 200
_FEWEST_CALLS = 5


class Times(NamedTuple):
    """Seconds of a call: median, minimum and maximum, and the number of calls."""

    median: float
    fastest: float
    slowest: float
    calls: int


def times_in_turn(calls: Sequence[Callable[[], object]], seconds: float) -> list[Times]:
    """Measures compiled calls in turn, so that slow moments affect all of them.

    Args:
      calls: functions that return arrays; a call ends when they are computed.
      seconds: time to spend on all of them, within limits.
    """
    for call in calls:  # the first call also loads the program
        _one(call)
    rounds = calls_in(seconds, sum(_one(call) for call in calls))
    measured = [[_one(call) for call in calls] for _ in range(rounds)]
    return [
        Times(statistics.median(each), min(each), max(each), rounds)
        for each in zip(*measured, strict=True)
    ]


def calls_in(seconds: float, one: float) -> int:
    """Returns how many calls of `one` seconds each take `seconds`, within limits."""
    return processes.broadcast(
        min(_MOST_CALLS, max(_FEWEST_CALLS, int(seconds / max(one, 1e-9))))
    )


def _one(call: Callable[[], object]) -> float:
    clock = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - clock
