"""Content and structure of a DUET representation.

The features form a matrix whose rows are bins of the transformation parameter and whose
columns are channels. The sum over the bins is the content, the mean over the channels
gives the logits of the structure. `shift` and `steer` change the structure and leave
the content alone.

Source: the two marginals of the DUET representation (Suau et al., ICML 2023). Figure 1
there has the sum over the channels, the reference's code the mean: see MARGINALS.
"""

from duet_jax.lazy import jax, jnp
from duet_jax.types import Array

MARGINALS = ("mean", "sum")
"""What makes the logits of the structure of all channels. With C channels, a sum is C
times as sharp as the mean."""


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


def structure_logits(matrix: Array, marginal: str = "mean") -> Array:
    """Reduces [batch, bins, channels] over the channels, to [batch, bins].

    Args:
      matrix: of the features.
      marginal: one of MARGINALS.
    """
    reduce = {"mean": jnp.mean, "sum": jnp.sum}[marginal]
    return reduce(matrix, axis=2)


def structure(matrix: Array, marginal: str = "mean") -> Array:
    """Returns the softmax of the structure logits, [batch, bins], rows summing to 1."""
    return jax.nn.softmax(structure_logits(matrix, marginal), axis=-1)


def shift(matrix: Array, by: Array | float) -> Array:
    """Shifts the bins cyclically, by any real number of bins.

    The bins are samples of a periodic function, which Fourier interpolation reads
    between them; whole shifts are exact. The content does not change, and a shift by
    `-by` is the inverse. With an even number of bins the highest frequency has no phase
    to shift: it is shifted by the nearest whole number of bins.

    Args:
      matrix: [batch, bins, channels].
      by: a number of bins, or one for each example, [batch]; 1 moves bin 0 to bin 1.

    Returns:
      The same shape and type.
    """
    bins = matrix.shape[1]
    by = jnp.broadcast_to(jnp.asarray(by, matrix.dtype), matrix.shape[:1])
    turns = jnp.outer(jnp.mod(by, bins), jnp.arange(bins // 2 + 1)) / bins
    phases = jnp.exp(-2j * jnp.pi * turns)
    if bins % 2 == 0:
        # Halves are rounded to the even number on both sides of 0.
        phases = phases.at[:, -1].set(1 - 2 * jnp.mod(jnp.round(by), 2))
    spectrum = jnp.fft.rfft(matrix, axis=1) * phases[:, :, None]
    return jnp.fft.irfft(spectrum, bins, axis=1).astype(matrix.dtype)


def steer(matrix: Array, wanted: Array, marginal: str = "mean") -> Array:
    """Gives representations the structure that is wanted; keeps their content.

    All channels of a bin are moved by the same number, and these numbers sum to zero
    over the bins: of all changes that do so it is the smallest.

    Args:
      matrix: [batch, bins, channels].
      wanted: logits of the structure, up to a constant for each example, [batch, bins]:
        the logarithm of a distribution, or `structure_logits` of other representations.
      marginal: one of MARGINALS.

    Returns:
      The same shape and type; its `structure` is softmax(wanted).
    """
    change = wanted - structure_logits(matrix, marginal)
    if marginal == "sum":
        change = change / matrix.shape[2]
    change = change - jnp.mean(change, axis=1, keepdims=True)
    return matrix + change.astype(matrix.dtype)[:, :, None]
