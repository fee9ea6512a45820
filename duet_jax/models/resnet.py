"""Residual networks.

Source: He et al. (2016). With three stages of basic blocks and BN on the features they
are the reference's CIFAR-10 ResNets: those of section 4.2 of the paper, with four times
(stem) and eight times (stages) as many channels and projection shortcuts. With four
stages and without that BN they are torchvision's.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from flax import nnx

from duet_jax.models.batch_norm import BatchNorm
from duet_jax.models.convolution import convolve
from duet_jax.models.steerable_pyramid import NUM_BANDS, steerable_pyramid
from duet_jax.types import Array


class ResNet(nnx.Module):
    """Residual network: a stem, stages of blocks, global average pooling.

    All stages but the first halve the image.

    Attributes:
      stages: names of the stages, in order.
      num_features: dimensions of the features.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        in_channels: int,
        bottleneck: bool = False,
        stem: str = "cifar",
        final_norm: bool = True,
        fan: str = "fan_in",
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network; see also `encoders.make_encoder`.

        Args:
          blocks: number of blocks of each stage.
          widths: channels of the stem, and of the 3x3 convolutions of each stage.
          in_channels: of the images.
          bottleneck: of `Bottleneck`, not `BasicBlock`.
          stem: "cifar", a 3x3 convolution; or "imagenet", one of 7x7 and a maximum over
            3x3, each of stride 2.
          final_norm: BN on the features.
          fan: "fan_in" or "fan_out", the size that the initial kernels are scaled by.
          dtype: compute type.
          remat: recompute blocks for the backward pass.
          rngs: source of the initial weights.
        """
        conv = functools.partial(_conv, fan=fan, dtype=dtype, rngs=rngs)
        block = Bottleneck if bottleneck else BasicBlock
        first, *widths = widths
        self.remat = remat
        self.pooled = stem == "imagenet"
        size, stride = (7, 2) if self.pooled else (3, 1)
        self.stem = conv(in_channels, first, size, stride)
        self.stem_norm = BatchNorm(first, dtype=dtype)
        self.stages = tuple(f"stage{i + 1}" for i in range(len(blocks)))
        for i, (name, depth, width) in enumerate(
            zip(self.stages, blocks, widths, strict=True)
        ):
            strides = [2 if i else 1, *[1] * (depth - 1)]
            made = []
            for stride in strides:
                made.append(block(first, width, stride, conv=conv))
                first = width * block.expansion
            setattr(self, name, nnx.List(made))
        self.num_features = first
        self._wide = jnp.promote_types(dtype, jnp.float32)
        self.final_norm = BatchNorm(first, dtype=self._wide) if final_norm else None

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes features.

        Args:
          images: [batch, side, side, in_channels], normalized; any side.
          train: see `BatchNorm`.

        Returns:
          float32 features, [batch, num_features].
        """
        *_, (_, y) = self.maps(images, train=train)
        y = jnp.mean(y, (1, 2), dtype=self._wide)
        return y if self.final_norm is None else self.final_norm(y, train=train)

    def maps(self, images: Array, *, train: bool) -> Iterator[tuple[str, Array]]:
        """Yields what the stem and each stage make of images, by name.

        Args:
          images: as for a call.
          train: likewise.
        """
        y = nnx.relu(self.stem_norm(self.stem(images), train=train))
        if self.pooled:
            y = nnx.max_pool(y, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        yield "stem", y
        run = nnx.remat(_run, static_argnums=2) if self.remat else _run
        for name in self.stages:
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


class Residual(nnx.Module):
    """A block: convolutions with BN beside a shortcut, then ReLU.

    The shortcut of a block that changes the shape is a 1x1 convolution and BN.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int, int]], conv: Callable[..., nnx.Conv]
    ):
        """Builds a block.

        Args:
          shapes: channels in and out, size and stride of each convolution.
          conv: makes one of them.
        """
        for i, shape in enumerate(shapes, 1):
            layer = conv(*shape)
            setattr(self, f"conv{i}", layer)
            setattr(self, f"norm{i}", BatchNorm(shape[1], dtype=layer.dtype))
        self.depth = len(shapes)
        in_channels, out_channels = shapes[0][0], shapes[-1][1]
        stride = max(each[3] for each in shapes)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = None
        else:
            layer = conv(in_channels, out_channels, 1, stride)
            norm = BatchNorm(out_channels, dtype=layer.dtype)
            self.shortcut = nnx.Dict(conv=layer, norm=norm)

    @property
    def layers(self) -> list[tuple[nnx.Conv, BatchNorm]]:
        """The convolutions beside the shortcut, each with its BN."""
        numbers = range(1, self.depth + 1)
        return [(getattr(self, f"conv{i}"), getattr(self, f"norm{i}")) for i in numbers]

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [batch, side, side, channels] to the block's output."""
        y = x
        for i, (conv, norm) in enumerate(self.layers):
            y = norm(conv(nnx.relu(y) if i else y), train=train)
        if self.shortcut is not None:
            x = self.shortcut.norm(self.shortcut.conv(x), train=train)
        return nnx.relu(y + x)


class BasicBlock(Residual):
    """Two 3x3 convolutions and a shortcut: conv BN ReLU, conv BN, add, ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, *, conv):
        """Builds a block of `width` channels that divides the side by `stride`."""
        super().__init__([(in_channels, width, 3, stride), (width, width, 3, 1)], conv)


class Bottleneck(Residual):
    """Convolutions of 1x1, 3x3 and 1x1 and a shortcut; outputs are four times as wide.

    Source: torchvision (ResNet v1.5): the stride is that of the 3x3 convolution, where
    He et al. have it in the first.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, *, conv):
        """Builds a block of 4 `width` channels that divides the side by `stride`."""
        super().__init__(
            [
                (in_channels, width, 1, 1),
                (width, width, 3, stride),
                (width, self.expansion * width, 1, 1),
            ],
            conv,
        )


def _run(block: Residual, x: Array, train: bool) -> Array:
    return block(x, train=train)


def _conv(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int,
    *,
    fan: str,
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
        kernel_init=nnx.initializers.variance_scaling(2.0, fan, "normal"),
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )
