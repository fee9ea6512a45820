"""The encoders by name, and what a configuration makes of them.

A row of `ENCODERS` is an architecture: it says which fields of a configuration it
reads, and makes the network. The networks are in `resnet.py` and `vit.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from etils import epy

from duet_jax.errors import UsageError, lookup
from duet_jax.lazy import jnp, nnx

with epy.lazy_imports():
    from duet_jax.models import resnet, vit

if TYPE_CHECKING:
    import numpy as np

STEMS = ("cifar", "imagenet")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """What a configuration says of an encoder; see `make_encoder`.

    What its architecture does not read may be None.
    """

    name: str
    in_channels: int
    width_multiplier: float = 1.0
    blocks: Sequence[int] | None = None
    widths: Sequence[int] | None = None
    stem: str | None = "cifar"
    patch_size: int | None = 4
    side: int = 32
    dtype: str | np.dtype = "float32"
    remat: bool = False

    @property
    def spec(self) -> EncoderSpec:
        """The architecture; a UsageError if there is none of that name."""
        return lookup(ENCODERS, self.name, "config.encoder.name")

    @property
    def num_features(self) -> int:
        """Number of features of the encoder."""
        return self.spec.num_features(self)

    def check_side(self, side: int, of: str = "the views") -> None:
        """Raises a UsageError if the encoder cannot take images of `side` pixels.

        Args:
          side: of the images.
          of: what they are, for the message.
        """
        self.spec.check_side(self, side, of)


class EncoderSpec(abc.ABC):
    """An architecture: a row of `ENCODERS`.

    Attributes:
      summary: in a few words, for --list.
      fields: those of `config.encoder` that it reads, besides `name`,
        `width_multiplier` and `remat`.
    """

    summary: str
    fields: tuple[str, ...]

    @abc.abstractmethod
    def num_features(self, settings: EncoderSettings) -> int:
        """Returns the number of features."""

    @abc.abstractmethod
    def make(self, settings: EncoderSettings, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialized network; see `make_encoder`."""

    def check_side(self, settings: EncoderSettings, side: int, of: str) -> None:
        """Raises a UsageError for a side that it cannot take; by default, none."""
        del settings, side, of


@dataclasses.dataclass(frozen=True)
class ReferenceResNet(EncoderSpec):
    """A ResNet of the reference: three stages of basic blocks, BN on the features.

    Attributes:
      blocks: number of basic blocks of each stage; None if set by the configuration.
      widths: channels of the stem and of each stage; likewise.
      lifted: True if the images first pass through the steerable pyramid.
    """

    blocks: tuple[int, int, int] | None
    widths: tuple[int, int, int, int] | None = (64, 128, 256, 512)
    lifted: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The two tuples, if it has none of its own."""
        return () if self.blocks else ("blocks", "widths")

    @property
    def summary(self) -> str:
        """The architecture in a few words."""
        if self.blocks is None:
            return "ResNet of encoder.blocks and encoder.widths"
        blocks, widths = _listed(self.blocks), _listed(self.widths)
        images = " on a steerable pyramid of the image" if self.lifted else ""
        return f"ResNet of {blocks} blocks and widths {widths}{images}"

    def num_features(self, settings: EncoderSettings) -> int:
        """Returns the last width."""
        return self._widths(settings)[-1]

    def make(self, settings: EncoderSettings, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialized network."""
        network = resnet.LiftedResNet if self.lifted else resnet.ResNet
        return network(
            blocks=self.blocks or settings.blocks,
            widths=self._widths(settings),
            **_shared(settings, rngs),
        )

    def _widths(self, settings: EncoderSettings) -> tuple[int, ...]:
        widths = self.widths or tuple(settings.widths)
        return _scaled(widths, settings.width_multiplier)


