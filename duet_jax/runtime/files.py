"""Local paths, and files that are there whole or not at all.

A file is made beside its place, under a name that no other process uses, and then takes
its place at one stroke. What a process leaves unfinished is removed when it is asked to
end, or else by the next one that writes in the same directory.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Iterator

from duet_jax.errors import UsageError

# What is said of an address in the place of a path.
NOT_LOCAL = (
    "is an address; only directories of this machine are read and written: mount it "
    "and give the directory, or copy it here"
)
# An address of another place than this machine's directories: gs://, s3://, file://.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64] or "-"
_PARTIAL = re.compile(r"\..*\.(?P<host>[A-Za-z0-9-]+)_(?P<pid>\d+)_\d+\.partial(\..*)?")
# Of another machine nobody can tell here whether it still writes.
_LONGEST_ELSEWHERE = 24 * 3600.0  # seconds

_numbers = itertools.count()
# What this process is writing.
_unfinished: set[pathlib.Path] = set()


def is_address(path: str) -> bool:
    """Returns whether `path` begins like gs://, and so names no local place."""
    return _ADDRESS.match(path) is not None


def local(path: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns the path that the user means; the shell leaves a ~ after = as it is.

    Args:
      path: as the user gives it.
      name: of the flag or field that gives it.

    Raises:
      UsageError: it is an address, such as gs://bucket/run.
    """
    path = os.fspath(path)
    if is_address(path):
        raise UsageError(f"{name}={path} {NOT_LOCAL}.")
    with contextlib.suppress(RuntimeError):  # there is no home
        return pathlib.Path(path).expanduser()
    return pathlib.Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, whose file takes the place of `path` at the end.

    Where the block fails, `path` is left as it was. The disk holds the new content
    before it gets the name. Of several processes that write at once the last one wins.

    Raises:
      OSError: the file cannot take the place; the error is about `path`.
    """
    path = pathlib.Path(path)
    # The suffix stays: it says in which format a picture is written.
    with _partial(path, path.suffix) as partial:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        try:
            os.replace(partial, path)
        except OSError as error:
            # Python's names the partial file as well.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def scratch(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty directory beside `path`, which is removed at the end."""
    with _partial(pathlib.Path(path), "") as partial:
        partial.mkdir()
        yield partial


@contextlib.contextmanager
def _partial(path: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """Yields a name beside `path`, and removes what then has it."""
    _remove_abandoned(path.parent)
    # A name has 255 bytes at most.
    stem = os.fsdecode(os.fsencode(path.name.removesuffix(suffix))[:100])
    own = f"{_HOST}_{os.getpid()}_{next(_numbers)}"
    partial = path.with_name(f".{stem}.{own}.partial{suffix}")
    _unfinished.add(partial)
    try:
        yield partial
    finally:
        _remove(partial)
        _unfinished.discard(partial)


def remove_unfinished() -> None:
    """Removes what this process is writing; for when it is about to end at once."""
    for partial in [*_unfinished]:
        _remove(partial)


def _remove(partial: pathlib.Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _remove_abandoned(directory: pathlib.Path) -> None:
    """Removes what processes that have ended have left in `directory`."""
    try:
        names = os.listdir(directory)
    except OSError:  # whoever writes there says what is wrong
        return
    for match in filter(None, map(_PARTIAL.fullmatch, names)):
        partial = directory / match.string
        with contextlib.suppress(OSError):
            if _is_abandoned(partial, match["host"], int(match["pid"])):
                _remove(partial)


def _is_abandoned(partial: pathlib.Path, host: str, process: int) -> bool:
    if host != _HOST:
        return time.time() - partial.stat().st_mtime > _LONGEST_ELSEWHERE
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        pass
    return False
