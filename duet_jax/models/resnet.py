"""Encoders: residual networks for small images.

Source: reference: its CIFAR-10 ResNets. These are those of He et al. (2016), section
4.2, with four (stem) and eight times (stages) as many channels, projection shortcuts
and BN on the features.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from flax import nnx

from duet_jax.models.batch_norm import BatchNorm
from duet_jax.models.convolution import convolve
from duet_jax.models.steerable_pyramid import NUM_BANDS, steerable_pyramid
from duet_jax.types import Array


class ResNet(nnx.Module):
    """Residual network with three stages of basic blocks.

    A 3x3 stem, three stages of which the second and third halve the image, global
    average pooling, and BN on the features.

    Attributes:
      num_features: dimensions of the features.
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
        """Builds the network; the arguments are those of `encoders.make_encoder`."""
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
          images: [batch, side, side, in_channels], normalized; any side.
          train: see `BatchNorm`.

        Returns:
          float32 features, [batch, num_features].
        """
        *_, (_, y) = self.maps(images, train=train)
        y = jnp.mean(y, (1, 2), dtype=self.final_norm.dtype)
        return self.final_norm(y, train=train)

    def maps(self, images: Array, *, train: bool) -> Iterator[tuple[str, Array]]:
        """Yields what the stem and each stage make of images, by name.

        Args:
          images: as for a call.
          train: likewise.
        """
        y = nnx.relu(self.stem_norm(self.stem(images), train=train))
        yield "stem", y
        run = nnx.remat(_run, static_argnums=2) if self.remat else _run
        for name in ("stage1", "stage2", "stage3"):
            for block in getattr(self, name):
                y = run(block, y, train)
            yield name, y


class LiftedResNet(nnx.Module):
    """A ResNet on the bands of a fixed steerable pyramid.

    Source: reference: its "lifted" encoders, of which only the number of inputs is
    known; the pyramid is ours (see `steerable_pyramid`).

    Attributes:
      num_features: dimensions of the features.
    """

    def __init__(self, *, in_channels: int, **resnet):
        """Builds the network for images of `in_channels`; see `ResNet`."""
        self.resnet = ResNet(in_channels=in_channels * NUM_BANDS, **resnet)
        self.num_features = self.resnet.num_features

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes features as `ResNet` does, from the bands of `images`."""
        return self.resnet(steerable_pyramid(images), train=train)

    def maps(self, images: Array, *, train: bool) -> Iterator[tuple[str, Array]]:
        """Yields what the stem and each stage make of the bands; see `ResNet`."""
        return self.resnet.maps(steerable_pyramid(images), train=train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: conv BN ReLU, conv BN, add, ReLU.

    The shortcut of a block that changes the shape is a 1x1 convolution and BN.
    """

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
        if stride == 1 and in_channels == out_channels:
            self.shortcut = None
        else:
            self.shortcut = nnx.Dict(
                conv=_conv(in_channels, out_channels, 1, stride, dtype, rngs),
                norm=BatchNorm(out_channels, dtype=dtype),
            )

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [batch, side, side, in_channels] to the block's output."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.shortcut is not None:
            x = self.shortcut.norm(self.shortcut.conv(x), train=train)
        return nnx.relu(y + x)


def _run(block: BasicBlock, x: Array, train: bool) -> Array:
    return block(x, train=train)


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
        # "SAME" would pad strided convolutions on the other side.
        padding=size // 2,
        use_bias=False,
        # Kaiming normal; that of JAX is truncated.
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
        conv_general_dilated=convolve,
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
