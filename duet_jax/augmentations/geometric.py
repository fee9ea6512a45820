"""Augmentations that move pixels: crops, rotations, mirrors, resizing.

The pixel functions take batches, NHWC float32 in [0, 1]. Positions are in pixels, with
the centre of the first pixel at 0. dm-pix provides mirrors, quarter turns and the
central cut; its `rotate` loses border pixels and takes a hundred times as long as four
gathers, and it has no resized crop.
"""

import math

import dm_pix as pix
import jax
import jax.numpy as jnp

from duet_jax.augmentations.record import (
    Array,
    Augmentation,
    Frame,
    Params,
    Prediction,
    Scale,
    orbit,
    per_image,
)

_CROP_PROPOSALS = 10


def sample_bilinear(image: Array, rows: Array, columns: Array) -> Array:
    """Reads an image between its pixels; outside it is zero.

    Args:
      image: [H, W, C].
      rows: row positions in pixels, broadcastable with `columns` to [h, w].
      columns: column positions in pixels.

    Returns:
      [h, w, C]; positions on a pixel return it unchanged, bit for bit.
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


@jax.vmap
def rotate(image: Array, degrees: Array) -> Array:
    """Rotates images counter-clockwise about their centre ((H-1)/2, (W-1)/2).

    Args:
      image: [batch, H, W, C].
      degrees: angles, [batch].

    Returns:
      [batch, H, W, C], bilinear, zero where the original has no pixels.

    Source: reference: kornia's rotation with aligned corners.
    """
    height, width, _ = image.shape
    radians = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]
    rows = sine * x + cosine * y + (height - 1) / 2
    columns = cosine * x - sine * y + (width - 1) / 2
    return sample_bilinear(image, rows, columns)


def turn(images: Array, turns: Array) -> Array:
    """Rotates images counter-clockwise by quarter turns, without interpolation.

    Args:
      images: [batch, side, side, C].
      turns: number of quarter turns, 0 to 3, int32 [batch].

    Returns:
      [batch, side, side, C].
    """
    # Two selections instead of four: three turns are a half turn and a quarter.
    images = jnp.where(per_image(turns >= 2), pix.rot90(images, 2), images)
    return jnp.where(per_image(turns % 2 == 1), pix.rot90(images, 1), images)


def mirror_left_right(images: Array, mirrored: Array) -> Array:
    """Mirrors those images, [batch, H, W, C], for which `mirrored`, [batch], is set."""
    return jnp.where(per_image(mirrored), pix.flip_left_right(images), images)


def mirror_up_down(images: Array, mirrored: Array) -> Array:
    """Mirrors those images, [batch, H, W, C], for which `mirrored`, [batch], is set."""
    return jnp.where(per_image(mirrored), pix.flip_up_down(images), images)


def _spread(size: Array | int, count: int) -> Array:
    """Returns `count` positions from 0 to `size - 1`, both ends included."""
    # Whole pixels and the rest apart: the division of one float would not always give
    # back whole numbers, and then the whole image would not be cut out unchanged.
    whole, rest = jnp.divmod(jnp.arange(count) * (size - 1), count - 1)
    return whole + rest.astype(jnp.float32) / (count - 1)


def crop_and_resize(images: Array, box: Params, side: int) -> Array:
    """Cuts a box out of each image and resizes it to a square.

    Args:
      images: [batch, H, W, C].
      box: `top`, `left`, `height`, `width` in pixels, each int32 [batch].
      side: side of the result, at least 2.

    Returns:
      [batch, side, side, C]: bilinear with aligned corners, so that the corner
      pixels of the box become the corner pixels of the result; no antialiasing.
    """

    def one(image: Array, box: Params) -> Array:
        rows = box["top"] + _spread(box["height"], side)
        columns = box["left"] + _spread(box["width"], side)
        return sample_bilinear(image, rows[:, None], columns[None, :])

    return jax.vmap(one)(images, box)


def resize(images: Array, side: int) -> Array:
    """Resizes whole square images, [batch, S, S, C], as `crop_and_resize` does."""
    batch, old_side = images.shape[:2]
    if old_side == side:
        return images
    return crop_and_resize(images, _whole_box(batch, old_side), side)


def cut_and_resize(images: Array, frame: Frame) -> Array:
    """Cuts out the central `frame.crop_side` and resizes it to `frame.image_size`.

    Args:
      images: [batch, side, side, C]; images no larger than the cut stay whole.
      frame: the two sides; they are the same except for half-size views.

    Returns:
      [batch, image_size, image_size, C].
    """
    cut = pix.center_crop(images, frame.crop_side, frame.crop_side)
    return resize(cut, frame.image_size)


def _draw_box(key: Array, n: int, frame: Frame) -> Params:
    """Draws crop boxes: the first proposal that is strictly inside the image."""
    options, image_side = frame.options, frame.side
    size_key, place_key = jax.random.split(key)
    # Two axes, not three: XLA compiles these five times as fast on a CPU.
    uniform = jax.random.uniform(size_key, (2 * _CROP_PROPOSALS, n))
    area, ratio = jnp.split(uniform, 2)
    area = image_side**2 * _between(area, *options.crop_area)
    ratio = jnp.exp(_between(ratio, *map(math.log, options.crop_ratio)))
    height, width = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
    sides = jnp.round(jnp.stack([height, width])).astype(jnp.int32)
    fits = jnp.all((sides > 0) & (sides < image_side), axis=0)
    first = jnp.argmax(fits, axis=0)[None, None, :]
    sides = jnp.take_along_axis(sides, first, axis=1)[:, 0]
    sides = jnp.where(jnp.any(fits, axis=0)[None, :], sides, image_side)
    places = jax.random.uniform(place_key, (2, n)) * (image_side + 1 - sides)
    top, left = jnp.floor(places).astype(jnp.int32)
    return {"top": top, "left": left, "height": sides[0], "width": sides[1]}


def _between(uniform: Array, low: float, high: float) -> Array:
    return low + (high - low) * uniform


def _whole_box(n: int, side: int) -> Params:
    corner, sides = jnp.zeros((n,), jnp.int32), jnp.full((n,), side, jnp.int32)
    return {"top": corner, "left": corner, "height": sides, "width": sides}


def _nothing_drawn(key: Array, n: int, frame: Frame) -> Params:
    del key, n, frame
    return {}


RESIZED_CROP = Augmentation(
    code="sca",
    summary="random crop, resized",
    source="reference; there the structure value is 1 - (h-1)/32 for every size of the "
    "image, so that 8 % of 36 px draws are negative: we divide by the image's own side",
    draw=_draw_box,
    identity=lambda n, frame: _whole_box(n, frame.side),
    apply=lambda images, params, frame: crop_and_resize(
        images, params, frame.image_size
    ),
    # 1 - (h-1)/(S-1), written so that the whole image is 0 in floating point too.
    structure=lambda params, frame: (
        (frame.side - params["height"]).astype(jnp.float32) / (frame.side - 1)
    ),
    topology="line",
    scale=Scale(
        unit="side of the crop / side of the image",
        # The height, which is what the structure knows of the box.
        parameter=lambda values, frame: 1 - values * (frame.side - 1) / frame.side,
    ),
    options=("crop_area", "crop_ratio"),
    resizes=True,
    stage="sca",
)

ROTATION = Augmentation(
    code="rot",
    summary="rotation by any angle",
    source="reference",
    draw=lambda key, n, frame: {
        "degrees": jax.random.uniform(
            key,
            (n,),
            minval=-frame.options.rotation_degrees,
            maxval=frame.options.rotation_degrees,
        )
    },
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
    stage="rot",
    prediction=Prediction(
        num_outputs=1,
        classification=False,
        draw=lambda key, n: {
            "degrees": jax.random.uniform(key, (n,), minval=-90.0, maxval=90.0)
        },
        transform=lambda images, params: rotate(images, params["degrees"]),
        targets=lambda params: params["degrees"] / 180,
    ),
)

QUARTER_TURN = Augmentation(
    code="ron",
    summary="rotation by quarter turns",
    source="reference; there a stack that lists it crashes",
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
    stage="ron",
    prediction=orbit("turns", (0, 1, 2, 3), turn),
)

# Both mirrors: two points of the circle, half a turn apart.
_MIRRORED = Scale(
    unit="mirrored",
    parameter=lambda values, frame: 2 * values - 0.5,
    levels=(0.25, 0.75),
    params=lambda values, frame: {"mirrored": values % 1 >= 0.5},
)

MIRROR_LEFT_RIGHT = Augmentation(
    code="fli",
    summary="left-right mirror",
    source="reference; two points half a turn apart",
    draw=lambda key, n, frame: {"mirrored": jnp.ones((n,), bool)},
    identity=lambda n, frame: {"mirrored": jnp.zeros((n,), bool)},
    apply=lambda images, params, frame: mirror_left_right(images, params["mirrored"]),
    structure=lambda params, frame: 0.25 + 0.5 * params["mirrored"],
    topology="circle",
    scale=_MIRRORED,
    probability="flip_probability",
    stage="fli",
    prediction=orbit("mirrored", (False, True), mirror_left_right),
)

MIRROR_UP_DOWN = Augmentation(
    code="flv",
    summary="up-down mirror",
    source="reference; two points half a turn apart",
    draw=lambda key, n, frame: {"mirrored": jnp.ones((n,), bool)},
    identity=lambda n, frame: {"mirrored": jnp.zeros((n,), bool)},
    apply=lambda images, params, frame: mirror_up_down(images, params["mirrored"]),
    structure=lambda params, frame: 0.25 + 0.5 * params["mirrored"],
    topology="circle",
    scale=_MIRRORED,
    probability="flip_probability",
    stage="flv",
    prediction=orbit("mirrored", (False, True), mirror_up_down),
)

RESIZE = Augmentation(
    code="res",
    summary="resize to the size of the view",
    source="reference",
    draw=_nothing_drawn,
    identity=lambda n, frame: {},
    apply=lambda images, params, frame: resize(images, frame.image_size),
    resizes=True,
    stage="res",
)

CENTRE_CROP = Augmentation(
    code="ccr",
    summary="central cut of the size of the view",
    source="reference; a half-size view shows the same cut, resized, where the "
    "reference cuts 16 px in evaluation",
    draw=_nothing_drawn,
    identity=lambda n, frame: {},
    apply=lambda images, params, frame: cut_and_resize(images, frame),
    resizes=True,
    stage="ccr",
)
