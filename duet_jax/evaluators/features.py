"""Representations of both splits in one `.npz` file."""

import pathlib
import shutil
import tempfile
import zipfile

import numpy as np

from duet_jax import workdir
from duet_jax.evaluators.base import Evaluation, Result, Table


def measure(evaluation: Evaluation, out: str | None = None) -> Result:
    """Writes the representations of all images, un-augmented.

    Arrays, for <split> in train, test: `<split>_full` float32 [n, features] and, for
    DUET, `<split>_content` [n, features / bins] and `<split>_structure` [n, bins];
    `<split>_labels` int32 [n]; `<split>_indices` int64 [n], the place in the split, or
    `<split>_paths`, relative to `dataset.path`, for a folder; `class_names`. No array
    holds objects: `np.load(file)` needs no pickle.

    Args:
      evaluation: of a run.
      out: the file; `eval/features.npz` in the work directory by default.

    Raises:
      UsageError: the file cannot be written.
    """
    path = pathlib.Path(out) if out else evaluation.directory / "features.npz"
    if path.suffix != ".npz":
        path = path.with_name(f"{path.name}.npz")  # as numpy.savez does
    workdir.check_writable(path.parent, "--out")
    if path.is_dir():
        workdir.check_writable(path / "file", "--out")
    evaluation.dataset  # noqa: B018  whatever is wrong with it comes before any file
    path.parent.mkdir(parents=True, exist_ok=True)
    # Array by array in files of their own, since a zip file takes one at a time. Beside
    # the result: what is large enough for it is large enough for them.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".features-") as place:
        parts = pathlib.Path(place)
        shapes = {}
        for split in ("train", "test"):
            shapes |= _encode(evaluation, split, parts)
            shapes |= _describe(evaluation, split, parts)
        shapes["class_names"] = _save(
            parts, "class_names", np.array(evaluation.dataset.class_names)
        )
        _pack(parts, path)
    rows = tuple((name, text) for name, text in shapes.items())
    table = Table(f"arrays in {path}", ("array", "shape and type"), rows)
    return Result({"file": str(path), "arrays": shapes}, (table,), {})


def _encode(evaluation: Evaluation, split: str, parts: pathlib.Path) -> dict[str, str]:
    """Streams the representations of a split to files, one batch in memory."""
    images = evaluation.split(split).images
    arrays: dict[str, np.memmap] = {}
    start = 0
    with evaluation.timed("encoding"):
        for batch in evaluation.run.encoder.batches(images):
            for name, rows in batch.items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        parts / f"{split}_{name}.npy",
                        mode="w+",
                        dtype=rows.dtype,
                        shape=(len(images), *rows.shape[1:]),
                    )
                arrays[name][start : start + len(rows)] = rows
            start += len(rows)
    for array in arrays.values():
        array.flush()
    return {f"{split}_{name}": _form(array) for name, array in arrays.items()}


def _describe(
    evaluation: Evaluation, split: str, parts: pathlib.Path
) -> dict[str, str]:
    """Saves whose representations they are: labels, and paths or indices."""
    labels = evaluation.split(split).labels
    found = {f"{split}_labels": _save(parts, f"{split}_labels", labels)}
    files = evaluation.dataset.files
    if files:
        first = len(evaluation.dataset.train.labels) if split == "test" else 0
        own = np.array(files[first : first + len(labels)])
        return found | {f"{split}_paths": _save(parts, f"{split}_paths", own)}
    indices = np.arange(len(labels))
    return found | {f"{split}_indices": _save(parts, f"{split}_indices", indices)}


def _save(parts: pathlib.Path, name: str, array: np.ndarray) -> str:
    np.save(parts / f"{name}.npy", array, allow_pickle=False)
    return _form(array)


def _form(array: np.ndarray) -> str:
    return f"[{', '.join(map(str, array.shape))}] {array.dtype}"


def _pack(parts: pathlib.Path, path: pathlib.Path) -> None:
    """Puts the files into one, which replaces `path` when it is whole."""
    whole = parts / "whole"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for part in sorted(parts.glob("*.npy")):
            with (
                part.open("rb") as source,
                archive.open(part.name, "w", force_zip64=True) as target,
            ):
                shutil.copyfileobj(source, target, length=1 << 20)
    whole.replace(path)
