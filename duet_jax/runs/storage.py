"""Makes Orbax write exactly what it is given, or fail.

A checkpoint is sealed only after it has been read back and compared with what was to be
saved, and if Orbax has logged no warning meanwhile: some errors it only logs.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from duet_jax.errors import UsageError
from duet_jax.runs import seal

# The files of the items that are JSON.
OBJECTS = {"row": "row/metadata", "metrics": "metrics/metrics"}
# The loggers of the storage layer. Orbax itself logs with absl's logger, as others do:
# a record counts if a function in Orbax's files is on the stack.
_LOGGERS = ("orbax", "etils", "tensorstore")
ORBAX = f"{pathlib.Path(ocp.__file__).parents[1]}{os.sep}"


class Place(type(epath.Path("/"))):
    """A path on this machine, as Orbax needs it.

    Orbax looks for files with glob patterns, and epath takes the directory's name as
    part of the pattern, where [, * and ? are special. epath also takes paths below /gs,
    /s3, /az and /hf for buckets.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yields the paths that match below this directory, whatever its name."""
        yield from map(type(self), pathlib.Path(self).glob(pattern))


def place(directory: pathlib.Path) -> Place:
    """Returns the path of `directory` for Orbax.

    Links are resolved first: TensorStore takes link/../runs for runs. It also refuses a
    path that begins with two slashes, which mean the same as one.

    Raises:
      UsageError: TensorStore would write to another place.
    """
    path = f"/{os.path.realpath(directory).lstrip('/')}"
    reason = None
    if "\\" in path:
        reason = "the storage of checkpoints takes the \\ in it for a /"
    elif "gs:/" in f"{path}/":
        reason = "the storage of checkpoints takes the gs: in it for an address"
    else:
        try:
            path.encode()
        except UnicodeEncodeError:
            reason = "it is not UTF-8"
    if reason:
        raise UsageError(
            f"{path} cannot hold checkpoints ({reason}); rename that directory, or "
            "choose another --workdir."
        )
    return Place(path)


def sealed_after(
    check: Callable[[pathlib.Path], None],
) -> type[ocp.path.atomicity.AtomicRenameTemporaryPath]:
    """Returns the class of the temporary paths for checkpoints named <step>.unsealed.

    The last thing Orbax does is to rename its directory. Here that gives it a name that
    does not count. It is then passed to `check`, sealed, and renamed to <step>: the
    seal covers all that Orbax has written.
    """

    def finish(unsealed: pathlib.Path) -> None:
        check(unsealed)
        seal.seal(unsealed)
        unsealed.rename(unsealed.with_suffix(""))
        seal.flush(unsealed.parent)

    class SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:  # in the first process only
            await super().finalize()
            # `check` reads with Orbax, which needs a thread without an event loop.
            await asyncio.to_thread(finish, pathlib.Path(self.get_final()))

    return SealedPath


class Saving(logging.Handler):
    """A checkpoint that is being written: its content, and what Orbax logs meanwhile.

    Until `stop` is called it collects the warnings and errors of the storage layer, in
    any thread. What is shown of them stays the same: nothing, where main.py silences
    absl's logger.
    """

    def __init__(self, arrays: Mapping[str, Any], objects: Mapping[str, Any]):
        """Copies everything, in the process that is going to check it, and listens.

        Args:
          arrays: trees of `jax.Array`, by item.
          objects: what is written as JSON, by item.
        """
        super().__init__(logging.WARNING)
        self._arrays, self._objects = {}, {}
        if jax.process_index() == 0:
            self._arrays = jax.tree.map(_on_host, dict(arrays))
            self._objects = {name: _as_json(each) for name, each in objects.items()}
        self._messages: list[str] = []
        absl = logging.getLogger("absl")
        self._absl_level, self._shown = absl.level, absl.getEffectiveLevel()
        absl.setLevel(min(self._shown, self.level))  # to get the records at all
        absl.addFilter(self._collect)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)

    def stop(self) -> None:
        """Stops listening and leaves the loggers as they were."""
        absl = logging.getLogger("absl")
        absl.removeFilter(self._collect)
        absl.setLevel(self._absl_level)
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Collects a record."""
        self._messages.append(record.getMessage())

    def _collect(self, record: logging.LogRecord) -> bool:
        """Collects a record if Orbax is on the stack; returns whether it is shown."""
        if record.levelno >= self.level and _in_orbax(traceback.walk_stack(None)):
            self.emit(record)
        return record.levelno >= self._shown

    def raise_reported(self) -> None:
        """Raises a RuntimeError with the first message collected, if there is one."""
        if self._messages:
            raise RuntimeError(f"Orbax reports: {self._messages[0]}")

    def check(self, directory: pathlib.Path) -> None:
        """Raises unless `directory` holds everything and nothing was reported."""
        self.raise_reported()
        while self._arrays:  # one after another, to free the memory
            name, expected = self._arrays.popitem()
            _compare_arrays(Place(directory / name), name, expected)
        for name, expected in self._objects.items():
            _compare_objects(directory / OBJECTS[name], name, expected)


def _on_host(array: jax.Array) -> np.ndarray:
    """Copies: on the CPU, NumPy would share the array's memory."""
    return np.array(array.addressable_data(0))


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _compare_arrays(directory: Place, item: str, expected: Any) -> None:
    """Raises unless the arrays in `directory` have the bits of `expected`."""
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
    asked = ocp.args.PyTreeRestore(expected, restore_args=on_host)
    with _reading_back(item):
        found = ocp.PyTreeCheckpointHandler().restore(directory, args=asked)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, old), new in zip(leaves, jax.tree.leaves(found), strict=True):
        same = old.shape == new.shape and old.dtype == new.dtype
        if not same or old.tobytes() != new.tobytes():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise seal.DamageError(f"{item}.{name} is read back changed")


