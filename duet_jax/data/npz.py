"""Reads arrays of images and labels from one `.npz` file."""

import functools
import itertools
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from duet_jax.data.source import (
    MOST_READ,
    UNLABELED,
    Example,
    Source,
    digest_of,
    name_some,
    short_hash,
    sorted_labels,
    tell_unused,
)
from duet_jax.errors import UsageError

# Names of the arrays; those of Keras and MedMNIST are taken as well.
_IMAGES = ("images", "train_images", "x_train")
_LABELS = ("labels", "train_labels", "y_train")
_TEST_IMAGES = ("test_images", "x_test", "val_images")
_TEST_LABELS = ("test_labels", "y_test", "val_labels")
_NEEDS = (
    "it needs images, uint8 [n, height, width] or [n, height, width, 3], and may have "
    "labels [n], test_images, test_labels and class_names"
)


def find(name: str, path: str) -> Source:
    """Reads the arrays, which stay in memory as long as the source.

    `images`, uint8, [n, height, width] or [n, height, width, 1 or 3]; `labels`, [n] or
    [n, 1], whole numbers or words; `test_images` and `test_labels` likewise, without
    which a share of the images is held out; `class_names`, of the labels 0, 1, ...

    Args:
      name: as in the configuration.
      path: the file.

    Raises:
      UsageError: it cannot be read, or its arrays are others.
    """
    del name
    file = os.path.abspath(os.path.expanduser(path))
    arrays = _load(path, file)
    train = _images(path, arrays, _IMAGES)
    test = _images(path, arrays, _TEST_IMAGES)
    if train is None:
        raise _error(path, f"has no images, but {name_some([*arrays]) or 'nothing'}")
    splits = [train] if test is None else [train, test]
    tested = [name for name in _TEST_IMAGES if name in arrays]
    tell_unused(file, tested, tested[0] if tested else "")
    class_names, labels = _labels(path, arrays, [len(each) for each in splits])
    size, modified_ns = os.stat(file).st_size, os.stat(file).st_mtime_ns
    opened = [(os.path.basename(file), functools.partial(open, file, "rb"))]
    return Source(
        class_names=class_names,
        num_train=len(train),
        num_test=len(labels) - len(train),
        examples=functools.partial(_examples, splits, labels),
        location=file,
        identity={"npz": os.path.realpath(file), "file": [size, modified_ns]},
        content=short_hash([size, [len(each) for each in splits]]),
        digests=(lambda: (digest_of(opened),)) if size <= MOST_READ else None,
        labels=lambda: labels[: len(train)],
        channels=lambda: 3 if any(each.ndim == 4 for each in splits) else 1,
    )


def _error(path: str, what: str) -> UsageError:
    return UsageError(f"config.dataset.path={path!r} {what}; {_NEEDS}.")


def _load(path: str, file: str) -> dict[str, np.ndarray]:
    try:
        if os.path.isfile(file) and not zipfile.is_zipfile(file):
            raise ValueError("it is of another kind")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # NumPy has no common type for damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise _error(path, f"cannot be read as .npz ({reason})") from error


def _images(
    path: str, arrays: Mapping[str, np.ndarray], names: Sequence[str]
) -> np.ndarray | None:
    """Returns the first of the named arrays, gray ones [n, height, width]."""
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    found = arrays[name]
    if found.ndim == 4 and found.shape[3] == 1:
        found = found[..., 0]
    shaped = found.ndim == 3 or (found.ndim == 4 and found.shape[3] == 3)
    if found.dtype != np.uint8 or not shaped or not found.size:
        raise _error(path, f"has {name} {found.dtype} {list(arrays[name].shape)}")
    return found


def _labels(
    path: str, arrays: Mapping[str, np.ndarray], counts: Sequence[int]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the class names, and the labels of all splits, int32."""
    found = []
    for names, count in zip((_LABELS, _TEST_LABELS), counts, strict=False):
        name = next((name for name in names if name in arrays), None)
        if name is None:
            continue
        labels = arrays[name]
        if labels.size != count or labels.dtype.kind not in "iuUSb":
            raise _error(
                path,
                f"has {name} {labels.dtype} {list(labels.shape)} for {count} images",
            )
        words = labels.astype(str).ravel().tolist()
        found.append(words)
    if not found:
        return (), np.full(sum(counts), UNLABELED, np.int32)
    if len(found) < len(counts):
        raise _error(path, "has labels of one split only")
    classes = sorted_labels(set(found[0]))
    unknown = sorted({*itertools.chain(*found[1:])} - {*classes})
    if unknown:
        raise _error(
            path, f"has test labels that no training image has: {name_some(unknown)}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[each] for each in itertools.chain(*found)], np.int32)
    return _named(path, arrays, classes), labels


def _named(
    path: str, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the names of the classes, from `class_names` if it is there."""
    if "class_names" not in arrays:
        return classes
    names = arrays["class_names"].astype(str).ravel()
    try:
        return tuple(str(names[int(each)]) for each in classes)
    except (ValueError, IndexError) as error:
        raise _error(
            path,
            f"has {len(names)} class_names for the labels {name_some(classes)}",
        ) from error


def _examples(splits: Sequence[np.ndarray], labels: np.ndarray) -> Iterator[Example]:
    for pixels, label in zip(itertools.chain(*splits), labels, strict=True):
        yield Image.fromarray(pixels), int(label)
