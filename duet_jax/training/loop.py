"""The training loop: call after call, with what comes between them."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import ml_collections

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
      config: resolved.
      directory: of the run.
      plan: what was decided of it.
      compiled: what it calls.
      feed: its batches.
      checkpoints: where it is saved.
      record: where its measurements go.
      interruption: asked between calls whether to end.
      neighbours: `score(state)`, for `config.knn.every`; None without.
    """

    config: ml_collections.ConfigDict
    directory: pathlib.Path
    plan: Plan
    compiled: Compiled
    feed: Feed
    checkpoints: Checkpoints
    record: Record
    interruption: Interruption
    neighbours: Callable[[TrainState], dict[str, float]] | None = None
    _votes: collections.deque = dataclasses.field(default_factory=collections.deque)

    def run(self, state: TrainState, start: int) -> None:
        """Trains from `state`, the one of update `start`, to the end.

        Raises:
          TrainingError: a loss or gradient is not finite, or nothing can be saved.
          InterruptionError: a signal has come; the run has been saved.
        """
        self._signal()  # compiles what processes ask each other
        self.interruption.defer()
        step = start
        try:
            with contextlib.closing(self.feed.training(start)) as calls:
                for arguments in calls:
                    state, scores = self._train(state, arguments)
                    # Saving goes on beside one call. Nothing later is recorded before
                    # it is done, so that a kill never costs more than one interval.
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
        """Finds out what was not finite; the state has stood still since."""
        newest = self.checkpoints.latest_step()
        return nonfinite.stop(
            self.plan, self.feed, state, self.feed.num_train, self.directory, newest
        )

    def _train(self, state: TrainState, arguments: Arguments):
        # A batch is put on the devices explicitly. A hidden copy would stall them.
        with jax.transfer_guard("disallow"):
            return self.compiled.train(state, self.compiled.keys.training, *arguments)

    def _end_row(self, state: TrainState, step: int) -> bool:
        """Evaluates and saves what is due; returns whether it saved."""
        # Every checkpoint is evaluated: its accuracy decides which one is the best, and
        # waiting for it means that no state with a broken loss is saved.
        save = self._checkpoint_is_due(step)
        watch = self._ends(step, self.config.knn.every) and self.neighbours
        if save or watch or self._ends(step, self.config.evaluate_every):
            measures = [
                functools.partial(evaluate, self.plan, self.compiled, state, self.feed)
            ]
            if watch:
                measures.append(functools.partial(watch, state))
            self.record.test(step, measures)
        if save:
            self._save(state, self.record.newest_test)
        return save

    def _save(self, state: TrainState, scores: dict[str, float] | None) -> None:
        self.record.flush()
        self.checkpoints.save(state, scores, self.record.row())
        self.record.restart_clock()

    def _checkpoint_is_due(self, step: int) -> bool:
        """Whether the state of `step`, the end of a row, is to be saved."""
        within_an_epoch = step % self.plan.steps_per_epoch != 0
        last = step == self.plan.total_steps
        every = self.config.checkpoint.every
        return within_an_epoch or last or self._ends(step, every)

    def _ends(self, step: int, epochs: int) -> bool:
        """Whether a multiple of `epochs` ends at `step`; never for 0."""
        return epochs > 0 and step % (epochs * self.plan.steps_per_epoch) == 0

    def _signal(self) -> int:
        """Returns the signal that the processes have agreed to end for, or 0.

        They ask each other after every call and read the answer a call later, when it
        has long been there; all of them read the same one after the same call.
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
            "the same command goes on from there",
        )
