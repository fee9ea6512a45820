"""Labelled image sets: as whole uint8 arrays, cached on disk, or streamed in batches.

A source finds a set and says what is in it; decoding, preprocessing, caching and
streaming are the same for all of them. To add a source, write a `find` function that
returns a `Source` and give it a name in `SOURCES`, at the end of this file.
"""

import logging
import time
from typing import Any

import numpy as np

from duet_jax.data import cache, digits, folder, tfds
from duet_jax.data.decoding import pack, preprocessed_side
from duet_jax.data.order import EvaluationRows, TrainingRows, epoch_order
from duet_jax.data.source import FoundDataset, Source, without_labels
from duet_jax.data.streaming import StreamedDataset, batches, stream
from duet_jax.errors import UsageError
from duet_jax.types import Dataset, Split

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

    Raises:
      UsageError: the data are missing, incomplete or not an image classification set.
    """
    side = preprocessed_side(image_size, center_crop)
    source = SOURCES.get(name, tfds.find)(name, path)
    _check(source, name, num_classes)
    return FoundDataset(name, source, side, train_fraction)


def load_dataset(name: str, *, cache_dir: str = "", **options: Any) -> Dataset:
    """Returns a data set, decoded, resized and cut to squares.

    Args:
      name: as in `find_dataset`.
      cache_dir: as in `decode_dataset`.
      **options: as in `find_dataset`.

    Raises:
      UsageError: as in `find_dataset` and `decode_dataset`.
    """
    return decode_dataset(find_dataset(name, **options), cache_dir)


def stream_dataset(name: str, **options: Any) -> StreamedDataset:
    """Returns a data set to take batches of, without decoding it.

    Args:
      name: as in `find_dataset`.
      **options: as in `find_dataset`.

    Raises:
      UsageError: as in `find_dataset` and `stream`.
    """
    return stream(find_dataset(name, **options))


def decode_dataset(found: FoundDataset, cache_dir: str = "") -> Dataset:
    """Decodes a whole data set, or takes it from the cache.

    Args:
      found: the data set.
      cache_dir: where decoded arrays are kept; `duet_jax` in the user's cache
        directory (`$XDG_CACHE_HOME` or `~/.cache`) when empty.

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
    entry = cache.entry(cache_dir, name, source, side)
    dataset = cache.load(entry, name, source, side)
    origin = f"the cache {entry}, made from {source.location}"
    if dataset is None:
        dataset = _decode(source, name, side)
        cache.store(entry, dataset, source)
        origin = source.location
    dataset = _with_rows(dataset, found.kept)  # one entry of the cache for all shares
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
    return dataset


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
