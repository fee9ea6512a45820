"""Checkpoints of a run: listing, finding the best, saving and restoring.

A checkpoint is a directory named after its step, with up to four items and a seal:

  model           {"params": ..., "batch_stats": ...}, all that an evaluation needs
  train           all other fields of the `TrainState`
  metrics         {"online_top1": ...} or another of BEST, if it is known
  row             the unfinished row of training metrics; JSON
  checksums.json  size and SHA-256 of every other file, and a hash of itself

The arrays are plain nested dicts. The configuration lies beside the checkpoints, in
`config.json`.

A directory gets its name by a rename at the very end of a save, and loses it by a
rename before it is deleted: a directory named after a step was complete at one time.
Its seal tells whether it still is (`seal`), and what Orbax has written is checked
before it is sealed (`storage`).
"""

import contextlib
import logging
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from duet_jax.errors import TrainingError, UsageError
from duet_jax.runs import seal, storage
from duet_jax.types import TrainState

_log = logging.getLogger(__name__)

# The metrics of the test split by which the best checkpoint is chosen, with the sign of
# the better direction. The first that a run has counts: the second needs no labels, the
# third is of decoders.
BEST = {"online_top1": 1, "augmented_nt_xent": -1, "mse_full": -1}

# The fields of a TrainState in the item "model".
_MODEL = ("params", "batch_stats")
_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)
# What a killed program leaves of a checkpoint that it was writing or deleting.
_LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.unsealed", ".deleted-*")


class DeletedError(UsageError):
    """A checkpoint was deleted while it was read."""


class Best(NamedTuple):
    """The best checkpoint: its step, and which of BEST says so, with its value."""

    step: int
    metric: str
    value: float


