"""Augmentations that move pixels: crops, rotations, mirrors, resizing.

The pixel functions take batches, NHWC float32 in [0, 1]. Positions are in pixels; the
center of the first pixel is at 0. dm-pix provides mirrors, quarter turns and the
central crop; its `rotate` loses border pixels and takes a hundred times as long as four
gathers, and it has no resized crop.
"""

import functools
import math
from collections.abc import Callable

from duet_jax.augmentations.record import (
    Augmentation,
    Frame,
    Params,
    Prediction,
    Scale,
    between,
    on_or_off,
    orbit,
    per_image,
    uniform,
)
from duet_jax.lazy import jax, jnp, pix
from duet_jax.types import Array

_CROP_PROPOSALS = 10


def sample_bilinear(image: Array, rows: Array, columns: Array) -> Array:
    """Samples an image between its pixels; it is zero outside.

    Args:
      image: [H, W, C].
      rows: row positions in pixels, broadcastable with `columns` to [h, w].
      columns: column positions in pixels.

    Returns:
      [h, w, C]; a position on a pixel returns it bit for bit.
    """
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)

    def pixel(row: Array, column: Array) -> Array:
        row = jnp.clip(row + 1, 0, height + 1)
        column = jnp.clip(column + 1, 0, width + 1)
        return padded.at[row, column].get(mode="promise_in_bounds")

    upper = (1 - right) * pixel(top, left) + right * pixel(top, left + 1)
    lower = (1 - right) * pixel(top + 1, left) + right * pixel(top + 1, left + 1)
    return (1 - down) * upper + down * lower


def rotate(images: Array, degrees: Array) -> Array:
    """Rotates images counterclockwise about their center ((H-1)/2, (W-1)/2).

    Args:
      images: [batch, H, W, C].
      degrees: angles, [batch].

    Returns:
      [batch, H, W, C], bilinear, zero outside the original image.

    Source: reference: kornia's rotation with aligned corners.
    """
    return jax.vmap(_rotate)(images, degrees)


def _rotate(image: Array, degrees: Array) -> Array:
    height, width, _ = image.shape
    radians = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]
    rows = sine * x + cosine * y + (height - 1) / 2
    columns = cosine * x - sine * y + (width - 1) / 2
    return sample_bilinear(image, rows, columns)


def turn(images: Array, turns: Array) -> Array:
    """Rotates images counterclockwise by quarter turns, without interpolation.

    Args:
      images: [batch, side, side, C].
      turns: number of quarter turns, 0 to 3, int32 [batch].

    Returns:
      [batch, side, side, C].
    """
    # Two selections instead of four: three turns are a half and a quarter turn.
    images = jnp.where(per_image(turns >= 2), pix.rot90(images, 2), images)
    return jnp.where(per_image(turns % 2 == 1), pix.rot90(images, 1), images)


def _spread(size: Array | int, count: int) -> Array:
    """Returns `count` positions from 0 to `size - 1`, both ends included."""
    # Whole pixels and fractions separately: a single float division does not always
    # give whole numbers, and a crop of the whole image would not be exact.
    whole, rest = jnp.divmod(jnp.arange(count) * (size - 1), count - 1)
    return whole + rest.astype(jnp.float32) / (count - 1)


def crop_and_resize(images: Array, box: Params, side: int) -> Array:
    """Crops a box from each image and resizes it to a square.

    Args:
      images: [batch, H, W, C].
      box: `top`, `left`, `height`, `width` in pixels, each int32 [batch].
      side: side of the result, at least 2.

    Returns:
      [batch, side, side, C]: bilinear with aligned corners (the corner pixels of the
      box become those of the result), without antialiasing.
    """

    def one(image: Array, box: Params) -> Array:
        rows = box["top"] + _spread(box["height"], side)
        columns = box["left"] + _spread(box["width"], side)
        return sample_bilinear(image, rows[:, None], columns[None, :])

    return jax.vmap(one)(images, box)


def resize(images: Array, side: int) -> Array:
    """Resizes square images, [batch, S, S, C], as `crop_and_resize` does."""
    batch, old_side = images.shape[:2]
    if old_side == side:
        return images
    return crop_and_resize(images, _whole_box(batch, old_side), side)


def center_crop_and_resize(images: Array, frame: Frame) -> Array:
    """Crops the central `frame.crop_side` and resizes it to `frame.image_size`.

    Args:
      images: [batch, side, side, C]; images no larger than the crop stay whole.
      frame: gives the two sides, which are equal except for half-size views.

    Returns:
      [batch, image_size, image_size, C].
    """
    cropped = pix.center_crop(images, frame.crop_side, frame.crop_side)
    return resize(cropped, frame.image_size)


def _draw_box(key: Array, n: int, frame: Frame) -> Params:
    """Draws crop boxes: the first proposal inside the image, else the whole image."""
    options, image_side = frame.options, frame.side
    size_key, place_key = jax.random.split(key)
    # XLA compiles two axes five times as fast as three on a CPU.
    area, ratio = jnp.split(jax.random.uniform(size_key, (2 * _CROP_PROPOSALS, n)), 2)
    area = image_side**2 * between(area, *options.crop_area)
    ratio = jnp.exp(between(ratio, *map(math.log, options.crop_ratio)))
    height, width = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
    sides = jnp.round(jnp.stack([height, width])).astype(jnp.int32)
    fits = jnp.all((sides > 0) & (sides < image_side), axis=0)
    first = jnp.argmax(fits, axis=0)[None, None, :]
    sides = jnp.take_along_axis(sides, first, axis=1)[:, 0]
    sides = jnp.where(jnp.any(fits, axis=0)[None, :], sides, image_side)
    places = jax.random.uniform(place_key, (2, n)) * (image_side + 1 - sides)
    top, left = jnp.floor(places).astype(jnp.int32)
    return {"top": top, "left": left, "height": sides[0], "width": sides[1]}


