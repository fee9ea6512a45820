"""Keeps decoded arrays and digests on disk, so that a data set is read once.

An entry is a directory of `.npy` files and an `index.json`, named by a hash of
everything its arrays depend on: a changed source or image size makes another entry.
Entries are never updated or deleted; the cache can be removed at any time. Each file is
written under a temporary name and then renamed, the index last. Processes that write
the same entry at once write the same bytes, so any mixture of their files is a complete
entry. Digests are a single JSON file, named in the same way.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from duet_jax.data.source import UNLABELED, Source, short_hash
from duet_jax.runtime import files
from duet_jax.types import Split

logger = logging.getLogger(__name__)

# To be increased when preprocessing or the layout of an entry changes.
_FORMAT = 2
_INDEX = "index.json"


def entry(cache_dir: str, name: str, source: Source, side: int) -> pathlib.Path | None:
    """Returns the directory of a decoded data set; it need not exist.

    Args:
      cache_dir: as in the configuration; "" for the user's cache directory.
      name: name of the data set.
      source: the data set.
      side: side of the decoded images in pixels.

    Returns:
      None if the source is not worth caching, or there is no home directory.
    """
    if source.identity is None:
        return None
    place = _directory(cache_dir)
    if place is None:
        logger.warning("no home directory: decoded images are not cached")
        return None
    key = short_hash([_FORMAT, name, side, source.class_names, source.identity], 24)
    return place / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{side}px-{key}"


def _directory(cache_dir: str) -> pathlib.Path | None:
    """Returns the directory of the cache, or None without a home directory."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):
        return pathlib.Path(base).expanduser() / "duet_jax"
    return None


def remembered(
    cache_dir: str,
    kind: str,
    parts: Any,
    make: Callable[[], Any],
    is_valid: Callable[[Any], bool],
) -> Any:
    """Returns what `make` returns, from the cache if it was made before.

    A cache that cannot be written costs the time again.

    Args:
      cache_dir: as in the configuration; "" for the user's cache directory.
      kind: begins the name of the file.
      parts: JSON-able; all that the content depends on.
      make: returns JSON types.
      is_valid: whether what was read from the file can have been made by `make`.
    """
    place = _directory(cache_dir)
    if place is None:
        return make()
    path = place / f"{kind}-{short_hash([_FORMAT, parts], 24)}.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if is_valid(found):
            return found
    made = make()
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial:
            partial.write_text(json.dumps(made))
    return made


def digests(cache_dir: str, source: Source) -> tuple[str, ...]:
    """Returns the digests of a source, from the cache if possible.

    Args:
      cache_dir: as in the configuration; "" for the user's cache directory.
      source: the data set.

    Returns:
      The digests of the training and of the test images, or one of all images; () if
      the source has none.

    Raises:
      UsageError: a file cannot be read.
    """
    if source.digests is None:
        return ()

    def is_valid(found: Any) -> bool:
        return isinstance(found, list) and {*map(type, found)} == {str}

    return tuple(
        remembered(cache_dir, "digests", source.identity, source.digests, is_valid)
    )


def load(
    entry: pathlib.Path | None, source: Source, side: int
) -> tuple[Split, Split] | None:
    """Returns the training and the test split of an entry.

    Returns:
      None if the data set has to be decoded: there is no entry, or it is damaged (with
      a warning).
    """
    try:
        if entry is None or not (entry / _INDEX).exists():
            return None
        classes = len(source.class_names)
        train = _load_split(entry, "train", source.num_train, side, classes)
        test = _load_split(entry, "test", source.num_test, side, classes)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise ValueError("the splits differ in their channels")
    except Exception as error:  # NumPy has no common type for damaged files
        logger.warning(
            "the cache %s is damaged and will be made again (%s)", entry, error
        )
        return None
    return train, test


def _load_split(
    entry: pathlib.Path, split: str, count: int, side: int, classes: int
) -> Split:
    """Loads a split; raises a ValueError unless the arrays are those of the source."""
    images, labels = arrays = [
        np.load(entry / f"{split}_{kind}.npy", allow_pickle=False)
        for kind in Split._fields
    ]
    channels = images.shape[-1:]
    found = [(array.shape, str(array.dtype)) for array in arrays]
    expected = [((count, side, side, *channels), "uint8"), ((count,), "int32")]
    if found != expected or channels not in ((1,), (3,)):
        raise ValueError(f"found {found} instead of {expected}")
    known = {*range(classes)} if classes else {UNLABELED}
    if not known.issuperset(np.unique(labels).tolist()):
        raise ValueError(f"it has labels beyond those of {classes} classes")
    return Split(images, labels)


def store(
    entry: pathlib.Path | None, name: str, source: Source, splits: tuple[Split, Split]
) -> None:
    """Writes an entry; only warns if it cannot be written."""
    if entry is None:
        return
    index = {
        "name": name,
        "made_from": source.location,
        "class_names": source.class_names,
    }
    try:
        entry.mkdir(parents=True, exist_ok=True)
        for split, arrays in zip(("train", "test"), splits, strict=True):
            for kind, array in arrays._asdict().items():
                with files.replacing(entry / f"{split}_{kind}.npy") as partial:
                    np.save(partial, array)
        with files.replacing(entry / _INDEX) as partial:
            partial.write_text(json.dumps(index, indent=2))
    except OSError as error:
        logger.warning(
            "decoded images cannot be cached in %s (%s); set config.dataset.cache_dir "
            "to a directory that can be written, or every run decodes them again",
            entry.parent,
            error.strerror,
        )
