"""The linear evaluation of ESSL: SGD on freshly augmented features, repeated.

One call of `epoch` is one pass; the caller encodes new augmented images for each. All
repeats are trained at once and differ in initial weights and example order; unlike in
the ESSL code, they share the augmented features of an epoch.

Source: linear evaluation on CIFAR-10 in the code of Dangovski et al. 2022 (ESSL):
batch 256, momentum 0.9, rate 30, a cosine to 0 over 100 epochs at every step without
warm-up, no weight decay, incomplete batches dropped, five repeats.
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

EPOCHS = 100
REPEATS = 5
BATCH_SIZE = 256
LEARNING_RATE = 30.0
MOMENTUM = 0.9


class SgdState(NamedTuple):
    """The state of all repeats between two epochs.

    Attributes:
      kernel: float32 [repeats, d, classes].
      bias: float32 [repeats, classes].
      velocity: running sum of gradients, in the shapes of (kernel, bias).
      step: int32 scalar, the number of updates made.
    """

    kernel: Array
    bias: Array
    velocity: tuple[Array, Array]
    step: Array


def start(
    key: Array, num_features: int, num_classes: int, repeats: int = REPEATS
) -> SgdState:
    """Returns initial weights, uniform within ±1/sqrt(d), as in torch's `Linear`."""
    bound = num_features**-0.5
    for_kernel, for_bias = jax.random.split(key)
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    kernel = uniform(for_kernel, (repeats, num_features, num_classes))
    bias = uniform(for_bias, (repeats, num_classes))
    velocity = (jnp.zeros_like(kernel), jnp.zeros_like(bias))
    return SgdState(kernel, bias, velocity, jnp.int32(0))


def epoch(
    state: SgdState,
    key: Array,
    features,
    labels,
    *,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
) -> SgdState:
    """Trains every repeat for one pass over the examples, each in its own order.

    Args:
      state: of all repeats.
      key: for the orders; a new one for each epoch.
      features: of this epoch, not standardized, [n, d].
      labels: int [n].
      epochs: passes over which the learning rate falls to 0, positive.
      learning_rate: of the first update.
      batch_size: examples per update; all of them if there are fewer.

    Returns:
      The new state.

    Raises:
      UsageError: features and labels do not match each other or the state.
    """
    num_features, num_classes = state.kernel.shape[1:]
    if features.shape[1:] != (num_features,):
        raise UsageError(
            f"features={features.shape} do not fit the probe, which was started with "
            f"{num_features} dimensions; give [examples, {num_features}]."
        )
    features, labels = inputs.examples(features, labels, num_classes)
    batch_size = min(batch_size, len(labels))
    updates = epochs * (len(labels) // batch_size)
    return _epoch(
        state, key, features, labels, np.float32(learning_rate), updates, batch_size
    )


@functools.partial(jax.jit, static_argnames="batch_size")
def _epoch(
    state: SgdState,
    key: Array,
    features: Array,
    labels: Array,
    learning_rate: Array,
    updates: Array,
    batch_size: int,
) -> SgdState:
    n, repeats = len(labels), len(state.bias)
    keys = jax.random.split(key, repeats)
    order = jax.vmap(lambda key: jax.random.permutation(key, n))(keys)
    count = n // batch_size
    batches = order[:, : count * batch_size].reshape(repeats, count, batch_size)

    def update(state: SgdState, batch: Array) -> tuple[SgdState, None]:
        weights = (state.kernel, state.bias)
        gradient = jax.vmap(jax.grad(_loss))(weights, features[batch], labels[batch])
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, state.velocity, gradient)
        progress = jnp.minimum(state.step / updates, 1)
        rate = learning_rate * (1 + jnp.cos(jnp.pi * progress)) / 2
        kernel, bias = jax.tree.map(lambda w, v: w - rate * v, weights, velocity)
        return SgdState(kernel, bias, velocity, state.step + 1), None

    return jax.lax.scan(update, state, jnp.swapaxes(batches, 0, 1))[0]


def _loss(weights: tuple[Array, Array], features: Array, labels: Array) -> Array:
    kernel, bias = weights
    scores = jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(scores + bias[None, :], labels)
    )


@jax.jit
def logits(state: SgdState, features: Array) -> Array:
    """Returns the logits [repeats, n, classes] of `features` [n, d]."""
    product = jnp.einsum(
        "nd,rdc->rnc", features, state.kernel, precision=jax.lax.Precision.HIGHEST
    )
    return product + state.bias[:, None, :]
