"""Progress of the training on the terminal."""

import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm

from duet_jax.runtime import terminal

# Metrics in the order they are shown; no method has all of them.
SHOWN = (
    "loss",
    "nt_xent",
    "structure_loss",
    "prediction_loss",
    "equivariance_loss",
    "online_top1",
    "mse_full",
)
# What a bar leaves out first if the terminal is too narrow for all of it.
_SHED = (
    "images/s",
    "nt_xent",
    "structure_loss",
    "prediction_loss",
    "equivariance_loss",
    "online_top1",
    "epoch",
    "loss",
    "left",
)
_BAR = 12  # columns

# Without a terminal: the line of an epoch is skipped if the last one is more recent
# than the first bound, and longer epochs than the second one get lines in between.
SECONDS_BETWEEN_LINES = 5.0
SECONDS_OF_SILENCE = 60.0

# The time left is estimated from this many of the latest reports.
_REPORTS = 50


def duration(seconds: float) -> str:
    """Returns a time span such as "1:23", "2:03:04" or "3 d 4:05:06"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if hours:
        text = f"{hour}:{minute:02d}:{second:02d}"
        return f"{days} d {text}" if days else text
    return f"{minute}:{second:02d}"


class Progress:
    """A live bar on a terminal, plain lines anywhere else."""

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        epochs: int,
        initial_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shows an empty bar on a terminal, and nothing yet anywhere else.

        Args:
          total_steps: updates of the whole training.
          steps_per_epoch: updates of one epoch.
          epochs: number of epochs.
          initial_step: updates made before this start; 0 for a new run.
          stream: where to write; the standard error stream by default.
          clock: monotonic time in seconds.
        """
        self._total = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._stream = stream or sys.stderr
        self._clock = clock
        self._reports = collections.deque(maxlen=_REPORTS)  # (step, time)
        self._written_at = -math.inf
        self._written_epoch = 0
        self._unwritten: str | None = None
        self._bar = self._open_bar(initial_step) if _is_terminal(self._stream) else None

    def _open_bar(self, initial_step: int) -> tqdm.tqdm:
        return terminal.bar(
            total=self._total,
            initial=initial_step,
            file=self._stream,
            ncols=self._columns(),
            # Redraws after 0.1 s, however many steps a report stands for.
            miniters=1,
            bar_format=f"{{percentage:3.0f}}%|{{bar:{_BAR}}}| {{desc}}",
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
        self._reports.append((step, self._clock()))
        parts = {"epoch": f"epoch {self._epoch(step)}/{self._epochs}"}
        if self._bar is None:
            parts["step"] = f"step {step}/{self._total}"
        parts |= {name: shown(name, metrics[name]) for name in SHOWN if name in metrics}
        parts["images/s"] = f"{images_per_second:,.0f} images/s"
        if seconds := self._seconds_left(step):
            parts["left"] = f"{duration(seconds)} left"
        if self._bar is not None:
            self._draw(step, parts)
        else:
            self._unwritten = "  ".join(parts.values())
            self._write_if_due(step)

    def _seconds_left(self, step: int) -> float | None:
        """Returns the time for the remaining steps; None while unknown.

        The first report, and not the start of training, is the earliest time used: what
        comes before is compilation. Evaluations and checkpoints count.
        """
        first_step, first_time = self._reports[0]
        if step <= first_step:
            return None
        seconds = self._reports[-1][1] - first_time
        return (self._total - step) * seconds / (step - first_step)

    def _columns(self) -> int:
        """Returns the width of the terminal without its last column, which may wrap."""
        # A terminal may not know its size.
        return (os.get_terminal_size(self._stream.fileno()).columns or 80) - 1

    def _draw(self, step: int, parts: dict[str, str]) -> None:
        self._bar.ncols = self._columns()
        for name in _SHED:
            text = "  ".join(parts.values())
            if len("100%|| ") + _BAR + len(text) <= self._bar.ncols:
                break
            parts.pop(name, None)
        self._bar.set_description_str("  ".join(parts.values()), refresh=False)
        self._bar.update(step - self._bar.n)
        if step >= self._total:
            self._bar.refresh()

    def _write_if_due(self, step: int) -> None:
        now, epoch = self._clock(), self._epoch(step)
        age = now - self._written_at
        new_epoch = epoch > self._written_epoch and age >= SECONDS_BETWEEN_LINES
        if new_epoch or age >= SECONDS_OF_SILENCE or step >= self._total:
            self._written_at, self._written_epoch = now, epoch
            self._write_latest()

    def _write_latest(self) -> None:
        print(self._unwritten, file=self._stream, flush=True)
        terminal.said(self._unwritten)
        self._unwritten = None

    def _epoch(self, step: int) -> int:
        """Returns the number, from 1, of the epoch that update `step` belongs to."""
        return min(self._epochs, max(1, -(-step // self._steps_per_epoch)))

    def close(self) -> None:
        """Shows the last state, whether or not training finished."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._unwritten is not None:
            self._write_latest()


class NoProgress:
    """Replaces `Progress` in processes that do not report."""

    def update(
        self, step: int, metrics: Mapping[str, float], images_per_second: float
    ) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


def _is_terminal(stream: TextIO) -> bool:
    """Returns whether a line on `stream` can be overwritten."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def shown(name: str, value: float) -> str:
    """Returns "name value" with three digits; accuracies in percent."""
    if name.endswith(("_top1", "_top5")):
        return f"{name} {100 * float(value):.1f} %"
    return f"{name} {float(value):#.3g}"
