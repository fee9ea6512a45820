"""Labelled image sets as whole uint8 arrays, decoded once and cached on disk.

A source finds a set and says what is in it; decoding, preprocessing and caching are the
same for all of them. To add a source, write a `find` function that returns a `Source`
and give it a name in `SOURCES`, at the end of this file.
"""

import logging
import time

import numpy as np

from duet_jax.data import cache, digits, folder, tfds
from duet_jax.data.decoding import pack, preprocessed_side
from duet_jax.data.source import Source
from duet_jax.errors import UsageError
from duet_jax.types import Dataset, Split

__all__ = ["SOURCES", "load_dataset"]

logger = logging.getLogger(__name__)


def load_dataset(
    name: str,
    *,
    path: str = "",
    image_size: int = 32,
    center_crop: bool = False,
    cache_dir: str = "",
    num_classes: int | None = None,
) -> Dataset:
    """Returns a data set, decoded, resized and cut to squares.

    Args:
      name: `digits` (8x8 digits that come with scikit-learn), `folder` (images in
        `<path>/{train,test}/<class>/`) or the name of a classification set of
        TensorFlow Datasets, such as `cifar10`.
      path: the folder of `folder`, or TFDS's data directory (TFDS's own default when
        empty); `digits` needs none.
      image_size: side of the views in pixels.
      center_crop: keep a margin around the views: the images are stored with side
        `floor(image_size * 256 / 224)`, and the views are cut from them.
      cache_dir: where decoded arrays are kept; `duet_jax` in the user's cache
        directory (`$XDG_CACHE_HOME` or `~/.cache`) when empty.
      num_classes: number of classes the data must have; `None` or 0 accepts any.

    Returns:
      Images uint8, [examples, side, side, channels], C-contiguous; one channel when all
      images of both splits are grey, otherwise three. Labels int32. Both splits hold
      every example once, in the order of the source.

    Raises:
      UsageError: the data are missing, incomplete, damaged or not an image
        classification set.

    Source: reference: resize of the shorter side and central square, once, on uint8.
    """
    started = time.perf_counter()
    side = preprocessed_side(image_size, center_crop)
    source = SOURCES.get(name, tfds.find)(name, path)
    _check(source, name, num_classes)
    entry = cache.entry(cache_dir, name, source, side)
    dataset = cache.load(entry, name, source, side)
    origin = f"the cache {entry}, made from {source.location}"
    if dataset is None:
        dataset = _decode(source, name, side)
        cache.store(entry, dataset, source)
        origin = source.location
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
        raise UsageError(
            f"config.dataset.name={name!r} has images without a valid label "
            f"({source.location}); choose a data set whose splits are all labelled."
        )
    train, test = (
        Split(*parts)
        for parts in zip(
            np.split(images, [source.num_train]),
            np.split(labels, [source.num_train]),
            strict=True,
        )
    )
    return Dataset(name, train, test, source.class_names, source.files)


# Reserved names; every other name is looked up in TensorFlow Datasets.
SOURCES = {
    "digits": digits.find,
    "folder": folder.find,
}
