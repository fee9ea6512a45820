"""Checkpoints of a run: which there are, which is the best, saving and restoring.

A checkpoint is a directory called after its step, with up to four items and a seal:

  model           {"params": ..., "batch_stats": ...}, alone of use to an evaluation
  train           all other fields of the `TrainState`
  metrics         {"online_top1": ...}, if it is known
  row             what the row of metrics that is under way has gathered; JSON
  checksums.json  size and SHA-256 of every other file, and a SHA-256 of its own

The arrays are plain nested dicts. The configuration lies beside the checkpoints, in
`config.json`.

A directory gets its name last, by a rename, and loses it first: what is called after a
step was whole at one time. Whether it still is, its seal tells (`seal`); what Orbax has
written is checked before it gets one (`storage`).
"""

import contextlib
import logging
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from duet_jax.errors import TrainingError, UsageError
from duet_jax.runs import seal, storage
from duet_jax.types import TrainState

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What is compared for `Checkpoints.best`.
BEST_METRIC = "online_top1"

# The fields of a TrainState in the item "model".
_MODEL = ("params", "batch_stats")
_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)
# What a killed program leaves of a checkpoint that it wrote or deleted.
_LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.unsealed", ".deleted-*")


class DeletedError(UsageError):
    """A checkpoint was deleted while it was read."""


class Best(NamedTuple):
    """The best checkpoint: its step, and its online top-1 on the test split."""

    step: int
    accuracy: float


