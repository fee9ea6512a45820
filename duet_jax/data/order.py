"""Determines which examples are in which batch, in every process alike.

Nothing here needs the images or JAX. The number of a batch determines its examples, so
that a run can continue at any batch, and any process can make its columns of it.
"""

import dataclasses
import functools

import numpy as np

# Used in place of a seed; no training can have it.
_EVALUATION = 2**32


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the permutation of the training examples in one epoch.

    It sorts the raw numbers of Philox, a counter-based generator with the key (seed,
    epoch). NumPy promises that the raw stream of a bit generator never changes; it does
    not promise that of `Generator.permutation`. Of equal numbers (a chance of
    num_examples^2 / 2^65) the earlier example comes first.

    Args:
      seed: from 0 to 2^32 - 1 in training.
      epoch: counted from 0.
      num_examples: number of training examples.

    Returns:
      int32, [num_examples].
    """
    key = np.array([seed, epoch], np.uint64)
    numbers = np.random.Philox(key=key).random_raw(num_examples)
    return np.argsort(numbers, kind="stable").astype(np.int32)


# For the evaluation and two epochs: prefetched batches may be of the next epoch.
@functools.lru_cache(maxsize=3)
def _kept_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = epoch_order(seed, epoch, num_examples)
    order.flags.writeable = False  # it is shared
    return order


def evaluation_order(num_examples: int) -> np.ndarray:
    """Returns the order of the test examples: int32, [num_examples]; read-only.

    It is the same in every run. Losses that compare the images of a batch would
    otherwise depend on the order of the source, which may be sorted by class.
    """
    return _kept_order(_EVALUATION, 0, num_examples)


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """The training examples of each batch; every epoch has its own order.

    Attributes:
      seed: seed of the order, from 0 to 2^32 - 1.
      num_examples: number of training examples.
      steps_per_epoch: batches in an epoch. The rest of the order is not used in that
        epoch; `steps_per_epoch * batch_size` is at most `num_examples`.
      batch_size: size of the whole batch, over all processes.
      columns: first and one past the last position in the batch of this process.
    """

    seed: int
    num_examples: int
    steps_per_epoch: int
    batch_size: int
    columns: tuple[int, int]

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns whole batches: int32, [steps_per_epoch, batch_size]; read-only."""
        order = _kept_order(self.seed, epoch, self.num_examples)
        used = order[: self.steps_per_epoch * self.batch_size]
        return used.reshape(self.steps_per_epoch, self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """Returns this process's examples of batch `step`: int32, [columns]; read-only.

        Batches are counted from 0 over the whole run.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[batch, slice(*self.columns)]


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """The test examples of each batch, in `evaluation_order`.

    Attributes:
      num_train: number of training examples, which come before the test examples.
      num_test: number of test examples.
      batch_size: size of the whole batch, over all processes.
      columns: first and one past the last position in the batch of this process.
    """

    num_train: int
    num_test: int
    batch_size: int
    columns: tuple[int, int]

    def rows(self, batch: int) -> np.ndarray:
        """Returns this process's examples of batch number `batch`: int32, [columns].

        The last batch is padded with the last example, to be masked.
        """
        positions = batch * self.batch_size + np.arange(*self.columns)
        positions = np.minimum(positions, self.num_test - 1)
        return self.num_train + evaluation_order(self.num_test)[positions]