def _compare_objects(path: pathlib.Path, item: str, expected: str) -> None:
    with _reading_back(item):
        found = _as_json(json.loads(path.read_text()))
    if found != expected:
        raise seal.DamageError(f"{item} is read back changed")


@contextlib.contextmanager
def _reading_back(item: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax has no common type for what it cannot read
        reason = f"{item} cannot be read back: {seal.reason(error)}"
        raise seal.DamageError(reason) from error


def _in_orbax(frames: Iterable[tuple[types.FrameType, int]]) -> bool:
    """Returns whether a stack or traceback has a function from Orbax's files."""
    return any(frame.f_code.co_filename.startswith(ORBAX) for frame, _ in frames)


@functools.cache  # once in a process
def silence_abandoned_reads() -> None:
    """Prints nothing about reads that end or fail after another one has failed.

    Orbax closes its event loop at the first error, which is raised. A read that is
    still under way then calls a closed loop or is dropped, and the error of one that
    fails in the same turn is never retrieved. Python prints a traceback for each.
    """
    otherwise = sys.unraisablehook

    def hook(unraisable) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        late = code is not None and code.co_filename.startswith(ORBAX)
        if not late and str(unraisable.exc_value) != "Event loop is closed":
            otherwise(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    """Returns False for an error of Orbax or TensorStore that was never retrieved.

    TensorStore is not Python: its errors have no traceback.
    """
    if "never retrieved" not in record.getMessage() or record.exc_info is None:
        return True
    trace = record.exc_info[2]
    return trace is not None and not _in_orbax(traceback.walk_tb(trace))


def restore_args(like: Any, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """Returns Orbax's arguments to restore into the shapes and types of `like`.

    What has no sharding goes to this process's first device: Orbax would use the
    devices it was saved from, which may not exist here.

    Args:
      like: arrays or `jax.ShapeDtypeStruct`.
      partial: True if the checkpoint may hold more.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    like = jax.tree.map(placed, like)
    return ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=partial,
    )
