"""The seal of a checkpoint: size and SHA-256 of every file, and a hash of itself.

Orbax alone restores flipped bits as numbers, without an error.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

FILE = "checksums.json"
# TensorStore has no exception types; its messages end with the system's error number.
_ERROR_NUMBER = re.compile(r"os_error_code='(\d+)'")


class DamageError(Exception):
    """Says which file of a checkpoint is damaged, and how."""


def seal(directory: pathlib.Path) -> None:
    """Writes the seal of `directory` and flushes everything to the disk."""
    paths = sorted(directory.rglob("*"))
    files = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                files[path.relative_to(directory).as_posix()] = _facts(file)
    (directory / FILE).write_bytes(_seal_text(files))
    for path in (*paths, directory / FILE, directory):
        flush(path)


def sealed_files(
    directory: pathlib.Path, item: str | None = None
) -> dict[str, dict[str, int | str]]:
    """Returns size and hash of each file in the seal, by its path.

    Args:
      directory: of the checkpoint.
      item: only the files of this item; None for all.

    Raises:
      DamageError: the seal itself is damaged.
    """
    with _opened(directory, FILE) as file:
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
        raise DamageError(f"{FILE} has changed")
    prefix = f"{item}/" if item else ""
    return {name: entry for name, entry in files.items() if name.startswith(prefix)}


def verify(directory: pathlib.Path, item: str | None = None) -> None:
    """Compares a checkpoint, or one item of it, with its seal.

    Files that are not in the seal were added later and are never read.

    Raises:
      DamageError: they differ.
    """
    for name, entry in sealed_files(directory, item).items():
        _verify_file(directory, name, entry)


def _verify_file(directory: pathlib.Path, name: str, entry: Mapping[str, Any]) -> None:
    with _opened(directory, name) as file:
        found = _facts(file)
    if found["bytes"] != entry["bytes"]:
        raise DamageError(
            f"{name} has {found['bytes']} bytes instead of {entry['bytes']}"
        )
    if found != entry:
        raise DamageError(f"{name} has changed")


def read_json(directory: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the object in a file; {} if the checkpoint was saved without it.

    Raises:
      DamageError: the file or the seal is damaged.
    """
    files = sealed_files(directory)
    if name not in files:
        return {}
    _verify_file(directory, name, files[name])
    with _opened(directory, name) as file, contextlib.suppress(ValueError):
        value = json.load(file)
        if isinstance(value, dict):
            return value
    raise DamageError(f"{name} is not a JSON object")


@contextlib.contextmanager
def _opened(directory: pathlib.Path, name: str) -> Iterator[BinaryIO]:
    """Opens a file of a checkpoint.

    Raises:
      DamageError: it is missing, unreadable or outside the checkpoint: anybody may have
        written the seal that names it.
    """
    path = directory / name
    try:
        root = directory.resolve()
        if not (name.isprintable() and path.resolve().is_relative_to(root)):
            raise DamageError(f"{FILE} names {name!r}, which is not in it")
        if not path.is_file():  # opening a pipe would wait for a writer
            raise DamageError(f"{name} is missing")
        with path.open("rb") as file:
            yield file
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DamageError(f"{name} cannot be read ({reason(error)})") from error


def _facts(file: BinaryIO) -> dict[str, int | str]:
    return {
        "bytes": os.fstat(file.fileno()).st_size,
        "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
    }


def _seal_text(files: Any) -> bytes:
    """Returns the only valid text of a seal: any other text has been changed."""
    listed = json.dumps(files, sort_keys=True).encode()
    seal = {"files": files, "sha256": hashlib.sha256(listed).hexdigest()}
    return json.dumps(seal, sort_keys=True, indent=1).encode()


def flush(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a directory, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """Returns the operating system's message, or else the error in one short line."""
    for each in chain(error):
        if isinstance(each, DamageError):
            return str(each)
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        if number := _ERROR_NUMBER.search(str(each)):
            return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:200]
