"""Reads images in `<path>/{train,test}/<class>/`, at any depth."""

import collections
import contextlib
import functools
import logging
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from duet_jax.data.decoding import FORMATS, decode, is_gray
from duet_jax.data.source import (
    MOST_READ,
    Example,
    Source,
    digest_of,
    name_some,
    short_hash,
)
from duet_jax.errors import UsageError

logger = logging.getLogger(__name__)

_LAYOUT = (
    "<path>/train/<class>/*.png and <path>/test/<class>/*.png (or any of "
    f"{', '.join(dict.fromkeys(row.name for row in FORMATS.values()))})"
)
_EXTENSIONS = tuple(each for row in FORMATS.values() for each in row.extensions)
_MOST_SKIPPED = 3  # names in a message for each reason to leave entries out
_OTHER_TYPE = "of other types"
_LISTED = "listed already, through a link"


class _File(NamedTuple):
    """An image file; in the identity, size and time stand for its content."""

    relative: str
    class_name: str
    size: int
    modified_ns: int


def find(name: str, path: str) -> Source:
    """Lists the folder; images are opened only when the examples are read.

    Class names are the names of the folders in a split, in alphabetical order and in
    Unicode normal form C, whichever way the file system writes an accent. The images of
    a class lie below its folder, at any depth, and are ordered depth first, by name.
    Extensions may be in upper case. Links are followed. Hidden entries, other files,
    images beside the class folders, and links to folders that are listed already are
    left out, with a message. Decoding takes a single process: Pillow's threads wait for
    each other, and a process pool would save seconds, once.

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
    train, test = (_Listing(path, root, s).files() for s in ("train", "test"))
    _check_depth(path, train)
    class_names = tuple(sorted({file.class_name for file in train}))
    unknown = sorted({file.class_name for file in test} - set(class_names))
    if unknown:
        raise UsageError(
            f"config.dataset.path={path!r}: test has classes that train lacks: "
            f"{name_some(unknown)}; give both splits the same class folders."
        )
    files = train + test
    images = _Images(path, root, files, class_names)
    read_all = sum(file.size for file in files) <= MOST_READ
    return Source(
        class_names=class_names,
        num_train=len(train),
        num_test=len(test),
        examples=images.examples,
        location=root,
        identity={"folder": os.path.realpath(root), "files": files},
        content=short_hash([(file.relative, file.size) for file in files]),
        digests=(lambda: images.digests(len(train))) if read_all else None,
        labels=lambda: images.labels[: len(train)],
        files=tuple(file.relative for file in files),
        reader=images,
        channels=images.channels,
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
        found = name_some(folders) if folders else "no folders"
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
    """Returns why a path cannot be read as a folder; "" if it can."""
    try:
        return "" if stat.S_ISDIR(os.stat(root).st_mode) else "is not a folder"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:  # such as a link to itself, or no permission
        return f"cannot be reached ({error.strerror})"


class _Entry(NamedTuple):
    """A file or folder in a split.

    Attributes:
      name: its path in the split, with "/".
      entry: its directory entry.
      above: the folders that it was reached through, with links resolved.
    """

    name: str
    entry: os.DirEntry
    above: tuple[str, ...]


class _Listing:
    """Lists the image files of one split."""

    def __init__(self, path: str, root: str, split: str):
        self._path = path
        self._root = root
        self._split = split
        # Entries that are not used, by reason; names of folders end with "/".
        self._left_out: dict[str, list[str]] = collections.defaultdict(list)

    def files(self) -> list[_File]:
        """Returns the image files, by class and name."""
        files, empty = [], []
        for class_name, folders in self._classes().items():
            before = len(files)
            for name, entry, _ in self._images(folders):
                try:
                    info = entry.stat()
                    size, modified_ns = info.st_size, info.st_mtime_ns
                except OSError:  # such as a broken link: reported when it is decoded
                    size, modified_ns = 0, 0
                relative = f"{self._split}/{name}"
                files.append(_File(relative, class_name, size, modified_ns))
            if len(files) == before:
                empty += [f"{self._split}/{folder.name}" for folder in folders]
        if empty or not files:
            found = f" ({self._summary()})" if self._left_out else ""
            remedy = "remove the folder or arrange" if empty else "arrange"
            raise UsageError(
                f"config.dataset.path={self._path!r}: no images in "
                f"{name_some(empty or [f'{self._split}/<class>/'])}{found}; {remedy} "
                f"the images as {_LAYOUT}."
            )
        if self._left_out:
            logger.info("%s/%s: %s", self._root, self._split, self._summary())
        return files

    def _classes(self) -> dict[str, list[_Entry]]:
        """Returns the folders of each class; several if their names differ in form."""
        place = os.path.join(self._root, self._split)
        above = (os.path.realpath(self._root), os.path.realpath(place))
        folders = collections.defaultdict(list)
        for each in self._visible(place, "", above):
            if not _is_folder(each.entry):
                is_image = each.name.lower().endswith(_EXTENSIONS)
                reason = "not in a class folder" if is_image else _OTHER_TYPE
                self._left_out[reason].append(each.name)
            elif _leads_back(each):
                self._left_out[_LISTED].append(f"{each.name}/")
            else:
                _check_name(self._path, self._split, each.name)
                folders[unicodedata.normalize("NFC", each.name)].append(each)
        return dict(sorted(folders.items()))

    def _images(self, folders: Sequence[_Entry]) -> Iterator[_Entry]:
        """Yields the image files below the folders of a class, depth first, by name."""
        listed, waiting = set(), list(reversed(folders))
        while waiting:
            each = waiting.pop()
            if not _is_folder(each.entry):
                if each.name.lower().endswith(_EXTENSIONS):
                    yield each
                else:
                    self._left_out[_OTHER_TYPE].append(each.name)
                continue
            real = _real(each)
            if real in listed or _leads_back(each):
                self._left_out[_LISTED].append(f"{each.name}/")
                continue
            listed.add(real)
            above = (*each.above, real)
            waiting += reversed(self._visible(each.entry.path, f"{each.name}/", above))

    def _visible(
        self, folder: str, prefix: str, above: tuple[str, ...]
    ) -> list[_Entry]:
        """Returns the entries of a folder, by name, without hidden ones."""
        visible = []
        for entry in _entries(self._path, folder):
            if entry.name.startswith("."):
                slash = "/" if entry.is_dir(follow_symlinks=False) else ""
                self._left_out["hidden"].append(f"{prefix}{entry.name}{slash}")
            else:
                visible.append(_Entry(prefix + entry.name, entry, above))
        return visible

    def _summary(self) -> str:
        """Returns what is left out, as in "1 file was left out: 1 hidden (.x)"."""
        names = [name for listed in self._left_out.values() for name in listed]
        has_folder = any(name.endswith("/") for name in names)
        if len(names) == 1:
            kind = "file or folder was" if has_folder else "file was"
        else:
            kind = "files and folders were" if has_folder else "files were"
        reasons = ", ".join(
            f"{len(listed)} {reason} ({name_some(listed, _MOST_SKIPPED)})"
            for reason, listed in self._left_out.items()
        )
        return f"{len(names)} {kind} left out: {reasons}"


def _real(folder: _Entry) -> str:
    """Returns the path of a folder with links resolved; fast if it is no link."""
    if folder.entry.is_symlink():
        return os.path.realpath(folder.entry.path)
    return os.path.join(folder.above[-1], folder.entry.name)


def _leads_back(folder: _Entry) -> bool:
    """Returns whether a folder is or contains one that it was reached through."""
    start = os.path.join(_real(folder), "")
    return any(os.path.join(each, "").startswith(start) for each in folder.above)


def _check_depth(path: str, files: Sequence[_File]) -> None:
    """Raises a UsageError if the only class seems to hold the folders of classes."""
    if len({file.class_name for file in files}) > 1:
        return
    parts = [file.relative.split("/") for file in files]
    below = sorted({part[2] for part in parts if len(part) > 3})
    if len(below) > 1:
        raise UsageError(
            f"config.dataset.path={path!r}: the only class, {'/'.join(parts[0][:2])}, "
            f"holds the folders {name_some(below)}; if these are the classes, move "
            f"them up, to {_LAYOUT}."
        )


def _check_name(path: str, split: str, name: str) -> None:
    """Raises a UsageError for a class name that cannot be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"config.dataset.path={path!r}: the name of the folder {split}/{name!r} is "
            "not UTF-8; rename it: it names a class."
        ) from error


