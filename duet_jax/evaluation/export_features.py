"""Writes the representations of both splits to one `.npz` file."""

import contextlib
import pathlib
import shutil
import zipfile
from typing import BinaryIO

import numpy as np

from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.options import npz_file
from duet_jax.evaluation.result import Result, Table
from duet_jax.runs import workdir
from duet_jax.runtime import files


def measure(evaluation: Evaluation, out: str | None = None) -> Result:
    """Writes the representations of all images, un-augmented.

    Arrays for <split> in train, test: `<split>_full` float32 [n, features] and, for
    DUET, `<split>_content` [n, features / bins] and `<split>_structure` [n, bins];
    `<split>_indices` int64 [n], the position in the split (among the images that are
    used: see `dataset.train_fraction`), or for image files `<split>_paths`, relative to
    `dataset.path`; if the images have labels, `<split>_labels` int32 [n] and
    `class_names`. No array holds objects:
    `np.load(file)` needs no pickle.

    Args:
      evaluation: of a run.
      out: the file; `eval/features.npz` in the work directory by default.

    Raises:
      UsageError: the file cannot be written.
    """
    path = evaluation.directory / "features.npz" if out is None else npz_file(out)
    if path.suffix != ".npz":
        path = path.with_name(f"{path.name}.npz")  # as numpy.savez does
    workdir.check_writable(path.parent, "--out", path.name)
    evaluation.dataset  # noqa: B018  errors in the data come before any file
    with workdir.writing(path, "--out"):
        forms = _write(evaluation, path)
    rows = tuple(forms.items())
    table = Table(f"arrays in {path}", ("array", "shape and type"), rows)
    return Result({"file": str(path), "arrays": forms}, (table,), {})


def _write(evaluation: Evaluation, path: pathlib.Path) -> dict[str, str]:
    """Writes the file; returns the shape and type of every array in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A zip file takes one array at a time, so each is first written to its own file.
    # These lie beside the result: its disk has room for them.
    with files.scratch(path) as parts:
        forms = {}
        for split in ("train", "test"):
            forms |= _encode(evaluation, split, parts)
            for name, array in _describe(evaluation, split).items():
                forms[name] = _save(parts, name, array)
        if names := evaluation.dataset.class_names:
            forms["class_names"] = _save(parts, "class_names", np.array(names))
        _pack(parts, path)
    return forms


def _encode(evaluation: Evaluation, split: str, parts: pathlib.Path) -> dict[str, str]:
    """Streams the representations of a split to files, one batch in memory."""
    images = evaluation.split(split).images
    forms: dict[str, str] = {}
    opened: dict[str, BinaryIO] = {}
    with contextlib.ExitStack() as stack, evaluation.timed("encoding"):
        for batch in evaluation.run.encoder.batches(images):
            for name, rows in batch.items():
                key = f"{split}_{name}"
                if key not in opened:
                    shape = (len(images), *rows.shape[1:])
                    file = stack.enter_context((parts / f"{key}.npy").open("wb"))
                    opened[key] = file
                    forms[key] = _begin(file, shape, rows.dtype)
                opened[key].write(np.ascontiguousarray(rows).data)
    return forms


def _begin(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Writes the header of a .npy file whose rows follow."""
    # Not a memory map: there a full disk kills the process instead of raising an error.
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return _form(shape, dtype)


def _describe(evaluation: Evaluation, split: str) -> dict[str, np.ndarray]:
    """Returns the labels of a split, and the paths or indices of its images."""
    dataset, labels = evaluation.dataset, evaluation.split(split).labels
    found = {f"{split}_labels": labels} if dataset.class_names else {}
    if dataset.files:
        first = 0 if split == "train" else len(dataset.train.labels)
        paths = dataset.files[first : first + len(labels)]
        return found | {f"{split}_paths": np.array(paths)}
    return found | {f"{split}_indices": np.arange(len(labels))}


def _save(parts: pathlib.Path, name: str, array: np.ndarray) -> str:
    np.save(parts / f"{name}.npy", array, allow_pickle=False)
    return _form(array.shape, array.dtype)


def _form(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"[{', '.join(map(str, shape))}] {dtype}"


def _pack(parts: pathlib.Path, path: pathlib.Path) -> None:
    """Puts the files into one zip file, which then replaces `path`."""
    whole = parts / "whole"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for part in sorted(parts.glob("*.npy")):
            with (
                part.open("rb") as source,
                archive.open(part.name, "w", force_zip64=True) as target,
            ):
                shutil.copyfileobj(source, target, length=1 << 20)
    whole.replace(path)
