"""What a sweep says of its runs while they are at work."""

import logging
import shutil
import sys
import time
from collections.abc import Sequence

from duet_jax.loggers.progress import duration
from duet_jax.runtime.terminal import bar
from duet_jax.sweeps import runner, tables
from duet_jax.sweeps.trial import Trial

_log = logging.getLogger(__name__)

# Without a terminal: between two lines on the same run.
_SECONDS_OF_SILENCE = 300.0


class Overview:
    """Shows the progress of a sweep: a bar on a terminal, and lines anywhere."""

    def __init__(self, trials: Sequence[Trial]):
        self._trials, self._total, self._failed = trials, len(trials), 0
        self._done = self._total - len(runner.unfinished(trials))
        self._began, self._before = time.monotonic(), self._done
        self._spoken = self._began
        self._bar = bar(
            total=self._total,
            initial=self._done,
            bar_format="{n:.0f} of {total} runs  {desc}",
            disable=not sys.stderr.isatty(),
            leave=False,
        )

    def _left(self, share: float) -> str:
        """Returns the time left, from the pace so far."""
        done = self._done + share - self._before
        if done <= 0:
            return "?"
        pace = (time.monotonic() - self._began) / done
        return duration(pace * (self._total - self._done - share))

    def show(self, trial: Trial, share: float) -> None:
        """Shows the run at work, and the share of its training that is done."""
        self.show_all(f"{trial.name}  {epoch_of(trial, share)}", share)

    def show_all(self, text: str, share: float) -> None:
        """Shows the runs at work.

        Args:
          text: about all of them.
          share: of a training, 1 for a whole one, that is done beside the runs that
            have ended.
        """
        line = f"{self._left(share)} left  {text}"
        room = shutil.get_terminal_size().columns - len("9999 of 9999 runs   ")
        self._bar.set_description_str(line[: max(room, 0)])  # a bar is one line
        silent = time.monotonic() - self._spoken
        if self._bar.disable and silent > _SECONDS_OF_SILENCE:
            self._print(text, share)

    def say(self, trial: Trial, text: str, share: float = 0.0) -> None:
        """Prints a line about a run."""
        self._print(f"{trial.name}  {text}", share)

    def _print(self, text: str, share: float) -> None:
        self._spoken = time.monotonic()
        place = f"{self._done} of {self._total}, {self._left(share)} left"
        _log.info("[%s] %s", place, text)

    def finished(self, trial: Trial) -> None:
        """Reports the results of a run."""
        self._count()
        found = [
            f"{tables.measure_of(name).name} {tables.measure_of(name).shown([value])}"
            for name, value in trial.found().items()
        ]
        seconds = trial.record().get("seconds")
        if seconds is not None:
            found.append(duration(seconds))
        self.say(trial, "  ".join(found))

    def failed(self, trial: Trial) -> None:
        """Reports why a run failed; the sweep continues."""
        self._failed += 1
        self._count()
        self.say(trial, f"failed: {error_of(trial)}")

    def _count(self) -> None:
        """Counts the runs that have ended, whichever sweep ran them."""
        left = len(runner.unfinished(self._trials)) - self._failed
        self._done = self._total - left
        self._bar.update(self._done - self._bar.n)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


def epoch_of(trial: Trial, share: float) -> str:
    """Returns how far a training is, such as "epoch 3/15"."""
    return f"epoch {share * trial.epochs:.0f}/{trial.epochs}"


def error_of(trial: Trial) -> str:
    """Returns the last message of a failed run."""
    return trial.record().get("error") or f"not complete; see {trial.log}"
