"""A decoder: from a representation back to the image.

The paper's decoder is not public; this one is ours. Groups are normalized, not batches:
training and evaluation are the same.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.types import Array

_SMALLEST = 4  # side of the first map, at least
_GROUP = 8  # channels that are normalized together, at most


class Decoder(nnx.Module):
    """Linear to a small map, then stages that double its side, then a convolution.

    A stage is nearest-neighbor upsampling and twice a 3x3 convolution, group
    normalization and ReLU. It halves the channels.
    """

    def __init__(
        self,
        in_features: int,
        *,
        side: int,
        channels: int,
        width: int,
        rngs: nnx.Rngs,
    ):
        """Builds the decoder.

        Args:
          in_features: dimensions of the representation.
          side: of the images, in pixels, 8 or more. If it is no small number doubled
            several times, what the stages make is cut to it.
          channels: of the images.
          width: channels of the last stage; a stage before has twice as many.
          rngs: source of the initial weights.
        """
        self.side = side
        stages = int(math.log2(side / _SMALLEST))
        self.start = -(-side // 2**stages)
        self.features = width * 2**stages
        self.expand = nnx.Linear(
            in_features, self.start**2 * self.features, rngs=rngs, kernel_init=_HE
        )
        self.stages = nnx.List(
            [_Stage(width * 2 ** (stages - n), rngs=rngs) for n in range(stages)]
        )
        self.output = _convolution(width, channels, rngs)

    def __call__(self, representation: Array) -> Array:
        """Maps [batch, in_features] to images, [batch, side, side, channels].

        They are normalized like views, to about [-0.5, 0.5], and not clipped.
        """
        count = representation.shape[0]  # symbolic where it is exported
        shape = (count, self.start, self.start, self.features)
        x = nnx.relu(self.expand(representation)).reshape(shape)
        for stage in self.stages:
            x = stage(x)
        x = self.output(x)
        margin = (x.shape[1] - self.side) // 2
        kept = slice(margin, margin + self.side)
        return x[:, kept, kept]


class _Stage(nnx.Module):
    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        features = in_features // 2
        self.conv1 = _convolution(in_features, features, rngs)
        self.norm1 = _normalization(features, rngs)
        self.conv2 = _convolution(features, features, rngs)
        self.norm2 = _normalization(features, rngs)

    def __call__(self, x: Array) -> Array:
        """Maps [batch, side, side, 2 n] to [batch, 2 side, 2 side, n]."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)))


_HE = jax.nn.initializers.he_normal()


def _convolution(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(in_features, out_features, (3, 3), kernel_init=_HE, rngs=rngs)


def _normalization(features: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    groups = features // math.gcd(features, _GROUP)
    return nnx.GroupNorm(features, num_groups=groups, rngs=rngs)
