"""Encoders: residual networks for small images.

Source: reference: its CIFAR-10 ResNets, which are He et al. (2016), section 4.2,
with four (stem) and eight times (stages) as many channels, projection shortcuts and a
BN on the features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.errors import UsageError, lookup
from duet_jax.models import steerable_pyramid
from duet_jax.models.batch_norm import BatchNorm
from duet_jax.types import Array

KAIMING_NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ResNet(nnx.Module):
    """Residual network with three stages of basic blocks.

    A 3x3 stem, three stages of which the second and third halve the image, the mean
    over the image, and a BN on the features.

    Attributes:
      num_features: length of the feature vectors.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, int, int],
        widths: tuple[int, int, int, int],
        in_channels: int,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          blocks: basic blocks of each stage.
          widths: channels of the stem and of each stage.
          in_channels: channels of the images.
          dtype: type of the arithmetic; parameters are float32.
          remat: keep only the input of each block for the backward pass, and compute
            what is within the block again.
          rngs: source of the initial weights.
        """
        stem, *stages = widths
        self.dtype = dtype
        self.remat = remat
        self.num_features = widths[-1]
        self.stem = _conv(in_channels, stem, 3, 1, dtype, rngs)
        self.stem_norm = BatchNorm(stem, dtype=dtype)
        self.stage1 = _stage(blocks[0], stem, stages[0], 1, dtype, rngs)
        self.stage2 = _stage(blocks[1], stages[0], stages[1], 2, dtype, rngs)
        self.stage3 = _stage(blocks[2], stages[1], stages[2], 2, dtype, rngs)
        wide = jnp.promote_types(dtype, jnp.float32)
        self.final_norm = BatchNorm(self.num_features, dtype=wide)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes features.

        Args:
          images: [batch, side, side, in_channels], normalised; any side.
          train: whether BN uses, and updates its running statistics by, this batch.

        Returns:
          float32 features, [batch, num_features].
        """
        y = nnx.relu(self.stem_norm(self.stem(images), train=train))
        run = nnx.remat(_run, static_argnums=2) if self.remat else _run
        for stage in (self.stage1, self.stage2, self.stage3):
            for block in stage:
                y = run(block, y, train)
        y = jnp.mean(y, (1, 2), dtype=self.final_norm.dtype)
        return self.final_norm(y, train=train)


