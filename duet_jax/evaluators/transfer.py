"""Linear probes of the frozen encoder on data sets it was not trained on."""

import numpy as np

from duet_jax.augmentations.photometric import luma
from duet_jax.data import SOURCES
from duet_jax.errors import UsageError
from duet_jax.evaluators import linear_probe
from duet_jax.evaluators.base import Evaluation, Result, Table, load, percent
from duet_jax.types import Dataset, Split


def measure(evaluation: Evaluation, datasets: str | None = None) -> Result:
    """Probes the representations of other images.

    The images are resized to those of the training. Grey ones are repeated in three
    channels for an encoder of colour images; colour ones become grey for an encoder of
    grey images. Every class, every training and every test image of the set is used.

    Args:
      evaluation: of a run.
      datasets: names separated by commas, any that training takes; a folder of images
        is `folder:<path>`.

    Raises:
      UsageError: no name is given, or a data set cannot be read. All are read before
        anything is measured.
    """
    check(datasets)
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    found = {name: _read(evaluation, name) for name in dict.fromkeys(names)}
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
    """Raises a UsageError where no data set is named."""
    if not (datasets or "").replace(",", " ").strip():
        raise UsageError(
            "--mode=transfer needs --datasets, such as "
            "--datasets=mnist,digits,folder:<path>."
        )


def _read(evaluation: Evaluation, name: str) -> Dataset:
    try:
        return _load(evaluation, name)
    except UsageError as error:
        raise UsageError(f"--datasets={name}: {error}") from error


def _load(evaluation: Evaluation, name: str) -> Dataset:
    """Reads a data set in the size and the channels of the run's images."""
    run = evaluation.run
    kind, _, path = name.partition(":")
    if kind == "folder":
        if not path:
            raise UsageError("it names no folder; write folder:<path>.")
        dataset = load(run, "folder", path.strip())
    else:
        # The run's own directory is TFDS's only where the run's data are of TFDS.
        tfds = run.config.dataset.name not in SOURCES
        dataset = load(run, name, run.config.dataset.path if tfds else "")
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
