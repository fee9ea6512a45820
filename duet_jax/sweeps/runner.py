"""Runs the trials of a sweep, each in a process of its own."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from duet_jax.runtime import provenance
from duet_jax.runtime.terminal import printable
from duet_jax.sweeps.trial import PROGRAM, Trial

_SECONDS_BETWEEN_LOOKS = 1.0


class Stop:
    """Remembers a SIGINT or SIGTERM, and ends the running command.

    Attributes:
      signal: the first one received, or None.
      process: the command.
      others: signals that have the same effect, and are for this process alone.
    """

    def __init__(self, *others: int) -> None:
        self.signal: int | None = None
        self.process: subprocess.Popen | None = None
        self.others = others

    def __enter__(self) -> "Stop":
        """Replaces the signal handlers of the program."""
        self._wakeup = signal.set_wakeup_fd(-1)
        self._before = {
            each: signal.signal(each, self._take)
            for each in (signal.SIGINT, signal.SIGTERM, *self.others)
        }
        return self

    def __exit__(self, *_) -> None:
        """Restores them."""
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _take(self, number: int, _) -> None:
        self.signal = self.signal or number
        # The first one lets a training save its state; a second one ends it at once.
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def held(*numbers: int) -> Iterator[None]:
    """Lets signals wait; processes that are started meanwhile never receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(trial: Trial, claim: int, stop: Stop, look: Callable[[float], None]) -> None:
    """Runs or resumes a trial, and records how it ended.

    Args:
      trial: to run.
      claim: file descriptor from `Trial.claimed`.
      stop: receives signals.
      look: called about every second with the share of the training that is done.
    """
    began = time.monotonic()
    record = trial.record()
    commits = [*record.get("commits", []), str(provenance.commit())]
    trial.directory.mkdir(parents=True, exist_ok=True)
    trial.write(
        status=None,
        error="",
        # A sweep that was killed has not recorded the seconds of its run.
        lost=record.get("lost", False) or record.get("status", 0) is None,
        commits=[*dict.fromkeys(commits)],
    )
    status = _run(trial, claim, stop, look)
    error = _last_line(trial.log, status) if status and not stop.signal else ""
    seconds = record.get("seconds", 0.0) + time.monotonic() - began
    trial.write(status=status, error=error, seconds=round(seconds, 1))


def _run(trial: Trial, claim: int, stop: Stop, look: Callable[[float], None]) -> int:
    with trial.log.open("ab") as log:
        log.write(f"$ {trial.command}\n".encode())
        log.flush()
        with held(*stop.others):
            stop.process = process = subprocess.Popen(
                [sys.executable, *PROGRAM, *trial.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(claim,),
                # Ctrl-C reaches this process alone, which forwards it once.
                start_new_session=True,
            )
        if stop.signal:  # before there was a process
            process.send_signal(signal.SIGTERM)
        while True:
            try:
                return process.wait(_SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                look(trial.share)


def _last_line(log: pathlib.Path, status: int) -> str:
    """Returns the last line of a failed command."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}; see {log}"
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    last = printable(said[-1]) if said else f"status {status}; see {log}"
    return last.removeprefix("error: ")


def unfinished(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that are still to run, or to run again."""
    return [trial for trial in trials if not trial.finished]
