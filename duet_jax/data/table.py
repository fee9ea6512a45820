"""Reads image files and their labels from a table, `labels.csv`."""

import csv
import os
from collections.abc import Mapping, Sequence

from duet_jax.data.image_files import image_source, list_files
from duet_jax.data.source import (
    TEST_NAMES,
    TRAIN_NAMES,
    Source,
    name_some,
    short_hash,
    sorted_labels,
    tell_unused,
)
from duet_jax.errors import UsageError

# Names of the columns, in lower case; the first that is there counts.
_PATHS = ("path", "file_name", "filename", "file", "image")
_LABELS = ("label", "class", "target")
_SPLITS = ("split",)
_DELIMITERS = ",;\t"
_NEEDS = "give a table with a header: path,label or path,label,split"


def find(name: str, path: str) -> Source:
    """Reads the table; images are opened only when the examples are read.

    Its header names a column `path`, of files relative to the table or absolute; a
    column `label`, of words or numbers, without which the images have no labels; and,
    if the split is not to be drawn, a column `split` with train and test (or one of the
    other names that `folder` takes). Columns are separated by commas, semicolons or
    tabs.

    Args:
      name: as in the configuration.
      path: the table.

    Raises:
      UsageError: it cannot be read, a file does not exist or has no label, or a test
        label is not among the training's; from `examples` and `reader`, damaged images.
    """
    del name
    file = os.path.abspath(os.path.expanduser(path))
    rows = _read(path, file)
    files, labels, splits = (_column(path, rows, n) for n in (_PATHS, _LABELS, _SPLITS))
    if files is None:
        raise _error(path, f"has no column path, but {name_some([*rows[0]])}; {_NEEDS}")
    _check_filled(path, files, "path")
    _check_filled(path, labels or [], "label")
    pairs = list(zip(files, labels or [""] * len(files), strict=True))
    root = os.path.dirname(file)
    found = [list_files(path, root, each) for each in _split(path, pairs, splits)]
    classes = sorted_labels({each.class_name for each in found[0]} - {""})
    unknown = {each.class_name for test in found[1:] for each in test} - {*classes, ""}
    if unknown:
        raise _error(
            path,
            f"has test labels that no training image has: {name_some(sorted(unknown))};"
            " move some of these images to the training split",
        )
    source = image_source(path, root, found, classes)
    return source._replace(
        location=file,
        identity={**source.identity, "splits": [len(each) for each in found]},
        content=short_hash([source.content, pairs, splits]),
    )


def _error(path: str, what: str) -> UsageError:
    return UsageError(f"config.dataset.path={path!r} {what}.")


def _read(path: str, file: str) -> list[dict[str, str]]:
    """Returns the rows, each by lower-case name of the column."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            names = next(csv.reader([header], delimiter=delimiter), [])
            columns = [name.strip().lower() for name in names]
            rows = list(csv.DictReader(text, columns, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error) or "not UTF-8 text"
        raise _error(path, f"cannot be read ({reason}); {_NEEDS}") from error
    if not rows:
        raise _error(path, f"has no rows; {_NEEDS}")
    return rows


def _column(
    path: str, rows: Sequence[Mapping[str, str]], names: Sequence[str]
) -> list[str] | None:
    """Returns the first of the named columns that is there; None for none of them."""
    name = next((name for name in names if name in rows[0]), None)
    return None if name is None else [(row[name] or "").strip() for row in rows]


def _check_filled(path: str, cells: Sequence[str], name: str) -> None:
    if "" in cells:
        line = cells.index("") + 2  # counted from 1, after the header
        raise _error(path, f"has no {name} in line {line}; fill it in, or leave it out")


def _split(
    path: str, pairs: list[tuple[str, str]], splits: list[str] | None
) -> list[list[tuple[str, str]]]:
    """Returns the rows of training and test; all in one list without a split."""
    if splits is None:
        return [pairs]
    names = [split.lower() for split in splits]
    unknown = sorted({*names} - {*TRAIN_NAMES, *TEST_NAMES})
    if unknown:
        raise _error(
            path,
            f"has the split {name_some(unknown)}; choose from "
            f"{', '.join((*TRAIN_NAMES, *TEST_NAMES))}",
        )
    train = [row for row, name in zip(pairs, names, strict=True) if name in TRAIN_NAMES]
    if not train:
        raise _error(path, "has no row of the split train; add some")
    tested = next((name for name in TEST_NAMES if name in names), None)
    if tested is None:
        return [train]
    tell_unused(path, [name for name in TEST_NAMES if name in names], tested)
    return [train, [row for row, n in zip(pairs, names, strict=True) if n == tested]]
