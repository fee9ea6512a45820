"""Sources whose examples are image files: the files of a split, and their reader."""

import collections
import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from duet_jax.data.decoding import decode, is_gray
from duet_jax.data.source import (
    MOST_READ,
    UNLABELED,
    Example,
    Source,
    digest_of,
    name_some,
    short_hash,
)
from duet_jax.errors import UsageError

logger = logging.getLogger(__name__)


class File(NamedTuple):
    """An image file; in the identity, size and time stand for its content.

    Attributes:
      relative: its path from the root of the data set.
      class_name: of its class; "" in a set without labels.
      size: in bytes.
      modified_ns: when it was last changed.
    """

    relative: str
    class_name: str
    size: int
    modified_ns: int


def image_source(
    path: str,
    root: str,
    splits: Sequence[Sequence[File]],
    class_names: Sequence[str],
) -> Source:
    """Returns a source of image files; they are opened only when they are read.

    Args:
      path: `dataset.path` as the user gave it, for messages.
      root: the folder that the files are relative to.
      splits: the training and the test files, or a single list of which a share is held
        out as test images.
      class_names: one name per label; empty without labels.
    """
    files = [file for split in splits for file in split]
    num_train = len(splits[0])
    images = _Images(path, root, files, class_names)
    read_all = sum(file.size for file in files) <= MOST_READ
    ends = np.cumsum([0, *map(len, splits)])
    parts = [range(*pair) for pair in itertools.pairwise(ends)]
    return Source(
        class_names=tuple(class_names),
        num_train=num_train,
        num_test=len(files) - num_train,
        examples=images.examples,
        location=root,
        identity={"folder": os.path.realpath(root), "files": files},
        content=short_hash([(file.relative, file.size) for file in files]),
        digests=(lambda: images.digests(parts)) if read_all else None,
        labels=lambda: images.labels[:num_train],
        files=tuple(file.relative for file in files),
        reader=images,
        channels=images.channels,
    )


class _Images:
    """The images of a source; called with numbers, it is the `Reader` of them.

    Every worker has a copy, which takes about 50 bytes per image.

    Attributes:
      labels: class of each image, int32, [images]; -1 without classes.
    """

    def __init__(
        self, path: str, root: str, files: Sequence[File], class_names: Sequence[str]
    ):
        names = [os.fsencode(file.relative) for file in files]
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = [numbers.get(file.class_name, UNLABELED) for file in files]
        self.labels = np.array(labels, np.int32)
        self._path = path
        self._root = root
        self._names = b"".join(names)
        self._starts = np.cumsum([0, *map(len, names)])

    def __call__(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields the images `rows`; raises a UsageError at a damaged one."""
        for row in rows:
            with self._named_errors(row):
                image, _ = decode(self._file(row))
            yield image, int(self.labels[row])

    def examples(self) -> Iterator[Example]:
        """Yields all images; reports all damaged ones together, at the end."""
        conversions = collections.Counter()
        damaged, reason = [], ""
        for row, label in enumerate(self.labels):
            try:
                image, conversion = decode(self._file(row))
            except Exception as error:  # Pillow has no common type for damaged files
                reason = reason or _reason(error)
                damaged.append(self._relative(row))
                continue
            conversions[conversion] += 1
            yield image, int(label)
        if damaged:
            raise UsageError(
                f"config.dataset.path={self._path!r}: {len(damaged)} of "
                f"{len(self.labels)} images cannot be read: {name_some(damaged)}; "
                f"replace or delete them (the first: {reason})."
            )
        del conversions[""]
        if conversions:
            logger.info(
                "%s: %d of %d images were converted to 8-bit gray or RGB (%s)",
                self._root,
                conversions.total(),
                len(self.labels),
                ", ".join(f"{n} {kind}" for kind, n in conversions.most_common()),
            )

    def channels(self) -> int:
        """Returns 3 at the first image with color, by the headers; 1 if none has it."""
        for row in range(len(self.labels)):
            with self._named_errors(row):
                if not is_gray(self._file(row)):
                    return 3
        return 1

    def digests(self, splits: Sequence[range]) -> tuple[str, ...]:
        """Reads all files; see `Source.digests`."""
        return tuple(
            digest_of(
                (self._relative(r), functools.partial(self._open, r)) for r in rows
            )
            for rows in splits
        )

    def _relative(self, row: int) -> str:
        return os.fsdecode(self._names[self._starts[row] : self._starts[row + 1]])

    def _file(self, row: int) -> str:
        return os.path.join(self._root, self._relative(row))

    def _open(self, row: int) -> BinaryIO:
        """Opens a file for reading; does not wait if it is a pipe."""
        with self._named_errors(row):
            return open(
                self._file(row),
                "rb",
                opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK),
            )

    @contextlib.contextmanager
    def _named_errors(self, row: int) -> Iterator[None]:
        """Turns any error into a UsageError that names the file."""
        try:
            yield
        except Exception as error:  # Pillow has no common type for damaged files
            raise UsageError(
                f"config.dataset.path={self._path!r}: "
                f"{name_some([self._relative(row)])} cannot be read "
                f"({_reason(error)}); replace or delete it."
            ) from error


def _reason(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())


def list_files(path: str, root: str, rows: Sequence[tuple[str, str]]) -> list[File]:
    """Returns the files of a list.

    Args:
      path: of the list as the user gave it, for messages.
      root: the folder that relative names start from.
      rows: name and class of each; "" for no class.

    Raises:
      UsageError: there are none, or some do not exist.
    """
    if not rows:
        raise UsageError(f"config.dataset.path={path!r} lists no images; add some.")
    files, missing = [], []
    for name, class_name in rows:
        try:
            info = os.stat(os.path.join(root, name))
        except (OSError, ValueError):  # a name with a zero byte
            missing.append(name)
            continue
        files.append(File(name, class_name, info.st_size, info.st_mtime_ns))
    if missing:
        raise UsageError(
            f"config.dataset.path={path!r}: {len(missing)} of {len(rows)} listed files "
            f"cannot be reached: {name_some(missing)}; paths are absolute or relative "
            f"to {root}."
        )
    return files
