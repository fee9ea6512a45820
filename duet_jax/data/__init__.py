"""Labelled image sets: as whole uint8 arrays, cached on disk, or streamed in batches.

A source finds a set and says what is in it; decoding, preprocessing, caching and
streaming are the same for all of them. To add a source, write a `find` function that
returns a `Source` and give it a name in `SOURCES`, at the end of this file.
"""

import functools
import logging
import time
from typing import Any

import numpy as np

from duet_jax.data import cache, digits, folder, tfds
from duet_jax.data.copies import count_copies
from duet_jax.data.decoding import pack, preprocessed_side
from duet_jax.data.order import EvaluationRows, TrainingRows, epoch_order
from duet_jax.data.source import FoundDataset, Source, without_labels
from duet_jax.data.streaming import StreamedDataset, batches, stream
from duet_jax.errors import UsageError
from duet_jax.types import Dataset, Identity, Split

__all__ = [
    "SOURCES",
    "EvaluationRows",
    "FoundDataset",
    "StreamedDataset",
    "TrainingRows",
    "batches",
    "decode_dataset",
    "epoch_order",
    "find_dataset",
    "identify",
    "load_dataset",
    "stream",
    "stream_dataset",
]

logger = logging.getLogger(__name__)


def find_dataset(
    name: str,
    *,
    path: str = "",
    image_size: int = 32,
    center_crop: bool = False,
    num_classes: int | None = None,
    train_fraction: float = 1.0,
    cache_dir: str = "",
) -> FoundDataset:
    """Finds a data set without decoding it.

    Args:
      name: `digits` (8x8 digits that come with scikit-learn), `folder` (images in
        `<path>/{train,test}/<class>/`) or the name of a classification set of
        TensorFlow Datasets, such as `cifar10`.
      path: the folder of `folder`, or TFDS's data directory (TFDS's own default when
        empty); `digits` needs none.
      image_size: side of the views in pixels.
      center_crop: keep a margin around the views: the images are stored with side
        `floor(image_size * 256 / 224)`, and the views are cut from them.
      num_classes: number of classes the data must have; `None` or 0 accepts any.
      train_fraction: share of the training images that is used, above 0, up to 1; see
        `FoundDataset.kept`.
      cache_dir: where decoded arrays are kept; `duet_jax` in the user's cache
        directory (`$XDG_CACHE_HOME` or `~/.cache`) when empty.

    Raises:
      UsageError: the data are missing, incomplete or not an image classification set.
    """
    side = preprocessed_side(image_size, center_crop)
    source = SOURCES.get(name, tfds.find)(name, path)
    _check(source, name, num_classes)
    digests = functools.partial(cache.digests, cache_dir, source)
    return FoundDataset(name, source, side, train_fraction, cache_dir, digests)


def identify(name: str, *, path: str = "", cache_dir: str = "") -> Identity | None:
    """Returns which images a set holds; see `DatasetFacts.identity`.

    Args:
      name: as in `find_dataset`.
      path: likewise.
      cache_dir: likewise.

    Returns:
      None for a set of TFDS that is not prepared yet. It is not prepared for this.

    Raises:
      UsageError: there is no such set, or it cannot be read.
    """
    if name not in SOURCES and not tfds.is_prepared(name, path):
        return None
    source = SOURCES.get(name, tfds.find)(name, path)
    return source.content, *cache.digests(cache_dir, source)


def load_dataset(name: str, **options: Any) -> Dataset:
    """Returns a data set, decoded, resized and cut to squares.

    Args:
      name: as in `find_dataset`.
      **options: as in `find_dataset`.

    Raises:
      UsageError: as in `find_dataset` and `decode_dataset`.
    """
    return decode_dataset(find_dataset(name, **options))


def stream_dataset(name: str, **options: Any) -> StreamedDataset:
    """Returns a data set to take batches of, without decoding it.

    Args:
      name: as in `find_dataset`.
      **options: as in `find_dataset`.

    Raises:
      UsageError: as in `find_dataset` and `stream`.
    """
    return stream(find_dataset(name, **options))


