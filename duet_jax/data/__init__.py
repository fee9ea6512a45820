"""Image sets: as whole uint8 arrays, cached on disk, or streamed in batches.

They may have labels or none.

A source finds a data set and describes it; decoding, preprocessing, caching and
streaming are the same for all sources. To add one, write a `find` function that returns
a `Source`, and name it in `SOURCES` at the end of this file.
"""

import logging
from typing import Any

from duet_jax.data import cache, digits, folder, images, npz, parquet, table, tfds
from duet_jax.data.copies import count_copies
from duet_jax.data.decoding import preprocessed_side
from duet_jax.data.found import FoundDataset
from duet_jax.data.order import EvaluationRows, TrainingRows, epoch_order
from duet_jax.data.source import Source
from duet_jax.data.streaming import Batches, StreamedDataset
from duet_jax.errors import UsageError
from duet_jax.types import Dataset, Identity

__all__ = [
    "FROM_PATHS",
    "SOURCES",
    "Batches",
    "EvaluationRows",
    "FoundDataset",
    "StreamedDataset",
    "TrainingRows",
    "count_copies",
    "epoch_order",
    "find_dataset",
    "identify",
    "load_dataset",
    "stream_dataset",
]

_log = logging.getLogger(__name__)


def find_dataset(
    name: str,
    *,
    path: str = "",
    image_size: int = 32,
    center_crop: bool = False,
    num_classes: int | None = None,
    train_fraction: float = 1.0,
    holdout: float = 0.1,
    channels: int = 0,
    cache_dir: str = "",
) -> FoundDataset:
    """Finds a data set without decoding it.

    Args:
      name: a key of `SOURCES`, such as `digits`, `folder` or `images`, or the name of
        an image set of TensorFlow Datasets, such as `cifar10`.
      path: what a source of `FROM_PATHS` reads, or TFDS's data directory (TFDS's own
        default when empty); `digits` needs none.
      image_size: side of the views in pixels.
      center_crop: keep a margin around the views: the images are stored with side
        `floor(image_size * 256 / 224)`, and the views are cropped from them.
      num_classes: number of classes the data must have; `None` or 0 accepts any.
      train_fraction: share of the training images that is used, above 0, up to 1; see
        `source.kept_rows`.
      holdout: share of the images, above 0, below 1, that are test images if the set
        has none; see `source.held_out`.
      channels: 1 or 3 to convert all images to; 0 for gray if all images are.
      cache_dir: where decoded arrays are kept; `duet_jax` in the user's cache
        directory (`$XDG_CACHE_HOME` or `~/.cache`) when empty.

    Raises:
      UsageError: the data are missing, incomplete or not images.
    """
    side = preprocessed_side(image_size, center_crop)
    source = _find(name, path)
    if len(source.class_names) == 1:
        _log.info("%s: one class, %s: no labels", name, source.class_names[0])
        source = source._replace(class_names=(), labels=None)
    _check(source, name, num_classes)
    return FoundDataset(
        name, source, side, train_fraction, holdout, channels, cache_dir
    )


def identify(name: str, *, path: str = "", cache_dir: str = "") -> Identity | None:
    """Returns which images a data set holds; see `DatasetFacts.identity`.

    The arguments are those of `find_dataset`. Returns None for a TFDS set that is not
    prepared yet; it is not prepared for this.

    Raises:
      UsageError: there is no such data set, or it cannot be read.
    """
    if name not in SOURCES and not tfds.is_prepared(name, path, [*SOURCES]):
        return None
    source = _find(name, path)
    return source.content, *cache.digests(cache_dir, source)


def load_dataset(name: str, **options: Any) -> Dataset:
    """Returns a data set, decoded, resized and cropped to squares.

    The arguments and errors are those of `find_dataset` and `FoundDataset.decode`.
    """
    return find_dataset(name, **options).decode()


def stream_dataset(name: str, **options: Any) -> StreamedDataset:
    """Returns a data set with random access to its images, without decoding it.

    The arguments and errors are those of `find_dataset` and `FoundDataset.stream`.
    """
    return find_dataset(name, **options).stream()


def _find(name: str, path: str) -> Source:
    """Returns the source of that name, or TFDS's."""
    if name in SOURCES:
        return SOURCES[name](name, path)
    return tfds.find(name, path, [*SOURCES])


def _check(source: Source, name: str, num_classes: int | None) -> None:
    """Raises a UsageError unless the source can train and test an encoder."""
    found = len(source.class_names)
    if num_classes and num_classes != found:
        raise UsageError(
            f"config.dataset.num_classes={num_classes} is wrong: the data set {name!r} "
            f"has {found or 'no labels'}; set it to {found}, or to 0 to take it from "
            "the data."
        )
    if source.num_train + source.num_test < 2:
        raise UsageError(
            f"config.dataset.name={name!r} has {source.num_train} images "
            f"({source.location}); it takes two or more."
        )
    if not source.num_train:
        raise UsageError(
            f"config.dataset.name={name!r} has no train images ({source.location}); "
            "choose another data set."
        )


# Sources that read `dataset.path`.
FROM_PATHS = {
    "folder": folder.find,
    "images": images.find,
    "csv": table.find,
    "npz": npz.find,
    "parquet": parquet.find,
}
# Reserved names; every other name is looked up in TensorFlow Datasets.
SOURCES = {
    "digits": digits.find,
    **FROM_PATHS,
}
