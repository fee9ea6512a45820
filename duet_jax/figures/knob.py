"""A knob: test images at many parameters, and what is decoded in their place.

The images are kept as sheets: one encoded image whose rows are images and whose columns
are the frames of each, as text.
"""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from duet_jax.figures.canvas import HEADER, Canvas, draw_image, enlargement
from duet_jax.figures.style import MUTED, shorten, styled

_LARGEST = 48  # side of a frame in pixels; larger ones are shrunk
_BLOCK = 8  # pixels that JPEG encodes together, so that no frame shares them
_MOST_BYTES = 185_000  # of a sheet: four of these, as text, have a megabyte
# Of JPEG, until it is small enough; turned CIFAR-10 images are at 90.
_QUALITIES = (95, 90, 85, 75, 60, 40)

_COLUMNS = 12  # of the still picture
_CELL, _GAP, _LEFT = 72, 8, 126  # pixels
_NAME = 15  # letters at the left
_LINE, _BETWEEN = 18, 14  # a line of text, and the space between images


class Dial(NamedTuple):
    """A parameter that a knob turns, in S steps.

    F are the frames of the knob: at these steps together with those of other dials.

    Attributes:
      code: of the augmentation.
      summary: what it does, such as "rotation by any angle".
      unit: of the parameter.
      topology: "circle" or "line".
      parameters: one a step, in the unit, [S]; on a circle once around it in equal
        steps.
      plain: number of the step that is nearest to the image as it is; on a circle 0.
      read: prediction -> the parameter that a regression reads off the decoded image
        encoded again, in the unit, [images, F].
      marginals: prediction -> structure marginal of the parameter, of the decoded image
        encoded again, [images, F, G]; empty for methods without a structure of it.
      targets: the marginal that is wanted, [S, G]; empty likewise.
    """

    code: str
    summary: str
    unit: str
    topology: str
    parameters: np.ndarray
    plain: int
    read: Mapping[str, np.ndarray]
    marginals: Mapping[str, np.ndarray]
    targets: np.ndarray


class Knob(NamedTuple):
    """Test images at many parameters, and what each prediction makes of them.

    F frames show an image at all combinations of the steps of the dials. The last
    dial's step changes first.

    Attributes:
      dials: what can be turned, one or several.
      captions: one text an image, such as its class; "" without.
      side: of an image in pixels; frames of sheets are smaller where it is above 48.
      true: sheet of the images truly transformed.
      made: prediction -> sheet of the images decoded from predicted features.
      error: prediction -> squared error against the true frame, [images, F].
    """

    dials: Sequence[Dial]
    captions: Sequence[str]
    side: int
    true: str
    made: Mapping[str, str]
    error: Mapping[str, np.ndarray]


def frames_along(dials: Sequence[Dial], turned: int) -> np.ndarray:
    """Returns the frames at all steps of one dial, the others at `plain`, [S].

    Args:
      dials: of a knob.
      turned: number of the dial among them.
    """
    shape = [len(dial.parameters) for dial in dials]
    steps = [np.full(shape[turned], dial.plain) for dial in dials]
    steps[turned] = np.arange(shape[turned])
    return np.ravel_multi_index(tuple(steps), shape)


def shown_side(side: int) -> int:
    """Returns the side of a frame in a sheet, for images of `side` pixels."""
    return min(side, _LARGEST)


