"""A small network on frozen features: what a linear map cannot read, it may.

Two hidden layers of 1,024 with ReLU, trained by Adam at a constant rate of 1e-3 in
batches of 256, on standardized features, until a held-out tenth no longer improves.
Regressions minimize the squared error, classifications the cross-entropy.

Source: the head of ContextSSL (Gupta et al. 2024) for relative parameters; SIE trains
one of the same kind for 300 epochs. The early stop is ours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from duet_jax.errors import UsageError
from duet_jax.probes import inputs
from duet_jax.types import Array

__all__ = ["MlpFit", "fit"]

HIDDEN = (1024, 1024)
LEARNING_RATE = 1e-3
BATCH_SIZE = 256
# Training ends after so many epochs without a better held-out loss, or in any case.
PATIENCE, MOST_EPOCHS = 3, 50

# As for the other probes: a GPU would round the factors to fewer bits.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

Weights = tuple[tuple[Array, Array], ...]


class MlpFit(NamedTuple):
    """A trained network on raw features.

    Attributes:
      standardization: of the examples it was trained on.
      weights: kernel [in, out] and bias [out] of each layer, on standardized features.
      mean: that is added to the outputs of a regression, [k].
      epoch: of the weights, from 1; the best one on the held-out tenth.
      held_out: loss on the held-out tenth after every epoch: mean squared error summed
        over outputs, or cross-entropy in nats.
    """

    standardization: inputs.Standardization
    weights: Weights
    mean: np.ndarray
    epoch: int
    held_out: tuple[float, ...]

    def predict(self, features) -> np.ndarray:
        """Returns outputs, float64 [n, k], for raw `features` [n, d]."""
        features = inputs.matrix(features)
        parts = []
        for start in range(0, len(features), inputs.BLOCK):
            block = self.standardization.apply(features[start : start + inputs.BLOCK])
            padded = np.pad(block, ((0, inputs.BLOCK - len(block)), (0, 0)))
            parts.append(np.asarray(_outputs(self.weights, padded))[: len(block)])
        return np.concatenate(parts).astype(np.float64) + self.mean[None, :]


def fit(features, targets, *, num_classes: int = 0, seed: int = 0) -> MlpFit:
    """Trains the network on nine tenths, and stops by the other one.

    Deterministic on one machine: the seed decides the initial weights and the order.

    Args:
      features: raw, [n, d], finite; constant features are ignored.
      targets: [n, k] to regress; or classes, int [n], with their number.
      num_classes: of `targets`; 0 for a regression.
      seed: of everything random.

    Raises:
      UsageError: shapes or values are out of range, or there are too few examples.
    """
    if num_classes:
        features, targets = inputs.examples(features, targets, num_classes)
        strata, mean = targets, np.zeros(num_classes)
    else:
        features, targets = inputs.matrix(features), np.asarray(targets, np.float64)
        _check(features, targets)
        strata, mean = np.zeros(len(targets), int), targets.mean(axis=0)
        targets = (targets - mean[None, :]).astype(np.float32)
    held_out = inputs.held_out_tenth(strata)
    standard = inputs.standardization(features[~held_out])
    features = standard.apply(features)
    key = jax.random.key(seed)
    weights = _initial(key, (features.shape[1], *HIDDEN, len(mean)))
    weights, epoch, losses = _train(
        weights,
        jax.random.fold_in(key, 1),
        (jnp.asarray(features[~held_out]), jnp.asarray(targets[~held_out])),
        (jnp.asarray(features[held_out]), jnp.asarray(targets[held_out])),
    )
    return MlpFit(standard, weights, mean, epoch, losses)


def _check(features: np.ndarray, targets: np.ndarray) -> None:
    if targets.ndim != 2 or len(targets) != len(features):
        raise UsageError(
            f"targets={targets.shape} do not fit features={features.shape}; "
            "give [examples, outputs]."
        )
    if not np.all(np.isfinite(targets)):
        raise UsageError(
            f"targets={targets.shape} hold NaN or infinite values; use finite targets."
        )


def _initial(key: Array, sizes: tuple[int, ...]) -> Weights:
    """Returns weights as He et al. 2015 draw them, and biases of 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(
        (jax.random.normal(key, (n, m)) * (2 / n) ** 0.5, jnp.zeros(m))
        for key, n, m in zip(keys, sizes, sizes[1:], strict=False)
    )


def _train(
    weights: Weights,
    key: Array,
    examples: tuple[Array, Array],
    held_out: tuple[Array, Array],
) -> tuple[Weights, int, tuple[float, ...]]:
    """Returns the best weights, their epoch and the held-out loss of every epoch."""
    state = optax.adam(LEARNING_RATE).init(weights)
    best, best_epoch, losses = weights, 0, []
    for epoch in range(1, MOST_EPOCHS + 1):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(examples[0]))
        weights, state = _epoch(weights, state, order, *examples)
        losses.append(float(_loss(weights, *held_out)))
        if losses[-1] <= min(losses):
            best, best_epoch = weights, epoch
        if epoch - best_epoch >= PATIENCE:
            break
    return best, best_epoch, tuple(losses)


@jax.jit
def _epoch(
    weights: Weights,
    state: optax.OptState,
    order: Array,
    features: Array,
    targets: Array,
) -> tuple[Weights, optax.OptState]:
    """Trains for one pass over the examples; an incomplete batch is left out."""
    size = min(BATCH_SIZE, len(order))
    batches = order[: len(order) // size * size].reshape(-1, size)

    def update(carry, batch):
        weights, state = carry
        gradients = jax.grad(_loss)(weights, features[batch], targets[batch])
        changes, state = optax.adam(LEARNING_RATE).update(gradients, state)
        return (optax.apply_updates(weights, changes), state), None

    return jax.lax.scan(update, (weights, state), batches)[0]


@jax.jit
def _outputs(weights: Weights, features: Array) -> Array:
    *hidden, (kernel, bias) = weights
    for hidden_kernel, hidden_bias in hidden:
        features = jax.nn.relu(_matmul(features, hidden_kernel) + hidden_bias[None, :])
    return _matmul(features, kernel) + bias[None, :]


@jax.jit
def _loss(weights: Weights, features: Array, targets: Array) -> Array:
    outputs = _outputs(weights, features)
    if targets.ndim == 1:
        each = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return jnp.mean(each)
    return jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=1))
