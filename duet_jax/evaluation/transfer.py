"""Linear probes of the frozen encoder on data sets it was not trained on."""

from typing import Any

from duet_jax.errors import UsageError
from duet_jax.evaluation import linear_probe, options
from duet_jax.evaluation.base import Evaluation, read_dataset
from duet_jax.evaluation.result import Result, Table, percent
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
    sources = options.images(evaluation.run.config.dataset, {"datasets": datasets})
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
