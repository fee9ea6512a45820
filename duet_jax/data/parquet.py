"""Reads images in Parquet files, as Hugging Face stores data sets."""

import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from duet_jax.data.decoding import decode
from duet_jax.data.source import (
    MOST_READ,
    TEST_NAMES,
    TRAIN_NAMES,
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

_ROWS = 64  # in memory at a time
# The columns that are preferred if several are of the right type.
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "class", "fine_label", "target")


class _Columns(NamedTuple):
    """The columns that are read.

    Attributes:
      image: name of the images'; each is encoded, or a struct that holds it.
      label: name of the labels'; "" without.
      class_names: of the labels 0, 1, ...; empty if the file does not say.
    """

    image: str
    label: str
    class_names: tuple[str, ...]


def find(name: str, path: str) -> Source:
    """Lists the files and reads the labels.

    `.parquet` files at any depth, as a data set of the Hugging Face hub has them: their
    names or folders say the split, as in `data/train-00000-of-00002.parquet`. Where
    none says train, all are one set; without test images a share is held out. One
    column holds encoded images. One may hold labels, whole numbers or words.

    Args:
      name: as in the configuration.
      path: the directory, or a single file.

    Raises:
      UsageError: pyarrow is not installed, or there are no such files or columns; from
        `examples`, damaged images.
    """
    try:
        import pyarrow.parquet  # noqa: F401  an extra that few need
    except ImportError as error:
        raise UsageError(
            f"config.dataset.name={name!r} needs a package that is not installed: "
            "pip install pyarrow"
        ) from error
    root = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
    train, tests = _find_splits(path, root)
    columns = _find_columns(path, train[0])
    values = [_read_labels(path, train, columns)]
    splits = [train]
    for split, test in tests.items():  # the first whose labels are not withheld
        found = _read_labels(path, test, columns)
        if not columns.label or not {None, UNLABELED} & {*found}:
            splits, values = [train, test], [values[0], found]
            tell_unused(str(root), tests, split)
            break
    class_names, labels = _classes(path, columns, values)
    files = [file for split in splits for file in split]
    names = [str(file.relative_to(root.parent)) for file in files]
    stats = [file.stat() for file in files]
    sizes = [stat.st_size for stat in stats]
    times = [stat.st_mtime_ns for stat in stats]
    opened = [[(f.name, functools.partial(open, f, "rb")) for f in s] for s in splits]
    return Source(
        class_names=class_names,
        num_train=len(values[0]),
        num_test=len(labels) - len(values[0]),
        examples=functools.partial(_examples, path, files, columns.image, labels),
        location=str(root),
        identity={"parquet": str(root), "files": [names, sizes, times], "of": columns},
        content=short_hash([[file.name for file in files], sizes, columns]),
        digests=(
            None
            if sum(sizes) > MOST_READ
            else lambda: tuple(digest_of(split) for split in opened)
        ),
        labels=lambda: labels[: len(values[0])],
    )


def _error(path: str, what: str) -> UsageError:
    return UsageError(f"config.dataset.path={path!r} {what}.")


def _find_splits(
    path: str, root: pathlib.Path
) -> tuple[list[pathlib.Path], dict[str, list[pathlib.Path]]]:
    """Returns the training files, and by name those that may be the test split."""
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    files = [file for file in files if file.is_file()]
    if not path or not files:
        raise _error(path, "holds no .parquet files; name a directory that does")
    by_split: dict[str, list[pathlib.Path]] = {}
    for file in files:
        inner = str(file.relative_to(root)) if root.is_dir() else file.name
        words = re.split(r"[^a-z]+", inner.lower())
        known = [word for word in words if word in (*TRAIN_NAMES, *TEST_NAMES)]
        by_split.setdefault(known[0] if known else "", []).append(file)
    train = next((by_split[name] for name in TRAIN_NAMES if name in by_split), None)
    if train is None:
        return files, {}
    return train, {name: by_split[name] for name in TEST_NAMES if name in by_split}


def _find_columns(path: str, file: pathlib.Path) -> _Columns:
    """Returns the columns of the images and of the labels."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise _error(path, f"cannot be read: {file.name} is no Parquet file") from error
    features = _features(schema.metadata or {})
    images, labels = [], []
    for field in schema:
        is_class = features.get(field.name, {}).get("_type") == "ClassLabel"
        if _holds_bytes(field.type):
            images.append(field.name)
        elif is_class or (_is_plain(field.type) and field.name in _LABELS):
            labels.append(field.name)
    if not images:
        raise _error(
            path,
            f"has no column of encoded images, but {name_some(schema.names)}; images "
            "are bytes, or structs with bytes",
        )
    label = _preferred(labels, _LABELS) if labels else ""
    names = features.get(label, {}).get("names") or ()
    return _Columns(_preferred(images, _IMAGES), label, tuple(map(str, names)))


def _holds_bytes(kind: Any) -> bool:
    """Returns whether a column of this Arrow type can hold encoded images."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_plain(kind: Any) -> bool:
    """Returns whether a column of this Arrow type holds whole numbers or words."""
    from pyarrow import types

    return types.is_integer(kind) or types.is_string(kind)


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Returns what Hugging Face says of the columns, by name."""
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}


def _preferred(found: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in names if name in found), found[0])


def _read_labels(
    path: str, files: Sequence[pathlib.Path], columns: _Columns
) -> list[Any]:
    """Returns the label of each row; None without labels."""
    import pyarrow
    import pyarrow.parquet

    labels = []
    try:
        for file in files:
            if columns.label:
                table = pyarrow.parquet.read_table(file, columns=[columns.label])
                labels += table.column(0).to_pylist()
            else:
                labels += [None] * pyarrow.parquet.read_metadata(file).num_rows
    except (OSError, pyarrow.ArrowException, IndexError) as error:
        reason = " ".join(str(error).split())
        raise _error(path, f"cannot be read: {file.name} ({reason})") from error
    return labels


def _classes(
    path: str, columns: _Columns, values: Sequence[Sequence[Any]]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the class names, and the labels of all splits, int32."""
    found = [value for split in values for value in split]
    if not columns.label:
        return (), np.full(len(found), UNLABELED, np.int32)
    if {None, UNLABELED} & {*found}:
        raise _error(
            path,
            f"has rows without a {columns.label}; give every image one, or drop the "
            "column to train without labels",
        )
    if columns.class_names:
        names = columns.class_names
        labels = {number: number for number in range(len(names))}
    else:
        names = sorted_labels({str(value) for value in values[0]})
        labels = {name: number for number, name in enumerate(names)}
        found = [str(value) for value in found]
    unknown = sorted({str(value) for value in {*found} - {*labels}})
    if unknown:
        raise _error(
            path,
            f"has test labels that no training image has: {name_some(unknown)}; drop "
            "those rows",
        )
    return names, np.array([labels[value] for value in found], np.int32)


def _examples(
    path: str, files: Sequence[pathlib.Path], column: str, labels: np.ndarray
) -> Iterator[Example]:
    """Yields the images of all files in order."""
    import pyarrow.parquet

    numbers = iter(labels.tolist())
    for file in files:
        row = 0
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(_ROWS, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        encoded = value["bytes"] if isinstance(value, dict) else value
                        if encoded is None:
                            raise ValueError("it names a file and holds no bytes")
                        image, _ = decode(io.BytesIO(encoded))
                        yield image, next(numbers)
                        row += 1
        except Exception as error:  # Pillow and Arrow have no common type
            reason = " ".join((str(error) or repr(error)).split())
            raise _error(
                path, f"cannot be read: row {row} of {file.name} ({reason})"
            ) from error
