"""What keeps embeddings from collapsing without negatives: variance and covariance.

Source: Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for
Self-Supervised Learning", equations 1 to 4. Its third term is `squared_error`.
"""

from duet_jax.lazy import jax, jnp
from duet_jax.losses.precision import at_least_float32, masked_mean
from duet_jax.types import Array

# Added to the variance, whose root has no slope at zero; the paper's value.
_FLOOR = 1e-4


def variance_hinge(embeddings: Array, mask: Array | None = None) -> Array:
    """Returns by how much the standard deviations fall short of 1, on average.

    Args:
      embeddings: any scale, [batch, dimensions].
      mask: the examples that count, bool [batch]; None for all.

    Returns:
      The mean over the dimensions of max(0, 1 - sqrt(variance + 1e-4)), a scalar from 0
      to 1. The variance is the unbiased one, over the batch.

    Source: VICReg, equations 1 and 2, with gamma = 1.
    """
    centred, count = _centred(embeddings, mask)
    variance = jnp.sum(jnp.square(centred), axis=0) / jnp.maximum(count - 1, 1)
    return jnp.mean(jnp.maximum(0, 1 - jnp.sqrt(variance + _FLOOR)))


def covariance(embeddings: Array, mask: Array | None = None) -> Array:
    """Returns how much the dimensions tell of one another, a scalar from 0.

    Args:
      embeddings: any scale, [batch, dimensions].
      mask: the examples that count, bool [batch]; None for all.

    Returns:
      The sum of the squared covariances of all pairs of different dimensions, over the
      number of dimensions.

    Source: VICReg, equations 3 and 4.
    """
    centred, count = _centred(embeddings, mask)
    products = jnp.einsum(
        "bi,bj->ij", centred, centred, precision=jax.lax.Precision.HIGHEST
    )
    squares = jnp.square(products / jnp.maximum(count - 1, 1))
    return (jnp.sum(squares) - jnp.trace(squares)) / len(squares)


def _centred(embeddings: Array, mask: Array | None) -> tuple[Array, Array | int]:
    """Returns embeddings minus their mean, 0 where masked; and how many count."""
    embeddings = at_least_float32(embeddings)
    average = jax.vmap(masked_mean, in_axes=(1, None))  # over the batch
    centred = embeddings - average(embeddings, mask)[None, :]
    if mask is None:
        return centred, len(embeddings)
    return jnp.where(mask[:, None], centred, 0), jnp.sum(mask)
