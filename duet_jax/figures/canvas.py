"""Pictures laid out in pixels.

Every pixel of an image is then a whole number of pixels of the picture.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from duet_jax.figures.style import DPI

COLUMNS = 8
CELL, GAP, MARGIN, HEADER = 128, 16, 78, 48


class Canvas:
    """A figure whose parts are placed in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def axes(self, x: int, y: int, width: int, height: int) -> Axes:
        """Returns axes in a box given by its upper left corner, without a frame."""
        bottom = self.height - y - height
        box = np.array([x, bottom, width, height], float)
        scale = np.array([self.width, self.height] * 2)
        axes = self.figure.add_axes(tuple(box / scale))
        axes.set_axis_off()
        return axes

    def text(self, x: int, y: int, text: str, **style: object) -> None:
        """Writes `text` with its upper left corner at (x, y)."""
        style = {"ha": "left", "va": "top"} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)


def width_of(columns: int, title: str) -> int:
    """Returns the pixels that so many columns of images and the title need."""
    # A title has about eleven pixels a letter.
    return max(MARGIN + columns * (CELL + GAP), 32 + 11 * len(title))


def enlargement(side: int) -> int:
    """Returns the whole number by which images of `side` pixels are enlarged."""
    return max(1, CELL // side)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Fills `axes` with an image, [side, side, channels] in [-0.5, 0.5]."""
    pixels = np.clip(np.asarray(image, np.float32) + 0.5, 0, 1)
    grey = pixels.shape[-1] == 1
    axes.imshow(
        pixels[..., 0] if grey else pixels,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
