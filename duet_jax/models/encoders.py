"""The encoders by name, and what a configuration makes of them.

The networks are in `resnet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils import epy

from duet_jax.errors import lookup
from duet_jax.lazy import jnp, nnx

with epy.lazy_imports():
    from duet_jax.models import resnet

if TYPE_CHECKING:
    import numpy as np


class EncoderSpec(NamedTuple):
    """The architecture of a named encoder.

    Attributes:
      blocks: number of basic blocks of each stage; None if set by the configuration.
      widths: channels of the stem and of each stage; None likewise.
      lifted: True if the images first pass through the steerable pyramid.
    """

    blocks: tuple[int, int, int] | None
    widths: tuple[int, int, int, int] | None
    lifted: bool = False

    @property
    def summary(self) -> str:
        """The architecture in a few words, for --list."""
        if self.blocks is None:
            return "ResNet of encoder.blocks and encoder.widths"
        blocks, widths = (
            "/".join(map(str, each)) for each in (self.blocks, self.widths)
        )
        images = " on a steerable pyramid of the image" if self.lifted else ""
        return f"ResNet of {blocks} blocks and widths {widths}{images}"


def make_encoder(
    name: str,
    *,
    in_channels: int,
    width_multiplier: float = 1.0,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    dtype: str | np.dtype = "float32",
    remat: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds the encoder that a configuration describes.

    Args:
      name: a key of `ENCODERS`.
      in_channels: 1 for gray images, 3 for RGB.
      width_multiplier: scales all widths, rounded to multiples of 8 and at least 8; 1
        leaves the widths unchanged.
      blocks: number of basic blocks of each stage; used for `Cifar10_ResNet` only.
      widths: channels of the stem and of each stage; likewise.
      dtype: compute type, float32 or bfloat16.
      remat: store only the input of each block for the backward pass, and recompute
        the rest.
      rngs: source of the initial weights.

    Returns:
      A module with `num_features`; `(images, train=...)` returns float32 features,
      [batch, num_features].

    Raises:
      UsageError: the name is unknown.
    """
    spec = lookup(ENCODERS, name, "config.encoder.name")
    network = resnet.LiftedResNet if spec.lifted else resnet.ResNet
    return network(
        blocks=spec.blocks or tuple(blocks),
        widths=_scaled(spec.widths or tuple(widths), width_multiplier),
        in_channels=in_channels,
        dtype=jnp.dtype(dtype),
        remat=remat,
        rngs=rngs,
    )


def num_features(
    name: str,
    width_multiplier: float = 1.0,
    widths: Sequence[int] | None = None,
) -> int:
    """Returns the number of features of an encoder without building it.

    Arguments and errors are those of `make_encoder`.
    """
    spec = lookup(ENCODERS, name, "config.encoder.name")
    return _scaled(spec.widths or tuple(widths), width_multiplier)[-1]


def _scaled(widths: tuple[int, ...], multiplier: float) -> tuple[int, ...]:
    if multiplier == 1:
        return widths
    return tuple(max(8, 8 * math.floor(w * multiplier / 8 + 0.5)) for w in widths)


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
