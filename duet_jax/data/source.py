"""What a data source provides before any image is decoded."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from duet_jax.errors import UsageError

_log = logging.getLogger(__name__)

# Data sets larger than this, in bytes, are identified by file names and sizes alone:
# reading them would delay the start of a run too much.
MOST_READ = 2 * 2**30

# The label of an image without one.
UNLABELED = -1
# Names of the splits where the user gives them: folders, tables, files. The first that
# is there is taken.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")

# A gray (mode L) or color (mode RGB) image of any size, and its label.
Example = tuple[Image.Image, int]

# Yields the examples with the given numbers, in that order. Examples are numbered as
# `Source.examples` yields them. A reader is pickled once per worker process: it should
# hold no images, no open files, and no Python object per example. It raises a
# UsageError that says which example is damaged.
Reader = Callable[[Sequence[int]], Iterator[Example]]


class Source(NamedTuple):
    """An image set that has been found.

    Attributes:
      class_names: one name per label; empty if the images have no labels, which are
        UNLABELED then.
      num_train: number of training examples.
      num_test: number of test examples; 0 if a share of the training examples is to be
        held out as test images.
      examples: yields all training examples and then all test examples.
      location: where the data come from, for messages.
      identity: JSON-able; everything the decoded examples depend on. None if decoding
        is too fast to be worth a cache.
      content: `short_hash` of the names and sizes of the files, independent of location
        and modification times; "" if the images never change.
      digests: reads all files and returns one digest of names and bytes per split that
        has examples. None if the images never change, or are larger than `MOST_READ`.
      labels: returns the labels of the training images, int [num_train], without
        decoding; None if they are only known after decoding.
      files: the file of each example, relative to the location; empty if examples are
        not files of their own.
      reader: random access to the examples; None if there is none.
      channels: 1 if all images of both splits are gray and 3 otherwise, found without
        decoding; None if that is only known after decoding.
    """

    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    examples: Callable[[], Iterator[Example]]
    location: str
    identity: dict[str, Any] | None
    content: str = ""
    digests: Callable[[], tuple[str, ...]] | None = None
    labels: Callable[[], np.ndarray] | None = None
    files: tuple[str, ...] = ()
    reader: Reader | None = None
    channels: Callable[[], int] | None = None


def kept_rows(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Selects a share of the training images: int64, [kept], ascending.

    Every class keeps its share, but at least one image, evenly spread over the class.
    Largest remainders are rounded up, so that the total is the rounded share of all.

    Args:
      labels: int, [images]; all equal to spread the share over the whole set.
      fraction: share to keep, above 0, up to 1.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    exact = fraction * np.array([len(rows) for rows in members])
    counts = np.floor(exact).astype(int)
    missing = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    kept = [
        rows[np.arange(count) * len(rows) // count]
        for rows, count in zip(members, np.maximum(counts, 1), strict=True)
    ]
    return np.sort(np.concatenate(kept))


def held_out(names: Sequence[str], share: float) -> np.ndarray:
    """Selects the test images of a set that has none: bool, [images].

    The name of an image decides, so that it stays in its split when others come or go.
    The share is met on average; at least one image is selected and one is not.

    Args:
      names: of the images, two or more.
      share: to select, above 0, below 1.
    """
    digests = (hashlib.sha256(name.encode(errors="surrogateescape")) for name in names)
    numbers = np.array([int.from_bytes(each.digest()[:7]) for each in digests])
    selected = numbers < share * 2**56
    selected[np.argmin(numbers)] = True
    selected[np.argmax(numbers)] = False
    return selected


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns labels in the order of their numbers, or else in alphabetical order."""
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


def short_hash(parts: Any, length: int = 16) -> str:
    """Returns a hash of JSON-able `parts`, such as names and sizes of files."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def digest_of(files: Iterable[tuple[str, Callable[[], BinaryIO]]]) -> str:
    """Returns a short hash of the names and bytes of files.

    Args:
      files: the name of each file, and a function that opens it.
    """
    digests = []
    for name, opened in files:
        with opened() as file:
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return short_hash(digests)


def tell_unused(location: str, names: Iterable[str], used: str) -> None:
    """Logs which splits are left out, because another one is the test split.

    Args:
      location: of the data set.
      names: of the splits that are there and could be the test split.
      used: the one that is.
    """
    unused = [name for name in names if name != used]
    if unused:
        _log.info("%s: left out %s: %s is there", location, ", ".join(unused), used)


def without_labels(name: str, location: str) -> UsageError:
    """Returns the error for a data set whose labels are partly withheld."""
    return UsageError(
        f"config.dataset.name={name!r} has images without a valid label "
        f"({location}); choose a data set whose splits are all labeled."
    )


def name_some(names: Sequence[str], most: int = 5) -> str:
    """Lists the first names, quoted if necessary, and says how many more there are."""
    listed = ", ".join(
        name if name.isprintable() else repr(name) for name in names[:most]
    )
    more = len(names) - most
    return f"{listed} and {more} more" if more > 0 else listed
