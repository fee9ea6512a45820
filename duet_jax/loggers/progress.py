"""How training shows itself to the person who waits for it."""

import collections
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm

# Loss, its parts and the probe, in the order they are shown; a method lacks some.
SHOWN = ("loss", "nt_xent", "structure_loss", "prediction_loss", "online_top1")

# Without a terminal: an epoch's line is left out when the last one is younger than
# the first bound, and an epoch longer than the second one speaks in between.
SECONDS_BETWEEN_LINES = 5.0
SECONDS_OF_SILENCE = 60.0

_Time = Callable[[], float]


def duration(seconds: float) -> str:
    """Returns a time span such as "1:23", "2:03:04" or "3 d 4:05:06"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if hours:
        text = f"{hour}:{minute:02d}:{second:02d}"
        return f"{days} d {text}" if days else text
    return f"{minute}:{second:02d}"


class _Pace:
    """Seconds a step takes, as a mean over the latest reports.

    It starts at the first report and not at the start of training, because the time
    in between is spent compiling and would be counted for every step to come.
    Evaluations and checkpoints do count, for more of them will follow.
    """

    def __init__(self, clock: _Time, reports: int = 50) -> None:
        self._clock = clock
        self._reports = collections.deque(maxlen=reports)

    def report(self, step: int) -> None:
        self._reports.append((step, self._clock()))

    def seconds_for(self, steps: int) -> float | None:
        """Returns the time `steps` more steps will take; None while unknown."""
        if len(self._reports) < 2:
            return None
        (first_step, first_time), (step, now) = self._reports[0], self._reports[-1]
        if step <= first_step:
            return None
        return steps * (now - first_time) / (step - first_step)


class Progress:
    """A live bar on a terminal, plain lines anywhere else."""

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        epochs: int,
        initial_step: int = 0,
        stream: TextIO | None = None,
        clock: _Time = time.monotonic,
    ) -> None:
        """Shows nothing yet, other than an empty bar on a terminal.

        Args:
          total_steps: updates of the whole training.
          steps_per_epoch: updates of one epoch.
          epochs: number of epochs.
          initial_step: updates made before this start; 0 for a new run.
          stream: where to write; the standard error stream by default.
          clock: seconds from any origin, never running backwards.
        """
        self._total = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._stream = stream or sys.stderr
        self._clock = clock
        self._pace = _Pace(clock)
        self._written_at: float | None = None
        self._written_epoch = 0
        self._unwritten: str | None = None
        self._bar = self._open_bar(initial_step) if _is_terminal(self._stream) else None

    def _open_bar(self, initial_step: int) -> tqdm.tqdm:
        return tqdm.tqdm(
            total=self._total,
            initial=initial_step,
            file=self._stream,
            dynamic_ncols=True,
            # Drawn for every report that is 0.1 s away from the last one, however
            # many steps it stands for.
            miniters=1,
            # What matters most comes first: a narrow terminal cuts the end off.
            bar_format="{percentage:3.0f}%|{bar:12}| {desc}",
            desc=f"epoch {self._epoch(initial_step)}/{self._epochs}  compiling",
        )

    def update(
        self, step: int, metrics: Mapping[str, float], images_per_second: float
    ) -> None:
        """Shows the state after `step` updates.

        Args:
          step: updates made, of the whole training.
          metrics: the latest training metrics. Those in `SHOWN` are displayed;
            `online_top1` is a fraction and shown in percent.
          images_per_second: examples trained on per second.
        """
        self._pace.report(step)
        values = [_value(name, metrics[name]) for name in SHOWN if name in metrics]
        values.append(f"{images_per_second:,.0f} images/s")
        left = self._pace.seconds_for(self._total - step)
        left = [f"{duration(left)} left"] if left and step < self._total else []
        epoch = [f"epoch {self._epoch(step)}/{self._epochs}"]
        if self._bar is not None:
            self._draw(step, "  ".join(left + epoch + values))
        else:
            steps = [f"step {step}/{self._total}"]
            self._unwritten = "  ".join(epoch + steps + values + left)
            self._write_if_due(step)

    def _draw(self, step: int, text: str) -> None:
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        if step >= self._total:
            self._bar.refresh()

    def _write_if_due(self, step: int) -> None:
        now, epoch = self._clock(), self._epoch(step)
        age = float("inf") if self._written_at is None else now - self._written_at
        new_epoch = epoch > self._written_epoch and age >= SECONDS_BETWEEN_LINES
        if new_epoch or age >= SECONDS_OF_SILENCE or step >= self._total:
            self._written_at, self._written_epoch = now, epoch
            self._write_latest()

    def _write_latest(self) -> None:
        print(self._unwritten, file=self._stream, flush=True)
        self._unwritten = None

    def _epoch(self, step: int) -> int:
        """Returns the number, from 1, of the epoch that update `step` belongs to."""
        return min(self._epochs, max(1, -(-step // self._steps_per_epoch)))

    def close(self) -> None:
        """Leaves the last state on the screen, whether or not training finished."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._unwritten is not None:
            self._write_latest()


class NoProgress:
    """Stands in for `Progress` in the processes that do not report."""

    def update(
        self, step: int, metrics: Mapping[str, float], images_per_second: float
    ) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


def _is_terminal(stream: TextIO) -> bool:
    """Returns whether a line on `stream` can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _value(name: str, value: float) -> str:
    """Returns "name value" with three digits, accuracies in percent."""
    if name == "online_top1":
        return f"{name} {100 * float(value):.1f}%"
    return f"{name} {float(value):#.3g}"
