"""Augmentations that change colours: grey, blur, colour jitter, solarize.

The pixel functions take batches, NHWC float32 in [0, 1], and one number per image.
dm-pix provides the way back from HSV and the inversion of `sol`. Its grey has .2989 for
red (.299 here, a difference of 1e-4), its brightness is additive, its contrast uses a
mean per channel, its saturation scales HSV, its hue is not safe to fuse (`rgb_to_hsv`),
and its blur surrounds the image with zeros.
"""

import functools
import itertools

import dm_pix as pix
import jax
import jax.numpy as jnp

from duet_jax.augmentations.record import (
    Array,
    Augmentation,
    Frame,
    Options,
    Params,
    Prediction,
    Scale,
    orbit,
    per_image,
)


def luma(images: Array) -> Array:
    """Returns the grey value of each pixel.

    Args:
      images: [batch, H, W, 3], or one channel, which is returned as it is.

    Returns:
      [batch, H, W, 1], with weights .299, .587, .114 (ITU-R BT.601).
    """
    if images.shape[-1] == 1:
        return images
    # A sum, not a matrix product: accelerators round the inputs of products.
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def grey(images: Array, chosen: Array) -> Array:
    """Turns those images, [batch, H, W, 3], grey for which `chosen`, [batch], is set.

    The result keeps its three channels.
    """
    return jnp.where(per_image(chosen), luma(images), images)


def blur(images: Array, sigma: Array) -> Array:
    """Blurs images with a Gaussian of three by three pixels, reflected at the border.

    Args:
      images: [batch, H, W, C], sides at least 2.
      sigma: standard deviations in pixels, [batch]; 0 leaves the image unchanged.

    Returns:
      [batch, H, W, C].

    Source: reference: kornia's separable blur.
    """
    # The floor keeps the exponent finite; a Gaussian that narrow has no neighbours.
    neighbour = jnp.exp(-0.5 / jnp.maximum(sigma, 1e-3) ** 2)
    centre = per_image(1 / (1 + 2 * neighbour))
    side = per_image(neighbour / (1 + 2 * neighbour))
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (1, 1)
        padded = jnp.pad(images, width, mode="reflect")
        length = images.shape[axis]
        before = jax.lax.slice_in_dim(padded, 0, length, axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, length + 2, axis=axis)
        images = centre * images + side * (before + after)
    return images


def adjust_brightness(images: Array, factor: Array) -> Array:
    """Multiplies images, [batch, H, W, C], by factors, [batch], and clips to [0, 1]."""
    return jnp.clip(per_image(factor) * images, 0, 1)


def _blend(images: Array, other: Array, factor: Array) -> Array:
    factor = per_image(factor)
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def adjust_contrast(images: Array, factor: Array) -> Array:
    """Scales the distance of each pixel from the mean grey value of its image.

    Args:
      images: [batch, H, W, C].
      factor: 1 for no change, 0 for uniform grey, [batch].

    Returns:
      [batch, H, W, C], clipped to [0, 1].

    Source: reference; for one-channel images the reference takes the mean over the
    whole batch, we take the image's own, as for three channels.
    """
    # The grey value of the mean is the mean grey value, and three times as fast.
    mean = luma(jnp.mean(images, (1, 2), keepdims=True))
    return _blend(images, mean, factor)


def adjust_saturation(images: Array, factor: Array) -> Array:
    """Scales the distance of each pixel from its own grey value.

    Args:
      images: [batch, H, W, 3].
      factor: 1 for no change, 0 for grey, [batch].

    Returns:
      [batch, H, W, 3], clipped to [0, 1].
    """
    return _blend(images, luma(images), factor)


