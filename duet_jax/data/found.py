"""A data set that has been found: its facts, and the two ways to read its images."""

import dataclasses
import functools
import logging
import time

import numpy as np

from duet_jax.data import cache
from duet_jax.data.copies import count_copies
from duet_jax.data.decoding import pack
from duet_jax.data.source import Source, kept_rows, name_some, without_labels
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
      cache_dir: where decoded images are kept; "" for the user's cache directory.
    """

    name: str
    source: Source
    side: int
    train_fraction: float = 1.0
    cache_dir: str = ""

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """The training images that are used: int64, [examples]; see `kept_rows`."""
        source = self.source
        labels = source.labels() if source.labels else np.zeros(source.num_train)
        return kept_rows(labels, self.train_fraction)

    @functools.cached_property
    def channels(self) -> int:
        """1 if all images of both splits are gray, otherwise 3.

        Slow only if all images are gray: then every file has to be opened.
        """
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
            len(self.kept),
            self.source.num_test,
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
          UsageError: the examples can only be read in order, or a header is damaged.
        """
        source = self.source
        if source.reader is None:
            raise UsageError(
                f"config.dataset.name={self.name!r} cannot be streamed: "
                f"{source.location} is not in a format with random access; prepare it "
                "again with file_format='array_record', or set "
                "config.dataset.placement=device."
            )
        used = None
        if len(self.kept) < source.num_train:
            test = np.arange(source.num_train, source.num_train + source.num_test)
            used = np.concatenate([self.kept, test])
        return StreamedDataset(self.facts, source.location, source.reader, used)

    def decode(self) -> Dataset:
        """Decodes the whole data set, or loads it from the cache.

        Warns of classes without a training image, and of test images that are training
        images as well.

        Returns:
          Images uint8, [examples, side, side, channels], C-contiguous; one channel if
          all images of both splits are gray, otherwise three. Labels int32. Both splits
          hold every example that is used once, in the order of the source.

        Raises:
          UsageError: images are damaged or unlabeled, or memory does not suffice.

        Source: reference: resize of the shorter side and central square, once, on
        uint8.
        """
        started = time.perf_counter()
        source = self.source
        entry = cache.entry(self.cache_dir, self.name, source, self.side)
        origin = f"the cache {entry}, made from {source.location}"
        splits = cache.load(entry, source, self.side)
        if splits is None:
            origin = source.location
            splits = _decode(source, self.name, self.side)
            cache.store(entry, self.name, source, splits)
        train, test = splits
        files = source.files
        if len(self.kept) < source.num_train:  # one cache entry serves all shares
            train = Split(*(part[self.kept] for part in train))
            if files:
                files = (*(files[r] for r in self.kept), *files[source.num_train :])
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
            "%s: %d train and %d test images of %dx%dx%d, %d classes, from %s in "
            "%.1f s",
            self.name,
            len(train.labels),
            len(test.labels),
            *train.images.shape[1:],
            len(source.class_names),
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
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        raise without_labels(name, source.location)
    end = source.num_train
    return Split(images[:end], labels[:end]), Split(images[end:], labels[end:])


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
