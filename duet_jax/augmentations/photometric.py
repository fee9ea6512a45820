"""Augmentations that change colors: gray, blur, color jitter, solarize.

The pixel functions take batches, NHWC float32 in [0, 1], and one number per image.
dm-pix provides the conversion from HSV and the inversion of `sol`. We do not use its
other color functions: its gray weights red by .2989 (.299 here), its brightness is
additive, its contrast uses a mean per channel, its saturation scales HSV, its hue is
not safe to fuse (see `rgb_to_hsv`), and its blur pads the image with zeros.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from duet_jax.augmentations.record import (
    Augmentation,
    Frame,
    Options,
    Params,
    Prediction,
    Scale,
    between,
    on_or_off,
    per_image,
    uniform,
)
from duet_jax.lazy import jax, jnp, pix
from duet_jax.types import Array


def luma(images: Array) -> Array:
    """Returns the gray value of each pixel.

    Args:
      images: [batch, H, W, 3], or one channel, which is returned unchanged.

    Returns:
      [batch, H, W, 1], with weights .299, .587, .114 (ITU-R BT.601).
    """
    if images.shape[-1] == 1:
        return images
    # A sum, not a matrix product: accelerators round the inputs of those.
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blur(images: Array, sigma: Array) -> Array:
    """Blurs images with a 3x3 Gaussian kernel; the border is reflected.

    Args:
      images: [batch, H, W, C], sides at least 2.
      sigma: standard deviations in pixels, [batch]; 0 leaves the image unchanged.

    Returns:
      [batch, H, W, C].

    Source: reference: kornia's separable blur.
    """
    # The floor keeps the exponent finite; at this sigma the neighbors have weight 0.
    neighbor = jnp.exp(-0.5 / jnp.maximum(sigma, 1e-3) ** 2)
    center = per_image(1 / (1 + 2 * neighbor))
    side = per_image(neighbor / (1 + 2 * neighbor))
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (1, 1)
        padded = jnp.pad(images, width, mode="reflect")
        length = images.shape[axis]
        before = jax.lax.slice_in_dim(padded, 0, length, axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, length + 2, axis=axis)
        images = center * images + side * (before + after)
    return images


def adjust_brightness(images: Array, factor: Array) -> Array:
    """Multiplies images [batch, H, W, C] by factors [batch], clipped to [0, 1]."""
    return jnp.clip(per_image(factor) * images, 0, 1)


def _blend(images: Array, other: Array, factor: Array) -> Array:
    factor = per_image(factor)
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def adjust_contrast(images: Array, factor: Array) -> Array:
    """Scales the distance of each pixel from the mean gray value of its image.

    Args:
      images: [batch, H, W, C].
      factor: 1 for no change, 0 for uniform gray, [batch].

    Returns:
      [batch, H, W, C], clipped to [0, 1].

    Source: reference; for one-channel images it takes the mean of the whole batch, we
    take that of each image, as for three channels.
    """
    # The gray value of the mean is the mean gray value, and three times as fast.
    mean = luma(jnp.mean(images, (1, 2), keepdims=True))
    return _blend(images, mean, factor)


def adjust_saturation(images: Array, factor: Array) -> Array:
    """Scales the distance of each pixel from its own gray value.

    Args:
      images: [batch, H, W, 3].
      factor: 1 for no change, 0 for gray, [batch].

    Returns:
      [batch, H, W, 3], clipped to [0, 1].
    """
    return _blend(images, luma(images), factor)


def rgb_to_hsv(images: Array) -> Array:
    """Returns hue in turns, in [-1/6, 5/6], saturation and value, [batch, H, W, 3].

    Source: dm-pix, which finds the largest channel by `value == red`. Under jit this
    can be false for all three channels: the two sides may be fused with preceding
    operations, computed twice and rounded differently. We compare the channels with
    each other, which is safe, as the hue is continuous where two of them are equal.
    """
    red, green, blue = jnp.split(images, 3, axis=-1)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    sixth = 1 / (6 * jnp.where(chroma > 0, chroma, 1))
    not_red = jnp.where(
        green >= blue, sixth * (blue - red) + 1 / 3, sixth * (red - green) + 2 / 3
    )
    is_red = (red >= green) & (red >= blue)
    hue = jnp.where(is_red, sixth * (green - blue), not_red)
    saturation = chroma / jnp.where(value > 0, value, 1)
    return jnp.concatenate([hue, saturation, value], axis=-1)


def adjust_hue(images: Array, turns: Array) -> Array:
    """Shifts the hue of images [batch, H, W, 3] by fractions of a turn [batch]."""
    hue, saturation, value = jnp.split(rgb_to_hsv(images), 3, axis=-1)
    hsv = jnp.concatenate([hue + per_image(turns), saturation, value], axis=-1)
    return pix.hsv_to_rgb(hsv)


def solarize(images: Array, threshold: Array, addition: Array) -> Array:
    """Adds a constant, clips, and inverts the bright values.

    Args:
      images: [batch, H, W, C].
      threshold: values from here on are inverted, [batch].
      addition: added to the image first, [batch].

    Returns:
      [batch, H, W, C] in [0, 1].
    """
    raised = jnp.clip(images + per_image(addition), 0, 1)
    return pix.solarize(raised, per_image(threshold))


def _ranged(
    name: str,
    ends: Callable[[Options], tuple[float, float]],
    unit: str,
    others: Callable[[int, Frame], Params],
) -> dict[str, Any]:
    """Returns structure, topology and scale for a parameter's place in its range.

    Args:
      name: key of the parameter in the params.
      ends: options -> ends of its range.
      unit: see `Scale`.
      others: (batch, frame) -> params that change nothing but by this parameter.
    """

    def structure(params: Params, frame: Frame) -> Array:
        low, high = ends(frame.options)
        return jnp.clip((params[name] - low) / (high - low), 0, 1)

    def parameter(values: Array, frame: Frame) -> Array:
        return between(values, *ends(frame.options))

    def params(values: Array, frame: Frame) -> Params:
        return {**others(len(values), frame), name: parameter(values, frame)}

    return {
        "structure": structure,
        "topology": "line",
        "scale": Scale(unit, parameter, params),
    }


# In the order of Options.jitter_strength.
_ADJUST = {
    "bri": adjust_brightness,
    "con": adjust_contrast,
    "sat": adjust_saturation,
    "hue": adjust_hue,
}
# Row i holds the components in the order that the param `order` = i stands for.
JITTER_ORDERS = tuple(itertools.permutations(_ADJUST))


def _components(frame: Frame) -> tuple[str, ...]:
    """Returns the components that a stage carries out; `jit` means all."""
    return tuple(c for c in _ADJUST if c in frame.codes or "jit" in frame.codes)


def _neutral(code: str) -> float:
    return 0.0 if code == "hue" else 1.0


def _factor_range(code: str, options: Options) -> tuple[float, float]:
    strength = options.jitter_strength[tuple(_ADJUST).index(code)]
    return _neutral(code) - strength, _neutral(code) + strength


def _draw_jitter(key: Array, n: int, frame: Frame) -> Params:
    order_key, *keys = jax.random.split(key, 1 + len(_ADJUST))
    components = _components(frame)
    factors = {
        code: uniform(key, n, *_factor_range(code, frame.options))
        for code, key in zip(_ADJUST, keys, strict=True)
        if code in components
    }
    order = jax.random.randint(order_key, (), 0, len(JITTER_ORDERS))
    return {"jittered": jnp.ones((n,), bool), "order": order, **factors}


def _identity_jitter(n: int, frame: Frame) -> Params:
    factors = {code: jnp.full((n,), _neutral(code)) for code in _components(frame)}
    order = jnp.zeros((), jnp.int32)
    return {"jittered": jnp.zeros((n,), bool), "order": order, **factors}


def _apply_jitter(images: Array, params: Params, frame: Frame) -> Array:
    components = _components(frame)
    orders = jnp.array(
        [[components.index(c) for c in row if c in components] for row in JITTER_ORDERS]
    )
    order = orders[params["order"]]
    # Every step computes all components and selects one: a `lax.switch` would do less
    # arithmetic, but on a GPU the host would have to wait for the index.
    jittered = images
    for place in range(len(components)):
        outcomes = [_ADJUST[code](jittered, params[code]) for code in components]
        jittered = jax.lax.select_n(order[place], *outcomes)
    return jnp.where(per_image(params["jittered"]), jittered, images)


_jitter = functools.partial(
    Augmentation,
    draw=_draw_jitter,
    identity=_identity_jitter,
    apply=_apply_jitter,
    probability="jitter_probability",
    stretched_by=("jitter_strength",),
    stage="jitter",
)

JITTER = _jitter(
    code="jit",
    summary="color jitter: brightness, contrast, saturation and hue",
    source="reference, where the code alone does nothing; here it means all four "
    "components. One order of the operations per batch, as in kornia 0.6",
    channels=(3,),
)


def _component(
    code: str,
    summary: str,
    unit: str = "factor",
    channels: tuple[int, ...] = (1, 3),
) -> Augmentation:
    """Returns the record of one component of the color jitter."""
    return _jitter(
        code=code,
        summary=summary,
        source="reference, where no code reaches it",
        **_ranged(
            code,
            functools.partial(_factor_range, code),
            unit,
            lambda n, frame: (
                _identity_jitter(n, frame) | {"jittered": jnp.ones((n,), bool)}
            ),
        ),
        channels=channels,
        prediction=Prediction(
            num_outputs=1,
            classification=False,
            # With the default strength, whatever the configuration says.
            draw=lambda key, n: {
                code: uniform(key, n, *_factor_range(code, Options()))
            },
            transform=lambda images, params: _ADJUST[code](images, params[code]),
            targets=lambda params: params[code],
        ),
    )


BRIGHTNESS = _component("bri", "brightness, by a factor")
CONTRAST = _component("con", "contrast, about the mean gray value of the image")
SATURATION = _component(
    "sat", "saturation, about the gray value of each pixel", channels=(3,)
)
HUE = _component("hue", "shift of the hue", unit="turns of hue", channels=(3,))


def _zero_or_one(unit: str, params: Callable[[Array, Frame], Params]) -> Scale:
    """Scale of a structure that is 1 for augmented images and 0 for the others."""
    return Scale(unit, lambda values, frame: values, params, levels=(0.0, 1.0))


GRAY = Augmentation(
    code="gra",
    summary="gray, on three channels",
    source="reference",
    **on_or_off("grey", luma),
    structure=lambda params, frame: params["grey"].astype(jnp.float32),
    topology="line",
    scale=_zero_or_one("gray", lambda values, frame: {"grey": values >= 0.5}),
    channels=(3,),
    probability="grey_probability",
)


def _blur_or_not(values: Array, frame: Frame) -> Params:
    middle = sum(frame.options.blur_sigma) / 2
    return {"sigma": jnp.where(values >= 0.5, middle, 0.0)}


BLUR = Augmentation(
    code="blu",
    summary="Gaussian blur of three by three pixels",
    source="reference; the structure value says whether, not how much",
    draw=lambda key, n, frame: {"sigma": uniform(key, n, *frame.options.blur_sigma)},
    identity=lambda n, frame: {"sigma": jnp.zeros((n,))},
    apply=lambda images, params, frame: blur(images, params["sigma"]),
    structure=lambda params, frame: (params["sigma"] > 0).astype(jnp.float32),
    topology="line",
    scale=_zero_or_one("blurred", _blur_or_not),
    probability="blur_probability",
    stretched_by=("blur_sigma",),
)


def _draw_solarize(key: Array, n: int, frame: Frame) -> Params:
    threshold_key, addition_key = jax.random.split(key)
    threshold = uniform(threshold_key, n, *frame.options.solarize_threshold)
    addition = uniform(addition_key, n, *frame.options.solarize_addition)
    return {
        "solarized": jnp.ones((n,), bool),
        "threshold": threshold,
        "addition": addition,
    }


def _apply_solarize(images: Array, params: Params, frame: Frame) -> Array:
    del frame
    solarized = solarize(images, params["threshold"], params["addition"])
    return jnp.where(per_image(params["solarized"]), solarized, images)


SOLARIZE = Augmentation(
    code="sol",
    summary="inversion of bright values",
    source="reference, where no code reaches it. Images that are not solarized have "
    "structure value 1: the higher the threshold, the less is inverted",
    draw=_draw_solarize,
    identity=lambda n, frame: {
        "solarized": jnp.zeros((n,), bool),
        "threshold": jnp.ones((n,)),
        "addition": jnp.zeros((n,)),
    },
    apply=_apply_solarize,
    **_ranged(
        "threshold",
        lambda options: options.solarize_threshold,
        "threshold",
        lambda n, frame: {
            "solarized": jnp.ones((n,), bool),
            "addition": jnp.zeros((n,)),
        },
    ),
    probability="solarize_probability",
    stretched_by=("solarize_threshold", "solarize_addition"),
)
