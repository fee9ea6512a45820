"""What the host does with the numbers that the device reports."""

import collections
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from duet_jax import figures, loggers
from duet_jax.errors import TrainingError
from duet_jax.runtime import processes
from duet_jax.training.health import Symptoms
from duet_jax.training.plan import Plan
from duet_jax.types import Array


class BrokenUpdateError(Exception):
    """An update was not finite, and with config.on_nonfinite=stop nothing follows."""


class Record:
    """Turns what the device reports into rows, a progress bar and pictures.

    Reports are read one call late: while the host waits for one and writes it down, the
    device is already at the next.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        plan: Plan,
        writers: loggers.Writers,
        progress: loggers.Progress,
    ):
        self._config = config
        self._workdir = workdir
        self._plan = plan
        self._writers = writers
        self._progress = progress
        self._waiting: collections.deque = collections.deque()
        self._row_scores: list[Mapping[str, np.ndarray]] = []
        self._row_seconds = 0.0
        self._waited: float | None = None
        self._waited_before = 0.0
        self._learning_rate = 0.0
        self._symptoms = Symptoms()
        self._clock = time.monotonic()
        self.newest_test: Mapping[str, float] = {}

    def train_call(
        self, step: int, scores: Mapping[str, Array], waited: float | None = None
    ) -> None:
        """Takes the report of a call.

        Args:
          step: at which it ended.
          scores: its metrics, each [steps]; "skipped" is 1 for an update that was not
            finite.
          waited: seconds that were spent waiting for images so far; None where they
            are on the device.

        Raises:
          BrokenUpdateError: an update of the call before was not finite, and the run is
            to stop at that.
        """
        self._waited = waited
        self._waiting.append((step, scores))
        if len(self._waiting) > 1:
            self._pop()

    def test(
        self, step: int, measures: Sequence[Callable[[], Mapping[str, float]]]
    ) -> None:
        """Runs `measures`, which return means over the test split, at `step`.

        The first is what the test split's images per second are counted for.
        """
        self.flush()
        means = dict(measures[0]())
        seconds = self._lap()
        for measure in measures[1:]:
            means |= measure()
        self._write_test(step, means, seconds)
        self.restart_clock()

    def flush(self) -> None:
        """Waits for everything taken so far and writes it down."""
        while self._waiting:
            self._pop()

    def row(self) -> dict[str, Any]:
        """Returns what the unfinished row has gathered, for `go_on`; empty at its end.

        It can be written as JSON without a loss.
        """
        if not self._row_scores:
            return {}
        scores = {
            name: [each[name].tolist() for each in self._row_scores]
            for name in self._row_scores[0]
        }
        waited = None if self._waited is None else self._waited - self._waited_before
        return {"scores": scores, "seconds": self._row_seconds, "waited": waited}

    def go_on(self, row: Mapping[str, Any]) -> None:
        """Takes up the row that a run was stopped in, from `row`."""
        if not row:
            return
        calls = zip(*row["scores"].values(), strict=True)
        self._row_scores = [
            dict(zip(row["scores"], map(np.float32, call), strict=True))
            for call in calls
        ]
        self._row_seconds = row["seconds"]
        self._waited_before = -(row["waited"] or 0.0)

    def restart_clock(self) -> None:
        """Leaves what has been done until now out of the images per second."""
        self._lap()

    def _pop(self) -> None:
        step, scores = self._waiting.popleft()
        scores = jax.device_get(scores)  # waits for the device
        self._write_train(step, scores, self._lap())

    def _lap(self) -> float:
        """Seconds since this was last asked."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        return seconds

    def _row(self, step: int, split: str, values: Mapping[str, float]) -> dict:
        epoch = step / self._plan.steps_per_epoch
        return {"step": step, "epoch": epoch, "split": split, **values}

    def _write_train(self, step: int, scores: Mapping, seconds: float) -> None:
        if self._plan.on_nonfinite == "stop" and scores["skipped"].any():
            raise BrokenUpdateError
        self._row_scores.append(scores)
        self._learning_rate = float(scores["learning_rate"][-1])
        self._row_seconds += seconds
        images = self._plan.steps_per_call * self._plan.batch_size
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        self._progress.update(step, means, images / seconds)
        if self._plan.ends_row(step):
            self._end_row(step)

    def _end_row(self, step: int) -> None:
        plan = self._plan
        means = self._row_means(step)
        if self._waited is not None:
            seconds = self._waited - self._waited_before
            means["data_wait"] = seconds / self._row_seconds
            self._waited_before = self._waited
        self._writers.write(self._row(step, "train", means))
        self._symptoms.train(means)
        self._row_scores, self._row_seconds = [], 0.0
        if step % (self._config.figures_every * plan.steps_per_epoch) == 0:
            draw_curves(self._workdir, self._plan, self._writers, step)
            self.restart_clock()

    def _row_means(self, step: int) -> dict[str, float]:
        """Returns means over the updates that were made, and how many were not."""
        scores = {
            name: np.concatenate([scores[name] for scores in self._row_scores])
            for name in self._row_scores[0]
        }
        made = scores["skipped"] == 0
        if not made.any():
            raise TrainingError(
                f"none of the {len(made)} updates up to step {step} was finite, and "
                "config.on_nonfinite=skip has skipped them all; what there is in "
                f"{self._workdir / 'checkpoints'} is older and sound. Repeat the "
                "command with config.on_nonfinite=stop for a diagnosis."
            )
        means = {name: float(np.mean(values[made])) for name, values in scores.items()}
        images = len(made) * self._plan.batch_size
        return {
            **means,
            "skipped": int(np.sum(~made)),
            "images_per_second": images / self._row_seconds,
        }

    def _write_test(self, step: int, means: Mapping, seconds: float) -> None:
        if not np.isfinite(means["loss"]):
            self._stop(step, means)
        self.newest_test = means
        extra = {
            "learning_rate": self._learning_rate,
            "images_per_second": means["examples"] / seconds,
        }
        self._writers.write(self._row(step, "test", {**means, **extra}))
        self._symptoms.test(step, means)

    def _stop(self, step: int, means: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name}={float(value):g}" for name, value in means.items())
        raise TrainingError(
            f"the test loss of step {step} is not finite ({shown}); what there is in "
            f"{self._workdir / 'checkpoints'} is older and sound. Try a lower "
            "config.optimizer.learning_rate or config.compute_dtype=float32."
        )


def draw_curves(
    workdir: pathlib.Path, plan: Plan, writers: loggers.Writers, step: int
) -> None:
    """Draws figures/curves.png from metrics.jsonl, if there are any rows yet.

    The first process alone writes rows and pictures.
    """
    if not processes.is_main_process():
        return
    rows = loggers.read_rows(workdir / "metrics.jsonl")
    if rows:
        path = workdir / "figures" / "curves.png"
        classes = plan.method.two_views.num_classes
        figures.draw_curves(path, rows, num_classes=classes)
        writers.picture("curves", path, step)
