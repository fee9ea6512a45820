"""Checkpoints of a run: written and read by Orbax, sealed and checked here.

A checkpoint is a directory called after its step, with up to four items and a seal:

  model           {"params": ..., "batch_stats": ...}, alone of use to an evaluation
  train           all other fields of the `TrainState`
  metrics         {"online_top1": ...}, if it is known
  row             what the row of metrics that is under way has gathered; JSON
  checksums.json  size and SHA-256 of every other file, and a SHA-256 of its own

The arrays are plain nested dicts. The configuration lies beside the checkpoints, in
`config.json`.

A directory gets its name last, by a rename, and loses it first: what is called after a
step was whole at one time. Whether it still is, the seal tells. Orbax alone restores
flipped bits as numbers, without an error.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Self

import jax
import orbax.checkpoint as ocp

from duet_jax.errors import TrainingError, UsageError
from duet_jax.types import TrainState

_log = logging.getLogger(__name__)

# What "best" means.
BEST_METRIC = "online_top1"

_SEAL = "checksums.json"
# The fields of a TrainState in the item "model".
_MODEL = ("params", "batch_stats")
_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)
# What a killed program leaves of a checkpoint that it wrote or deleted.
_LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.unsealed", ".deleted-*")
# How the storage layer of Orbax ends what the operating system told it.
_ERROR_NUMBER = re.compile(r"os_error_code='(\d+)'")


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
          UsageError: the directory cannot be made.
        """
        self._directory = directory.absolute()
        self._keep = keep
        self._saved = False
        self._verified: set[int] = set()  # steps that were checked as a whole
        if create:
            self._prepare()
            _ignore_late_writes()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        # The file name that a CheckpointManager gives to its metrics.
        metrics = ocp.JsonCheckpointHandler(filename="metrics")
        registry.add("metrics", ocp.args.JsonSave, metrics)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(handler_registry=registry),
            temporary_path_class=_SealedPath,
        )

    def _prepare(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self._directory} cannot be made ({error.strerror}); put that right, "
                "or choose another --workdir."
            ) from error
        if jax.process_index() == 0:
            for pattern in _LEFTOVERS:
                for path in self._directory.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)

    def latest_step(self) -> int | None:
        """Returns the newest step, or None where nothing has been saved."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best online top-1 on the test split, or None.

        The newest of equals. An accuracy that is damaged does not count.
        """
        steps = self.all_steps()
        known = [(a, step) for step in steps if (a := self._accuracy(step)) is not None]
        return max(known)[1] if known else None

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

    def find(self, step: int | str | None) -> int:
        """Returns the step that `step` means.

        Args:
          step: a number, "newest" or None, or "best" for the best online top-1 on the
            test split.

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
            best = self.best_step()
            if best is None:
                raise UsageError(
                    f"--step=best: no checkpoint of {self._directory} has an accuracy; "
                    f"choose one of {_listed(steps)}, newest."
                )
            return best
        if not str(step).isdecimal() or int(step) not in steps:
            raise UsageError(
                f"--step={step} is not a checkpoint of {self._directory}; choose one "
                f"of {_listed(steps)}, newest, best."
            )
        return int(step)

    def newest_sound(self) -> int | None:
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
                _verify(self._directory / str(step))
            except _DamageError as damage:
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
                f"{_SEAL} is missing in all checkpoints in {self._directory}: they are "
                "of an earlier version, or damaged; nothing is started over: choose "
                "another --workdir. They can still be evaluated."
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
        may be donated as soon as this returns.

        Args:
          state: what to save.
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
        with self._writing():
            self._checkpointer.save(
                self._directory / str(step),
                args=ocp.args.Composite(**_what_to_save(state, metrics, row)),
            )
        self._saved = True

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Returns the state saved at `step`, by default the newest.

        Its files are checked first, unless `newest_sound` of this object did.

        Args:
          like: shapes and types (arrays or `jax.ShapeDtypeStruct`), and the shardings
            to restore to; without any, this process's first device.
          step: one of `all_steps()`.

        Raises:
          UsageError: there is no such checkpoint, or it is damaged.
        """
        step = self.find(step)
        self._check(step)
        model, train = map(_restore_as, _items(_somewhere(like)))
        restored = self._restore(step, model=model, train=train)
        return TrainState(**restored.model, **restored.train)

    def row(self, step: int) -> dict[str, Any]:
        """Returns what was given to `save` as `row`; {} if nothing was.

        Raises:
          UsageError: it is damaged.
        """
        try:
            return _read_json(self._directory / str(step), "row/metadata")
        except _DamageError as damage:
            raise self._damaged(step, damage) from damage

    def restore_model(
        self, params: dict, batch_stats: dict, step: int | None = None
    ) -> tuple[dict, dict]:
        """Returns parameters and running statistics alone, checked first.

        Args:
          params: shapes and types, nested as they were saved. It may hold a part of the
            networks only, such as {"encoder": ...}; no more than that is restored.
          batch_stats: likewise; {} for none.
          step: one of `all_steps()`; the newest when None.

        Raises:
          UsageError: the checkpoint is of other networks, or damaged.
        """
        step = self.find(step)
        self._check(step, item="model")
        # Orbax takes an empty dict for something else than one with no entries.
        parts = {"params": params, "batch_stats": batch_stats}
        like = _somewhere({name: part for name, part in parts.items() if part})
        self._check_arrays(like, step)
        model = self._restore(step, model=_restore_as(like, partial=True)).model
        return model.get("params", {}), model.get("batch_stats", {})

    def wait(self) -> None:
        """Returns when what was saved is there.

        Raises:
          TrainingError: it cannot be written.
        """
        with self._writing():
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Waits for the saving to finish, and deletes what is no longer kept.

        Raises:
          TrainingError: the last checkpoint cannot be written.
        """
        with self._writing():
            self._checkpointer.close()
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
            metrics = _read_json(self._directory / str(step), "metrics/metrics")
        except _DamageError:
            return None
        value = metrics.get(BEST_METRIC)
        return value if isinstance(value, float) and math.isfinite(value) else None

    def _check(self, step: int, item: str | None = None) -> None:
        """Raises a UsageError unless all files, or those of an item, are sound."""
        if item and not self._any_seal():
            _log.warning(
                "%s is missing in all checkpoints in %s: they are of an earlier "
                "version, and whether they are damaged cannot be told",
                _SEAL,
                self._directory,
            )
            return
        try:
            if step not in self._verified:
                _verify(self._directory / str(step), item)
        except _DamageError as damage:
            raise self._damaged(step, damage) from damage

    def _any_seal(self) -> bool:
        steps = (self._directory / str(step) for step in self.all_steps())
        return any((step / _SEAL).exists() for step in steps)

    def _damaged(self, step: int, damage: "_DamageError") -> UsageError:
        return UsageError(
            f"checkpoint {step} in {self._directory} is damaged ({damage}); choose "
            f"another step: {self._others(step)}."
        )

    def _others(self, step: int) -> str:
        return _listed([each for each in self.all_steps() if each != step])

    def _check_arrays(self, like: dict, step: int) -> None:
        """Raises a UsageError unless the networks in `like` are those of `step`."""
        saved = ocp.PyTreeCheckpointHandler().metadata(
            self._directory / str(step) / "model"
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
        try:
            return self._checkpointer.restore(
                self._directory / str(step), args=ocp.args.Composite(**items)
            )
        except jax.errors.JaxRuntimeError:
            raise  # of the devices or the other processes
        except Exception as error:  # Orbax has no common type for what it cannot read
            raise UsageError(
                f"checkpoint {step} in {self._directory} cannot be read "
                f"({type(error).__name__}: {_reason(error)}); choose another step: "
                f"{self._others(step)}."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what goes wrong with the storage into a TrainingError."""
        try:
            yield
        except Exception as error:  # of any type, from threads of Orbax
            for each in _chain(error):
                if isinstance(each, jax.errors.JaxRuntimeError):
                    raise each from None  # of the devices or the other processes
            newest = self.latest_step()
            goes_on = "starts anew" if newest is None else f"goes on from step {newest}"
            raise TrainingError(
                f"{self._directory}: a checkpoint cannot be written "
                f"({_reason(error)}); make room or put it right, then the same command "
                f"{goes_on}."
            ) from error


