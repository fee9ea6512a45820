"""The training loop: compiled calls, and what happens between them."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax

from duet_jax.errors import TrainingError
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runtime import mesh, processes
from duet_jax.runtime.signals import Interruption, interrupted
from duet_jax.training import nonfinite
from duet_jax.training.batches import Arguments, Feed
from duet_jax.training.compiled import Compiled, evaluate
from duet_jax.training.plan import Plan
from duet_jax.training.recorder import BrokenUpdateError, Record
from duet_jax.types import TrainState


@dataclasses.dataclass
class Loop:
    """Trains a prepared run.

    Attributes:
      plan: of the run.
      directory: of the run.
      compiled: the functions to call.
      feed: the batches.
      checkpoints: where the run is saved.
      record: where its metrics go.
      interruption: asked after each call whether to stop.
      neighbors: `score(state)`, for `config.knn.every`; None without.
    """

    plan: Plan
    directory: pathlib.Path
    compiled: Compiled
    feed: Feed
    checkpoints: Checkpoints
    record: Record
    interruption: Interruption
    neighbors: Callable[[TrainState], dict[str, float]] | None = None
    _votes: collections.deque = dataclasses.field(default_factory=collections.deque)

    def run(self, state: TrainState, start: int) -> None:
        """Trains to the end from `state`, the state before update `start`.

        Raises:
          TrainingError: a loss or gradient is not finite, or nothing can be saved.
          InterruptionError: a signal has come; the run has been saved.
        """
        self._signal()  # compiles the vote between processes
        self.interruption.defer()
        step = start
        try:
            with contextlib.closing(self.feed.training(start)) as calls:
                for arguments in calls:
                    state, scores = self._train(state, arguments)
                    # A save overlaps with one call only. Nothing is recorded before it
                    # is complete, so that a kill never costs more than one interval.
                    self.checkpoints.wait()
                    step += self.plan.steps_per_call
                    self.record.train_call(step, scores, waited=self.feed.waited)
                    saved = self.plan.ends_row(step) and self._end_row(state, step)
                    if number := self._signal():
                        self._leave(state, step, number, saved=saved)
                self.record.flush()
        except BrokenUpdateError:
            raise self._diagnosed(state) from None

    def _diagnosed(self, state: TrainState) -> TrainingError:
        """Returns the error for a broken update; `state` is the one before it."""
        newest = self.checkpoints.latest_step()
        return nonfinite.stop(self.plan, self.feed, state, self.directory, newest)

    def _train(self, state: TrainState, arguments: Arguments):
        # Batches are put on the devices explicitly. An implicit copy would stall them.
        with jax.transfer_guard("disallow"):
            return self.compiled.train(state, self.compiled.keys.training, *arguments)

    def _end_row(self, state: TrainState, step: int) -> bool:
        """Evaluates and saves if due; returns whether it saved."""
        config, ends_epochs = self.plan.config, self.plan.ends_epochs
        # Every checkpoint is evaluated: its accuracy decides which one is the best, and
        # waiting for it means that no state with a broken loss is saved.
        save = self._checkpoint_is_due(step)
        neighbors = ends_epochs(step, config.knn.every) and self.neighbors
        if save or neighbors or ends_epochs(step, config.evaluate_every):
            measures = [
                functools.partial(evaluate, self.plan, self.compiled, state, self.feed)
            ]
            if neighbors:
                measures.append(functools.partial(neighbors, state))
            self.record.test(step, measures)
        if save:
            self._save(state, self.record.newest_test)
        return save

    def _checkpoint_is_due(self, step: int) -> bool:
        """Whether the state of `step`, the end of a row, is to be saved."""
        within_an_epoch = step % self.plan.steps_per_epoch != 0
        last = step == self.plan.total_steps
        every = self.plan.config.checkpoint.every
        return within_an_epoch or last or self.plan.ends_epochs(step, every)

    def _save(self, state: TrainState, scores: dict[str, float] | None) -> None:
        self.record.flush()
        self.checkpoints.save(state, scores, self.record.row())
        self.record.restart_clock()

    def _signal(self) -> int:
        """Returns the signal for which all processes have agreed to stop, or 0.

        They vote after every call and read the result one call later, when it is ready;
        all of them read the same result after the same call.
        """
        if not processes.are_several():
            return self.interruption.signal
        vote = mesh.largest(self.interruption.signal, self.plan.mesh)
        self._votes.append(vote)
        return int(self._votes.popleft()) if len(self._votes) > 1 else 0

    def _leave(self, state: TrainState, step: int, number: int, *, saved: bool) -> None:
        """Saves the run, unless that has just been done, and ends it."""
        if step == self.plan.total_steps:
            return  # as good as finished
        if not saved:
            self._save(state, None)
        self.checkpoints.wait()
        raise interrupted(
            number,
            f"step {step} of {self.plan.total_steps} is saved in {self.directory}, and "
            "the same command continues from there",
        )
