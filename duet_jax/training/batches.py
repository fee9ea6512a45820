"""Feeds the batches of a run to its compiled functions.

Either all images lie on the devices and a call is told which ones are next, or they
stay on the host and a call is given the images of its batches. The batches are the
same.
"""

import abc
import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from duet_jax.data import Batches, StreamedDataset, find_dataset
from duet_jax.data.order import EvaluationRows, TrainingRows
from duet_jax.errors import UsageError
from duet_jax.runtime import devices, mesh, processes
from duet_jax.training.plan import Plan
from duet_jax.types import Array, Dataset, Split

# dataset.placement=auto: images may fill 1/_DATA_SHARE of a device's memory.
_DATA_SHARE = 4

# The data arguments of a compiled call, which follow state and key.
Arguments = tuple[Array, ...]


class Feed(abc.ABC):
    """The batches of a run.

    Attributes:
      rows: the training images of each batch.
      train_shapes: shapes of the arguments of a training call.
      test_shapes: shapes of the arguments of an evaluation call.
      waited: seconds that `training` has waited for images so far; None if they are on
        the devices.
    """

    train_shapes: Arguments
    test_shapes: Arguments
    waited: float | None = None

    def __init__(self, plan: Plan):
        self._plan = plan
        self.rows = TrainingRows(
            plan.seed,
            plan.facts.num_train,
            plan.steps_per_epoch,
            plan.batch_size,
            mesh.local_rows(plan.batch_size),
        )

    @abc.abstractmethod
    def pick_train(self, step: Array, *arguments: Array) -> Split:
        """Returns the batch of update `step`; to be compiled."""

    @abc.abstractmethod
    def pick_test(self, batch: Array, *arguments: Array) -> Split:
        """Returns test batch number `batch`, in `evaluation_order`; to be compiled."""

    @abc.abstractmethod
    def training(self, start: int) -> Iterator[Arguments]:
        """Yields the arguments of each training call, from update `start` on."""

    @abc.abstractmethod
    def testing(self) -> Iterator[Arguments]:
        """Yields the arguments of the evaluation call of each test batch."""

    @abc.abstractmethod
    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""


