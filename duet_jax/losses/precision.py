"""Precision and masked averages, shared by all losses."""

from duet_jax.lazy import jnp
from duet_jax.types import Array


def at_least_float32(x: Array) -> Array:
    """Converts `x` to float32 unless it is at least as precise."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Returns the mean of `values` [batch] where `mask` [batch] is true, or of all."""
    if mask is None:
        return jnp.mean(values)
    # The floor avoids 0/0, although a batch always has a real example.
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)
