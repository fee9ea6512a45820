"""What all losses share: float32 at least, and means over the examples that count."""

import jax.numpy as jnp

from duet_jax.types import Array


def at_least_float32(x: Array) -> Array:
    """Returns `x` in float32, or as it is if it is more precise."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of `values` [batch] over the examples where `mask` [batch] is true."""
    if mask is None:
        return jnp.mean(values)
    # A batch always holds one real example at least; the floor keeps 0/0 out.
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)