@dataclasses.dataclass(frozen=True)
class TorchvisionResNet(EncoderSpec):
    """A ResNet of four stages as torchvision has it, without the classifier.

    Attributes:
      blocks: number of blocks of each stage.
      bottleneck: True for bottlenecks, whose outputs are four times as wide, in the
        place of basic blocks.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False

    fields: ClassVar[tuple[str, ...]] = ("stem",)

    @property
    def summary(self) -> str:
        """The architecture in a few words."""
        kind = "bottlenecks" if self.bottleneck else "basic blocks"
        return f"torchvision's ResNet of {_listed(self.blocks)} {kind}; encoder.stem"

    def num_features(self, settings: EncoderSettings) -> int:
        """Returns the width of the last stage's outputs."""
        return self._widths(settings)[-1] * (4 if self.bottleneck else 1)

    def make(self, settings: EncoderSettings, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialized network."""
        return resnet.ResNet(
            blocks=self.blocks,
            widths=self._widths(settings),
            bottleneck=self.bottleneck,
            stem=settings.stem,
            final_norm=False,
            fan="fan_out",
            **_shared(settings, rngs),
        )

    def _widths(self, settings: EncoderSettings) -> tuple[int, ...]:
        return _scaled((64, 64, 128, 256, 512), settings.width_multiplier)


@dataclasses.dataclass(frozen=True)
class TimmViT(EncoderSpec):
    """A vision transformer as timm has it, without the classifier.

    Attributes:
      heads: of the attention, with 64 features each.
      depth: number of blocks.
    """

    heads: int
    depth: int = 12

    fields: ClassVar[tuple[str, ...]] = ("patch_size",)

    @property
    def summary(self) -> str:
        """The architecture in a few words."""
        return (
            f"timm's vision transformer of {self.depth} blocks and {self.heads} heads "
            f"of {_HEAD}; encoder.patch_size"
        )

    def num_features(self, settings: EncoderSettings) -> int:
        """Returns the width of a token."""
        return _HEAD * self._heads(settings)

    def make(self, settings: EncoderSettings, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a newly initialized network."""
        self.check_side(settings, settings.side, "the images")
        return vit.ViT(
            depth=self.depth,
            num_features=self.num_features(settings),
            heads=self._heads(settings),
            patch_size=settings.patch_size,
            side=settings.side,
            **_shared(settings, rngs),
        )

    def check_side(self, settings: EncoderSettings, side: int, of: str) -> None:
        """Raises a UsageError unless patches fill an image."""
        patch = settings.patch_size
        if side % patch:
            fitting = [n for n in range(1, side // 2 + 1) if side % n == 0]
            raise UsageError(
                f"config.encoder.patch_size={patch} must divide the side of {of}, "
                f"{side} pixels; use {', '.join(map(str, fitting))}, or another "
                "config.dataset.image_size."
            )

    def _heads(self, settings: EncoderSettings) -> int:
        return max(1, math.floor(self.heads * settings.width_multiplier + 0.5))


def make_encoder(
    name: str,
    *,
    in_channels: int,
    width_multiplier: float = 1.0,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    stem: str | None = "cifar",
    patch_size: int | None = 4,
    side: int = 32,
    dtype: str | np.dtype = "float32",
    remat: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds the encoder that a configuration describes.

    Args:
      name: a key of `ENCODERS`.
      in_channels: 1 for gray images, 3 for RGB.
      width_multiplier: scales all widths of a ResNet, rounded to multiples of 8 and at
        least 8, and the number of a transformer's heads of 64, at least one; 1 leaves
        them unchanged.
      blocks: number of basic blocks of each stage; used for `Cifar10_ResNet` only.
      widths: channels of the stem and of each stage; likewise.
      stem: of torchvision's ResNets, "cifar" (3x3) or "imagenet" (7x7 of stride 2, then
        a maximum over 3x3 of stride 2).
      patch_size: side of a transformer's patches in pixels.
      side: of the images, for whose patches a transformer learns positions. It takes
        other multiples of `patch_size`, too, and the other encoders any side.
      dtype: compute type, float32 or bfloat16.
      remat: store only the input of each block for the backward pass, and recompute
        the rest.
      rngs: source of the initial weights.

    Returns:
      A module with `num_features`; `(images, train=...)` returns float32 features,
      [batch, num_features].

    Raises:
      UsageError: the name is unknown, or patches do not fill the images.
    """
    settings = EncoderSettings(
        name=name,
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        blocks=blocks,
        widths=widths,
        stem=stem,
        patch_size=patch_size,
        side=side,
        dtype=dtype,
        remat=remat,
    )
    return settings.spec.make(settings, rngs)


def _shared(settings: EncoderSettings, rngs: nnx.Rngs) -> dict:
    """Returns the arguments that all networks take."""
    return {
        "in_channels": settings.in_channels,
        "dtype": jnp.dtype(settings.dtype),
        "remat": settings.remat,
        "rngs": rngs,
    }


def _scaled(widths: tuple[int, ...], multiplier: float) -> tuple[int, ...]:
    if multiplier == 1:
        return widths
    return tuple(max(8, 8 * math.floor(w * multiplier / 8 + 0.5)) for w in widths)


def _listed(numbers: Sequence[int]) -> str:
    return "/".join(map(str, numbers))


_HEAD = 64  # features of a head

ENCODERS: dict[str, EncoderSpec] = {
    "cifar10_resnet20": ReferenceResNet((3, 3, 3)),
    "cifar10_resnet32": ReferenceResNet((5, 5, 5)),
    "cifar10_resnet44": ReferenceResNet((7, 7, 7)),
    "cifar10_resnet56": ReferenceResNet((9, 9, 9)),
    "cifar10_resnet110": ReferenceResNet((18, 18, 18)),
    "cifar10_resnet1202": ReferenceResNet((200, 200, 200)),
    "lifted_cifar10_resnet20": ReferenceResNet((3, 3, 3), lifted=True),
    "lifted_cifar10_resnet32": ReferenceResNet((5, 5, 5), lifted=True),
    "lifted_cifar10_resnet44": ReferenceResNet((7, 7, 7), lifted=True),
    "lifted_cifar10_resnet56": ReferenceResNet((9, 9, 9), lifted=True),
    "lifted_cifar10_resnet110": ReferenceResNet((18, 18, 18), lifted=True),
    "lifted_cifar10_resnet1202": ReferenceResNet((200, 200, 200), lifted=True),
    "Cifar10_ResNet": ReferenceResNet(blocks=None, widths=None),
    "resnet18": TorchvisionResNet((2, 2, 2, 2)),
    "resnet34": TorchvisionResNet((3, 4, 6, 3)),
    "resnet50": TorchvisionResNet((3, 4, 6, 3), bottleneck=True),
    "vit_tiny": TimmViT(heads=3),
    "vit_small": TimmViT(heads=6),
}
