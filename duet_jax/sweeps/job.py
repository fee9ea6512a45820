"""A trial as a job of a cluster runs it, until it is done or the job is requeued.

Before its time limit a job is told by a signal (`submitit.JobEnvironment.USR_SIG`,
SIGUSR2 unless the environment names another). The training then saves its state, and
the job goes back to the queue, from where it continues.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from duet_jax.lazy import jax
from duet_jax.runtime.terminal import log_to_terminal
from duet_jax.sweeps import runner
from duet_jax.sweeps.trial import Trial

if TYPE_CHECKING:
    import submitit

_log = logging.getLogger(__name__)

# For a process that has just ended on another machine to let go of the trial.
_SECONDS_FOR_OTHERS = 60.0


class Job(NamedTuple):
    """What submitit stores, and calls on the machine of the job.

    Attributes:
      trial: to run.
      place: the directory in which the sweep was started; its paths are relative to it.
    """

    trial: Trial
    place: str

    def __call__(self) -> None:
        """Runs the trial, unless it is finished.

        Raises:
          SystemExit: it has failed, is requeued, or another process runs it.
        """
        os.chdir(self.place)
        log_to_terminal(logging.INFO)
        # This process computes nothing; the run needs the accelerators.
        jax.config.update("jax_platforms", "cpu")
        ahead = _ahead_of_the_limit()
        requeue = signal.getsignal(ahead)  # submitit's, which ends this process
        with runner.Stop(ahead) as stop, _claimed(self.trial, stop) as claim:
            if claim is not None and not self.trial.finished:
                _log.info("%s  started, %s", self.trial.name, self.trial.log)
                runner.run(self.trial, claim, stop, lambda share: None)
        if self.trial.finished:
            return
        if stop.signal == ahead:
            self._requeue(requeue, ahead)
        # Preempted or cancelled. Which of the two it is only Slurm knows: a job that
        # ended by itself would not be requeued.
        if stop.signal == signal.SIGTERM:
            _log.info("SIGTERM: stopped; Slurm now ends this job or requeues it")
            while True:
                signal.pause()
        sys.exit(self.trial.record().get("status") or 1)

    def _requeue(self, requeue: Any, number: int) -> None:
        try:
            requeue(number, None)
        except Exception as error:
            reason = " ".join(str(error).split())
            self.trial.write(error=f"stopped at the time limit; {reason}")
            raise

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Returns what is run after the job was requeued: the same.

        Called by submitit. The state is in the work directory.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _ahead_of_the_limit() -> int:
    """Returns the signal that comes before the time limit."""
    import submitit

    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


@contextlib.contextmanager
def _claimed(trial: Trial, stop: runner.Stop) -> Iterator[int | None]:
    """Claims a trial, as `Trial.claimed`; yields None if a signal came before.

    Raises:
      SystemExit: another process has kept it all the time.
    """
    end, told = time.monotonic() + _SECONDS_FOR_OTHERS, False
    while not stop.signal:
        with trial.claimed() as claim:
            if claim is not None:
                yield claim
                return
        if time.monotonic() > end:
            sys.exit(f"error: another process runs {trial.directory}; see {trial.log}")
        if not told:
            _log.info("%s  waiting for the process that runs it", trial.name)
        told = True
        time.sleep(1.0)
    yield None
