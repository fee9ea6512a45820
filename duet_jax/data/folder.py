"""Images in `<path>/{train,test}/<class>/`, at any depth."""

import collections
import functools
import logging
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from duet_jax.data.decoding import FORMATS, decode, is_grey
from duet_jax.data.source import (
    MOST_READ,
    Example,
    Reader,
    Source,
    content_of,
    digest_of,
)
from duet_jax.errors import UsageError

logger = logging.getLogger(__name__)

_LAYOUT = (
    "<path>/train/<class>/*.png and <path>/test/<class>/*.png (or any of "
    f"{', '.join(dict.fromkeys(row.name for row in FORMATS.values()))})"
)
_EXTENSIONS = tuple(each for row in FORMATS.values() for each in row.extensions)
_MOST_LISTED = 5
_MOST_NAMED = 3  # of what is left out for one reason


class _File(NamedTuple):
    """An image file; size and time stand for its content in the identity."""

    relative: str
    class_name: str
    size: int
    modified_ns: int


def find(name: str, path: str) -> Source:
    """Lists the folder; images are opened only when the examples are read.

    Class names are the names of the folders in a split, in alphabetical order and in
    Unicode's normal form C, whichever way a file system writes an accent. The images of
    a class lie below its folder, at any depth, and come depth first, by name.
    Extensions may be in upper case. Links are followed. Left out, and said so, are
    hidden entries, other files, images beside the class folders, and links to folders
    that are listed already. To decode all takes a single process: Pillow's threads wait
    for each other, and a process pool would gain seconds, once.

    Args:
      name: as in the configuration.
      path: the folder that holds `train` and `test`.

    Raises:
      UsageError: the folder, a split or a class has no images, the classes lie one
        folder too deep, or the test split has a class that the training split lacks;
        from `examples` and `reader`, damaged images.
    """
    del name
    root = os.path.abspath(os.path.expanduser(path))
    _check_root(path, root)
    train, test = (_list_split(path, root, split) for split in ("train", "test"))
    _check_depth(path, train)
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
        digests=_digests(path, root, train, test),
        labels=lambda: _labels(train, class_names),
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
    folders = [
        entry.name
        for entry in _entries(path, root)
        if not entry.name.startswith(".") and _is_folder(entry)
    ]
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


class _Entry(NamedTuple):
    """A file or folder in a split.

    Attributes:
      name: its path in the split, with "/".
      entry: what the system says of it.
      above: paths without links of the folders that it was reached through.
    """

    name: str
    entry: os.DirEntry
    above: tuple[str, ...]


class _LeftOut:
    """What a split holds besides its images: for each reason the first few, counted."""

    TYPE = "of other types"
    HIDDEN = "hidden"
    LOOSE = "not in a class folder"
    LISTED = "listed already, through a link"

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()
        self._names: dict[str, list[str]] = collections.defaultdict(list)
        self._folders = False

    def add(self, reason: str, name: str, *, is_folder: bool = False) -> None:
        """Counts a file, or a folder with all it holds."""
        self._counts[reason] += 1
        self._folders |= is_folder
        if self._counts[reason] <= _MOST_NAMED:
            self._names[reason].append(f"{name}/" if is_folder else name)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        total = self._counts.total()
        kind = "file or folder" if self._folders else "file"
        if total > 1:
            kind = "files and folders" if self._folders else "files"
        reasons = ", ".join(
            f"{count} {reason} ({_enumerate(self._names[reason], count)})"
            for reason, count in self._counts.items()
        )
        return f"{total} {kind} {'were' if total > 1 else 'was'} left out: {reasons}"


def _list_split(path: str, root: str, split: str) -> list[_File]:
    """Returns the image files of a split, by class and name."""
    files, empty, left_out = [], [], _LeftOut()
    for class_name, folders in _classes(path, root, split, left_out).items():
        before = len(files)
        for name, entry, _ in _images(path, folders, left_out):
            try:
                info = entry.stat()
                size, modified_ns = info.st_size, info.st_mtime_ns
            except OSError:  # such as a broken link: reported with the damaged images
                size, modified_ns = 0, 0
            files.append(_File(f"{split}/{name}", class_name, size, modified_ns))
        if len(files) == before:
            empty += [f"{split}/{folder.name}" for folder in folders]
    if empty or not files:
        found = f" ({left_out})" if left_out else ""
        remedy = "remove the folder or arrange" if empty else "arrange"
        raise UsageError(
            f"config.dataset.path={path!r}: no images in "
            f"{_enumerate(empty or [f'{split}/<class>/'])}{found}; {remedy} the images "
            f"as {_LAYOUT}."
        )
    if left_out:
        logger.info("%s/%s: %s", root, split, left_out)
    return files


