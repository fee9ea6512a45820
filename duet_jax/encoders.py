"""Encoders for a program of your own: modules of Flax NNX, by name.

from duet_jax import augment, encoders

encoder = encoders.create("cifar10_resnet20", channels=3, seed=0)
features = encoder(augment.normalize(views), train=False)     # float32 [n, 512]
"""

from __future__ import annotations

from collections.abc import Sequence

from duet_jax.errors import lookup
from duet_jax.lazy import nnx
from duet_jax.models.encoders import ENCODERS, STEMS, make_encoder

__all__ = ["ENCODERS", "create"]


def create(
    name: str,
    *,
    channels: int = 3,
    width_multiplier: float = 1.0,
    blocks: Sequence[int] = (1, 1, 1),
    widths: Sequence[int] = (16, 16, 32, 128),
    stem: str = "cifar",
    patch_size: int = 4,
    side: int = 32,
    dtype: str = "float32",
    remat: bool = False,
    seed: int = 0,
) -> nnx.Module:
    """Returns a newly initialized encoder.

    Args:
      name: a key of ENCODERS.
      channels: of the images, 1 or 3.
      width_multiplier: scales all widths, to multiples of 8; of a vit the number of
        heads, of 64 features each.
      blocks: number of basic blocks of each of three stages; of Cifar10_ResNet only.
      widths: channels of the stem and of each stage; likewise.
      stem: of resnet18, resnet34 and resnet50: cifar or imagenet.
      patch_size: of a vit: side of a patch in pixels.
      side: of the images; a vit learns positions for its patches, and interpolates them
        for other sides. No other encoder reads it.
      dtype: that it computes in, float32 or bfloat16; parameters are float32.
      remat: keep only the inputs of the blocks for the backward pass.
      seed: of the initial weights.

    Returns:
      A module with `num_features`; `(images, train=...)` takes normalized images, in
      [-0.5, 0.5], and returns float32 features, [n, num_features].

    Raises:
      UsageError: the name or the stem is unknown, or patches do not fill the images.
    """
    lookup(ENCODERS, name, "encoder")
    lookup(dict.fromkeys(STEMS), stem, "stem")
    return make_encoder(
        name,
        in_channels=channels,
        width_multiplier=width_multiplier,
        blocks=blocks,
        widths=widths,
        stem=stem,
        patch_size=patch_size,
        side=side,
        dtype=dtype,
        remat=remat,
        rngs=nnx.Rngs(seed),
    )
