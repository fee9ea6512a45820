"""How Orbax is made to write what it is given, or to fail.

Nothing is sealed that was not read back and found to be what was to be saved, or of
whose writing Orbax has logged a warning: it goes on after errors that it only logs.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from duet_jax.errors import UsageError
from duet_jax.runs import seal

# The files of the items that are JSON.
OBJECTS = {"row": "row/metadata", "metrics": "metrics/metrics"}
# The loggers of the storage layer. But Orbax logs with absl's, as others do: of that
# counts what comes out of Orbax's files or is called from there.
_LOGGERS = ("orbax", "etils", "tensorstore")
ORBAX = f"{pathlib.Path(ocp.__file__).parents[1]}{os.sep}"


class Place(type(epath.Path("/"))):
    """A path of this machine, as Orbax gets it.

    Orbax looks for files by patterns, and epath reads the name of their directory as a
    part of the pattern: [, * and ? are no characters like others there. Besides, epath
    takes what lies below /gs, /s3, /az and /hf for buckets.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yields what matches, where the directory is no pattern."""
        yield from map(type(self), pathlib.Path(self).glob(pattern))


def place(directory: pathlib.Path) -> Place:
    """Returns where Orbax finds `directory`.

    Links are followed before: TensorStore takes link/../runs for runs. It refuses a
    path that begins with two slashes, which mean no more than one.

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
            f"{path} cannot hold checkpoints ({reason}); give that directory another "
            "name, or choose another --workdir."
        )
    return Place(path)


class _SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a checkpoint: it is checked, sealed, and then gets its name.

    The last thing Orbax does is to rename its directory. Here that gives a name which
    does not count, for the seal to cover all that Orbax writes.
    """

    check: Callable[[pathlib.Path], None]

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
        # Orbax reads in an event loop of its own, of which a thread has but one.
        await asyncio.to_thread(self.check, unsealed)
        seal.seal(unsealed)
        unsealed.rename(self.get_final())
        seal.flush(unsealed.parent)


def sealed_after(check: Callable[[pathlib.Path], None]) -> type[_SealedPath]:
    """Returns the class of paths that are sealed after `check` of the directory."""
    return type("_CheckedPath", (_SealedPath,), {"check": staticmethod(check)})


class Saving:
    """A checkpoint that is being written: what it has to hold, and what is reported."""

    def __init__(self, arrays: Mapping[str, Any], objects: Mapping[str, Any]):
        """Copies everything, in the process that is going to check it.

        Args:
          arrays: trees of `jax.Array`, by item.
          objects: what is written as JSON, by item.
        """
        self._arrays, self._objects = {}, {}
        if jax.process_index() == 0:
            self._arrays = jax.tree.map(_on_host, dict(arrays))
            self._objects = {name: _as_json(each) for name, each in objects.items()}
        self._reports = _Reports()
        self._reports.start()

    def check(self, directory: pathlib.Path) -> None:
        """Raises unless `directory` holds it all, and nothing has been reported."""
        raise_first(self._reports.messages)
        while self._arrays:  # one after another, to make room
            name, expected = self._arrays.popitem()
            _compare_arrays(Place(directory / name), name, expected)
        for name, expected in self._objects.items():
            _compare_objects(directory / OBJECTS[name], name, expected)

    def end(self) -> list[str]:
        """Returns what was reported, and listens no more."""
        self._reports.stop()
        return self._reports.messages


def _on_host(array: jax.Array) -> np.ndarray:
    """Copies: where the device is the host, NumPy would share the array's memory."""
    return np.array(array.addressable_data(0))


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def raise_first(reports: list[str]) -> None:
    """Raises a RuntimeError with the first of what the storage layer has reported."""
    if reports:
        raise RuntimeError(f"Orbax reports: {reports[0]}")


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


class _Reports(logging.Handler):
    """Takes down what the storage layer logs as warning or error, in any thread.

    What is shown of it stays as it is: nothing, where main.py silences absl's logger.
    """

    _listening: ClassVar[list[Self]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes down one record."""
        self.messages.append(record.getMessage())

    def start(self) -> None:
        """Begins to listen."""
        absl = logging.getLogger("absl")
        with self._lock:
            self._before = (absl.level, absl.getEffectiveLevel())
            if self._before[1] > self.level:
                absl.setLevel(self.level)  # there would be no records otherwise
            elif self._listening:
                self._before = self._listening[-1]._before
            self._listening.append(self)
        absl.addFilter(self._take)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)

    def stop(self) -> None:
        """Ends it, and leaves the loggers as they were."""
        absl = logging.getLogger("absl")
        absl.removeFilter(self._take)
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        with self._lock:
            self._listening.remove(self)
            if not self._listening:
                absl.setLevel(self._before[0])

    def _take(self, record: logging.LogRecord) -> bool:
        """Takes down a record of the storage layer; returns whether it is shown."""
        if record.levelno >= self.level and _called_by_orbax():
            self.emit(record)
        return record.levelno >= self._before[1]


def _called_by_orbax() -> bool:
    """Whether this is called from Orbax, or by what that calls."""
    return _in_orbax(traceback.walk_stack(None))


def _in_orbax(frames: Iterable[tuple[types.FrameType, int]]) -> bool:
    """Returns whether a function of Orbax is among those of a stack or a traceback."""
    return any(frame.f_code.co_filename.startswith(ORBAX) for frame, _ in frames)


@functools.cache  # once in a process
def ignore_late_ends() -> None:
    """Keeps quiet about arrays that end or fail after another one has failed.

    Orbax closes its event loop at the first error, which is raised. An array still
    under way then calls a closed loop or is dropped; the error of one that fails in the
    same turn of the loop is never retrieved. Python prints a traceback for each.
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

    Orbax is in the traceback; TensorStore, which is not Python, leaves none.
    """
    if "never retrieved" not in record.getMessage() or record.exc_info is None:
        return True
    trace = record.exc_info[2]
    return trace is not None and not _in_orbax(traceback.walk_tb(trace))


def restore_as(like, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """Restores into the shapes, types and devices of `like`, which may be a part."""
    return ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=partial,
    )


def somewhere(tree):
    """The tree's shapes where they are wanted, or else on this process's first device.

    Orbax would go back to the devices it was saved from, which may not be here.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, tree)