class Checkpoints:
    """The checkpoints in a directory: the newest ones and the best.

    Saving is asynchronous; `wait` and `close` wait for it. Every process of a job opens
    the directory and calls `save`, but only the first one deletes and renames. The
    others may see that later: broadcast what all of them must agree on.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, create: bool = True):
        """Opens `directory`.

        Args:
          directory: holds one sub-directory per saved step.
          keep: number of newest checkpoints to keep, besides the best.
          create: True to train: the directory is created if it is missing, and the
            unfinished checkpoints of a killed run are removed. False to read only.

        Raises:
          UsageError: the directory cannot be created, or Orbax cannot use it.
        """
        self._directory = directory.absolute()
        self._place = storage.place(self._directory)
        self._keep = keep
        self._saved = False
        self._saving: storage.Saving | None = None
        self._verified: set[int] = set()  # steps whose files were all checked
        self._gone: set[int] = set()  # steps that were deleted while they were read
        storage.silence_abandoned_reads()
        if create:
            self._create()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        # The file name that a CheckpointManager gives to its metrics.
        metrics = ocp.JsonCheckpointHandler(filename="metrics")
        registry.add("metrics", ocp.args.JsonSave, metrics)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(handler_registry=registry),
            temporary_path_class=storage.sealed_after(
                lambda directory: self._saving.check(directory)
            ),
        )

    def _create(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self._directory} cannot be created ({error.strerror}); fix this, or "
                "choose another --workdir."
            ) from error
        self._remove(*_LEFTOVERS)

    def _remove(self, *patterns: str) -> None:
        """Removes directories that do not count, in the first process."""
        if jax.process_index() == 0:
            for pattern in patterns:
                for path in self._directory.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, damaged ones too, in rising order."""
        try:
            found = list(self._directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        steps = {
            int(path.name)
            for path in found
            if _STEP.fullmatch(path.name) and path.is_dir()
        }
        return sorted(steps - self._gone)

    def latest_step(self) -> int | None:
        """Returns the newest step; None if nothing has been saved."""
        return max(self.all_steps(), default=None)

    def best(self) -> Best | None:
        """Returns the best checkpoint; None if no metric is known.

        This is what "best" means everywhere: by the metric in BEST, on the test split,
        and the newest of equals. Damaged metrics do not count.
        """
        known = [found for step in self.all_steps() if (found := self._scored(step))]
        return max(
            known,
            key=lambda each: (BEST[each.metric] * each.value, each.step),
            default=None,
        )

    def _scored(self, step: int) -> Best | None:
        try:
            metrics = seal.read_json(self._path(step), storage.OBJECTS["metrics"])
        except seal.DamageError:
            return None
        for name in BEST:
            value = metrics.get(name)
            if isinstance(value, float) and math.isfinite(value):
                return Best(step, name, value)
        return None

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def find(self, step: int | str | None) -> int:
        """Returns the step that `step` means.

        Args:
          step: a number, "newest" or None, or "best"; see `best`.

        Raises:
          UsageError: there is no such checkpoint.
        """
        steps = self.all_steps()
        if not steps:
            raise UsageError(
                f"{self._directory} holds no checkpoint; train first, or name another "
                "--workdir."
            )
        if step in (None, "newest"):
            return steps[-1]
        if step == "best":
            if best := self.best():
                return best.step
            if steps != self.all_steps():  # the best has just been replaced
                return self.find(step)
            raise UsageError(
                f"--step=best: no checkpoint of {self._directory} was evaluated; "
                f"choose one of {_listed(steps)}, newest."
            )
        if not str(step).isdecimal() or int(step) not in steps:
            raise UsageError(
                f"--step={step} is not a checkpoint of {self._directory}; choose one "
                f"of {_listed(steps)}, newest, best."
            )
        return int(step)

    def newest_intact(self) -> int | None:
        """Returns the newest step whose files are all what was saved.

        Logs which newer ones are damaged. Changes nothing.

        Returns:
          The step; None if nothing has been saved.

        Raises:
          UsageError: there are checkpoints, but none is intact.
        """
        damages = {}
        for step in reversed(self.all_steps()):
            try:
                seal.verify(self._path(step))
            except seal.DamageError as damage:
                damages[step] = damage
                continue
            for damaged, damage in damages.items():
                _log.warning(
                    "the checkpoint of step %d is damaged (%s); continuing from step "
                    "%d instead",
                    damaged,
                    damage,
                    step,
                )
            self._verified.add(step)
            return step
        if not damages:
            return None
        if not self._any_seal():
            raise UsageError(
                f"{seal.FILE} is missing in all checkpoints in {self._directory}: they "
                "are from an earlier version, or damaged; nothing is started over: "
                "choose another --workdir. They can still be evaluated."
            )
        listed = "; ".join(f"{step}: {damage}" for step, damage in damages.items())
        raise UsageError(
            f"every checkpoint in {self._directory} is damaged ({listed}); nothing is "
            "started over: restore these files from a copy, or choose another "
            "--workdir."
        )

    def set_aside(self, newer_than: int | None) -> None:
        """Renames each newer step to damaged-<step>, since it will be saved again.

        An older directory of that name is deleted.

        Args:
          newer_than: the step to continue from; with None nothing is done.

        Raises:
          TrainingError: it cannot be renamed.
        """
        if newer_than is None or jax.process_index() != 0:
            return
        for step in self.all_steps():
            if step > newer_than:
                aside = self._directory / f"damaged-{step}"
                with self._writing():
                    shutil.rmtree(aside, ignore_errors=True)
                    self._path(step).rename(aside)
                _log.warning("the checkpoint of step %d is kept in %s", step, aside)

    def save(
        self,
        state: TrainState,
        metrics: Mapping[str, float] | None,
        row: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves `state` under its step, in the background.

        Waits for the save before, and deletes what is then no longer kept. The arrays
        may be donated as soon as this returns. In the background the first process
        reads the checkpoint back, and seals it if it equals what is given here.

        Args:
          state: the state, of which every device holds everything.
          metrics: of the test split; must hold one of BEST. None if the state has not
            been evaluated; it cannot be the best one then.
          row: the unfinished row, for `row` to return.

        Raises:
          UsageError: there is a checkpoint of that step, or of a later one.
          TrainingError: this checkpoint or the one before cannot be written.
        """
        self.wait()
        self._delete_old()
        step, newest = int(state.step), self.latest_step()
        if newest is not None and newest >= step:
            raise UsageError(
                f"checkpoint {newest} in {self._directory} exists already; another run "
                "is writing there: give this one a --workdir of its own."
            )
        model, train = _items(state)
        arrays = {"model": model, "train": train}
        objects: dict[str, Any] = {"row": dict(row or {})}
        if metrics is not None:  # a CheckpointManager takes {} for an accuracy
            name = next(name for name in BEST if name in metrics)
            objects["metrics"] = {name: float(metrics[name])}
        with self._writing():
            self._remove(f"{step}.unsealed*")  # Orbax would log a warning about it
            self._saving = storage.Saving(arrays, objects)
            try:
                self._checkpointer.save(
                    self._place / f"{step}.unsealed",
                    args=ocp.args.Composite(
                        **{k: ocp.args.PyTreeSave(v) for k, v in arrays.items()},
                        **{k: ocp.args.JsonSave(v) for k, v in objects.items()},
                    ),
                )
            except BaseException:
                self._end_saving()
                raise
        self._saved = True

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          TrainingError: it cannot be written.
        """
        self._finish(self._checkpointer.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save, and deletes what is no longer kept.

        Raises:
          TrainingError: the last checkpoint cannot be written.
        """
        self._finish(self._checkpointer.close)
        if self._saved:  # a reader, with another `keep`, deletes nothing
            self._delete_old()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except TrainingError as failure:
            if error is None:
                raise
            _log.warning("%s", failure)  # `error` is what ends the run

    def _finish(self, end: Callable[[], None]) -> None:
        """Calls `end`, after which nothing is being saved."""
        with self._writing():
            try:
                end()
            finally:
                saving = self._end_saving()
            if saving:
                saving.raise_reported()

    def _end_saving(self) -> storage.Saving | None:
        """Returns the save that was in progress, which no longer listens."""
        saving, self._saving = self._saving, None
        if saving:
            saving.stop()
        return saving

    def _delete_old(self) -> None:
        """Deletes all but the newest and the best, in the first process."""
        if jax.process_index() != 0:
            return
        steps, best = self.all_steps(), self.best()
        for step in set(steps) - {*steps[-self._keep :], best and best.step}:
            # Without its name it does not count, even if it is only partly deleted.
            doomed = self._directory / f".deleted-{step}"
            try:
                self._path(step).rename(doomed)
            except OSError as error:
                _log.warning("cannot delete checkpoint %d (%s)", step, error)
            else:
                shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, like: TrainState, step: int) -> TrainState:
        """Returns the whole state saved at `step`.

        Its files are checked first, unless `newest_intact` has done so.

        Args:
          like: shapes and types (arrays or `jax.ShapeDtypeStruct`), and the shardings
            to restore to; without any, this process's first device.
          step: of an existing checkpoint.

        Raises:
          UsageError: it is damaged, or is deleted meanwhile.
        """
        model, train = map(storage.restore_args, _items(like))
        with self._reading(step):
            restored = self._restore(step, model=model, train=train)
        return TrainState(**restored.model, **restored.train)

    def row(self, step: int) -> dict[str, Any]:
        """Returns the `row` given to `save`; {} if there was none.

        Raises:
          UsageError: it is damaged.
        """
        try:
            return seal.read_json(self._path(step), storage.OBJECTS["row"])
        except seal.DamageError as damage:
            raise self._damaged(step, damage) from damage

    def restore_model(
        self, params: dict, batch_stats: dict, step: int | str | None = None
    ) -> tuple[int, dict, dict]:
        """Returns a step with its parameters and running statistics, checked first.

        Args:
          params: shapes and types, nested as they were saved. May be a part of the
            networks, such as {"encoder": ...}; only that part is restored.
          batch_stats: likewise; {} for none.
          step: as in `find`. If it means the best or the newest one, and a training
            deletes that while it is read, it is looked up again.

        Raises:
          UsageError: there is no such checkpoint, or it is of other networks, damaged,
            or deleted meanwhile.
        """
        # Orbax does not take an empty dict for one without entries.
        parts = {"params": params, "batch_stats": batch_stats}
        like = {name: part for name, part in parts.items() if part}
        while True:
            found = self.find(step)
            try:
                with self._reading(found, item="model"):
                    self._check_arrays(like, found)
                    wanted = storage.restore_args(like, partial=True)
                    model = self._restore(found, model=wanted).model
                return found, model.get("params", {}), model.get("batch_stats", {})
            except DeletedError:
                if step not in (None, "newest", "best"):
                    raise
                self._gone.add(found)

    def shapes(self, step: int) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Returns the shape of every parameter and running statistic by its path.

        Args:
          step: of an existing checkpoint.

        Raises:
          UsageError: it is damaged, or deleted meanwhile.
        """
        with self._reading(step, item="model"):
            return self._shapes(step)

    def _shapes(self, step: int) -> dict[tuple[str, ...], tuple[int, ...]]:
        with self._orbax(step):
            saved = ocp.PyTreeCheckpointHandler().metadata(
                self._place / str(step) / "model"
            )
        return shapes(saved.tree)

    @contextlib.contextmanager
    def _reading(self, step: int, item: str | None = None) -> Iterator[None]:
        """Checks all files, or those of an item, and that they stay while it is read.

        Raises:
          UsageError: they are damaged.
          DeletedError: some are missing at the end, whatever went wrong before.
        """
        files = [self._path(step)]
        try:
            files += self._checked(step, item)
            yield
        except UsageError:
            if all(path.exists() for path in files):
                raise
        else:
            if all(path.exists() for path in files):
                return
        raise DeletedError(self._message(step, "was deleted while it was read"))

    def _checked(self, step: int, item: str | None) -> list[pathlib.Path]:
        """Returns all files, or those of an item, after comparing them with the seal.

        Raises:
          UsageError: they are damaged.
        """
        directory = self._path(step)
        if item and not self._any_seal() and directory.exists():
            _log.warning(
                "%s is missing in all checkpoints in %s: they are from an earlier "
                "version, and damage cannot be detected",
                seal.FILE,
                self._directory,
            )
            return []
        try:
            if step not in self._verified:
                seal.verify(directory, item)
            return [directory / name for name in seal.sealed_files(directory, item)]
        except seal.DamageError as damage:
            raise self._damaged(step, damage) from damage

    def _any_seal(self) -> bool:
        return any((self._path(step) / seal.FILE).exists() for step in self.all_steps())

    def _damaged(self, step: int, damage: seal.DamageError) -> UsageError:
        return UsageError(self._message(step, f"is damaged ({damage})"))

    def _message(self, step: int, problem: str) -> str:
        others = _listed([each for each in self.all_steps() if each != step])
        return (
            f"checkpoint {step} in {self._directory} {problem}; choose another step: "
            f"{others}."
        )

    def _check_arrays(self, like: dict, step: int) -> None:
        """Raises a UsageError unless the networks in `like` are those of `step`."""
        wanted = shapes(like)
        parts = {name[:2] for name in wanted}
        found = {
            name: shape
            for name, shape in self._shapes(step).items()
            if name[:2] in parts
        }
        for name in sorted({**wanted, **found}):
            if wanted.get(name) != found.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self._directory} is of another "
                    f"architecture than its config.json: {'.'.join(name)} is "
                    f"{found.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} by the configuration; restore the "
                    "config.json the run was trained with."
                )

    def _restore(self, step: int, **items: ocp.args.PyTreeRestore):
        with self._orbax(step):
            return self._checkpointer.restore(
                self._place / str(step), args=ocp.args.Composite(**items)
            )

    @contextlib.contextmanager
    def _orbax(self, step: int) -> Iterator[None]:
        """Turns errors while reading into a UsageError."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # of the devices or the other processes
        except Exception as error:  # Orbax has no common type for what it cannot read
            reason = f"{type(error).__name__}: {seal.reason(error)}"
            raise UsageError(
                self._message(step, f"cannot be read ({reason})")
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors while writing into a TrainingError."""
        try:
            yield
        except Exception as error:  # of any type, from threads of Orbax
            for each in seal.chain(error):
                if isinstance(each, jax.errors.JaxRuntimeError):
                    raise each from None  # of the devices or the other processes
            newest = self.latest_step()
            then = "starts over" if newest is None else f"continues from step {newest}"
            raise TrainingError(
                f"{self._directory}: a checkpoint cannot be written "
                f"({seal.reason(error)}); free some space or fix this, then the same "
                f"command {then}."
            ) from error


def _items(state: TrainState) -> tuple[dict, dict]:
    """Returns the contents of the items model and train."""
    fields = state._asdict()
    model = {name: fields.pop(name) for name in _MODEL}
    return model, fields


def shapes(tree: dict) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every array by its path in nested dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves
    }


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
