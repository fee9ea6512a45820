"""Linear probes of the frozen encoder on data sets it was not trained on."""

import re
from collections.abc import Mapping
from typing import Any

from duet_jax.data import FROM_PATHS, SOURCES
from duet_jax.errors import UsageError
from duet_jax.evaluation import linear_probe
from duet_jax.evaluation.base import Evaluation, Sources, read_dataset
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.runtime import files
from duet_jax.types import Dataset

_HEADER = ("data set", "representation", "classes", "train", "test", "top-1", "top-5")


def measure(evaluation: Evaluation, datasets: str) -> Result:
    r"""Fits linear probes to other data sets.

    Images are resized to those of the training. Grayscale images are repeated in three
    channels for an encoder of color images; color images become grayscale for an
    encoder of grayscale images. All classes and all images of the sets are used.

    Args:
      evaluation: of a run.
      datasets: names separated by commas, any that training takes; one with a path is
        `folder:<path>`, say, and a comma in the path is written `\,`.

    Raises:
      UsageError: a data set cannot be read, or has no labels. All are read before any
        is used.
    """
    sources = images(evaluation.run.config.dataset, {"datasets": datasets})
    found = {name: _read(evaluation, name, *sources[name]) for name in sources}
    values, rows = {}, []
    for name, dataset in found.items():
        values[name] = _probe(evaluation, dataset)
        counts = [str(values[name][key]) for key in ("classes", "train", "test")]
        rows += [
            (name, kind, *counts, percent(scores["top1"]), percent(scores["top5"]))
            for kind, scores in (
                values[name]["representations"] | values[name]["yardsticks"]
            ).items()
        ]
    title = "transfer: linear probe of frozen features [%]"
    return Result(values, (Table(title, _HEADER, tuple(rows)),), {})


def check(datasets: str | None = None) -> None:
    """Raises a UsageError if no data set is named, or one without its path."""
    sources = _parse(datasets or "")
    if not sources:
        raise UsageError(
            "--mode=transfer needs --datasets, such as "
            "--datasets=mnist,digits,folder:<path>."
        )
    for name, (kind, path) in sources.items():
        if kind in FROM_PATHS and not path:
            raise UsageError(f"--datasets={name} has no path; write {kind}:<path>.")
        if kind in FROM_PATHS:
            files.local(path, f"--datasets: {kind}")


def images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data sets in `--datasets`; see `Evaluator.images`."""
    # The run's `dataset.path` is TFDS's data directory only if its data are from TFDS.
    directory = "" if dataset["name"] in SOURCES else dataset["path"]
    return {
        name: source if source[0] in FROM_PATHS else (name, directory)
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
        dataset = read_dataset(evaluation.run, source, path, channels=channels)
    except UsageError as error:
        raise UsageError(f"--datasets={name}: {error}") from error
    if not dataset.class_names:
        raise UsageError(
            f"--datasets={name} has no labels, which the linear probe needs; choose "
            "another data set."
        )
    return dataset


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
        "yardsticks": linear_probe.beside(evaluation, dataset),
    }