def _whole_box(n: int, side: int) -> Params:
    corner, sides = jnp.zeros((n,), jnp.int32), jnp.full((n,), side, jnp.int32)
    return {"top": corner, "left": corner, "height": sides, "width": sides}


def _central_box(values: Array, frame: Frame) -> Params:
    """Returns square boxes in the center: the structure says nothing of their place."""
    sides = jnp.round(frame.side - values * (frame.side - 1)).astype(jnp.int32)
    corner = (frame.side - sides) // 2
    return {"top": corner, "left": corner, "height": sides, "width": sides}


def _box_shares(params: Params, frame: Frame) -> Array:
    """Returns top, left, height and width as shares of the side, [batch, 4]."""
    pixels = [params[name] for name in ("top", "left", "height", "width")]
    return jnp.stack(pixels, axis=1).astype(jnp.float32) / frame.side


RESIZED_CROP = Augmentation(
    code="sca",
    summary="random crop, resized",
    source="reference, whose structure value is 1 - (h-1)/32 for any image size, so "
    "that 8 % of 36 px draws are negative; we divide by the image's own side",
    draw=_draw_box,
    identity=lambda n, frame: _whole_box(n, frame.side),
    apply=lambda images, params, frame: crop_and_resize(
        images, params, frame.image_size
    ),
    # 1 - (h-1)/(S-1), written such that the whole image has exactly 0.
    structure=lambda params, frame: (
        (frame.side - params["height"]).astype(jnp.float32) / (frame.side - 1)
    ),
    topology="line",
    parameters=_box_shares,
    scale=Scale(
        unit="side of the crop / side of the image",
        # The height, as in the structure.
        parameter=lambda values, frame: 1 - values * (frame.side - 1) / frame.side,
        params=_central_box,
    ),
    options=("crop_area", "crop_ratio"),
    resizes=True,
)


def _draw_degrees(key: Array, n: int, frame: Frame) -> Params:
    largest = frame.options.rotation_degrees
    return {"degrees": uniform(key, n, -largest, largest)}


ROTATION = Augmentation(
    code="rot",
    summary="rotation by any angle",
    source="reference",
    draw=_draw_degrees,
    identity=lambda n, frame: {"degrees": jnp.zeros((n,))},
    apply=lambda images, params, frame: rotate(images, params["degrees"]),
    structure=lambda params, frame: (params["degrees"] + 180) / 360,
    topology="circle",
    scale=Scale(
        unit="degrees",
        parameter=lambda values, frame: 360 * values - 180,
        params=lambda values, frame: {"degrees": 360 * values - 180},
    ),
    options=("rotation_degrees",),
    prediction=Prediction(
        num_outputs=1,
        classification=False,
        draw=lambda key, n: {"degrees": uniform(key, n, -90.0, 90.0)},
        transform=lambda images, params: rotate(images, params["degrees"]),
        targets=lambda params: params["degrees"] / 180,
    ),
)

QUARTER_TURN = Augmentation(
    code="ron",
    summary="rotation by quarter turns",
    source="reference, where a stack that lists it crashes",
    draw=lambda key, n, frame: {"turns": jax.random.randint(key, (n,), 0, 4)},
    identity=lambda n, frame: {"turns": jnp.zeros((n,), jnp.int32)},
    apply=lambda images, params, frame: turn(images, params["turns"]),
    structure=lambda params, frame: params["turns"].astype(jnp.float32) / 4 + 0.125,
    topology="circle",
    scale=Scale(
        unit="quarter turns",
        parameter=lambda values, frame: 4 * values - 0.5,
        levels=(0.125, 0.375, 0.625, 0.875),
        params=lambda values, frame: {
            "turns": jnp.round(4 * values - 0.5).astype(jnp.int32) % 4
        },
    ),
    prediction=orbit("turns", (0, 1, 2, 3), turn),
)


def _mirror(code: str, summary: str, flip: Callable[[Array], Array]) -> Augmentation:
    return Augmentation(
        code=code,
        summary=summary,
        source="reference; two points half a turn apart",
        **on_or_off("mirrored", flip),
        structure=lambda params, frame: 0.25 + 0.5 * params["mirrored"],
        topology="circle",
        scale=Scale(
            unit="mirrored",
            parameter=lambda values, frame: 2 * values - 0.5,
            levels=(0.25, 0.75),
            params=lambda values, frame: {"mirrored": values % 1 >= 0.5},
        ),
        probability="flip_probability",
    )


MIRROR_LEFT_RIGHT = _mirror(
    "fli", "left-right mirror", lambda x: pix.flip_left_right(x)
)
MIRROR_UP_DOWN = _mirror("flv", "up-down mirror", lambda x: pix.flip_up_down(x))

_resizing = functools.partial(
    Augmentation,
    draw=lambda key, n, frame: {},
    identity=lambda n, frame: {},
    resizes=True,
)

RESIZE = _resizing(
    code="res",
    summary="resize to the size of the view",
    source="reference",
    apply=lambda images, params, frame: resize(images, frame.image_size),
)

CENTER_CROP = _resizing(
    code="ccr",
    summary="central crop of the size of the view",
    source="reference; a half-size view shows the same crop, resized, where the "
    "reference crops 16 px in evaluation",
    apply=lambda images, params, frame: center_crop_and_resize(images, frame),
)
