"""Linear probes of the frozen encoder on data sets it was not trained on."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from duet_jax.augmentations.photometric import luma
from duet_jax.data import SOURCES
from duet_jax.errors import UsageError
from duet_jax.evaluation import linear_probe
from duet_jax.evaluation.base import Evaluation, Sources, read_dataset
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.runtime import files
from duet_jax.types import Dataset, Split

_HEADER = ("data set", "representation", "classes", "train", "test", "top-1", "top-5")


def measure(evaluation: Evaluation, datasets: str) -> Result:
    r"""Fits linear probes to other data sets.

    Images are resized to those of the training. Grayscale images are repeated in three
    channels for an encoder of color images; color images become grayscale for an
    encoder of grayscale images. All classes and all images of the sets are used.

    Args:
      evaluation: of a run.
      datasets: names separated by commas, any that training takes; a folder of images
        is `folder:<path>`, and a comma in its path is written `\,`.

    Raises:
      UsageError: a data set cannot be read. All are read before any is used.
    """
    sources = images(evaluation.run.config.dataset, {"datasets": datasets})
    found = {name: _read(evaluation, name, *sources[name]) for name in sources}
    values, rows = {}, []
    for name, dataset in found.items():
        values[name] = _probe(evaluation, dataset)
        counts = [str(values[name][key]) for key in ("classes", "train", "test")]
        rows += [
            (name, kind, *counts, percent(scores["top1"]), percent(scores["top5"]))
            for kind, scores in values[name]["representations"].items()
        ]
    title = "transfer: linear probe of frozen features [%]"
    return Result(values, (Table(title, _HEADER, tuple(rows)),), {})


def check(datasets: str | None = None) -> None:
    """Raises a UsageError if no data set is named, or a folder without its path."""
    sources = _parse(datasets or "")
    if not sources:
        raise UsageError(
            "--mode=transfer needs --datasets, such as "
            "--datasets=mnist,digits,folder:<path>."
        )
    for name, (kind, path) in sources.items():
        if kind == "folder" and not path:
            raise UsageError(f"--datasets={name} names no folder; write folder:<path>.")
        if kind == "folder":
            files.local(path, "--datasets: folder")


def images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data sets in `--datasets`; see `Evaluator.images`."""
    # The run's `dataset.path` is TFDS's data directory only if its data are from TFDS.
    directory = "" if dataset["name"] in SOURCES else dataset["path"]
    return {
        name: source if source[0] == "folder" else (name, directory)
        for name, source in _parse(options["datasets"]).items()
    }


def _parse(datasets: str) -> dict[str, tuple[str, str]]:
    """Splits at commas that are not escaped: name -> kind and path, for folders."""
    sources = {}
    for part in re.split(r"(?<!\\),", datasets):
        name = part.strip().replace(r"\,", ",")
        if name:
            kind, _, path = name.partition(":")
            sources[name] = kind, path.strip()
    return sources


def _read(evaluation: Evaluation, name: str, source: str, path: str) -> Dataset:
    """Reads a data set in the size and the channels of the run's images."""
    channels = evaluation.run.facts.channels
    try:
        dataset = read_dataset(evaluation.run, source, path)
    except UsageError as error:
        raise UsageError(f"--datasets={name}: {error}") from error
    train, test = (_match(split, channels) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def _match(split: Split, channels: int) -> Split:
    """Returns the split with 1 or 3 channels."""
    images = split.images
    if images.shape[-1] == channels:
        return split
    if channels == 3:
        return split._replace(images=np.repeat(images, 3, axis=-1))
    gray = np.empty((*images.shape[:-1], 1), np.uint8)
    # In blocks, as float32 takes four times as much.
    for i in range(0, len(images), 1024):
        block = images[i : i + 1024].astype(np.float32)
        gray[i : i + 1024] = np.rint(luma(block))
    return split._replace(images=gray)


def _probe(evaluation: Evaluation, dataset: Dataset) -> dict[str, Any]:
    with evaluation.timed("encoding"):
        train = evaluation.run(dataset.train.images)
        test = evaluation.run(dataset.test.images)
    with evaluation.timed("solver"):
        scores = linear_probe.fit(train, test, dataset)
    return {
        "classes": len(dataset.class_names),
        "train": len(dataset.train.labels),
        "test": len(dataset.test.labels),
        "representations": scores,
    }
