"""Turns the metrics that the device reports into rows, warnings and curves."""

import collections
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from duet_jax import figures, loggers
from duet_jax.errors import TrainingError
from duet_jax.figures.style import small_print
from duet_jax.runtime import processes
from duet_jax.training.health import Symptoms
from duet_jax.training.plan import Plan
from duet_jax.types import Array

_log = logging.getLogger(__name__)

# Metrics of the test split that are told when they are measured.
_TOLD = (
    "online_top1",
    "knn_top1",
    "augmented_nt_xent",
    "structure_loss",
    "prediction_loss",
    "equivariance_loss",
    "mse_full",
)


class BrokenUpdateError(Exception):
    """An update was not finite, and config.on_nonfinite is "stop"."""


class Record:
    """Turns metrics on the device into rows, a progress bar and pictures.

    The metrics of a call are read one call late: while the host waits for them and
    writes them, the device is already computing the next call.
    """

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        writers: loggers.Writers,
        progress: loggers.Progress | loggers.NoProgress,
    ):
        self._plan = plan
        self._workdir = workdir
        self._writers = writers
        self._progress = progress
        self._waiting: collections.deque = collections.deque()
        self._row_scores: list[Mapping[str, np.ndarray]] = []
        self._row_seconds = 0.0
        self._waited: float | None = None
        self._waited_before = 0.0
        self._symptoms = Symptoms(plan.directions)
        self._clock = time.monotonic()
        self.newest_test: Mapping[str, float] = {}

    def train_call(
        self, step: int, scores: Mapping[str, Array], waited: float | None = None
    ) -> None:
        """Takes the metrics of a training call.

        Args:
          step: at which it ended.
          scores: its metrics, each [steps]; "skipped" is 1 for an update that was not
            finite.
          waited: seconds spent waiting for images so far; None if they are on the
            device.

        Raises:
          BrokenUpdateError: an update of the call before was not finite, and
            config.on_nonfinite is "stop".
        """
        self._waited = waited
        self._waiting.append((step, scores))
        if len(self._waiting) > 1:
            self._pop()

    def test(
        self, step: int, measures: Sequence[Callable[[], Mapping[str, float]]]
    ) -> None:
        """Runs `measures`, which return means over the test split, at `step`."""
        self.flush()
        means = {name: x for measure in measures for name, x in measure().items()}
        self._write_test(step, means)
        self.restart_clock()

    def flush(self) -> None:
        """Waits for all metrics taken so far and writes them."""
        while self._waiting:
            self._pop()

    def row(self) -> dict[str, Any]:
        """Returns the unfinished row, for `resume`; empty at its end.

        JSON stores it without loss.
        """
        if not self._row_scores:
            return {}
        scores = {
            name: [each[name].tolist() for each in self._row_scores]
            for name in self._row_scores[0]
        }
        waited = None if self._waited is None else self._waited - self._waited_before
        return {"scores": scores, "seconds": self._row_seconds, "waited": waited}

    def resume(self, row: Mapping[str, Any]) -> None:
        """Continues the row in which a run was stopped, from `row`."""
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
        """Excludes the time until now from the images per second."""
        self._lap()

    def _pop(self) -> None:
        step, scores = self._waiting.popleft()
        scores = jax.device_get(scores)  # waits for the device
        self._write_train(step, scores, self._lap())

    def _lap(self) -> float:
        """Returns the seconds since the last call."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        return seconds

    def _row(self, step: int, split: str, values: Mapping[str, float]) -> dict:
        epoch = step / self._plan.steps_per_epoch
        return {"step": step, "epoch": epoch, "split": split, **values}

    def _write_train(self, step: int, scores: Mapping, seconds: float) -> None:
        if self._plan.config.on_nonfinite == "stop" and scores["skipped"].any():
            raise BrokenUpdateError
        self._row_scores.append(scores)
        self._row_seconds += seconds
        images = self._plan.steps_per_call * self._plan.batch_size
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        self._progress.update(step, means, images / seconds)
        if self._plan.ends_row(step):
            self._end_row(step)

    def _end_row(self, step: int) -> None:
        means = self._row_means(step)
        if self._waited is not None:
            seconds = self._waited - self._waited_before
            means["data_wait"] = seconds / self._row_seconds
            self._waited_before = self._waited
        self._writers.write(self._row(step, "train", means))
        self._symptoms.train(means)
        self._row_scores, self._row_seconds = [], 0.0
        if self._plan.ends_epochs(step, self._plan.config.figures_every):
            draw_curves(self._workdir, self._plan, self._writers, step)
            self.restart_clock()

    def _row_means(self, step: int) -> dict[str, float]:
        """Returns means over the updates that were applied, and how many were not."""
        scores = {
            name: np.concatenate([scores[name] for scores in self._row_scores])
            for name in self._row_scores[0]
        }
        applied = scores["skipped"] == 0
        if not applied.any():
            raise TrainingError(
                f"none of the {len(applied)} updates up to step {step} was finite, and "
                "config.on_nonfinite=skip has skipped them all; the checkpoints in "
                f"{self._workdir / 'checkpoints'} are older and intact. Rerun the "
                "command with config.on_nonfinite=stop for a diagnosis."
            )
        means = {name: float(np.mean(x[applied])) for name, x in scores.items()}
        images = len(applied) * self._plan.batch_size
        return {
            **means,
            "skipped": int(np.sum(~applied)),
            "images_per_second": images / self._row_seconds,
        }

    def _write_test(self, step: int, means: Mapping) -> None:
        if not np.isfinite(means["loss"]):
            shown = ", ".join(f"{name}={float(x):g}" for name, x in means.items())
            raise TrainingError(
                f"the test loss of step {step} is not finite ({shown}); the "
                f"checkpoints in {self._workdir / 'checkpoints'} are older and intact. "
                f"Try {self._plan.remedy}."
            )
        self.newest_test = means
        row = self._row(step, "test", means)
        self._writers.write(row)
        told = [
            loggers.shown(name, means[name])
            for about in _TOLD
            for name in means
            if name == about or name.startswith(f"{about}_")  # by code
        ]
        _log.info("test         epoch %.4g  %s", row["epoch"], "  ".join(told))
        self._symptoms.test(step, means)


def draw_curves(
    workdir: pathlib.Path, plan: Plan, writers: loggers.Writers, step: int
) -> None:
    """Draws figures/curves.png from metrics.jsonl, if there are any rows yet.

    Only the first process writes rows and pictures.
    """
    if not processes.is_main_process():
        return
    rows = loggers.read_rows(workdir / "metrics.jsonl")
    if rows:
        path = workdir / "figures" / "curves.png"
        figures.draw_curves(
            path,
            rows,
            num_classes=plan.method.two_views.num_classes,
            small_print=small_print(
                plan.config.method, plan.facts.name, step, plan.config.seed
            ),
        )
        writers.picture("curves", path, step)
