"""Batch normalisation with the running statistics of the reference."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.types import Array

EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running statistics that one update keeps


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last.

    Under `jit` with a batch that is sharded over devices the statistics are those
    of the whole batch.

    Source: reference: BatchNorm with eps 1e-5 and torch momentum 0.1, which is 0.9
    here. `flax.nnx.BatchNorm` differs: its running variance is the biased one.

    Attributes:
      scale, bias: float32 parameters, [features].
      mean, var: float32 running statistics, [features]; var is the unbiased one.
    """

    def __init__(self, num_features: int, *, dtype: jnp.dtype = jnp.float32):
        """Starts as the identity on standardised inputs.

        Args:
          num_features: size of the last axis.
          dtype: type of the output; the arithmetic is never below float32.
        """
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises `x`, [..., features].

        With `train`, by the statistics of this batch, which also move the running
        ones; without, by the running ones.
        """
        if train:
            mean, var = _moments(x)
            self._update(mean, var, count=math.prod(x.shape[:-1]))
        else:
            mean, var = self.mean[...], self.var[...]
        # Converted here, the low-precision input itself stays in memory and XLA
        # fuses the conversion into each pass that reads it.
        x = _wide(x)
        # Centring before scaling keeps the digits of channels whose mean is large;
        # as a fused loop it costs no more than one scale and one shift.
        centre = jax.lax.stop_gradient(mean)
        scale = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # The gradient reaches the mean through the shift, where it is the sum that the
        # bias needs anyway, and not through the centring, which would take another
        # pass over the activations.
        shift = self.bias[...] - (mean - centre) * scale
        y = (x - _channels(centre, x)) * _channels(scale, x) + _channels(shift, x)
        return y.astype(self.dtype)

    def _update(self, mean: Array, var: Array, count: int) -> None:
        # The reference refuses a single value per channel, which has no unbiased
        # variance; here it counts as zero.
        unbiased = var * (count / max(count - 1, 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            mixed = MOMENTUM * running[...] + (1.0 - MOMENTUM) * new
            running[...] = mixed.astype(running.dtype)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, in float32 or wider."""
    axes = tuple(range(x.ndim - 1))
    wide = _wide(x)
    mean = jnp.mean(wide, axes)
    if x.dtype.itemsize < 4:
        # One pass over the activations instead of two, and one message between
        # devices. It loses the digits of channels whose mean is large beside their
        # deviation: so has the input, whose 8 bits are exhausted at a ratio of 256,
        # where this is still good to a percent.
        square = jnp.mean(jnp.square(wide), axes)
        return mean, jnp.maximum(square - jnp.square(mean), 0)
    # The variance does not change to first order with the point it is taken
    # about, so the gradient through this mean is zero: stopping it saves the
    # backward pass one reduction over the activations.
    centred = wide - _channels(jax.lax.stop_gradient(mean), wide)
    return mean, jnp.mean(jnp.square(centred), axes)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _channels(vector: Array, x: Array) -> Array:
    """Shapes a vector over channels to broadcast against `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
