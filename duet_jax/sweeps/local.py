"""Runs the trials of a sweep on this machine, one after another."""

import contextlib
import time
from collections.abc import Callable, Sequence

from duet_jax.sweeps import runner
from duet_jax.sweeps.overview import Overview
from duet_jax.sweeps.trial import Trial

# Between two looks at a run of another sweep.
_SECONDS_OF_WAITING = 5.0


def perform(
    trials: Sequence[Trial], stop: runner.Stop, ended: Callable[[], None]
) -> None:
    """Runs what is not finished; those that another process runs come last.

    Args:
      trials: of the sweep.
      stop: receives signals.
      ended: called after each run.
    """
    waiting, told = runner.unfinished(trials), False
    with contextlib.closing(Overview(trials)) as overview:
        while waiting and not stop.signal:
            before, waiting = waiting, []
            for trial in before:
                if stop.signal:
                    break
                with trial.claimed() as claim:
                    if claim is None:
                        waiting.append(trial)
                        continue
                    _perform(trial, claim, stop, overview)
                ended()
            if waiting == before:
                if not told:
                    overview.say(waiting[0], "waiting for the process that runs it")
                told = True
                overview.show(waiting[0], waiting[0].share)
                time.sleep(_SECONDS_OF_WAITING)


def _perform(trial: Trial, claim: int, stop: runner.Stop, overview: Overview) -> None:
    if not trial.finished:
        overview.say(trial, f"started, {trial.log}")
        runner.run(trial, claim, stop, lambda share: overview.show(trial, share))
    if trial.finished:
        overview.finished(trial)
    elif not stop.signal:
        overview.failed(trial)
