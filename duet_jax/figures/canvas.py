"""Figures of images, laid out in pixels.

Every pixel of an image becomes a whole number of pixels of the figure.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from duet_jax.figures.style import DPI, FOOT

COLUMNS = 8
CELL, HEADER = 128, 48
GAP, MARGIN = 16, 78  # between columns, left of the first one


def column_left(column: int) -> int:
    """Returns the left edge of a column of images."""
    return MARGIN + column * (CELL + GAP)


class Canvas:
    """A titled figure whose parts are placed in pixels from its upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Makes room for `width` pixels, and for `height` pixels below the title.

        The small print comes below these.
        """
        # A letter of the title is about eleven pixels wide.
        self.width = max(width, 32 + 11 * len(title))
        self.height = HEADER + height + FOOT
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        self.text(16, 14, title, size=12, weight="bold")

    def axes(self, x: int, y: int, width: int, height: int) -> Axes:
        """Returns frameless axes in a box given by its upper left corner."""
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


def enlargement(side: int, cell: int = CELL) -> int:
    """Returns the integer factor that enlarges images of `side` pixels to `cell`."""
    return max(1, cell // side)


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draws an image, [side, side, channels] in [-0.5, 0.5], over all of `axes`."""
    pixels = np.clip(np.asarray(image, np.float32) + 0.5, 0, 1)
    gray = pixels.shape[-1] == 1
    axes.imshow(
        pixels[..., 0] if gray else pixels,
        cmap="gray" if gray else None,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