class LiftedResNet(nnx.Module):
    """A ResNet on the bands of a fixed steerable pyramid.

    Source: reference: the encoders it calls lifted, of which only the number of
    inputs is left; the pyramid is ours (see `pyramid`).

    Attributes:
      num_features: length of the feature vectors.
    """

    def __init__(self, *, in_channels: int, **resnet):
        """Builds the network for images of `in_channels`; see `ResNet`."""
        self.resnet = ResNet(
            in_channels=in_channels * steerable_pyramid.num_bands(), **resnet
        )
        self.num_features = self.resnet.num_features

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes features as `ResNet` does, from the bands of `images`."""
        return self.resnet(steerable_pyramid.steerable_pyramid(images), train=train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: conv BN ReLU, conv BN, add, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds a block that divides the side by `stride`."""
        self.conv1 = _conv(in_channels, out_channels, 3, stride, dtype, rngs)
        self.norm1 = BatchNorm(out_channels, dtype=dtype)
        self.conv2 = _conv(out_channels, out_channels, 3, 1, dtype, rngs)
        self.norm2 = BatchNorm(out_channels, dtype=dtype)
        self.shortcut = (
            None
            if stride == 1 and in_channels == out_channels
            else Projection(in_channels, out_channels, stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [batch, side, side, in_channels] to the block's output."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.shortcut is not None:
            x = self.shortcut(x, train=train)
        return nnx.relu(y + x)


def _run(block: BasicBlock, x: Array, train: bool) -> Array:
    return block(x, train=train)


class Projection(nnx.Module):
    """Shortcut of a block that changes the shape: 1x1 convolution and BN."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds a shortcut that divides the side by `stride`."""
        self.conv = _conv(in_channels, out_channels, 1, stride, dtype, rngs)
        self.norm = BatchNorm(out_channels, dtype=dtype)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [batch, side, side, in_channels] to the shape of the block's output."""
        return self.norm(self.conv(x), train=train)


def _conv(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        # "SAME" would pad a strided convolution on the other side.
        padding=size // 2,
        use_bias=False,
        kernel_init=KAIMING_NORMAL,
        dtype=dtype,
        rngs=rngs,
    )


def _stage(
    depth: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.List:
    first = BasicBlock(in_channels, out_channels, stride, dtype=dtype, rngs=rngs)
    rest = [
        BasicBlock(out_channels, out_channels, 1, dtype=dtype, rngs=rngs)
        for _ in range(depth - 1)
    ]
    return nnx.List([first, *rest])


class EncoderSpec(NamedTuple):
    """What the name of an encoder stands for.

    Attributes:
      blocks: basic blocks of each stage; None where the configuration gives them.
      widths: channels of the stem and of each stage; None where given likewise.
      lifted: whether the images first pass the steerable pyramid.
    """

    blocks: tuple[int, int, int] | None
    widths: tuple[int, int, int, int] | None
    lifted: bool = False


def make_encoder(
    name: str,
    *,
    in_channels: int,
    width_multiplier: float = 1.0,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds the encoder that a configuration asks for.

    Args:
      name: a key of `ENCODERS`.
      in_channels: 1 for grey images, 3 for RGB.
      width_multiplier: scales every width, to the nearest multiple of 8, at least 8;
        1 leaves the widths as they are.
      blocks: basic blocks of each stage; read for `Cifar10_ResNet`, the other names
        fix them.
      widths: channels of the stem and of each stage; likewise.
      dtype: type of the arithmetic, float32 or bfloat16.
      remat: keep only the inputs of blocks for the backward pass.
      rngs: source of the initial weights.

    Returns:
      A module with `num_features`, called with `(images, train=...)`, that returns
      float32 features, [batch, num_features].

    Raises:
      UsageError: an unknown name, or blocks, widths or a multiplier that it cannot
        be built with.
    """
    spec = lookup(ENCODERS, name, "config.encoder.name")
    network = LiftedResNet if spec.lifted else ResNet
    return network(
        blocks=_blocks(name, spec, blocks),
        widths=_widths(name, spec, width_multiplier, widths),
        in_channels=in_channels,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )


def num_features(
    name: str,
    width_multiplier: float = 1.0,
    widths: Sequence[int] | None = None,
) -> int:
    """Number of features of an encoder, without building it.

    Arguments and errors are those of `make_encoder`.
    """
    spec = lookup(ENCODERS, name, "config.encoder.name")
    return _widths(name, spec, width_multiplier, widths)[-1]


def _blocks(
    name: str, spec: EncoderSpec, blocks: Sequence[int] | None
) -> tuple[int, int, int]:
    if spec.blocks is not None:
        return spec.blocks
    return _checked("blocks", blocks, 3, "(3, 3, 3)", name)


def _widths(
    name: str, spec: EncoderSpec, multiplier: float, widths: Sequence[int] | None
) -> tuple[int, int, int, int]:
    if not _is_number(multiplier) or not 0 < multiplier < math.inf:
        raise UsageError(
            f"config.encoder.width_multiplier={multiplier!r} must be a positive number;"
            " 1.0 keeps the widths, 0.25 gives a quarter of them."
        )
    if spec.widths is not None:
        widths = spec.widths
    else:
        widths = _checked("widths", widths, 4, "(64, 128, 256, 512)", name)
    if multiplier == 1:
        return widths
    return tuple(max(8, 8 * math.floor(w * multiplier / 8 + 0.5)) for w in widths)


def _checked(
    field: str, given: Sequence[int] | None, length: int, example: str, name: str
) -> tuple[int, ...]:
    """Returns the numbers of a field of the configuration."""
    valid = isinstance(given, (tuple, list)) and len(given) == length
    if not valid or not all(_is_positive_int(n) for n in given):
        raise UsageError(
            f"config.encoder.{field}={given!r} must be {length} positive integers for"
            f" config.encoder.name={name!r}; cifar10_resnet20 has {example}."
        )
    return tuple(given)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_WIDTHS = (64, 128, 256, 512)

ENCODERS = {
    "cifar10_resnet20": EncoderSpec((3, 3, 3), _WIDTHS),
    "cifar10_resnet32": EncoderSpec((5, 5, 5), _WIDTHS),
    "cifar10_resnet44": EncoderSpec((7, 7, 7), _WIDTHS),
    "cifar10_resnet56": EncoderSpec((9, 9, 9), _WIDTHS),
    "cifar10_resnet110": EncoderSpec((18, 18, 18), _WIDTHS),
    "cifar10_resnet1202": EncoderSpec((200, 200, 200), _WIDTHS),
    "lifted_cifar10_resnet20": EncoderSpec((3, 3, 3), _WIDTHS, lifted=True),
    "lifted_cifar10_resnet32": EncoderSpec((5, 5, 5), _WIDTHS, lifted=True),
    "lifted_cifar10_resnet44": EncoderSpec((7, 7, 7), _WIDTHS, lifted=True),
    "lifted_cifar10_resnet56": EncoderSpec((9, 9, 9), _WIDTHS, lifted=True),
    "lifted_cifar10_resnet110": EncoderSpec((18, 18, 18), _WIDTHS, lifted=True),
    "lifted_cifar10_resnet1202": EncoderSpec((200, 200, 200), _WIDTHS, lifted=True),
    "Cifar10_ResNet": EncoderSpec(blocks=None, widths=None),
}
