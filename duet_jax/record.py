"""What the host does with the numbers that the device reports."""

import collections
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np

from duet_jax import figures, metrics
from duet_jax.errors import TrainingError
from duet_jax.plan import Plan
from duet_jax.types import Array


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
        writers: metrics.Writers,
        progress: metrics.Progress,
    ):
        self._config = config
        self._workdir = workdir
        self._plan = plan
        self._writers = writers
        self._progress = progress
        self._waiting: collections.deque = collections.deque()
        self._epoch_scores: list[Mapping[str, np.ndarray]] = []
        self._epoch_seconds = 0.0
        self._clock = time.monotonic()
        self.newest_test: dict[str, float] = {}

    def train_call(self, step: int, scores: Mapping[str, Array]) -> None:
        """Takes the metrics of the call that ended at `step`, each [steps]."""
        self._push(self._write_train, step, scores)

    def test(self, step: int, sums: Mapping[str, Array]) -> None:
        """Takes the sums of an evaluation at `step`."""
        self._push(self._write_test, step, sums)

    def flush(self) -> None:
        """Waits for everything taken so far and writes it down."""
        while self._waiting:
            self._pop()

    def _push(self, write: Callable, step: int, scores: Mapping[str, Array]) -> None:
        self._waiting.append((write, step, scores))
        if len(self._waiting) > 1:
            self._pop()

    def _pop(self) -> None:
        write, step, scores = self._waiting.popleft()
        scores = jax.device_get(scores)
        now = time.monotonic()
        write(step, scores, now - self._clock)
        self._clock = now

    def _row(self, step: int, split: str, values: Mapping[str, float]) -> dict:
        epoch = step / self._plan.steps_per_epoch
        return {"step": step, "epoch": epoch, "split": split, **values}

    def _write_train(self, step: int, scores: Mapping, seconds: float) -> None:
        self._check_finite(step, scores)
        self._epoch_scores.append(scores)
        self._epoch_seconds += seconds
        images = self._plan.steps_per_call * self._plan.batch_size
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        self._progress.update(step, means, images / seconds)
        if step % self._plan.steps_per_epoch == 0:
            self._end_epoch(step)

    def _end_epoch(self, step: int) -> None:
        plan = self._plan
        means = {
            name: float(np.mean([scores[name] for scores in self._epoch_scores]))
            for name in self._epoch_scores[0]
        }
        images = len(self._epoch_scores) * plan.steps_per_call * plan.batch_size
        means["images_per_second"] = images / self._epoch_seconds
        self._writers.write(self._row(step, "train", means))
        self._epoch_scores, self._epoch_seconds = [], 0.0
        if step // plan.steps_per_epoch % self._config.figures_every == 0:
            draw_curves(self._workdir)

    def _write_test(self, step: int, sums: Mapping, seconds: float) -> None:
        sums = {name: float(value) for name, value in sums.items()}
        examples = sums.pop("examples")
        means = {name: value / examples for name, value in sums.items()}
        self.newest_test = means
        extra = {
            "examples": int(examples),
            "learning_rate": float(self._plan.rate(step - 1)),
            "images_per_second": examples / seconds,
        }
        self._writers.write(self._row(step, "test", {**means, **extra}))

    def _check_finite(self, step: int, scores: Mapping[str, np.ndarray]) -> None:
        bad = np.flatnonzero(~np.isfinite(scores["loss"]))
        if not len(bad):
            return
        at = step - self._plan.steps_per_call + int(bad[0])
        parts = {name: float(values[bad[0]]) for name, values in scores.items()}
        shown = ", ".join(f"{name}={value:g}" for name, value in parts.items())
        raise TrainingError(
            f"the loss of step {at} is not finite ({shown}); the checkpoints in "
            f"{self._workdir / 'checkpoints'} are older and sound. Try a lower "
            "config.optimizer.learning_rate or config.compute_dtype=float32."
        )


def draw_curves(workdir: pathlib.Path) -> None:
    """Draws figures/curves.png from metrics.jsonl."""
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    if rows:
        figures.draw_curves(workdir / "figures" / "curves.png", rows)