def decode_dataset(found: FoundDataset) -> Dataset:
    """Decodes a whole data set, or takes it from the cache.

    Warns of classes without a training image, and of test images that are training
    images as well.

    Args:
      found: the data set.

    Returns:
      Images uint8, [examples, side, side, channels], C-contiguous; one channel when all
      images of both splits are grey, otherwise three. Labels int32. Both splits hold
      every example that is used once, in the order of the source.

    Raises:
      UsageError: images are damaged or without a label, or memory does not suffice.

    Source: reference: resize of the shorter side and central square, once, on uint8.
    """
    started = time.perf_counter()
    name, source, side = found.name, found.source, found.side
    entry = cache.entry(found.cache_dir, name, source, side)
    dataset = cache.load(entry, name, source, side)
    origin = f"the cache {entry}, made from {source.location}"
    if dataset is None:
        dataset = _decode(source, name, side)
        cache.store(entry, dataset, source)
        origin = source.location
    dataset = _with_rows(dataset, found.kept)  # one entry of the cache for all shares
    dataset = dataset._replace(digests=found.digests)
    logger.info(
        "%s: %d train and %d test images of %dx%dx%d, %d classes, from %s in %.1f s",
        name,
        len(dataset.train.labels),
        len(dataset.test.labels),
        side,
        side,
        dataset.channels,
        len(dataset.class_names),
        origin,
        time.perf_counter() - started,
    )
    _warn_of_gaps(dataset)
    _warn_of_copies(dataset)
    return dataset


def _warn_of_gaps(dataset: Dataset) -> None:
    """Says which classes have no training image."""
    present = {*np.unique(dataset.train.labels).tolist()}
    gone = [n for i, n in enumerate(dataset.class_names) if i not in present]
    if gone:
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        logger.warning(
            "%s: %d of %d classes have no training image: %s%s; raise "
            "config.dataset.train_fraction, or expect nothing of them",
            dataset.name,
            len(gone),
            len(dataset.class_names),
            ", ".join(gone[:5]),
            more,
        )


def _warn_of_copies(dataset: Dataset) -> None:
    """Says how many test images are training images as well."""
    count = count_copies(dataset.train.images, dataset.test.images)
    if count:
        logger.warning(
            "%s: %d of %d test images have the same pixels as a training image; what "
            "is measured on them says nothing of new images",
            dataset.name,
            count,
            len(dataset.test.labels),
        )


def _with_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Returns the data set with some of its training images."""
    count = len(dataset.train.labels)
    if len(rows) == count:
        return dataset
    train = Split(*(part[rows] for part in dataset.train))
    files = dataset.files
    if files:
        files = (*(files[row] for row in rows), *files[count:])
    return dataset._replace(train=train, files=files)


def _check(source: Source, name: str, num_classes: int | None) -> None:
    """Raises a UsageError unless the source can train and test a classifier."""
    found = len(source.class_names)
    if num_classes and num_classes != found:
        raise UsageError(
            f"config.dataset.num_classes={num_classes} is wrong: the data set {name!r} "
            f"has {found}; set it to {found}, or to 0 to take it from the data."
        )
    if found < 2:
        raise UsageError(
            f"config.dataset.name={name!r} has {found} class ({source.location}); "
            "the online probe is a classifier and needs two or more."
        )
    for split, count in (("train", source.num_train), ("test", source.num_test)):
        if count == 0:
            raise UsageError(
                f"config.dataset.name={name!r} has no {split} images "
                f"({source.location}); choose another data set."
            )


def _decode(source: Source, name: str, side: int) -> Dataset:
    """Reads every image of a source; training and test images in one pass."""
    images, labels = pack(
        source.examples(), source.num_train + source.num_test, side, name
    )
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        raise without_labels(name, source.location)
    train, test = (
        Split(*parts)
        for parts in zip(
            np.split(images, [source.num_train]),
            np.split(labels, [source.num_train]),
            strict=True,
        )
    )
    return Dataset(name, train, test, source.class_names, source.files, source.content)


# Reserved names; every other name is looked up in TensorFlow Datasets.
SOURCES = {
    "digits": digits.find,
    "folder": folder.find,
}
