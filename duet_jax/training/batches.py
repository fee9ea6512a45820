"""How the batches of a run reach its compiled functions.

Either all images lie on the devices and a call is told which ones are next, or they
stay outside and a call is given the images of its batches. Both make the same batches.
"""

import functools
import time
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from duet_jax.data import (
    StreamedDataset,
    batches,
    decode_dataset,
    find_dataset,
    stream,
)
from duet_jax.data.order import EvaluationRows, TrainingRows, evaluation_order
from duet_jax.errors import UsageError
from duet_jax.runtime import devices, mesh, processes
from duet_jax.training.plan import Plan
from duet_jax.types import Array, Dataset, Split

# dataset.placement=auto: images may fill this part of a device's memory.
_DATA_SHARE = 4

# What a compiled call is given of the data, besides state and key.
Arguments = tuple[Array, ...]


class Feed(Protocol):
    """The batches of a run.

    Attributes:
      num_train: training images.
      num_test: test images; what follows them in the last batch is padding.
      train_shapes: the arguments of every training call, as shapes.
      test_shapes: the arguments of every call of the evaluation, as shapes.
      waited: seconds that `training` has waited for images so far; None where they are
        on the devices.
    """

    num_train: int
    num_test: int
    train_shapes: Arguments
    test_shapes: Arguments
    waited: float | None

    def pick_train(self, step: Array, *arguments: Array) -> Split:
        """Returns the batch of update `step`; to be compiled."""

    def pick_test(self, batch: Array, *arguments: Array) -> Split:
        """Returns test batch number `batch`, in `evaluation_order`; likewise."""

    def training(self, start: int) -> Iterator[Arguments]:
        """Yields the arguments of each training call, from update `start` on."""

    def testing(self) -> Iterator[Arguments]:
        """Yields the arguments of the evaluation, test batch by test batch."""

    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""