class _SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a checkpoint: it is sealed, and then gets its name.

    The last thing Orbax does is to rename its directory. Here that gives a name which
    does not count, for the seal to cover all that Orbax writes.
    """

    @classmethod
    def from_final(cls, final_path, **options):
        return super().from_final(
            final_path.with_name(f"{final_path.name}.unsealed"), **options
        )

    def get_final(self):
        return super().get_final().with_suffix("")

    async def finalize(self) -> None:  # by the first process, in a thread for it
        await super().finalize()
        unsealed = pathlib.Path(super().get_final())
        _seal(unsealed)
        unsealed.rename(self.get_final())
        _flush(unsealed.parent)


class _DamageError(Exception):
    """Says which file of a checkpoint is damaged, and how."""


def _seal(directory: pathlib.Path) -> None:
    """Writes the seal of `directory`, and has the disk hold all of it."""
    paths = sorted(directory.rglob("*"))
    files = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                files[path.relative_to(directory).as_posix()] = _facts(file)
    (directory / _SEAL).write_bytes(_seal_text(files))
    for path in (*paths, directory / _SEAL, directory):
        _flush(path)


def _facts(file: BinaryIO) -> dict[str, int | str]:
    return {
        "bytes": os.fstat(file.fileno()).st_size,
        "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
    }


def _seal_text(files: Any) -> bytes:
    """The one way to write a seal: whatever else stands there has been changed."""
    listed = json.dumps(files, sort_keys=True).encode()
    seal = {"files": files, "sha256": hashlib.sha256(listed).hexdigest()}
    return json.dumps(seal, sort_keys=True, indent=1).encode()


def _flush(path: pathlib.Path) -> None:
    """Returns when the disk holds the file, or the names in the directory."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sealed_files(directory: pathlib.Path) -> dict[str, dict[str, int | str]]:
    """Returns size and hash of each file by its path.

    Raises:
      _DamageError: the seal itself is damaged.
    """
    with _opened(directory, _SEAL) as file:
        text = file.read()
    try:
        files = json.loads(text)["files"]
        intact = text == _seal_text(files) and all(
            {name: type(value) for name, value in entry.items()}
            == {"bytes": int, "sha256": str}
            for entry in files.values()
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise _DamageError(f"{_SEAL} has changed")
    return files


def _verify(directory: pathlib.Path, item: str | None = None) -> None:
    """Compares the checkpoint in `directory`, or an item of it, with its seal.

    Files that the seal does not name have come later, and nothing reads them.

    Raises:
      _DamageError: they differ.
    """
    for name, entry in _sealed_files(directory).items():
        if item is None or name.startswith(f"{item}/"):
            _verify_file(directory, name, entry)


def _verify_file(directory: pathlib.Path, name: str, entry: Mapping[str, Any]) -> None:
    with _opened(directory, name) as file:
        found = _facts(file)
    if found["bytes"] != entry["bytes"]:
        raise _DamageError(
            f"{name} has {found['bytes']} bytes instead of {entry['bytes']}"
        )
    if found != entry:
        raise _DamageError(f"{name} has changed")


def _read_json(directory: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the object in a file; {} where the checkpoint never had such a file.

    Raises:
      _DamageError: the file or the seal is damaged.
    """
    files = _sealed_files(directory)
    if name not in files:
        return {}
    _verify_file(directory, name, files[name])
    with _opened(directory, name) as file, contextlib.suppress(ValueError):
        value = json.load(file)
        if isinstance(value, dict):
            return value
    raise _DamageError(f"{name} is not a JSON object")


@contextlib.contextmanager
def _opened(directory: pathlib.Path, name: str) -> Iterator[BinaryIO]:
    """Opens a file of a checkpoint.

    Raises:
      _DamageError: there is none, it cannot be read, or it is not of this checkpoint:
        the name comes from a file that anybody may have written.
    """
    path = directory / name
    try:
        root = directory.resolve()
        if not (name.isprintable() and path.resolve().is_relative_to(root)):
            raise _DamageError(f"{_SEAL} names {name!r}, which is not in it")
        if not path.is_file():  # a pipe would be waited for
            raise _DamageError(f"{name} is missing")
        with path.open("rb") as file:
            yield file
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise _DamageError(f"{name} cannot be read ({_reason(error)})") from error


@functools.cache  # once a process
def _ignore_late_writes() -> None:
    """Has nothing printed of arrays whose writing ends after that of another failed.

    They call an event loop that Orbax has closed by then: a traceback for each.
    """
    otherwise = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            otherwise(unraisable)

    sys.unraisablehook = hook


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """What the operating system says; or else the error itself, in short."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        if number := _ERROR_NUMBER.search(str(each)):
            return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:200]


def _what_to_save(
    state: TrainState,
    metrics: Mapping[str, float] | None,
    row: Mapping[str, Any] | None,
) -> dict[str, ocp.args.CheckpointArgs]:
    """Returns the items of a checkpoint by name."""
    model, train = _items(state)
    items = {
        "model": ocp.args.PyTreeSave(model),
        "train": ocp.args.PyTreeSave(train),
        "row": ocp.args.JsonSave(dict(row or {})),
    }
    if metrics is not None:  # a manager takes empty metrics for an accuracy
        accuracy = {BEST_METRIC: float(metrics[BEST_METRIC])}
        items["metrics"] = ocp.args.JsonSave(accuracy)
    return items


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


def _restore_as(like, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """Restores into the shapes, types and devices of `like`, which may be a part."""
    return ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=partial,
    )


def _somewhere(tree):
    """The tree's shapes where they are wanted, or else on this process's first device.

    Orbax would go back to the devices it was saved from, which may not be here.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, tree)
