"""Augmentations for a program of your own: without a configuration.

    import jax
    from duet_jax import augment

    stack = augment.random_stack(("sca", "rot"), rotation_degrees=90.0)
    views, draws = jax.jit(stack)(jax.random.key(0), images)
    draws["rot"].parameter                                # degrees
    turned = augment.rotate(images, degrees)

All are pure functions of batches, floating numbers in [0, 1], [n, side, side,
channels], with one parameter for each image, [n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from duet_jax.augmentations import (
    AUGMENTATIONS,
    Options,
    make_stack,
    normalize,
    to_float,
)
from duet_jax.augmentations.geometric import rotate, turn
from duet_jax.augmentations.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    solarize,
)
from duet_jax.errors import UsageError, suggestion
from duet_jax.lazy import jnp
from duet_jax.types import Array

__all__ = [
    "AUGMENTATIONS",
    "Draw",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "blur",
    "normalize",
    "random_stack",
    "rotate",
    "solarize",
    "turn",
]


class Draw(NamedTuple):
    """What was drawn of one augmentation, for each image.

    Attributes:
      structure: its place in its range, float32 [n] in [0, 1]: the value that a target
        is centered on. On a circle 0 and 1 are the same.
      parameter: the same in own units, [n]: degrees of `rot`, turns of `hue`, the side
        of the crop over that of the image for `sca`; `AUGMENTATIONS[code].scale.unit`
        names it.
    """

    structure: Array
    parameter: Array


# (key, images) -> views, and what was drawn by code.
RandomStack = Callable[[Array, Array], tuple[Array, dict[str, Draw]]]


def random_stack(
    codes: Sequence[str] = ("sca", "rot"),
    *,
    image_size: int | None = None,
    **options: Any,
) -> RandomStack:
    """Returns a function that augments images and says what it drew for each.

    The function is pure and can be compiled; call it outside the differentiated one. It
    takes a JAX random key and images [n, side, side, channels] with 1 or 3 channels,
    uint8 or floating numbers in [0, 1]. It returns views, float32 [n, image_size,
    image_size, channels] in [0, 1], and a `Draw` for every code that has a structure.
    Encoders take `normalize(views)`.

    Args:
      codes: keys of AUGMENTATIONS, in the order in which they are applied.
      image_size: side of the views, at most that of the images, which is the default.
      **options: fields of `Options`; the defaults are the reference's.

    Raises:
      UsageError: an option or a code is unknown, out of range, or unsuited to these
        images.
    """
    known = {*Options.__dataclass_fields__}
    for name in options:
        if name not in known:
            raise UsageError(
                f"{name} is no option of an augmentation; choose from "
                f"{', '.join(sorted(known))}.{suggestion(name, known)}"
            )
    numbers = Options(**options)
    make_stack(tuple(codes), input_side=4, image_size=4, channels=3, options=numbers)

    def augment(key: Array, images: Array) -> tuple[Array, dict[str, Draw]]:
        n, side, _, channels = _checked(images, image_size)
        stack = make_stack(
            tuple(codes),
            input_side=side,
            image_size=image_size or side,
            channels=channels,
            options=numbers,
        )
        floating = to_float(images) if images.dtype == jnp.uint8 else images
        params = stack.draw(key, n)
        views = stack.apply(jnp.asarray(floating, jnp.float32), params)
        values = stack.structure(params)
        return views, {
            code: Draw(values[code], scale.parameter(values[code], frame))
            for code, (scale, frame) in stack.scales.items()
        }

    return augment


def _checked(images: Array, image_size: int | None) -> tuple[int, ...]:
    """Returns the shape of images that can be augmented."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] not in (1, 3):
        raise UsageError(
            f"images {list(shape)} must be [n, side, side, channels] with 1 or 3 "
            "channels; cut them square and move the channels to the end."
        )
    if image_size is not None and not 4 <= image_size <= shape[1]:
        raise UsageError(
            f"image_size={image_size} must lie between 4 and {shape[1]}, the side of "
            "the images."
        )
    return shape
