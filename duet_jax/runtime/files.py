"""Local paths, atomic writes and added lines.

A file is first written under a temporary name in the same directory, which no other
process uses, and then renamed. Unfinished files are removed when the process is asked
to end, or else by the next process that writes in the same directory.
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

# Continues a message that names an address given as a path.
NOT_LOCAL = (
    "is an address; only directories of this machine are read and written: mount it "
    "and give the directory, or copy it here"
)
# gs://, s3://, file:// and others.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64] or "-"
_PARTIAL = re.compile(r"\..*\.(?P<host>[A-Za-z0-9-]+)_(?P<pid>\d+)_\d+\.partial(\..*)?")
# Whether a process of another machine is still alive cannot be seen from here.
_LONGEST_ELSEWHERE = 24 * 3600.0  # seconds

_numbers = itertools.count()
# Paths that this process is writing.
_unfinished: set[pathlib.Path] = set()


def is_address(path: str) -> bool:
    """Returns whether `path` is an address such as gs://bucket/run."""
    return _ADDRESS.match(path) is not None


def local(path: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns a local path, with ~ expanded: the shell does not do so after a =.

    Args:
      path: as given by the user.
      name: flag or field of the path, for the message.

    Raises:
      UsageError: it is an address, such as gs://bucket/run.
    """
    path = os.fspath(path)
    if is_address(path):
        raise UsageError(f"{name}={path} {NOT_LOCAL}.")
    with contextlib.suppress(RuntimeError):  # no home directory
        return pathlib.Path(path).expanduser()
    return pathlib.Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path, whose file replaces `path` at the end of the block.

    If the block fails, `path` is left as it was. The content is synced to disk before
    the rename. If several processes write at once, the last one wins.

    Raises:
      OSError: the file cannot be replaced; the error names `path`.
    """
    path = pathlib.Path(path)
    # The suffix is kept: matplotlib chooses the format by it.
    with _partial(path, path.suffix) as partial:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        try:
            os.replace(partial, path)
        except OSError as error:
            # Python's message names the partial file as well.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def scratch(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty directory beside `path`, removed at the end of the block."""
    with _partial(pathlib.Path(path), "") as partial:
        partial.mkdir()
        yield partial


@contextlib.contextmanager
def _partial(path: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """Yields an unused name beside `path`, and removes the file of that name."""
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


def append_line(path: str | os.PathLike, line: str) -> None:
    """Adds a line to a file, which is made if it is missing, and syncs it to disk.

    What a full disk has left of a line before stays a line of its own.
    """
    with open(path, "ab+") as file:
        torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished() -> None:
    """Removes the unfinished files of this process, which is about to end."""
    for partial in [*_unfinished]:
        _remove(partial)


def _remove(partial: pathlib.Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _remove_abandoned(directory: pathlib.Path) -> None:
    """Removes unfinished files in `directory` whose processes have ended."""
    try:
        names = os.listdir(directory)
    except OSError:  # the caller's own write reports the problem
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
