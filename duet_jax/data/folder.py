"""Reads images in class folders, with splits or without."""

import os
from collections.abc import Sequence

from duet_jax.data import listing
from duet_jax.data.decoding import FORMATS
from duet_jax.data.image_files import File, image_source
from duet_jax.data.listing import Listing
from duet_jax.data.source import TRAIN_NAMES, Source, name_some
from duet_jax.errors import UsageError

_LAYOUT = (
    "<path>/train/<class>/*.png and <path>/test/<class>/*.png, or <path>/<class>/*.png "
    f"(or any of {', '.join(dict.fromkeys(row.name for row in FORMATS.values()))})"
)
_WITHOUT_CLASSES = "to train without labels, set config.dataset.name=images"


def find(name: str, path: str) -> Source:
    """Lists the folder; images are opened only when the examples are read.

    Training images are in `train` or `training`, test images in `test`, `testing`,
    `val`, `valid` or `validation`, the first of these that is there. Without a folder
    of test images, or with classes in `path` itself, a share is held out.

    Class names are the names of the folders in a split, in alphabetical order and in
    Unicode normal form C, whichever way the file system writes an accent. The images of
    a class lie below its folder, at any depth, and are ordered depth first, by name.
    Extensions may be in upper case. Images beside the class folders are left out.
    Decoding takes a single process: Pillow's threads wait for each other, and a process
    pool would save seconds, once.

    Args:
      name: as in the configuration.
      path: the folder.

    Raises:
      UsageError: the folder, a split or a class has no images, the classes lie one
        folder too deep, or the test split has a class that the training split lacks;
        from `examples` and `reader`, damaged images.
    """
    del name
    root = os.path.abspath(os.path.expanduser(path))
    problem = listing.problem(root) if path else "is empty"
    if problem:
        raise UsageError(
            f"config.dataset.path={path!r} {problem}; "
            f"config.dataset.name='folder' reads {_LAYOUT}."
        )
    splits = listing.find_splits(path, root)
    if splits == ("",):
        _check_not_above(path, root)
    found = [_list(path, root, split) for split in splits]
    _check_depth(path, found[0], splits[0])
    classes, *tested = (sorted({file.class_name for file in each}) for each in found)
    unknown = sorted({name for each in tested for name in each} - set(classes))
    if unknown:
        raise UsageError(
            f"config.dataset.path={path!r}: {splits[1]} has classes that {splits[0]} "
            f"lacks: {name_some(unknown)}; give both splits the same class folders."
        )
    return image_source(path, root, found, classes)


def _check_not_above(path: str, root: str) -> None:
    """Raises a UsageError if the folders are data sets and not classes."""
    inner = [
        entry.name
        for entry in os.scandir(root)
        for name in TRAIN_NAMES
        if os.path.isdir(os.path.join(entry.path, name))
    ]
    if inner:
        raise UsageError(
            f"config.dataset.path={path!r} holds the data sets "
            f"{name_some(sorted(set(inner)))}; name one of them."
        )


def _list(path: str, root: str, split: str) -> list[File]:
    files = Listing(path, root, split, _LAYOUT)
    try:
        return files.by_class()
    except UsageError as error:
        if files.has_images_beside_classes():
            raise UsageError(
                f"{str(error).rstrip('.')}; {_WITHOUT_CLASSES}."
            ) from error
        raise


def _check_depth(path: str, files: Sequence[File], split: str) -> None:
    """Raises a UsageError if the only class seems to hold the folders of classes."""
    if len({file.class_name for file in files}) > 1:
        return
    start = f"{split}/" if split else ""
    parts = [file.relative.removeprefix(start).split("/") for file in files]
    below = sorted({part[1] for part in parts if len(part) > 2})
    if len(below) > 1:
        raise UsageError(
            f"config.dataset.path={path!r}: the only class, {start}{parts[0][0]}, "
            f"holds the folders {name_some(below)}; if these are the classes, move "
            f"them up, to {_LAYOUT}; {_WITHOUT_CLASSES}."
        )
