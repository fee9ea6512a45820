"""A data set that has been found: its facts, and the two ways to read its images."""

import dataclasses
import functools
import importlib.util
import logging
import time

import numpy as np

from duet_jax.data import cache
from duet_jax.data.copies import count_copies
from duet_jax.data.decoding import in_channels, pack
from duet_jax.data.source import (
    UNLABELED,
    Source,
    held_out,
    kept_rows,
    name_some,
    without_labels,
)
from duet_jax.data.streaming import StreamedDataset
from duet_jax.errors import UsageError
from duet_jax.types import Dataset, DatasetFacts, Split

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FoundDataset:
    """A data set of known size, to be decoded or streamed.

    Attributes:
      name: name of the data set, for messages.
      source: provides the examples.
      side: side of the stored square images in pixels.
      train_fraction: share of the training images that is used.
      holdout: share of the images that are test images if the source has none.
      asked_channels: 1 or 3 to convert the images to; 0 to take them as they are.
      cache_dir: where decoded images are kept; "" for the user's cache directory.
    """

    name: str
    source: Source
    side: int
    train_fraction: float = 1.0
    holdout: float = 0.1
    asked_channels: int = 0
    cache_dir: str = ""

    @functools.cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The training and the test examples that are used: int64, their numbers.

        See `held_out` and `kept_rows`.
        """
        source = self.source
        train = np.arange(source.num_train)
        test = source.num_train + np.arange(source.num_test)
        if not source.num_test:
            names = source.files or [str(row) for row in train]
            held = held_out(names, self.holdout)
            train, test = np.flatnonzero(~held), np.flatnonzero(held)
        labels = source.labels()[train] if source.labels else np.zeros(len(train))
        return train[kept_rows(labels, self.train_fraction)], test

    @property
    def takes_all(self) -> bool:
        """Whether the splits that are used are those of the source."""
        counts = self.source.num_train, self.source.num_test
        return tuple(map(len, self.rows)) == counts

    @functools.cached_property
    def channels(self) -> int:
        """Of the images as they are used: 1 for gray, 3 for color.

        If nothing is asked for, 1 if all images of both splits are gray. Slow only
        then: every file has to be opened.
        """
        if self.asked_channels:
            return self.asked_channels
        if self.source.channels is not None:
            return self.source.channels()
        modes = (image.mode for image, _ in self.source.examples())
        return 3 if any(mode == "RGB" for mode in modes) else 1

    @functools.cached_property
    def facts(self) -> DatasetFacts:
        """What is known of the data set; may read every file, for the digests."""
        return DatasetFacts(
            self.name,
            self.side,
            self.channels,
            self.source.class_names,
            *map(len, self.rows),
            self.source.content,
            cache.digests(self.cache_dir, self.source),
        )

    def fits(self, limit: int) -> bool:
        """Returns whether both splits, decoded, take at most `limit` bytes.

        The size is that of the whole set, whatever share of it is used. The images are
        inspected only if the answer depends on their number of channels.
        """
        pixels = (self.source.num_train + self.source.num_test) * self.side**2
        return 3 * pixels <= limit or (
            pixels <= limit and pixels * self.channels <= limit
        )

    def stream(self) -> StreamedDataset:
        """Returns the data set with random access to its images; decodes nothing.

        Raises:
          UsageError: the examples can only be read in order, Grain is not installed, or
            a header is damaged.
        """
        source = self.source
        if importlib.util.find_spec("grain") is None:
            raise UsageError(
                f"config.dataset.name={self.name!r} is read batch by batch, which "
                "needs a package that is not installed: pip install grain; or set "
                "config.dataset.placement=device."
            )
        if source.reader is None:
            raise UsageError(
                f"config.dataset.name={self.name!r} cannot be streamed: "
                f"{source.location} is not in a format with random access; prepare it "
                "again with file_format='array_record', store its images as files, or "
                "set config.dataset.placement=device."
            )
        used = None if self.takes_all else np.concatenate(self.rows)
        return StreamedDataset(
            self.facts,
            source.location,
            source.reader,
            used,
            converted=bool(self.asked_channels),
        )

    def decode(self) -> Dataset:
        """Decodes the whole data set, or loads it from the cache.

        Warns of classes without a training image, and of test images that are training
        images as well.

        Returns:
          Images uint8, [examples, side, side, channels], C-contiguous. Labels int32.
          Both splits hold every example that is used once, in the order of the source.

        Raises:
          UsageError: images are damaged or unlabeled, or memory does not suffice.

        Source: reference: resize of the shorter side and central square, once, on
        uint8.
        """
        started = time.perf_counter()
        source = self.source
        entry = cache.entry(self.cache_dir, self.name, source, self.side)
        origin = f"{source.location} by way of the cache {entry}"
        splits = cache.load(entry, source, self.side)
        if splits is None:
            origin = source.location
            splits = _decode(source, self.name, self.side)
            cache.store(entry, self.name, source, splits)
        files = source.files
        if not self.takes_all:  # one cache entry serves all shares
            splits = _rearranged(splits, self.rows)
            if files:
                files = tuple(files[row] for row in np.concatenate(self.rows))
        train, test = (
            each._replace(images=in_channels(each.images, self.asked_channels))
            for each in splits
        )
        dataset = Dataset(
            self.name,
            train,
            test,
            source.class_names,
            files,
            source.content,
            cache.digests(self.cache_dir, source),
        )
        logger.info(
            "data         %s: %d training and %d test images of %dx%dx%d, %s, from %s "
            "in %.1f s",
            self.name,
            len(train.labels),
            len(test.labels),
            *train.images.shape[1:],
            f"{len(source.class_names)} classes" if source.class_names else "no labels",
            origin,
            time.perf_counter() - started,
        )
        _warn_of_missing_classes(dataset)
        _warn_of_copies(dataset)
        return dataset


def _decode(source: Source, name: str, side: int) -> tuple[Split, Split]:
    """Reads every image of a source; training and test images in one pass."""
    count = source.num_train + source.num_test
    images, labels = pack(source.examples(), count, side, name)
    if not source.class_names:
        labels[:] = UNLABELED
    elif labels.min() < 0 or labels.max() >= len(source.class_names):
        raise without_labels(name, source.location)
    end = source.num_train
    return Split(images[:end], labels[:end]), Split(images[end:], labels[end:])


def _rearranged(
    splits: tuple[Split, Split], rows: tuple[np.ndarray, np.ndarray]
) -> tuple[Split, Split]:
    """Returns the examples `rows` of the training and of the test split.

    Args:
      splits: of the source, whose test split may be empty.
      rows: numbers in the source; training examples come before test examples.
    """
    first, second = splits
    count = len(first.labels)
    train = Split(*(part[rows[0]] for part in first))
    if len(second.labels):
        return train, Split(*(part[rows[1] - count] for part in second))
    return train, Split(*(part[rows[1]] for part in first))


def _warn_of_missing_classes(dataset: Dataset) -> None:
    present = {*np.unique(dataset.train.labels).tolist()}
    missing = [n for i, n in enumerate(dataset.class_names) if i not in present]
    if missing:
        logger.warning(
            "%s: %d of %d classes have no training image: %s; raise "
            "config.dataset.train_fraction, or expect chance accuracy on them",
            dataset.name,
            len(missing),
            len(dataset.class_names),
            name_some(missing),
        )


def _warn_of_copies(dataset: Dataset) -> None:
    count = count_copies(dataset.train.images, dataset.test.images)
    if count:
        logger.warning(
            "%s: %d of %d test images have the same pixels as a training image; "
            "results on them do not measure generalization",
            dataset.name,
            count,
            len(dataset.test.labels),
        )
