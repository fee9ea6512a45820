"""Lists the image files below a folder, and finds the splits in it."""

import collections
import logging
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from duet_jax.data.decoding import FORMATS
from duet_jax.data.image_files import File
from duet_jax.data.source import TEST_NAMES, TRAIN_NAMES, name_some, tell_unused
from duet_jax.errors import UsageError

logger = logging.getLogger(__name__)

EXTENSIONS = tuple(each for row in FORMATS.values() for each in row.extensions)
_MOST_SKIPPED = 3  # names in a message for each reason to leave entries out
_OTHER_TYPE = "of other types"
_NO_CLASS = "not in a class folder"
_LISTED = "listed already, through a link"


def problem(root: str) -> str:
    """Returns why a path cannot be read as a folder; "" if it can."""
    try:
        return "" if stat.S_ISDIR(os.stat(root).st_mode) else "is not a folder"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:  # such as a link to itself, or no permission
        return f"cannot be reached ({error.strerror})"


def find_splits(path: str, root: str) -> tuple[str, ...]:
    """Returns the folders of the splits, relative to `root`.

    Returns:
      Those of training and test; the one of training, where there is none for test; or
      "", the root itself, where there is neither.

    Raises:
      UsageError: there are test images but none to train on, or both are the same.
    """
    folders = {}
    for entry in _entries(path, root):
        if not entry.name.startswith(".") and _is_folder(entry):
            folders.setdefault(entry.name.lower(), entry.name)
    train, test = (
        next((folders[name] for name in names if name in folders), None)
        for names in (TRAIN_NAMES, TEST_NAMES)
    )
    if train is None and test is None:
        return ("",)
    if train is None:
        raise UsageError(
            f"config.dataset.path={path!r} has a folder {test} and none of training "
            f"images; it holds {name_some(sorted(folders.values()))}; name the folder "
            "of the training images train."
        )
    if test is None:
        return (train,)
    if os.path.samefile(os.path.join(root, train), os.path.join(root, test)):
        raise UsageError(
            f"config.dataset.path={path!r}: {train} and {test} are the same folder; "
            "give test images that are not trained on."
        )
    tell_unused(root, [folders[n] for n in TEST_NAMES if n in folders], test)
    return train, test


def source_for(path: str) -> str:
    """Returns the name of the source that plainly reads a path; "" for none.

    "images" for a folder with images in it, "folder" for one with images in folders of
    it, or in folders of a folder train.
    """
    root = os.path.expanduser(path)
    if _has_image(root):
        return "images"
    places = [os.path.join(root, name) for name in ("", *TRAIN_NAMES, *TEST_NAMES)]
    inner = [os.path.join(place, name) for place in places for name in _names(place)]
    return "folder" if any(map(_has_image, inner)) else ""


def _has_image(folder: str) -> bool:
    return any(name.lower().endswith(EXTENSIONS) for name in _names(folder))


def _names(folder: str) -> list[str]:
    """Returns the names in a folder; none if it is no folder."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


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


class Listing:
    """Lists the image files of one split.

    Hidden entries, other files, and links to folders that are listed already are left
    out, with a message. Links are followed.
    """

    def __init__(self, path: str, root: str, split: str, layout: str):
        """Lists nothing yet.

        Args:
          path: `dataset.path` as the user gave it, for messages.
          root: the folder of the data set.
          split: a folder in it; "" for the root itself.
          layout: how the images should be arranged, for messages.
        """
        self._path = path
        self._root = root
        self._split = split
        self._prefix = f"{split}/" if split else ""
        self._layout = layout
        # Entries that are not used, by reason; names of folders end with "/".
        self._left_out: dict[str, list[str]] = collections.defaultdict(list)

    def by_class(self) -> list[File]:
        """Returns the files at any depth below class folders, by class and name.

        Raises:
          UsageError: there are none, or none in one of the folders.
        """
        files, empty = [], []
        for class_name, folders in self._classes().items():
            found = [self._file(each, class_name) for each in self._images(folders)]
            if not found:
                empty += [f"{self._prefix}{folder.name}" for folder in folders]
            files += found
        if empty or not files:
            remedy = "remove the folder or arrange" if empty else "arrange"
            where = name_some(empty or [f"{self._prefix}<class>/"])
            raise self._nothing(where, f"{remedy} the images as {self._layout}")
        self._tell()
        return files

    def everything(self) -> list[File]:
        """Returns the files at any depth, by name, without classes.

        Raises:
          UsageError: there are none.
        """
        place, above = self._place()
        entries = self._visible(place, "", above)
        files = [self._file(each, "") for each in self._images(entries)]
        if not files:
            remedy = f"name a folder that holds {self._layout}"
            raise self._nothing(self._prefix or "it", remedy)
        self._tell()
        return files

    def has_images_beside_classes(self) -> bool:
        """Returns whether images lie in the split itself; see `by_class`."""
        return bool(self._left_out[_NO_CLASS])

    def _place(self) -> tuple[str, tuple[str, str]]:
        """Returns the folder of the split, and what it was reached through."""
        place = os.path.join(self._root, self._split)
        return place, (os.path.realpath(self._root), os.path.realpath(place))

    def _file(self, found: _Entry, class_name: str) -> File:
        try:
            info = found.entry.stat()
            size, modified_ns = info.st_size, info.st_mtime_ns
        except OSError:  # such as a broken link: reported when it is decoded
            size, modified_ns = 0, 0
        return File(f"{self._prefix}{found.name}", class_name, size, modified_ns)

    def _nothing(self, where: str, remedy: str) -> UsageError:
        found = f" ({self._summary()})" if self._summary() else ""
        return UsageError(
            f"config.dataset.path={self._path!r}: no images in {where}{found}; "
            f"{remedy}."
        )

    def _tell(self) -> None:
        """Logs what is left out."""
        if summary := self._summary():
            place = os.path.join(self._root, self._split).rstrip("/")
            logger.info("%s: %s", place, summary)

    def _classes(self) -> dict[str, list[_Entry]]:
        """Returns the folders of each class; several if their names differ in form."""
        place, above = self._place()
        folders = collections.defaultdict(list)
        for each in self._visible(place, "", above):
            if not _is_folder(each.entry):
                is_image = each.name.lower().endswith(EXTENSIONS)
                reason = _NO_CLASS if is_image else _OTHER_TYPE
                self._left_out[reason].append(each.name)
            elif _leads_back(each):
                self._left_out[_LISTED].append(f"{each.name}/")
            else:
                self._check_name(each.name)
                folders[unicodedata.normalize("NFC", each.name)].append(each)
        return dict(sorted(folders.items()))

    def _check_name(self, name: str) -> None:
        """Raises a UsageError for a class name that cannot be written as UTF-8."""
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"config.dataset.path={self._path!r}: the name of the folder "
                f"{self._prefix}{name!r} is not UTF-8; rename it: it names a class."
            ) from error

    def _images(self, entries: Sequence[_Entry]) -> Iterator[_Entry]:
        """Yields the image files among and below entries, depth first, by name."""
        listed, waiting = set(), list(reversed(entries))
        while waiting:
            each = waiting.pop()
            if not _is_folder(each.entry):
                if each.name.lower().endswith(EXTENSIONS):
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
        if not names:
            return ""
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
