"""Batch normalization with the running statistics of the reference."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.losses.precision import at_least_float32
from duet_jax.types import Array

EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running statistics that an update keeps


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last.

    Under `jit` with a sharded batch, the statistics are those of the whole batch.

    Source: reference: BatchNorm with eps 1e-5 and torch's momentum 0.1, which is 0.9
    here. `flax.nnx.BatchNorm` differs: its running variance is biased.

    Attributes:
      scale, bias: float32 parameters, [features].
      mean, var: float32 running statistics, [features]; var is unbiased.
    """

    def __init__(self, num_features: int, *, dtype: jnp.dtype = jnp.float32):
        """Initializes the layer as the identity on standardized inputs.

        Args:
          num_features: size of the last axis.
          dtype: type of the output; the computation uses at least float32.
        """
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalizes `x`, [..., features].

        If `train`, with the statistics of this batch, which also update the running
        statistics; otherwise with the running statistics.
        """
        if train:
            mean, var = _moments(x)
            self._update(mean, var, count=math.prod(x.shape[:-1]))
        else:
            mean, var = self.mean[...], self.var[...]
        # Converted here and in `_moments`, so that only the low-precision input stays
        # in memory and XLA fuses the conversion into each pass that reads it.
        x = at_least_float32(x)
        # Centering before scaling preserves precision if a channel's mean is large; in
        # a fused loop it costs no more than one scale and one shift.
        center = jax.lax.stop_gradient(mean)
        scale = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        # The mean's gradient flows through the shift, where it is the sum that the bias
        # needs anyway, and not through the centering, which would take another pass
        # over the activations.
        shift = self.bias[...] - (mean - center) * scale
        y = (x - _channels(center, x)) * _channels(scale, x) + _channels(shift, x)
        return y.astype(self.dtype)

    def _update(self, mean: Array, var: Array, count: int) -> None:
        # A single value per channel has no unbiased variance: the reference raises an
        # error, here the variance is zero.
        unbiased = var * (count / max(count - 1, 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            mixed = MOMENTUM * running[...] + (1.0 - MOMENTUM) * new
            running[...] = mixed.astype(running.dtype)


def _moments(x: Array) -> tuple[Array, Array]:
    """Returns mean and biased variance per channel, in at least float32."""
    axes = tuple(range(x.ndim - 1))
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axes)
    if x.dtype.itemsize < 4:
        # One pass over the activations instead of two, and one message between
        # devices. It is imprecise if the mean is large compared with the deviation,
        # but so is the input: its 8 bits are exhausted at a ratio of 256, where this
        # is still accurate to a percent.
        square = jnp.mean(jnp.square(wide), axes)
        return mean, jnp.maximum(square - jnp.square(mean), 0)
    # To first order the variance does not depend on the center, so the gradient through
    # this mean is zero: stopping it saves the backward pass one reduction.
    centered = wide - _channels(jax.lax.stop_gradient(mean), wide)
    return mean, jnp.mean(jnp.square(centered), axes)


def _channels(vector: Array, x: Array) -> Array:
    """Reshapes a vector over channels to broadcast with `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
