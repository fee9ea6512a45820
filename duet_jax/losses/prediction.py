"""Losses and accuracies of predicted classes and values."""

from duet_jax.lazy import jnp, optax
from duet_jax.losses.precision import at_least_float32
from duet_jax.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy in nats of `logits` [batch, classes] and int `labels` [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(
        at_least_float32(logits), labels
    )


def squared_error(predictions: Array, targets: Array) -> Array:
    """Squared error of `predictions` and `targets`, both [batch] or [batch, values]."""
    return jnp.square(at_least_float32(predictions) - targets)


def top_k(logits: Array, labels: Array, k: int) -> Array:
    """Returns 1.0 if the label is among the k largest logits, else 0.0.

    Ties and NaN count against the label: collapsed features, which are all equal, must
    not look perfect.

    Args:
      logits: [batch, classes].
      labels: int, [batch].
      k: above the number of classes, every label is among them.

    Returns:
      float32, [batch].
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    rank = jnp.sum(~(logits < own[:, None]), axis=1) - 1
    return (rank < k).astype(jnp.float32)
