"""What a source tells about a data set before anything is decoded."""

import abc
import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from duet_jax.errors import UsageError
from duet_jax.types import DatasetFacts

# Files of a set that are larger together, in bytes, are told by names and sizes alone:
# to read them would take longer than to start a run should.
MOST_READ = 2 * 2**30

# A grey (mode L) or colour (mode RGB) image of any size, and its label.
Example = tuple[Image.Image, int]


class Reader(abc.ABC):
    """Random access to the examples, from any process.

    It is pickled once per process and therefore holds little: no images, no open files,
    and no object per example.
    """

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Returns one example, counted as `Source.examples` yields them.

        Raises:
          UsageError: it is damaged; the message says which.
        """

    def read(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields several examples in the order of `rows`; for whom that is cheaper."""
        return (self[int(row)] for row in rows)


@dataclasses.dataclass(frozen=True)
class Thinned(Reader):
    """A reader of fewer training images: those of `kept_rows`, and all test images.

    Attributes:
      whole: the reader of all.
      num_train: training images in all.
      kept: the training images that remain, int64, [kept].
    """

    whole: Reader
    num_train: int
    kept: np.ndarray

    def __getitem__(self, index: int) -> Example:
        """Returns one of the examples that remain."""
        return self.whole[self._row(index)]

    def read(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields several examples in the order of `rows`."""
        return self.whole.read([self._row(row) for row in rows])

    def _row(self, index: int) -> int:
        if index < len(self.kept):
            return int(self.kept[index])
        return int(index) - len(self.kept) + self.num_train


def kept_rows(
    num_train: int, fraction: float, labels: np.ndarray | None = None
) -> np.ndarray:
    """Returns the training images that a share leaves: int64, [kept], rising.

    Args:
      num_train: training images in all.
      fraction: the share, above 0, up to 1.
      labels: their classes, [num_train]. Every class then keeps its share, at least one
        image, evenly spread over it. None where they are not known: the images are
        evenly spread over the set, whatever their classes.
    """
    if labels is None:
        return _spread(num_train, max(1, round(fraction * num_train)))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    counts = _shares([len(rows) for rows in members], fraction)
    kept = [
        rows[_spread(len(rows), count)]
        for rows, count in zip(members, counts, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def _shares(counts: Sequence[int], fraction: float) -> np.ndarray:
    """Returns how many of each class remain: a share of the whole, and one at least.

    Rounded so that they add up to the rounded share of the whole, by largest remainder.
    """
    exact = fraction * np.array(counts)
    shares = np.floor(exact).astype(int)
    missing = round(float(exact.sum())) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return np.maximum(shares, 1)


def _spread(count: int, kept: int) -> np.ndarray:
    """Returns `kept` of the numbers below `count`, evenly spread."""
    return np.arange(kept) * count // kept


class Source(NamedTuple):
    """A labelled image set that has been found.

    Attributes:
      class_names: one name per label.
      num_train: number of training examples.
      num_test: number of test examples.
      examples: yields all training examples and then all test examples.
      location: where the data come from, for messages.
      identity: JSON-able; everything the examples depend on, so that a changed source
        has a changed identity. None when decoding is too fast to be worth a cache.
      content: `content_of` the names and sizes of the files, wherever they lie and
        whenever they were put there; "" if the images are always the same.
      digests: reads all files, and returns what changes with the names and bytes of
        those of the training images, and of those of the test images. None if the
        images are always the same, or more than `MOST_READ`.
      labels: returns the labels of the training images, int [num_train], without
        decoding; None where decoding is the only way.
      files: where each example comes from, in the same order, relative to the location;
        empty if examples are not files of their own.
      reader: random access to the same examples; None where there is none.
      channels: 1 if all images of both splits are grey and 3 otherwise, found without
        decoding them; None where decoding is the only way.
    """

    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    examples: Callable[[], Iterator[Example]]
    location: str
    identity: dict[str, Any] | None
    content: str = ""
    digests: Callable[[], tuple[str, str]] | None = None
    labels: Callable[[], np.ndarray] | None = None
    files: tuple[str, ...] = ()
    reader: Reader | None = None
    channels: Callable[[], int] | None = None


def content_of(parts: Any) -> str:
    """Returns a short hash of JSON-able `parts`, such as names and sizes of files."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(files: Iterable[tuple[str, Callable[[], BinaryIO]]]) -> str:
    """Returns a short hash of the names and bytes of files.

    Args:
      files: the name of each, and what opens it.
    """
    digests = []
    for name, opened in files:
        with opened() as file:
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return content_of(digests)


@dataclasses.dataclass(frozen=True)
class FoundDataset:
    """A data set that can be decoded or streamed, and of which the size is asked.

    Attributes:
      name: how messages call it.
      source: where it is.
      side: of the square images to be made of it, in pixels.
      train_fraction: share of the training images that is used.
      cache_dir: where decoded images are kept; "" for the user's cache directory.
      read_digests: returns the digests of its facts.
    """

    name: str
    source: Source
    side: int
    train_fraction: float = 1.0
    cache_dir: str = ""
    read_digests: Callable[[], tuple[str, ...]] = tuple

    @functools.cached_property
    def digests(self) -> tuple[str, ...]:
        """As in `DatasetFacts`; every file is read for them, the first time."""
        return self.read_digests()

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """The training images that are used: int64, [examples]; see `kept_rows`."""
        labels = self.source.labels
        return kept_rows(
            self.source.num_train, self.train_fraction, labels() if labels else None
        )

    @property
    def reader(self) -> Reader | None:
        """Random access to the examples that are used; None where there is none."""
        whole, count = self.source.reader, self.source.num_train
        if whole is None or len(self.kept) == count:
            return whole
        return Thinned(whole, count, self.kept)

    @functools.cached_property
    def channels(self) -> int:
        """1 if all images of both splits are grey, otherwise 3.

        Looking takes long only where all are grey: a file is opened for each.
        """
        with warnings.catch_warnings():
            # Pillow warns, file by file, of odd metadata that do not touch the pixels.
            warnings.simplefilter("ignore")
            if self.source.channels is not None:
                return self.source.channels()
            modes = (image.mode for image, _ in self.source.examples())
            return 3 if any(mode == "RGB" for mode in modes) else 1

    @property
    def facts(self) -> DatasetFacts:
        """What is known without the images."""
        return DatasetFacts(
            self.name,
            self.side,
            self.channels,
            self.source.class_names,
            len(self.kept),
            self.source.num_test,
            self.source.content,
            self.digests,
        )

    @property
    def nbytes(self) -> int:
        """Size of both splits when decoded, in bytes, whatever share of it is used."""
        return self._num_pixels * self.channels

    def fits(self, limit: int) -> bool:
        """Returns whether `nbytes` is at most `limit`; rarely has to look at images."""
        if self._num_pixels * 3 <= limit:
            return True
        return self._num_pixels <= limit and self.nbytes <= limit

    @property
    def _num_pixels(self) -> int:
        return (self.source.num_train + self.source.num_test) * self.side**2


def without_labels(name: str, location: str) -> UsageError:
    """Returns the error of a set of which some labels are withheld."""
    return UsageError(
        f"config.dataset.name={name!r} has images without a valid label "
        f"({location}); choose a data set whose splits are all labelled."
    )
