"""The views that a run trains on, with their structure values."""

import os
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from duet_jax.figures.canvas import (
    CELL,
    COLUMNS,
    HEADER,
    Canvas,
    column_left,
    draw_image,
    enlargement,
)
from duet_jax.figures.style import ACCENT, FAINT, MUTED, save, styled
from duet_jax.types import View

_GAUGE_HEIGHT, _LINE_HEIGHT, _CODES_PER_LINE = 30, 14, 2


class _Row(NamedTuple):
    """One row of images with the values below them.

    Attributes:
      name: written at its left.
      view: the images and their values.
      side: of an image in the figure, in pixels.
      codes: those written as text.
      learned: the code shown on a gauge, if the view has it.
    """

    name: str
    view: View
    side: int
    codes: tuple[str, ...]
    learned: str | None

    @property
    def height(self) -> int:
        gauge = _GAUGE_HEIGHT if self.learned else 0
        lines = -(-len(self.codes) // _CODES_PER_LINE)
        return self.side + gauge + _LINE_HEIGHT * lines + 20


def _rows(
    view1: View, view2: View, learned: str | None, half_size: View | None
) -> list[_Row]:
    """Returns the rows; all images are enlarged by the same factor."""
    scale = enlargement(view1.images.shape[1])
    rows = []
    for name, view in (("view 1", view1), ("view 2", view2), ("half size", half_size)):
        if view is not None:
            side = min(CELL, scale * view.images.shape[1])
            # Prediction targets are not in [0, 1], the range of the gauge.
            gauged = view is not half_size and learned in view.structure
            own = learned if gauged else None
            codes = tuple(code for code in view.structure if code != own)
            rows.append(_Row(name, view, side, codes, own))
    return rows


@styled
def build_views(
    view1: View,
    view2: View,
    *,
    learned: str | None = None,
    title: str = "",
    half_size: View | None = None,
) -> Figure:
    """Draws the views of up to eight images, one image per column.

    Args:
      view1: the first views, normalized to [-0.5, 0.5], [n, side, side, channels].
        Their structure values in [0, 1] are written below the images.
      view2: the second views of the same images.
      learned: the code that the method learns; its value is shown on a gauge.
      title: of the figure.
      half_size: the views for the ESSL predictor, drawn at the same scale as the
        others; `structure` holds the prediction targets, integers if they are classes.

    Returns:
      The figure; a row's images are the images of its axes, in order.
    """
    rows = _rows(view1, view2, learned, half_size)
    columns = min(COLUMNS, len(view1.images))
    canvas = Canvas(columns, sum(row.height for row in rows), title)
    top = HEADER
    for row in rows:
        canvas.text(16, top + row.side // 2, row.name, va="center", color=MUTED)
        for column in range(min(columns, len(row.view.images))):
            left = column_left(column)
            axes = canvas.axes(left, top, row.side, row.side)
            draw_image(axes, row.view.images[column])
            _draw_values(canvas, left, top + row.side + 5, row, column)
        top += row.height
    return canvas.figure


def _draw_values(canvas: Canvas, left: int, top: int, row: _Row, column: int) -> None:
    """Writes the structure values of one image, the learned one with a gauge."""
    structure = row.view.structure
    if row.learned:
        value = float(structure[row.learned][column])
        text = f"{row.learned} {value:.2f}"
        canvas.text(left, top, text, size=10, weight="bold", color=ACCENT)
        gauge = canvas.axes(left, top + 16, CELL, 10)
        gauge.set(xlim=(-0.04, 1.04), ylim=(-1, 1))
        gauge.plot([0, 1], [0, 0], color=FAINT, lw=3, solid_capstyle="round")
        gauge.plot([value], [0], "o", color=ACCENT, ms=6, clip_on=False)
        top += _GAUGE_HEIGHT
    entries = [_entry(code, structure[code][column]) for code in row.codes]
    style = {"size": 8, "color": MUTED, "family": "DejaVu Sans Mono"}
    for start in range(0, len(entries), _CODES_PER_LINE):
        line = "  ".join(entries[start : start + _CODES_PER_LINE])
        canvas.text(left, top, line, **style)
        top += _LINE_HEIGHT


def _entry(code: str, value: np.ndarray) -> str:
    """Returns a code and its value as text; values that are not integers rounded."""
    value = np.asarray(value)
    whole = np.issubdtype(value.dtype, np.integer)
    return f"{code} {int(value)}" if whole else f"{code} {float(value):.2f}"


def draw_views(
    path: str | os.PathLike, view1: View, view2: View, **options: Any
) -> None:
    """Writes the figure of `build_views`, which takes the same options, to `path`."""
    save(path, build_views(view1, view2, **options))