def _classes(
    path: str, root: str, split: str, left_out: _LeftOut
) -> dict[str, list[_Entry]]:
    """Returns the folders of each class, which are several if written differently."""
    place = os.path.join(root, split)
    above = (os.path.realpath(root), os.path.realpath(place))
    folders = collections.defaultdict(list)
    for each in _visible(path, place, "", above, left_out):
        if not _is_folder(each.entry):
            is_image = each.name.lower().endswith(_EXTENSIONS)
            left_out.add(left_out.LOOSE if is_image else left_out.TYPE, each.name)
        elif _leads_back(each):
            left_out.add(left_out.LISTED, each.name, is_folder=True)
        else:
            _check_name(path, split, each.name)
            folders[unicodedata.normalize("NFC", each.name)].append(each)
    return dict(sorted(folders.items()))


def _images(
    path: str, folders: Sequence[_Entry], left_out: _LeftOut
) -> Iterator[_Entry]:
    """Yields the image files below the folders of a class, depth first, by name."""
    listed, waiting = set(), list(reversed(folders))
    while waiting:
        each = waiting.pop()
        if not _is_folder(each.entry):
            if each.name.lower().endswith(_EXTENSIONS):
                yield each
            else:
                left_out.add(left_out.TYPE, each.name)
            continue
        real = _real(each)
        if real in listed or _leads_back(each):
            left_out.add(left_out.LISTED, each.name, is_folder=True)
            continue
        listed.add(real)
        above = (*each.above, real)
        held = _visible(path, each.entry.path, f"{each.name}/", above, left_out)
        waiting += reversed(held)


def _visible(
    path: str, folder: str, prefix: str, above: tuple[str, ...], left_out: _LeftOut
) -> list[_Entry]:
    """Returns what a folder holds, by name, without hidden entries."""
    visible = []
    for entry in _entries(path, folder):
        if entry.name.startswith("."):
            is_folder = entry.is_dir(follow_symlinks=False)
            left_out.add(left_out.HIDDEN, prefix + entry.name, is_folder=is_folder)
        else:
            visible.append(_Entry(prefix + entry.name, entry, above))
    return visible


def _real(folder: _Entry) -> str:
    """Returns the path of a folder without links; asks the system only at a link."""
    if folder.entry.is_symlink():
        return os.path.realpath(folder.entry.path)
    return os.path.join(folder.above[-1], folder.entry.name)


def _leads_back(folder: _Entry) -> bool:
    """Returns whether a folder holds one that it was reached through, or is it."""
    start = os.path.join(_real(folder), "")
    return any(os.path.join(each, "").startswith(start) for each in folder.above)


def _check_depth(path: str, files: Sequence[_File]) -> None:
    """Raises a UsageError if the classes lie in a folder that is the only class."""
    if len({file.class_name for file in files}) > 1:
        return
    parts = [file.relative.split("/") for file in files]
    below = sorted({part[2] for part in parts if len(part) > 3})
    if len(below) > 1:
        raise UsageError(
            f"config.dataset.path={path!r}: the only class, {'/'.join(parts[0][:2])}, "
            f"holds the folders {_enumerate(below)}; if these are the classes, move "
            f"them up, to {_LAYOUT}."
        )


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
    """Returns what a folder holds, in alphabetical order."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"config.dataset.path={path!r}: cannot list {folder!r} ({error.strerror}); "
            "check its permissions."
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _labels(files: Sequence[_File], class_names: Sequence[str]) -> np.ndarray:
    """Returns the class of each file, int32, [files]."""
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[file.class_name] for file in files], np.int32)


def _digests(
    path: str, root: str, *splits: Sequence[_File]
) -> Callable[[], tuple[str, ...]] | None:
    """Returns what reads the files of the splits, unless they are too large for it."""
    if sum(file.size for files in splits for file in files) > MOST_READ:
        return None

    def read() -> tuple[str, ...]:
        return tuple(
            digest_of(
                (file.relative, functools.partial(_opened, path, root, file.relative))
                for file in files
            )
            for files in splits
        )

    return read


def _opened(path: str, root: str, relative: str) -> BinaryIO:
    """Opens a file to read it; does not wait where it is a pipe."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        return open(os.path.join(root, relative), "rb", opener=opener)
    except OSError as error:
        raise _damaged(path, relative, error) from error


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
        names = [os.fsencode(file.relative) for file in files]
        self._path = path
        self._root = root
        self._names = b"".join(names)
        self._starts = np.cumsum([0, *map(len, names)])
        self._labels = _labels(files, class_names)

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


def _enumerate(names: Sequence[str], count: int = 0) -> str:
    """Returns the first names, quoted where they need it, and how many more.

    Args:
      names: all of them, or the first of `count`.
      count: if there are more than the names.
    """
    listed = ", ".join(
        name if name.isprintable() else repr(name) for name in names[:_MOST_LISTED]
    )
    more = max(count, len(names)) - min(len(names), _MOST_LISTED)
    return f"{listed} and {more} more" if more > 0 else listed
