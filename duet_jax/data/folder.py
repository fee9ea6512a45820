"""Images in `<path>/{train,test}/<class>/*.{png,jpg,jpeg}`."""

import collections
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from duet_jax.data.decoding import decode, is_grey
from duet_jax.data.source import Example, Reader, Source, content_of
from duet_jax.errors import UsageError

logger = logging.getLogger(__name__)

_LAYOUT = "<path>/train/<class>/*.png and <path>/test/<class>/*.png (or .jpg, .jpeg)"
_EXTENSIONS = (".png", ".jpg", ".jpeg")
_MOST_LISTED = 5


class _File(NamedTuple):
    """An image file; size and time stand for its content in the identity."""

    relative: str
    class_name: str
    size: int
    modified_ns: int


def find(name: str, path: str) -> Source:
    """Lists the folder; images are opened only when the examples are read.

    Class names are the folder names in alphabetical order. Extensions may be in upper
    case. Hidden entries, other files and folders below the classes are left out; links
    are followed, but never deeper than one class folder. To decode all takes a single
    process: Pillow's threads wait for each other, and a process pool would gain
    seconds, once.

    Args:
      name: as in the configuration.
      path: the folder that holds `train` and `test`.

    Raises:
      UsageError: the folder, a split or a class has no images, or the test split has a
        class that the training split lacks; from `examples` and `reader`, damaged
        images.
    """
    del name
    root = os.path.abspath(os.path.expanduser(path))
    _check_root(path, root)
    train, test = (_list_split(path, root, split) for split in ("train", "test"))
    class_names = tuple(sorted({file.class_name for file in train}))
    unknown = sorted({file.class_name for file in test} - set(class_names))
    if unknown:
        raise UsageError(
            f"config.dataset.path={path!r}: test has classes that train lacks: "
            f"{_enumerate(unknown)}; give both splits the same class folders."
        )
    files = train + test
    return Source(
        class_names=class_names,
        num_train=len(train),
        num_test=len(test),
        examples=lambda: _examples(path, root, files, class_names),
        location=root,
        identity={"folder": os.path.realpath(root), "files": files},
        content=content_of([(file.relative, file.size) for file in files]),
        files=tuple(file.relative for file in files),
        reader=_Files(path, root, files, class_names),
        channels=lambda: _channels(path, root, files),
    )


def _check_root(path: str, root: str) -> None:
    """Raises a UsageError unless the folder holds both splits."""
    problem = _problem(root) if path else "is empty"
    if problem:
        raise UsageError(
            f"config.dataset.path={path!r} {problem}; "
            f"config.dataset.name='folder' reads {_LAYOUT}."
        )
    folders = [entry.name for entry in _entries(path, root) if _is_folder(entry)]
    missing = [split for split in ("train", "test") if split not in folders]
    if missing:
        found = _enumerate(folders) if folders else "no folders"
        raise UsageError(
            f"config.dataset.path={path!r} has no folder {' and no '.join(missing)}; "
            f"it holds {found}; rename or arrange the images as {_LAYOUT}."
        )
    if os.path.samefile(*(os.path.join(root, split) for split in ("train", "test"))):
        raise UsageError(
            f"config.dataset.path={path!r}: train and test are the same folder; give "
            "test images that are not trained on."
        )


def _problem(root: str) -> str:
    """Returns why nothing can be read below a path; "" if it may be."""
    try:
        return "" if stat.S_ISDIR(os.stat(root).st_mode) else "is not a folder"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:  # a link to itself, a folder above that may not be entered
        return f"cannot be reached ({error.strerror})"