class Checkpoints:
    """The checkpoints in a directory: the newest ones and the best.

    Saving is asynchronous; `wait` and `close` wait for it. Every process of a job opens
    the directory and calls `save`; the first one alone deletes and renames. Another
    process may see that later: who needs the same answer everywhere broadcasts it.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, create: bool = True):
        """Opens `directory`.

        Args:
          directory: holds one sub-directory per saved step.
          keep: how many of the newest to keep, besides the best.
          create: True for a training: the directory is made where it is missing, and
            what a killed run has left there of unfinished checkpoints is removed.
            False to read only.

        Raises:
          UsageError: the directory cannot be made, or not be used by Orbax.
        """
        self._directory = directory.absolute()
        self._place = storage.place(self._directory)
        self._keep = keep
        self._saved = False
        self._saving: storage.Saving | None = None
        self._verified: set[int] = set()  # steps that were checked as a whole
        storage.ignore_late_ends()
        if create:
            self._prepare()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        # The file name that a CheckpointManager gives to its metrics.
        metrics = ocp.JsonCheckpointHandler(filename="metrics")
        registry.add("metrics", ocp.args.JsonSave, metrics)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(handler_registry=registry),
            temporary_path_class=storage.sealed_after(self._check_written),
        )

    def _prepare(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self._directory} cannot be made ({error.strerror}); put that right, "
                "or choose another --workdir."
            ) from error
        self._remove(*_LEFTOVERS)

    def _remove(self, *patterns: str) -> None:
        """Removes what a saving or a deletion has left, as the first process."""
        if jax.process_index() == 0:
            for pattern in patterns:
                for path in self._directory.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)

    def latest_step(self) -> int | None:
        """Returns the newest step, or None where nothing has been saved."""
        return max(self.all_steps(), default=None)

    def best(self, without: Collection[int] = ()) -> Best | None:
        """Returns the best of the checkpoints that there are, or None.

        This is what "best" means everywhere: the highest online top-1 on the test
        split, of equals the newest. An accuracy that is damaged does not count.

        Args:
          without: steps that do not count.
        """
        known = [
            (accuracy, step)
            for step in self._steps(without)
            if (accuracy := self._accuracy(step)) is not None
        ]
        if not known:
            return None
        accuracy, step = max(known)
        return Best(step, accuracy)

    def best_step(self) -> int | None:
        """Returns the step of the `best` checkpoint, or None."""
        best = self.best()
        return best and best.step

    def all_steps(self) -> list[int]:
        """Returns the steps that are kept, damaged ones too, rising."""
        try:
            found = list(self._directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            int(path.name)
            for path in found
            if _STEP.fullmatch(path.name) and path.is_dir()
        )

    def _steps(self, without: Collection[int]) -> list[int]:
        return [step for step in self.all_steps() if step not in without]

    def find(self, step: int | str | None, without: Collection[int] = ()) -> int:
        """Returns the step that `step` means.

        Args:
          step: a number, "newest" or None, or "best"; see `best`.
          without: steps that do not count.

        Raises:
          UsageError: there is no such checkpoint.
        """
        steps = self._steps(without)
        if not steps:
            raise UsageError(
                f"{self._directory} holds no checkpoint; train first, or name another "
                "--workdir."
            )
        if step in (None, "newest"):
            return steps[-1]
        if step == "best":
            if best := self.best(without):
                return best.step
            if steps != self._steps(without):  # the best has just made way
                return self.find(step, without)
            raise UsageError(
                f"--step=best: no checkpoint of {self._directory} has an accuracy; "
                f"choose one of {_listed(steps)}, newest."
            )
        if not str(step).isdecimal() or int(step) not in steps:
            raise UsageError(
                f"--step={step} is not a checkpoint of {self._directory}; choose one "
                f"of {_listed(steps)}, newest, best."
            )
        return int(step)

    def newest_intact(self) -> int | None:
        """Returns the newest step whose files all are what was saved.

        Logs which newer ones are damaged. Changes nothing.

        Returns:
          The step; None where nothing has been saved.

        Raises:
          UsageError: there are checkpoints, and none is sound.
        """
        damages = {}
        for step in reversed(self.all_steps()):
            try:
                seal.verify(self._directory / str(step))
            except seal.DamageError as damage:
                damages[step] = damage
                continue
            for damaged, damage in damages.items():
                _log.warning(
                    "the checkpoint of step %d is damaged (%s); going on from that of "
                    "step %d",
                    damaged,
                    damage,
                    step,
                )
            self._verified.add(step)
            return step
        if damages and not self._any_seal():
            raise UsageError(
                f"{seal.FILE} is missing in all checkpoints in {self._directory}: they "
                "are of an earlier version, or damaged; nothing is started over: "
                "choose another --workdir. They can still be evaluated."
            )
        if damages:
            listed = "; ".join(f"{step}: {damage}" for step, damage in damages.items())
            raise UsageError(
                f"every checkpoint in {self._directory} is damaged ({listed}); nothing "
                "is started over: give back these files from a copy, or choose another "
                "--workdir."
            )
        return None

    def set_aside(self, newer_than: int | None) -> None:
        """Renames each newer step to damaged-<step>: it is going to be made anew.

        An older one of that name makes way.

        Args:
          newer_than: the step to go on from; None, where there is none, does nothing.

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
                    (self._directory / str(step)).rename(aside)
                _log.warning("the checkpoint of step %d is kept in %s", step, aside)

    def save(
        self,
        state: TrainState,
        metrics: Mapping[str, float] | None,
        row: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves `state` under its step, in the background.

        Waits for the saving before, and deletes what is then no longer kept. The arrays
        may be donated as soon as this returns. In the background the first process
        reads the checkpoint back, and seals it if it is what is given here.

        Args:
          state: what to save; every device holds all of it.
          metrics: of the test split; must hold BEST_METRIC. None where the state has
            not been evaluated; it is not the best one then.
          row: for `row` to give back.

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
        arrays, objects = _what_to_save(state, metrics, row)
        with self._writing():
            self._remove(f"{step}.unsealed*")  # Orbax would log a warning of it
            self._saving = storage.Saving(arrays, objects)
            try:
                self._checkpointer.save(
                    self._place / str(step),
                    args=ocp.args.Composite(
                        **{k: ocp.args.PyTreeSave(v) for k, v in arrays.items()},
                        **{k: ocp.args.JsonSave(v) for k, v in objects.items()},
                    ),
                )
            except BaseException:
                self._end_saving()
                raise
        self._saved = True

    def restore(self, like: TrainState, step: int | str | None = None) -> TrainState:
        """Returns the state saved at `step`, by default the newest.

        Its files are checked first, unless `newest_intact` of this object did.

        Args:
          like: shapes and types (arrays or `jax.ShapeDtypeStruct`), and the shardings
            to restore to; without any, this process's first device.
          step: as in `find`.

        Raises:
          UsageError: there is no such checkpoint, or it is damaged, or deleted.
        """
        model, train = map(storage.restore_as, _items(storage.somewhere(like)))

        def read(found: int) -> TrainState:
            with self._reading(found):
                restored = self._restore(found, model=model, train=train)
            return TrainState(**restored.model, **restored.train)

        return self._found(step, read)[1]

    def row(self, step: int) -> dict[str, Any]:
        """Returns what was given to `save` as `row`; {} if nothing was.

        Raises:
          UsageError: it is damaged.
        """
        try:
            return seal.read_json(self._directory / str(step), storage.OBJECTS["row"])
        except seal.DamageError as damage:
            raise self._damaged(step, damage) from damage

    def restore_model(
        self, params: dict, batch_stats: dict, step: int | str | None = None
    ) -> tuple[dict, dict]:
        """Returns what `find_model` does, without the step."""
        return self.find_model(params, batch_stats, step)[1:]

    def find_model(
        self, params: dict, batch_stats: dict, step: int | str | None = None
    ) -> tuple[int, dict, dict]:
        """Returns a step, and its parameters and running statistics, checked first.

        Args:
          params: shapes and types, nested as they were saved. It may hold a part of the
            networks only, such as {"encoder": ...}; no more than that is restored.
          batch_stats: likewise; {} for none.
          step: as in `find`. Where a training that goes on deletes the one that "best"
            or None means, while it is read, that is looked up again.

        Raises:
          UsageError: the checkpoint is of other networks, or damaged, or deleted.
        """
        # Orbax takes an empty dict for something else than one with no entries.
        parts = {"params": params, "batch_stats": batch_stats}
        like = storage.somewhere({name: part for name, part in parts.items() if part})

        def read(found: int) -> dict:
            with self._reading(found, item="model"):
                self._check_arrays(like, found)
                asked = storage.restore_as(like, partial=True)
                return self._restore(found, model=asked).model

        step, model = self._found(step, read)
        return step, model.get("params", {}), model.get("batch_stats", {})

    def _found(
        self, step: int | str | None, read: Callable[[int], _Result]
    ) -> tuple[int, _Result]:
        """Returns the step that `step` means, and what `read` makes of it."""
        gone: set[int] = set()
        while True:
            found = self.find(step, without=gone)
            try:
                return found, read(found)
            except DeletedError:
                if step not in (None, "newest", "best"):
                    raise
                gone.add(found)

    def wait(self) -> None:
        """Returns when what was saved is there.

        Raises:
          TrainingError: it cannot be written.
        """
        self._finish(self._checkpointer.wait_until_finished)

    def close(self) -> None:
        """Waits for the saving to finish, and deletes what is no longer kept.

        Raises:
          TrainingError: the last checkpoint cannot be written.
        """
        self._finish(self._checkpointer.close)
        if self._saved:  # who only reads, with another `keep`, deletes nothing
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
                reports = self._end_saving()
            storage.raise_first(reports)

    def _end_saving(self) -> list[str]:
        """Returns what the storage layer has reported of the saving."""
        saving, self._saving = self._saving, None
        return saving.end() if saving else []

    def _check_written(self, directory: pathlib.Path) -> None:
        """Raises unless `directory` holds what is being saved."""
        if self._saving:
            self._saving.check(directory)

    def _delete_old(self) -> None:
        """Deletes all but the newest and the best, as the first process."""
        if jax.process_index() != 0:
            return
        steps = self.all_steps()
        for step in set(steps) - {*steps[-self._keep :], self.best_step()}:
            # Without its name it does not count, however little of it gets deleted.
            doomed = self._directory / f".deleted-{step}"
            try:
                (self._directory / str(step)).rename(doomed)
            except OSError as error:
                _log.warning("cannot delete checkpoint %d (%s)", step, error)
            else:
                shutil.rmtree(doomed, ignore_errors=True)

    def _accuracy(self, step: int) -> float | None:
        try:
            metrics = seal.read_json(
                self._directory / str(step), storage.OBJECTS["metrics"]
            )
        except seal.DamageError:
            return None
        value = metrics.get(BEST_METRIC)
        return value if isinstance(value, float) and math.isfinite(value) else None

    @contextlib.contextmanager
    def _reading(self, step: int, item: str | None = None) -> Iterator[None]:
        """Checks files, or those of an item, and that none goes while they are read.

        Raises:
          UsageError: they are damaged.
          DeletedError: some are gone at the end, whatever was read of them until then.
        """
        files = [self._directory / str(step)]
        try:
            self._check(step, item)
            files += self._files(step, item)
            yield
        except UsageError:
            if all(path.exists() for path in files):
                raise
        else:
            if all(path.exists() for path in files):
                return
        raise DeletedError(
            f"checkpoint {step} in {self._directory} was deleted while it was read; "
            f"choose another step: {self._others(step)}."
        )

    def _files(self, step: int, item: str | None) -> list[pathlib.Path]:
        """Returns what the seal names; [] where there is none."""
        directory = self._directory / str(step)
        with contextlib.suppress(seal.DamageError):
            sealed = seal.sealed_files(directory)
            return [directory / name for name in sealed if seal.is_of(name, item)]
        return []

    def _check(self, step: int, item: str | None = None) -> None:
        """Raises a UsageError unless all files, or those of an item, are sound."""
        directory = self._directory / str(step)
        if item and not self._any_seal() and directory.exists():
            _log.warning(
                "%s is missing in all checkpoints in %s: they are of an earlier "
                "version, and whether they are damaged cannot be told",
                seal.FILE,
                self._directory,
            )
            return
        try:
            if step not in self._verified:
                seal.verify(directory, item)
        except seal.DamageError as damage:
            raise self._damaged(step, damage) from damage

    def _any_seal(self) -> bool:
        steps = (self._directory / str(step) for step in self.all_steps())
        return any((step / seal.FILE).exists() for step in steps)

    def _damaged(self, step: int, damage: "seal.DamageError") -> UsageError:
        return UsageError(
            f"checkpoint {step} in {self._directory} is damaged ({damage}); choose "
            f"another step: {self._others(step)}."
        )

    def _others(self, step: int) -> str:
        return _listed([each for each in self.all_steps() if each != step])

    def _check_arrays(self, like: dict, step: int) -> None:
        """Raises a UsageError unless the networks in `like` are those of `step`."""
        with self._orbax(step):
            saved = ocp.PyTreeCheckpointHandler().metadata(
                self._place / str(step) / "model"
            )
        wanted = _shapes(like)
        parts = {name[:2] for name in wanted}
        found = {
            name: shape
            for name, shape in _shapes(saved.tree).items()
            if name[:2] in parts
        }
        for name in sorted({**wanted, **found}):
            if wanted.get(name) != found.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self._directory} is of another "
                    f"architecture than its config.json: {'.'.join(name)} is "
                    f"{found.get(name, 'missing')} there and "
                    f"{wanted.get(name, 'missing')} by the configuration; give back "
                    "the config.json the run was trained with."
                )

    def _restore(self, step: int, **items: ocp.args.PyTreeRestore):
        with self._orbax(step):
            return self._checkpointer.restore(
                self._place / str(step), args=ocp.args.Composite(**items)
            )

    @contextlib.contextmanager
    def _orbax(self, step: int) -> Iterator[None]:
        """Turns what goes wrong with the reading into a UsageError."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # of the devices or the other processes
        except Exception as error:  # Orbax has no common type for what it cannot read
            raise UsageError(
                f"checkpoint {step} in {self._directory} cannot be read "
                f"({type(error).__name__}: {seal.reason(error)}); choose another step: "
                f"{self._others(step)}."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what goes wrong with the storage into a TrainingError."""
        try:
            yield
        except Exception as error:  # of any type, from threads of Orbax
            for each in seal.chain(error):
                if isinstance(each, jax.errors.JaxRuntimeError):
                    raise each from None  # of the devices or the other processes
            newest = self.latest_step()
            goes_on = "starts anew" if newest is None else f"goes on from step {newest}"
            raise TrainingError(
                f"{self._directory}: a checkpoint cannot be written "
                f"({seal.reason(error)}); make room or put it right, then the same "
                f"command {goes_on}."
            ) from error


def _what_to_save(
    state: TrainState,
    metrics: Mapping[str, float] | None,
    row: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the items of a checkpoint: trees of arrays, and objects for JSON."""
    model, train = _items(state)
    objects = {"row": dict(row or {})}
    if metrics is not None:  # a manager takes empty metrics for an accuracy
        objects["metrics"] = {BEST_METRIC: float(metrics[BEST_METRIC])}
    return {"model": model, "train": train}, objects


def _items(state: TrainState) -> tuple[dict, dict]:
    """Returns what the items model and train hold."""
    fields = state._asdict()
    model = {name: fields.pop(name) for name in _MODEL}
    return model, fields


def _shapes(tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every array by its path in nested dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves
    }


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
