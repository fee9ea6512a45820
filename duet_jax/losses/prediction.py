"""Losses and accuracies of predictions: of a class, or of a value."""

import jax.numpy as jnp
import optax

from duet_jax.losses.precision import at_least_float32
from duet_jax.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy in nats of `logits` [batch, classes] at int `labels` [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(
        at_least_float32(logits), labels
    )


def squared_error(predictions: Array, targets: Array) -> Array:
    """Squared error of `predictions` [batch] against `targets` [batch]."""
    return jnp.square(at_least_float32(predictions) - targets)


def top_k(logits: Array, labels: Array, k: int) -> Array:
    """Whether the label is among the k largest logits.

    Args:
      logits: [batch, classes].
      labels: int, [batch].
      k: a k above the number of classes counts every example as right.

    Returns:
      0. or 1. per example, float32 [batch]. A tie counts against the label.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (_rank(logits, own) < k).astype(jnp.float32)


def _rank(candidates: Array, chosen: Array) -> Array:
    """How many of the others [batch, candidates] are not below the chosen [batch].

    A tie counts against the chosen one: collapsed features, which are all alike, must
    not look like perfect ones.
    """
    return jnp.sum(~(candidates < chosen[:, None]), axis=1) - 1  # so does a NaN
