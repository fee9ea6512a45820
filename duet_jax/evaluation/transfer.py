"""Linear probes of the frozen encoder on data sets it was not trained on."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from duet_jax.augmentations.photometric import luma
from duet_jax.data import SOURCES
from duet_jax.errors import UsageError
from duet_jax.evaluation import linear_probe
from duet_jax.evaluation.base import Evaluation, Sources, load
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.runtime import files
from duet_jax.types import Dataset, Split


def measure(evaluation: Evaluation, datasets: str | None = None) -> Result:
    r"""Probes the representations of other images.

    The images are resized to those of the training. Grey ones are repeated in three
    channels for an encoder of colour images; colour ones become grey for an encoder of
    grey images. Every class, every training and every test image of the set is used.

    Args:
      evaluation: of a run.
      datasets: names separated by commas, any that training takes; a folder of images
        is `folder:<path>`, and a comma in its path is written `\,`.

    Raises:
      UsageError: no name is given, or a data set cannot be read. All are read before
        anything is measured.
    """
    check(datasets)
    sources = images(evaluation.run.config.dataset, {"datasets": datasets})
    found = {name: _read(evaluation, name, *sources[name]) for name in sources}
    values, rows = {}, []
    for name, dataset in found.items():
        values[name] = _probe(evaluation, dataset)
        rows += _rows(name, values[name])
    header = (
        "data set",
        "representation",
        "classes",
        "train",
        "test",
        "top-1",
        "top-5",
    )
    table = Table("transfer: linear probe of frozen features [%]", header, tuple(rows))
    return Result(values, (table,), {})


def check(datasets: str | None = None) -> None:
    """Raises a UsageError where no data set is named, or a folder without its path."""
    names = _names(datasets or "")
    if not names:
        raise UsageError(
            "--mode=transfer needs --datasets, such as "
            "--datasets=mnist,digits,folder:<path>."
        )
    for name in names:
        kind, _, path = name.partition(":")
        if kind == "folder" and not path:
            raise UsageError(
                f"--datasets={name}: it names no folder; write folder:<path>."
            )
        if kind == "folder":
            files.local(path.strip(), "--datasets: folder")


def images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data sets that `--datasets` names; see `Evaluator.images`."""
    # The run's own directory is TFDS's only where the run's data are of TFDS.
    directory = "" if dataset["name"] in SOURCES else dataset["path"]
    sources = {}
    for name in _names(options["datasets"]):
        kind, _, path = name.partition(":")
        folder = kind == "folder"
        sources[name] = ("folder", path.strip()) if folder else (name, directory)
    return sources


def _names(datasets: str) -> list[str]:
    """Returns the names that are separated by commas, each once."""
    parts = re.split(r"(?<!\\),", datasets)
    names = [part.strip().replace(r"\,", ",") for part in parts]
    return [*dict.fromkeys(filter(None, names))]


def _read(evaluation: Evaluation, name: str, source: str, path: str) -> Dataset:
    """Reads a data set in the size and the channels of the run's images."""
    run = evaluation.run
    try:
        dataset = load(run, source, path)
    except UsageError as error:
        raise UsageError(f"--datasets={name}: {error}") from error
    return dataset._replace(
        name=name,
        train=_match(dataset.train, run.facts.channels),
        test=_match(dataset.test, run.facts.channels),
    )


def _match(split: Split, channels: int) -> Split:
    """Returns the split with 1 or 3 channels."""
    images = split.images
    if images.shape[-1] == channels:
        return split
    if channels == 3:
        return split._replace(images=np.repeat(images, 3, axis=-1))
    grey = np.empty((*images.shape[:-1], 1), np.uint8)
    for i in range(0, len(images), 1024):  # in parts: the products are not bytes
        part = images[i : i + 1024].astype(np.float32)
        grey[i : i + 1024] = np.rint(luma(part))
    return split._replace(images=grey)


def _probe(evaluation: Evaluation, dataset: Dataset) -> dict:
    with evaluation.timed("encoding"):
        train = evaluation.run(dataset.train.images)
        test = evaluation.run(dataset.test.images)
    with evaluation.timed("solver"):
        scores = {
            name: linear_probe.solve(
                (train[name], dataset.train.labels),
                (test[name], dataset.test.labels),
                len(dataset.class_names),
            )
            for name in train
        }
    return {
        "classes": len(dataset.class_names),
        "train": len(dataset.train.labels),
        "test": len(dataset.test.labels),
        "representations": scores,
    }


def _rows(name: str, values: dict) -> list[tuple[str, ...]]:
    counts = tuple(str(values[key]) for key in ("classes", "train", "test"))
    return [
        (name, kind, *counts, percent(scores["top1"]), percent(scores["top5"]))
        for kind, scores in values["representations"].items()
    ]
