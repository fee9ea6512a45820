"""Keeps decoded arrays and digests on disk, so that a data set is read once.

An entry is a directory of `.npy` files and an `index.json`, named by a hash of
everything its arrays depend on: a changed source or image size makes another entry.
Entries are never updated or deleted; the cache can be removed at any time. Each file is
written under a temporary name and then renamed, the index last. Processes that write
the same entry at once write the same bytes, so any mixture of their files is a complete
entry. Digests are a single JSON file, named in the same way.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
from typing import Any

import numpy as np

from duet_jax.data.source import Source
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
    directory = _directory(cache_dir)
    if directory is None:
        logger.warning("no home directory: decoded images are not cached")
        return None
    key = _key([_FORMAT, name, side, source.class_names, source.identity])
    return directory / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{side}px-{key}"


def _directory(cache_dir: str) -> pathlib.Path | None:
    """Returns the directory of the cache, or None without a home directory."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):
        return pathlib.Path(base).expanduser() / "duet_jax"
    return None


def _key(depends_on: Any) -> str:
    text = json.dumps(depends_on, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def digests(cache_dir: str, source: Source) -> tuple[str, ...]:
    """Returns the digests of a source, from the cache if possible.

    Args:
      cache_dir: as in the configuration; "" for the user's cache directory.
      source: the data set.

    Returns:
      The digests of the training and of the test images; () if the source has none.

    Raises:
      UsageError: a file cannot be read.
    """
    if source.digests is None:
        return ()
    directory = _directory(cache_dir)
    if directory is None:
        return source.digests()
    path = directory / f"digests-{_key([_FORMAT, source.identity])}.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, list) and list(map(type, found)) == [str, str]:
            return tuple(found)
    found = source.digests()
    with contextlib.suppress(OSError):  # `store` warns that nothing can be cached
        directory.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial:
            partial.write_text(json.dumps(found))
    return found


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
        train, test = splits = tuple(_load_split(entry, s) for s in ("train", "test"))
        channels = train.images.shape[-1:]
        _check_split(train, source.num_train, side, channels)
        _check_split(test, source.num_test, side, channels)
        classes = len(source.class_names)
        if any(s.labels.min() < 0 or s.labels.max() >= classes for s in splits):
            raise ValueError(f"it has labels beyond those of {classes} classes")
    except Exception as error:  # NumPy has no common type for damaged files
        logger.warning(
            "the cache %s is damaged and will be made again (%s)", entry, error
        )
        return None
    return splits


def _load_split(entry: pathlib.Path, split: str) -> Split:
    return Split(
        images=np.load(entry / f"{split}_images.npy", allow_pickle=False),
        labels=np.load(entry / f"{split}_labels.npy", allow_pickle=False),
    )


def _check_split(
    split: Split, count: int, side: int, channels: tuple[int, ...]
) -> None:
    """Raises a ValueError unless the arrays are those of the source."""
    found = [(array.shape, str(array.dtype)) for array in split]
    expected = [((count, side, side, *channels), "uint8"), ((count,), "int32")]
    if found != expected or channels not in ((1,), (3,)):
        raise ValueError(f"found {found} instead of {expected}")


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