def _list_split(path: str, root: str, split: str) -> list[_File]:
    """Returns the image files of a split, by class and name."""
    files, empty, ignored = [], [], 0
    for folder in _entries(path, os.path.join(root, split)):
        if not _is_folder(folder):
            continue
        _check_name(path, split, folder.name)
        before = len(files)
        for entry in _entries(path, folder.path):
            if not entry.name.lower().endswith(_EXTENSIONS) or _is_folder(entry):
                ignored += 1
                continue
            try:
                info = entry.stat()
                size, modified_ns = info.st_size, info.st_mtime_ns
            except OSError:  # such as a broken link: reported with the damaged images
                size, modified_ns = 0, 0
            relative = f"{split}/{folder.name}/{entry.name}"
            files.append(_File(relative, folder.name, size, modified_ns))
        if len(files) == before:
            empty.append(f"{split}/{folder.name}")
    if empty or not files:
        raise UsageError(
            f"config.dataset.path={path!r}: no images in {_enumerate(empty or [split])}"
            f"; remove the folder or arrange the images as {_LAYOUT}."
        )
    if ignored:
        logger.info("%s/%s: %d other files were left out", root, split, ignored)
    return files


def _check_name(path: str, split: str, name: str) -> None:
    """Raises a UsageError for a class name that no result could hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"config.dataset.path={path!r}: the name of the folder {split}/{name!r} is "
            "not UTF-8; rename it: it names a class."
        ) from error


def _entries(path: str, folder: str) -> list[os.DirEntry]:
    """Returns what a folder holds, in alphabetical order, without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(
            f"config.dataset.path={path!r}: cannot list {folder!r} ({error.strerror}); "
            "check its permissions."
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _examples(
    path: str, root: str, files: Sequence[_File], class_names: Sequence[str]
) -> Iterator[Example]:
    """Yields the images; reports all damaged ones together, at the end."""
    labels = {name: label for label, name in enumerate(class_names)}
    conversions = collections.Counter()
    damaged, reason = [], ""
    for file in files:
        try:
            image, conversion = decode(os.path.join(root, file.relative))
        except Exception as error:  # Pillow has no common type for damaged files
            reason = reason or _reason(error)
            damaged.append(file.relative)
            continue
        conversions[conversion] += 1
        yield image, labels[file.class_name]
    if damaged:
        raise UsageError(
            f"config.dataset.path={path!r}: {len(damaged)} of {len(files)} images "
            f"cannot be read: {_enumerate(damaged)}; replace or delete them "
            f"(the first: {reason})."
        )
    del conversions[""]
    if conversions:
        kinds = ", ".join(f"{n} {kind}" for kind, n in conversions.most_common())
        logger.info(
            "%s: %d of %d images were converted to 8-bit grey or RGB (%s)",
            root,
            conversions.total(),
            len(files),
            kinds,
        )


class _Files(Reader):
    """Opens the images by number; 50 bytes for each, since every worker has a copy."""

    def __init__(
        self, path: str, root: str, files: Sequence[_File], class_names: Sequence[str]
    ):
        labels = {name: label for label, name in enumerate(class_names)}
        names = [os.fsencode(file.relative) for file in files]
        self._path = path
        self._root = root
        self._names = b"".join(names)
        self._starts = np.cumsum([0, *map(len, names)])
        self._labels = np.array([labels[file.class_name] for file in files], np.int32)

    def __getitem__(self, index: int) -> Example:
        start, stop = self._starts[index], self._starts[index + 1]
        relative = os.fsdecode(self._names[start:stop])
        try:
            image, _ = decode(os.path.join(self._root, relative))
        except Exception as error:  # Pillow has no common type for damaged files
            raise _damaged(self._path, relative, error) from error
        return image, int(self._labels[index])


def _channels(path: str, root: str, files: Sequence[_File]) -> int:
    """Returns 3 at the first image with colour, from the headers; 1 if none has any."""
    for file in files:
        try:
            grey = is_grey(os.path.join(root, file.relative))
        except Exception as error:  # Pillow has no common type for damaged files
            raise _damaged(path, file.relative, error) from error
        if not grey:
            return 3
    return 1


def _damaged(path: str, relative: str, error: Exception) -> UsageError:
    return UsageError(
        f"config.dataset.path={path!r}: {_enumerate([relative])} cannot be read "
        f"({_reason(error)}); replace or delete it."
    )


def _reason(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())


def _enumerate(names: Sequence[str]) -> str:
    """Returns the first names, quoted where they need it, and how many more."""
    listed = ", ".join(
        name if name.isprintable() else repr(name) for name in names[:_MOST_LISTED]
    )
    more = len(names) - _MOST_LISTED
    return f"{listed} and {more} more" if more > 0 else listed