class ResidentFeed(Feed):
    """All images are on every device, as uint8; a batch is gathered there."""

    def __init__(self, plan: Plan, dataset: Dataset):
        """Copies both splits of `dataset` to the devices."""
        super().__init__(plan)
        self._host = dataset.train
        size = plan.test_batch_size
        rows = EvaluationRows(0, plan.facts.num_test, size, (0, size))
        order = np.concatenate([rows.rows(i) for i in range(plan.test_batches)])
        test = Split(*(part[order] for part in dataset.test))
        self._train = mesh.replicate(dataset.train, plan.mesh)
        self._test = mesh.replicate(test, plan.mesh)
        epoch = jax.ShapeDtypeStruct(
            (plan.steps_per_epoch, plan.batch_size),
            np.int32,
            sharding=mesh.sharded(plan.mesh, axis=1),
        )
        everywhere = mesh.replicated(plan.mesh)
        self.train_shapes = (*mesh.shapes(self._train, everywhere), epoch)
        self.test_shapes = mesh.shapes(self._test, everywhere)

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
                order = self.rows.epoch(step // plan.steps_per_epoch)
                own = order[:, slice(*self.rows.columns)]
                placed = mesh.shard_batch(own, plan.mesh, axis=1)
            yield *self._train, placed

    def testing(self) -> Iterator[Arguments]:
        """Yields images and labels, the same for every batch."""
        for _ in range(self._plan.test_batches):
            yield self._test

    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""
        return self._host.images[self.rows.epoch(0)[0]]


class StreamedFeed(Feed):
    """Worker processes read the images; a call is given those of its batches."""

    def __init__(self, plan: Plan, dataset: StreamedDataset, workers: int):
        """Reads nothing yet.

        Args:
          plan: the plan of the run.
          dataset: provides the images.
          workers: number of processes that read and decode; 0 reads in this process.
        """
        super().__init__(plan)
        self.waited = 0.0
        self._dataset = dataset
        self._workers = workers
        self.train_shapes = self._shapes(plan.steps_per_call, plan.batch_size)
        self.test_shapes = self._shapes(plan.test_batch_size)

    def _shapes(self, *axes: int) -> Arguments:
        facts = self._plan.facts
        shape = (*axes, facts.side, facts.side, facts.channels)
        return mesh.shapes(
            Split(
                jax.ShapeDtypeStruct(shape, np.uint8),
                jax.ShapeDtypeStruct(axes, np.int32),
            ),
            mesh.sharded(self._plan.mesh, axis=len(axes) - 1),
        )

    def pick_train(self, step: Array, images: Array, labels: Array) -> Split:
        """Takes one of the call's batches, [steps in the call, batch, ...]."""
        index = step % len(labels)
        return Split(images[index], labels[index])

    def pick_test(self, batch: Array, images: Array, labels: Array) -> Split:
        """Returns the only batch of the call."""
        del batch
        return Split(images, labels)

    def training(self, start: int) -> Iterator[Arguments]:
        """Yields the images and labels of each call.

        They are copied to the devices while these compute the call before.
        """
        plan = self._plan
        calls = range(start, plan.total_steps, plan.steps_per_call)
        with self._batches(self.rows, start, plan.total_steps) as stream:
            for _ in calls:
                clock = time.monotonic()
                steps = [next(stream) for _ in range(plan.steps_per_call)]
                self.waited += time.monotonic() - clock
                stacked = Split(*map(np.stack, zip(*steps, strict=True)))
                yield mesh.shard_batch(stacked, plan.mesh, axis=1)

    def testing(self) -> Iterator[Arguments]:
        """Yields the images and labels of each test batch."""
        plan, size = self._plan, self._plan.test_batch_size
        rows = EvaluationRows(
            plan.facts.num_train, plan.facts.num_test, size, mesh.local_rows(size)
        )
        with self._batches(rows, 0, plan.test_batches) as stream:
            for batch in stream:
                yield mesh.shard_batch(batch, plan.mesh)

    def _batches(
        self, rows: TrainingRows | EvaluationRows, start: int, stop: int
    ) -> Batches:
        return Batches(
            self._dataset, rows, start=start, stop=stop, workers=self._workers
        )

    def first_images(self) -> np.ndarray:
        """Returns the images of the run's first batch, uint8, on the host."""
        return self._dataset.read(self.rows.epoch(0)[0]).images


def open_dataset(config: ml_collections.ConfigDict) -> Dataset | StreamedDataset:
    """Returns the images: decoded, or streamed if they do not go on the devices.

    Raises:
      UsageError: the data are missing or damaged, or cannot be read as configured.
    """
    # All processes run one program, so they must decide alike.
    limit = processes.broadcast(devices.memory()) // _DATA_SHARE
    # The first process downloads, prepares and decodes; the others find the files.
    return processes.main_process_first(
        "data", functools.partial(_open_dataset, config, limit)
    )


def _open_dataset(
    config: ml_collections.ConfigDict, limit: int
) -> Dataset | StreamedDataset:
    settings = config.dataset
    described = settings.to_dict()
    placement = described.pop("placement")
    del described["workers"]
    found = find_dataset(**described)
    if placement == "auto":
        placement = "device" if found.fits(limit) else "host"
    if placement == "device":
        return found.decode()
    if config.knn.every:
        raise UsageError(
            f"config.knn.every={config.knn.every} needs all images in memory, where "
            f"config.dataset.placement={settings.placement} does not put them "
            f"({found.source.location}); set config.knn.every=0 or "
            "config.dataset.placement=device."
        )
    return found.stream()


def make_feed(plan: Plan, dataset: Dataset | StreamedDataset) -> Feed:
    """Returns the feed of the images from `open_dataset`."""
    if not dataset.streamed:
        return ResidentFeed(plan, dataset)
    wanted = plan.config.dataset.workers
    first, last = mesh.local_rows(plan.batch_size)
    # A worker without an image of each batch to read would only take memory.
    workers = min(devices.count_cores() if wanted < 0 else wanted, last - first)
    return StreamedFeed(plan, dataset, workers)