class ResidentFeed:
    """All images are on every device, as uint8; a batch is gathered there."""

    waited = None

    def __init__(self, plan: Plan, dataset: Dataset):
        """Copies both splits of `dataset` to the devices."""
        self._plan = plan
        self._rows = _training_rows(plan, len(dataset.train.labels))
        self._host = dataset.train
        self.num_train = len(dataset.train.labels)
        self.num_test = len(dataset.test.labels)
        order = evaluation_order(self.num_test)
        test = Split(*(part[order] for part in dataset.test))
        padded = _padded(test, plan.test_batch_size)
        self._train = mesh.replicate(dataset.train, plan.mesh)
        self._test = mesh.replicate(padded, plan.mesh)
        order = jax.ShapeDtypeStruct(
            (plan.steps_per_epoch, plan.batch_size),
            np.int32,
            sharding=mesh.sharded(plan.mesh, axis=1),
        )
        self.train_shapes = (*_as_shapes(self._train), order)
        self.test_shapes = _as_shapes(self._test)

    def pick_train(
        self, step: Array, images: Array, labels: Array, order: Array
    ) -> Split:
        """Gathers row `step` of the epoch's order, [steps in the epoch, batch]."""
        rows = order[step % len(order)]
        return Split(images[rows], labels[rows])

    def pick_test(self, batch: Array, images: Array, labels: Array) -> Split:
        """Gathers batch number `batch` of the padded test split."""
        size = self._plan.test_batch_size
        rows = jax.lax.with_sharding_constraint(
            batch * size + jnp.arange(size), mesh.sharded(self._plan.mesh)
        )
        return Split(images[rows], labels[rows])

    def training(self, start: int) -> Iterator[Arguments]:
        """Yields images, labels and the order of the call's epoch."""
        plan = self._plan
        for step in range(start, plan.total_steps, plan.steps_per_call):
            if step == start or step % plan.steps_per_epoch == 0:
                order = self._rows.epoch(step // plan.steps_per_epoch)
                own = order[:, slice(*self._rows.columns)]
                placed = mesh.shard_batch(own, plan.mesh, axis=1)
            yield *self._train, placed

    def testing(self) -> Iterator[Arguments]:
        """Yields images and labels, the same for every batch."""
        for _ in range(self._plan.test_batches(self.num_test)):
            yield self._test

    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""
        return self._host.images[self._rows.epoch(0)[0]]


class StreamedFeed:
    """Worker processes read the images; a call is given those of its batches."""

    def __init__(self, plan: Plan, dataset: StreamedDataset, workers: int):
        """Reads nothing yet.

        Args:
          plan: of the run.
          dataset: reads single images.
          workers: processes that read and decode.
        """
        self._plan = plan
        self._dataset = dataset
        self._workers = workers
        self.num_train = dataset.facts.num_train
        self.num_test = dataset.facts.num_test
        self.waited = 0.0
        side, channels = dataset.facts.side, dataset.facts.channels

        def shapes(*axes: int) -> Arguments:
            sharding = mesh.sharded(plan.mesh, axis=len(axes) - 1)
            return (
                jax.ShapeDtypeStruct(
                    (*axes, side, side, channels), np.uint8, sharding=sharding
                ),
                jax.ShapeDtypeStruct(axes, np.int32, sharding=sharding),
            )

        self.train_shapes = shapes(plan.steps_per_call, plan.batch_size)
        self.test_shapes = shapes(plan.test_batch_size)

    def pick_train(self, step: Array, images: Array, labels: Array) -> Split:
        """Takes one of the call's batches, [steps in the call, batch, ...]."""
        index = step % len(labels)
        return Split(images[index], labels[index])

    def pick_test(self, batch: Array, images: Array, labels: Array) -> Split:
        """Takes the one batch that is there."""
        del batch
        return Split(images, labels)

    def training(self, start: int) -> Iterator[Arguments]:
        """Yields the images and labels of each call.

        They are put on the devices while these are at the call before.
        """
        plan = self._plan
        rows = _training_rows(plan, self._dataset.facts.num_train)
        stream = batches(
            self._dataset.examples,
            rows,
            start=start,
            stop=plan.total_steps,
            workers=self._workers,
        )
        try:
            for _ in range(start, plan.total_steps, plan.steps_per_call):
                yield mesh.shard_batch(self._chunk(stream), plan.mesh, axis=1)
        finally:
            stream.close()

    def _chunk(self, stream: Iterator[Split]) -> Split:
        """Waits for the batches of one call: [steps, rows of this process, ...]."""
        clock = time.monotonic()
        parts = [next(stream) for _ in range(self._plan.steps_per_call)]
        self.waited += time.monotonic() - clock
        return Split(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def testing(self) -> Iterator[Arguments]:
        """Yields the images and labels of each test batch."""
        plan, facts = self._plan, self._dataset.facts
        size = plan.test_batch_size
        rows = EvaluationRows(
            facts.num_train, facts.num_test, size, mesh.local_rows(size)
        )
        stream = batches(
            self._dataset.examples,
            rows,
            start=0,
            stop=plan.test_batches(facts.num_test),
            workers=self._workers,
        )
        try:
            yield from map(functools.partial(mesh.shard_batch, mesh=plan.mesh), stream)
        finally:
            stream.close()

    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""
        rows = _training_rows(self._plan, self._dataset.facts.num_train)
        examples = self._dataset.examples
        return np.stack([examples[int(row)][0] for row in rows.epoch(0)[0]])


def open_dataset(config: ml_collections.ConfigDict) -> Dataset | StreamedDataset:
    """Returns the images: decoded, or a reader where they stay outside the devices.

    Raises:
      UsageError: the data are missing or damaged, or cannot be read as asked for.
    """
    # One answer for all: they run one program.
    limit = processes.broadcast(devices.memory()) // _DATA_SHARE
    # The first process downloads, prepares and decodes; the others find the files.
    return processes.main_process_first(
        "data", functools.partial(_open_dataset, config, limit)
    )


def _open_dataset(
    config: ml_collections.ConfigDict, limit: int
) -> Dataset | StreamedDataset:
    found = find_dataset(
        config.dataset.name,
        path=config.dataset.path,
        image_size=config.dataset.image_size,
        center_crop=config.dataset.center_crop,
        num_classes=config.dataset.num_classes or None,
        train_fraction=config.dataset.train_fraction,
        cache_dir=config.dataset.cache_dir,
    )
    placement = config.dataset.placement
    if placement == "auto":
        placement = "device" if found.fits(limit) else "host"
    if placement == "device":
        return decode_dataset(found)
    if config.knn.every:
        raise UsageError(
            f"config.knn.every={config.knn.every} needs all images in memory, where "
            f"config.dataset.placement={config.dataset.placement} does not put them "
            f"({found.source.location}); set config.knn.every=0 or "
            "config.dataset.placement=device."
        )
    return stream(found)


def make_feed(plan: Plan, dataset: Dataset | StreamedDataset) -> Feed:
    """Returns what hands the batches of `dataset` to the compiled functions."""
    if isinstance(dataset, StreamedDataset):
        wanted = plan.config.dataset.workers
        first, last = mesh.local_rows(plan.batch_size)
        # One that had no image of a batch to read would only take memory.
        workers = min(devices.count_cores() if wanted < 0 else wanted, last - first)
        return StreamedFeed(plan, dataset, workers)
    return ResidentFeed(plan, dataset)


def _training_rows(plan: Plan, num_examples: int) -> TrainingRows:
    return TrainingRows(
        plan.seed,
        num_examples,
        plan.steps_per_epoch,
        plan.batch_size,
        mesh.local_rows(plan.batch_size),
    )


def _as_shapes(split: Split) -> Arguments:
    return tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in split
    )


def _padded(split: Split, batch_size: int) -> Split:
    """Returns a split with zeros at its end that make it whole batches."""
    missing = -len(split.labels) % batch_size
    return Split(*(np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in split))