def tile_side(side: int) -> int:
    """Returns the distance of frames in a sheet, in pixels; a frame is at its start."""
    return -(-shown_side(side) // _BLOCK) * _BLOCK


def make_sheet(frames: np.ndarray) -> str:
    """Returns frames as one image: base64 text of a PNG, or of a JPEG if it is smaller.

    Args:
      frames: normalized to [-0.5, 0.5], clipped otherwise,
        [images, F, side, side, channels] with one or three channels.
    """
    images, steps, side, _, channels = np.shape(frames)
    levels = np.clip(np.asarray(frames, np.float32) + 0.5, 0, 1)
    pixels = np.round(255 * levels).astype(np.uint8)
    if side > _LARGEST:
        pixels = _shrunk(pixels)
    tile = tile_side(side)
    missing = (0, tile - shown_side(side))
    # The last pixels again: an edge would be seen in its neighbors.
    pixels = np.pad(pixels, ((0, 0), (0, 0), missing, missing, (0, 0)), mode="edge")
    sheet = pixels.swapaxes(1, 2).reshape(images * tile, steps * tile, channels)
    return base64.b64encode(_encoded(sheet)).decode("ascii")


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    side, channels = pixels.shape[-2:]
    small = [
        np.asarray(
            _as_image(frame).resize((_LARGEST, _LARGEST), Image.Resampling.BOX)
        ).reshape(_LARGEST, _LARGEST, channels)
        for frame in pixels.reshape(-1, side, side, channels)
    ]
    return np.reshape(small, (*pixels.shape[:2], _LARGEST, _LARGEST, channels))


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _encoded(sheet: np.ndarray) -> bytes:
    """Returns the best of several encodings that are small enough, or the smallest."""
    image = _as_image(sheet)
    content = _file(image, "PNG", optimize=True)
    for quality in _QUALITIES:
        if len(content) <= _MOST_BYTES:
            break
        # Colors in full resolution: half of it is seen at this size.
        content = _file(image, "JPEG", quality=quality, subsampling=0)
    return content


def _file(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames_of(sheet: str, side: int) -> np.ndarray:
    """Returns the frames of a sheet, [images, F, shown, shown, channels].

    They are normalized to [-0.5, 0.5]; see `shown_side`.

    Args:
      sheet: from `make_sheet`.
      side: of the frames it was made of.

    Raises:
      ValueError: it is no such sheet.
    """
    tile, shown = tile_side(side), shown_side(side)
    try:
        file = io.BytesIO(base64.b64decode(sheet, validate=True))
        with (
            warnings.catch_warnings(action="error"),
            Image.open(file, formats=("PNG", "JPEG")) as image,
        ):
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow has no common type for damaged files
        raise ValueError(f"no sheet of images: {error!r}") from error
    height, width = pixels.shape[:2]
    if mode not in ("L", "RGB") or height % tile or width % tile:
        raise ValueError(f"no sheet of images of {side} pixels: {width} x {height}")
    pixels = pixels.reshape(height // tile, tile, width // tile, tile, -1)
    frames = pixels.swapaxes(1, 2)[:, :, :shown, :shown]
    return frames.astype(np.float32) / 255 - 0.5


def check_knob(knob: Knob) -> Knob:
    """Returns a knob, which may come from JSON, with arrays.

    Raises:
      ValueError: its parts are none, or do not fit together.
    """
    _check_types(knob)
    dials = [_of_types(dial) for dial in knob.dials]
    if len({dial.code for dial in dials}) != len(dials):
        raise ValueError("a knob with several dials of one code")
    images, frames = shape = (
        len(knob.captions),
        math.prod(len(dial.parameters) for dial in dials),
    )
    sheets = (knob.true, *knob.made.values())
    if {frames_of(each, knob.side).shape[:2] for each in sheets} != {shape}:
        raise ValueError(f"a knob with sheets of other than {images} x {frames} frames")
    return knob._replace(
        dials=tuple(_checked(dial, knob.made, shape) for dial in dials),
        error=_by_prediction(knob.error, knob.made, shape),
    )


def _check_types(knob: Knob) -> None:
    if not (isinstance(knob.dials, list | tuple) and knob.dials):
        raise ValueError("a knob without dials")
    lists = isinstance(knob.captions, list | tuple)
    if not (lists and all(isinstance(text, str) for text in knob.captions)):
        raise ValueError("a knob without texts")
    if not (isinstance(knob.side, int) and knob.side > 0):
        raise ValueError(f"a knob of images of {knob.side!r} pixels")
    parts = (knob.made, knob.error)
    if not (all(isinstance(part, Mapping) for part in parts) and knob.made):
        raise ValueError("a knob without predictions")


def _of_types(stored: Dial | Mapping) -> Dial:
    """Returns a dial, which may come from JSON, with parameters."""
    try:
        dial = stored if isinstance(stored, Dial) else Dial(**stored)
    except TypeError as error:
        raise ValueError(f"a knob with what is no dial: {error}") from error
    texts = (dial.code, dial.summary, dial.unit, dial.topology)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a knob without texts")
    parameters = _array(dial.parameters)
    if parameters.ndim != 1 or not np.isfinite(parameters).all():
        raise ValueError("a knob without parameters")
    if not (isinstance(dial.plain, int) and 0 <= dial.plain < len(parameters)):
        raise ValueError(f"a knob that begins at step {dial.plain!r}")
    if not all(isinstance(part, Mapping) for part in (dial.read, dial.marginals)):
        raise ValueError("a knob without predictions")
    return dial._replace(parameters=parameters)


def _checked(dial: Dial, names: Mapping[str, str], shape: tuple[int, int]) -> Dial:
    """Returns a dial whose numbers are arrays that fit to images x frames."""
    dial = dial._replace(read=_by_prediction(dial.read, names, shape))
    targets = _array(dial.targets)
    if not dial.marginals:
        if targets.size:
            raise ValueError("a knob with targets of no marginals")
        return dial._replace(targets=targets)
    steps = len(dial.parameters)
    bins = targets.size // steps
    return dial._replace(
        marginals=_by_prediction(dial.marginals, names, (*shape, bins)),
        targets=_numbers(targets, (steps, bins)),
    )


def _by_prediction(
    values: Mapping[str, np.ndarray], names: Mapping[str, str], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    if values.keys() != names.keys():
        raise ValueError("a knob without the numbers of a prediction")
    return {name: _numbers(values[name], shape) for name in names}


def _numbers(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    found = _array(values)
    if found.shape != shape:
        raise ValueError(f"a knob with numbers of shape {found.shape}, not {shape}")
    return found


def _array(values: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a knob without numbers: {error}") from error


def parameter_text(value: float, unit: str) -> str:
    """Returns a parameter as it is written above an image."""
    text = f"{round(value, 2):g}".replace("-", "\N{MINUS SIGN}")
    return f"{text}°" if unit == "degrees" else text


# The still picture


@styled
def build_knob(panels: Mapping[str, Knob], *, title: str = "") -> Figure:
    """Draws test images at up to 12 parameters, above what is decoded in their place.

    A panel has a block for each dial, at whose steps its images are drawn while the
    other dials are at `plain`: the first two images, or the first one if there are
    several panels. The top row of an image is truly transformed; below is one row a
    prediction.

    Args:
      panels: the name written above each -> its knob; "" for no name.
      title: of the figure.

    Returns:
      The figure, with one axes a frame: row by row, from left to right.

    Raises:
      ValueError: a knob is damaged; see `check_knob`.
    """
    knobs = {name: check_knob(knob) for name, knob in panels.items()}
    most = 2 if len(knobs) == 1 else 1
    columns = max(len(_drawn(dial)) for knob in knobs.values() for dial in knob.dials)
    cell = max(_pixels(knob) for knob in knobs.values())
    width = _LEFT + columns * (cell + _GAP) + _GAP
    height = sum(len(knob.dials) * _height(knob, most) for knob in knobs.values())
    canvas = Canvas(width, height, title)
    top = HEADER
    for name, knob in knobs.items():
        prefix = f"{shorten(name, 60)}: " if name else ""
        for turned, dial in enumerate(knob.dials):
            line = f"{prefix}{dial.code} [{dial.unit}]"
            canvas.text(16, top, line, weight="bold" if name else "normal")
            below = top + _LINE
            for number in range(min(most, len(knob.captions))):
                _draw_image(canvas, below, knob, turned, number)
                below += _image_height(knob)
            top += _height(knob, most)
    return canvas.figure


def _drawn(dial: Dial) -> range:
    """Returns the numbers of the steps that are drawn."""
    steps = len(dial.parameters)
    return range(0, steps, -(-steps // _COLUMNS))


def _pixels(knob: Knob) -> int:
    """Returns the side of a frame as it is drawn."""
    side = shown_side(knob.side)
    return enlargement(side, _CELL) * side


def _image_height(knob: Knob) -> int:
    rows = 1 + len(knob.made)
    return _LINE + rows * (_pixels(knob) + _GAP) + _BETWEEN


def _height(knob: Knob, most: int) -> int:
    """Returns the height of the block of a dial."""
    return _LINE + min(most, len(knob.captions)) * _image_height(knob)


def _draw_image(canvas: Canvas, top: int, knob: Knob, turned: int, number: int) -> None:
    """Draws one image at the steps of one dial, and its predictions below it."""
    side, dial = _pixels(knob), knob.dials[turned]
    small = {"size": 8, "color": MUTED}
    canvas.text(16, top, shorten(knob.captions[number], _NAME), **small)
    for column, step in enumerate(_drawn(dial)):
        left = _LEFT + column * (side + _GAP)
        text = parameter_text(dial.parameters[step], dial.unit)
        canvas.text(left, top, text, **small)
    top += _LINE
    along = frames_along(knob.dials, turned)[_drawn(dial)]
    for name, sheet in {"true image": knob.true, **knob.made}.items():
        canvas.text(16, top + side // 2, shorten(name, _NAME), va="center")
        frames = frames_of(sheet, knob.side)[number]
        for column, frame in enumerate(along):
            left = _LEFT + column * (side + _GAP)
            draw_image(canvas.axes(left, top, side, side), frames[frame])
        top += side + _GAP
