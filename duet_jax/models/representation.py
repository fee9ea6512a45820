"""Content and structure of a DUET representation.

The features form a matrix whose rows are bins of the transformation parameter and whose
columns are channels. The sum over the bins is the content, the mean over the channels
gives the logits of the structure.

Source: the two marginals of the DUET representation (Suau et al., ICML 2023).
"""

import jax
import jax.numpy as jnp

from duet_jax.types import Array


def as_matrix(features: Array, num_bins: int) -> Array:
    """Reshapes features to bins by channels.

    Args:
      features: [batch, bins * channels].
      num_bins: number of bins G, a divisor of the number of features.

    Returns:
      [batch, num_bins, channels].
    """
    return features.reshape(features.shape[0], num_bins, -1)


def content(matrix: Array) -> Array:
    """Sums [batch, bins, channels] over the bins, to [batch, channels]."""
    return jnp.sum(matrix, axis=1)


def structure_logits(matrix: Array) -> Array:
    """Averages [batch, bins, channels] over the channels, to [batch, bins]."""
    return jnp.mean(matrix, axis=2)


def structure(matrix: Array) -> Array:
    """Returns the softmax of the structure logits, [batch, bins], rows summing to 1."""
    return jax.nn.softmax(structure_logits(matrix), axis=-1)