def rgb_to_hsv(images: Array) -> Array:
    """Returns hue in turns, in [-1/6, 5/6], saturation and value, [batch, H, W, 3].

    Source: dm-pix, which looks for the largest channel with `value == red`. Under jit
    that can fail for all three: fused with what made the image, both sides may be
    computed twice and rounded differently. Comparing the channels with each other is
    safe, as the hue is continuous where two of them are equal.
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
    """Shifts the hue of images, [batch, H, W, 3], by parts of a full turn, [batch]."""
    hue, saturation, value = jnp.split(rgb_to_hsv(images), 3, axis=-1)
    hsv = jnp.concatenate([hue + per_image(turns), saturation, value], axis=-1)
    return pix.hsv_to_rgb(hsv)


def solarize(images: Array, threshold: Array, addition: Array) -> Array:
    """Adds, clips, and inverts what is bright.

    Args:
      images: [batch, H, W, C].
      threshold: channel values from here on are inverted, [batch].
      addition: what is added to the image before, [batch].

    Returns:
      [batch, H, W, C] in [0, 1].
    """
    raised = jnp.clip(images + per_image(addition), 0, 1)
    return pix.solarize(raised, per_image(threshold))


# In the order of Options.jitter_strength.
_ADJUST = {
    "bri": adjust_brightness,
    "con": adjust_contrast,
    "sat": adjust_saturation,
    "hue": adjust_hue,
}
# Row i of the params' `order` = i: the components, by number, first to last.
JITTER_ORDERS = tuple(itertools.permutations(range(len(_ADJUST))))


def _components(frame: Frame) -> tuple[str, ...]:
    """Returns the parts of the jitter that a stage carries out; `jit` means all."""
    if "jit" in frame.codes:
        return tuple(_ADJUST)
    return tuple(code for code in _ADJUST if code in frame.codes)


def _neutral(code: str) -> float:
    return 0.0 if code == "hue" else 1.0


def _factor_range(code: str, options: Options) -> tuple[float, float]:
    strength = options.jitter_strength[tuple(_ADJUST).index(code)]
    return _neutral(code) - strength, _neutral(code) + strength


def _draw_factor(key: Array, n: int, code: str, options: Options) -> Array:
    low, high = _factor_range(code, options)
    return jax.random.uniform(key, (n,), minval=low, maxval=high)


def _draw_jitter(key: Array, n: int, frame: Frame) -> Params:
    order_key, *keys = jax.random.split(key, 1 + len(_ADJUST))
    components = _components(frame)
    factors = {
        code: _draw_factor(key, n, code, frame.options)
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
    places = [tuple(_ADJUST).index(code) for code in components]
    orders = jnp.array(
        [[places.index(p) for p in row if p in places] for row in JITTER_ORDERS]
    )

    def step(code: str):
        return lambda images: _ADJUST[code](images, params[code])

    # All operations at every place, of which one is kept: a `lax.switch` would do less
    # arithmetic, but on a GPU the host would have to read the index and wait.
    steps = [step(code) for code in components]
    order = orders[params["order"]]
    jittered = images
    for place in range(len(components)):
        outcomes = [step(jittered) for step in steps]
        jittered = jax.lax.select_n(order[place], *outcomes)
    return jnp.where(per_image(params["jittered"]), jittered, images)


def _factor_place(code: str, params: Params, frame: Frame) -> Array:
    low, high = _factor_range(code, frame.options)
    return jnp.clip((params[code] - low) / (high - low), 0, 1)


def _factor_scale(code: str, unit: str) -> Scale:
    """Structure of one factor as the factor itself."""

    def parameter(values: Array, frame: Frame) -> Array:
        low, high = _factor_range(code, frame.options)
        return low + (high - low) * values

    return Scale(unit=unit, parameter=parameter)


def _predict_factor(code: str) -> Prediction:
    """Prediction of one factor, drawn with the strength that is the default."""
    return Prediction(
        num_outputs=1,
        classification=False,
        draw=lambda key, n: {code: _draw_factor(key, n, code, Options())},
        transform=lambda images, params: _ADJUST[code](images, params[code]),
        targets=lambda params: params[code],
    )


# What the colour jitter and its four components have in common.
_jitter = functools.partial(
    Augmentation,
    draw=_draw_jitter,
    identity=_identity_jitter,
    apply=_apply_jitter,
    probability="jitter_probability",
    stage="jitter",
)

JITTER = _jitter(
    code="jit",
    summary="colour jitter: brightness, contrast, saturation and hue",
    source="reference; there the code alone does nothing, here it is all four "
    "components. One order of the operations per batch, as in kornia 0.6",
    channels=(3,),
)

BRIGHTNESS = _jitter(
    code="bri",
    summary="brightness, by a factor",
    source="reference, where no code reaches it",
    structure=functools.partial(_factor_place, "bri"),
    topology="line",
    scale=_factor_scale("bri", "factor"),
    prediction=_predict_factor("bri"),
)

CONTRAST = _jitter(
    code="con",
    summary="contrast, about the mean grey value of the image",
    source="reference, where no code reaches it",
    structure=functools.partial(_factor_place, "con"),
    topology="line",
    scale=_factor_scale("con", "factor"),
    prediction=_predict_factor("con"),
)

SATURATION = _jitter(
    code="sat",
    summary="saturation, about the grey value of each pixel",
    source="reference, where no code reaches it",
    structure=functools.partial(_factor_place, "sat"),
    topology="line",
    scale=_factor_scale("sat", "factor"),
    channels=(3,),
    prediction=_predict_factor("sat"),
)

HUE = _jitter(
    code="hue",
    summary="shift of the hue",
    source="reference, where no code reaches it",
    structure=functools.partial(_factor_place, "hue"),
    topology="line",
    scale=_factor_scale("hue", "turns of hue"),
    channels=(3,),
    prediction=_predict_factor("hue"),
)


def _whether(unit: str) -> Scale:
    """Structure that is 1 for augmented images and 0 for the others."""
    return Scale(unit=unit, parameter=lambda values, frame: values, levels=(0.0, 1.0))


GREY = Augmentation(
    code="gra",
    summary="grey, on three channels",
    source="reference",
    draw=lambda key, n, frame: {"grey": jnp.ones((n,), bool)},
    identity=lambda n, frame: {"grey": jnp.zeros((n,), bool)},
    apply=lambda images, params, frame: grey(images, params["grey"]),
    structure=lambda params, frame: params["grey"].astype(jnp.float32),
    topology="line",
    scale=_whether("grey"),
    channels=(3,),
    probability="grey_probability",
    stage="gra",
    prediction=orbit("grey", (False, True), grey),
)


def _draw_sigma(key: Array, n: int, frame: Frame) -> Params:
    low, high = frame.options.blur_sigma
    return {"sigma": jax.random.uniform(key, (n,), minval=low, maxval=high)}


BLUR = Augmentation(
    code="blu",
    summary="Gaussian blur of three by three pixels",
    source="reference; the structure value says whether, not how much",
    draw=_draw_sigma,
    identity=lambda n, frame: {"sigma": jnp.zeros((n,))},
    apply=lambda images, params, frame: blur(images, params["sigma"]),
    structure=lambda params, frame: (params["sigma"] > 0).astype(jnp.float32),
    topology="line",
    scale=_whether("blurred"),
    probability="blur_probability",
    stage="blu",
)


def _draw_solarize(key: Array, n: int, frame: Frame) -> Params:
    threshold_key, addition_key = jax.random.split(key)
    low, high = frame.options.solarize_threshold
    threshold = jax.random.uniform(threshold_key, (n,), minval=low, maxval=high)
    low, high = frame.options.solarize_addition
    addition = jax.random.uniform(addition_key, (n,), minval=low, maxval=high)
    return {
        "solarized": jnp.ones((n,), bool),
        "threshold": threshold,
        "addition": addition,
    }


def _apply_solarize(images: Array, params: Params, frame: Frame) -> Array:
    del frame
    solarized = solarize(images, params["threshold"], params["addition"])
    return jnp.where(per_image(params["solarized"]), solarized, images)


def _threshold_place(params: Params, frame: Frame) -> Array:
    """Place of the threshold; images left alone are at 1, the end of no inversion."""
    low, high = frame.options.solarize_threshold
    return jnp.clip((params["threshold"] - low) / (high - low), 0, 1)


def _threshold_at(values: Array, frame: Frame) -> Array:
    low, high = frame.options.solarize_threshold
    return low + (high - low) * values


SOLARIZE = Augmentation(
    code="sol",
    summary="inversion of what is bright",
    source="reference, where no code reaches it. Images that are not solarized have "
    "structure value 1: the higher the threshold, the less is inverted",
    draw=_draw_solarize,
    identity=lambda n, frame: {
        "solarized": jnp.zeros((n,), bool),
        "threshold": jnp.ones((n,)),
        "addition": jnp.zeros((n,)),
    },
    apply=_apply_solarize,
    structure=_threshold_place,
    topology="line",
    scale=Scale(unit="threshold", parameter=_threshold_at),
    probability="solarize_probability",
    stage="sol",
)
