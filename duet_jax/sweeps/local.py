"""Runs the trials of a sweep on this machine, one after another."""

import argparse
import contextlib
import pathlib
import time
from collections.abc import Callable, Sequence

from duet_jax.errors import UsageError
from duet_jax.sweeps import runner
from duet_jax.sweeps.overview import Overview
from duet_jax.sweeps.trial import Trial

# Between two looks at a run of another sweep.
_SECONDS_OF_WAITING = 5.0


class Local:
    """The launcher that runs the trials here.

    Attributes:
      farewell: what a user is told who stops the sweep.
    """

    farewell = "stopped; the same command continues"

    def __init__(self, options: argparse.Namespace, workdir: pathlib.Path):
        """Checks the flags.

        Args:
          options: the command line.
          workdir: of the sweep.

        Raises:
          UsageError: a flag is for another launcher.
        """
        del workdir
        flags = [f"--slurm={each}" for each in options.slurm]
        flags += [f"--parallel={options.parallel}"] if options.parallel else []
        if flags:
            raise UsageError(
                f"{flags[0]} has no effect with --launcher=local; leave it out, or use "
                "--launcher=slurm."
            )

    def perform(
        self,
        trials: Sequence[Trial],
        stop: runner.Stop,
        ended: Callable[[], None],
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