def _entries(path: str, folder: str) -> list[os.DirEntry]:
    """Returns the entries of a folder, in alphabetical order."""
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


class _Images:
    """The images of both splits; called with numbers, it is the `Reader` of them.

    Every worker has a copy, which takes about 50 bytes per image.

    Attributes:
      labels: class of each image, int32, [images].
    """

    def __init__(
        self, path: str, root: str, files: Sequence[_File], class_names: Sequence[str]
    ):
        names = [os.fsencode(file.relative) for file in files]
        labels = {name: label for label, name in enumerate(class_names)}
        self.labels = np.array([labels[file.class_name] for file in files], np.int32)
        self._path = path
        self._root = root
        self._names = b"".join(names)
        self._starts = np.cumsum([0, *map(len, names)])

    def __call__(self, rows: Sequence[int]) -> Iterator[Example]:
        """Yields the images `rows`; raises a UsageError at a damaged one."""
        for row in rows:
            with self._named_errors(row):
                image, _ = decode(self._file(row))
            yield image, int(self.labels[row])

    def examples(self) -> Iterator[Example]:
        """Yields all images; reports all damaged ones together, at the end."""
        conversions = collections.Counter()
        damaged, reason = [], ""
        for row, label in enumerate(self.labels):
            try:
                image, conversion = decode(self._file(row))
            except Exception as error:  # Pillow has no common type for damaged files
                reason = reason or _reason(error)
                damaged.append(self._relative(row))
                continue
            conversions[conversion] += 1
            yield image, int(label)
        if damaged:
            raise UsageError(
                f"config.dataset.path={self._path!r}: {len(damaged)} of "
                f"{len(self.labels)} images cannot be read: {name_some(damaged)}; "
                f"replace or delete them (the first: {reason})."
            )
        del conversions[""]
        if conversions:
            logger.info(
                "%s: %d of %d images were converted to 8-bit gray or RGB (%s)",
                self._root,
                conversions.total(),
                len(self.labels),
                ", ".join(f"{n} {kind}" for kind, n in conversions.most_common()),
            )

    def channels(self) -> int:
        """Returns 3 at the first image with color, by the headers; 1 if none has it."""
        for row in range(len(self.labels)):
            with self._named_errors(row):
                if not is_gray(self._file(row)):
                    return 3
        return 1

    def digests(self, num_train: int) -> tuple[str, ...]:
        """Reads all files; see `Source.digests`."""
        count = len(self.labels)
        return tuple(
            digest_of(
                (self._relative(r), functools.partial(self._open, r)) for r in rows
            )
            for rows in (range(num_train), range(num_train, count))
        )

    def _relative(self, row: int) -> str:
        return os.fsdecode(self._names[self._starts[row] : self._starts[row + 1]])

    def _file(self, row: int) -> str:
        return os.path.join(self._root, self._relative(row))

    def _open(self, row: int) -> BinaryIO:
        """Opens a file for reading; does not wait if it is a pipe."""
        with self._named_errors(row):
            return open(
                self._file(row),
                "rb",
                opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK),
            )

    @contextlib.contextmanager
    def _named_errors(self, row: int) -> Iterator[None]:
        """Turns any error into a UsageError that names the file."""
        try:
            yield
        except Exception as error:  # Pillow has no common type for damaged files
            raise UsageError(
                f"config.dataset.path={self._path!r}: "
                f"{name_some([self._relative(row)])} cannot be read "
                f"({_reason(error)}); replace or delete it."
            ) from error


def _reason(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())
