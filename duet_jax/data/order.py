"""Which examples are in which batch: arithmetic that every process repeats alone.

Nothing here needs the images or JAX. A batch is known from its number, so that a run
can go on from any batch, and any process can make its columns of it.
"""

import dataclasses
import functools

import numpy as np

# In the place of a seed: no training has this one.
_OF_EVALUATION = 2**32


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the permutation of the training examples in one epoch.

    The ranks of the raw numbers of Philox, a counter-based generator with the key
    (seed, epoch). NumPy promises that the raw stream of a bit generator never changes;
    it does not promise that of `Generator.permutation`. Of equal numbers (a chance of
    num_examples^2 / 2^65) the earlier example comes first.

    Args:
      seed: from 0 to 2^32 - 1 in a training.
      epoch: counted from 0.
      num_examples: number of examples.

    Returns:
      int32, [num_examples].
    """
    key = np.array([seed, epoch], np.uint64)
    numbers = np.random.Philox(key=key).random_raw(num_examples)
    return np.argsort(numbers, kind="stable").astype(np.int32)


# Of evaluation and of two epochs: batches made in advance lie in the next one.
@functools.lru_cache(maxsize=3)
def _kept_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = epoch_order(seed, epoch, num_examples)
    order.flags.writeable = False  # it is shared
    return order


def evaluation_order(num_examples: int) -> np.ndarray:
    """Returns the order in which test examples make batches, the same in every run.

    What is measured in batches, such as a contrastive loss, would otherwise depend on
    the order of the source: in one that is sorted by class a batch holds one class.

    Returns:
      int32, [num_examples], a permutation; read-only.
    """
    return _kept_order(_OF_EVALUATION, 0, num_examples)


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """The training examples of each batch; every epoch in another order.

    Attributes:
      seed: of the order, from 0 to 2^32 - 1.
      num_examples: number of training examples.
      steps_per_epoch: batches of an epoch. What remains of the order after them is left
        out of that epoch; `steps_per_epoch * batch_size` is at most `num_examples`.
      batch_size: of the whole batch, over all processes.
      columns: first and one past the last position of the batch that this process
        feeds.
    """

    seed: int
    num_examples: int
    steps_per_epoch: int
    batch_size: int
    columns: tuple[int, int]

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns whole batches: int32, [steps_per_epoch, batch_size], read-only."""
        order = _kept_order(self.seed, epoch, self.num_examples)
        used = order[: self.steps_per_epoch * self.batch_size]
        return used.reshape(self.steps_per_epoch, self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """Returns the examples of this process in one batch.

        Args:
          step: number of the batch, counted from 0 over the whole run.

        Returns:
          int32, [columns], in the numbering of the source; read-only.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[batch, slice(*self.columns)]


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """The test examples of each batch, in `evaluation_order`.

    Attributes:
      num_train: number of training examples, which come first in the source.
      num_test: number of test examples.
      batch_size: of the whole batch, over all processes.
      columns: first and one past the last position of the batch that this process
        feeds.
    """

    num_train: int
    num_test: int
    batch_size: int
    columns: tuple[int, int]

    def rows(self, batch: int) -> np.ndarray:
        """Returns the examples of this process in one batch.

        Args:
          batch: its number, counted from 0.

        Returns:
          int32, [columns], in the numbering of the source. Past the end the last
          example is repeated; whoever counts masks it.
        """
        positions = batch * self.batch_size + np.arange(*self.columns)
        positions = np.minimum(positions, self.num_test - 1)
        return self.num_train + evaluation_order(self.num_test)[positions]
