"""The views a run trains on, with the values that were drawn."""

import os
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from duet_jax.figures.canvas import (
    CELL,
    COLUMNS,
    GAP,
    HEADER,
    MARGIN,
    Canvas,
    draw_image,
    enlargement,
    width_of,
)
from duet_jax.figures.style import ACCENT, FAINT, MUTED, save, styled
from duet_jax.types import View

_GAUGE_HEIGHT, _LINE_HEIGHT, _CODES_PER_LINE = 30, 14, 2


class _Row(NamedTuple):
    """One row of images with what is written beneath them.

    Attributes:
      name: written at its left.
      view: the images and their values.
      side: of an image in the picture, in pixels.
      codes: those listed.
      learned: the code shown on a gauge instead, if the view has it.
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
    """Returns the rows; all images are enlarged by the same whole number."""
    scale = enlargement(view1.images.shape[1])
    rows = []
    for name, view in (("view 1", view1), ("view 2", view2), ("half size", half_size)):
        if view is not None:
            side = min(CELL, scale * view.images.shape[1])
            # A prediction target is no structure value and would leave the gauge.
            values = view.structure if view is not half_size else ()
            emphasised = learned if learned in values else None
            codes = tuple(code for code in view.structure if code != emphasised)
            rows.append(_Row(name, view, side, codes, emphasised))
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
    """Lays out the views of up to eight images, one image a column.

    Args:
      view1: the first views, normalised to [-0.5, 0.5], [n, side, side, channels].
        Its structure values in [0, 1] are written under the images.
      view2: the second views of the same images.
      learned: the code whose value the method learns, shown on a gauge.
      title: written above.
      half_size: the views the ESSL predictor sees, drawn at the same scale as the
        others; `structure` holds the prediction targets, class numbers if integer.

    Returns:
      The figure; a row's images are the images of its axes, in order.
    """
    rows = _rows(view1, view2, learned, half_size)
    columns = min(COLUMNS, len(view1.images))
    canvas = Canvas(width_of(columns, title), HEADER + sum(row.height for row in rows))
    canvas.text(16, 14, title, size=12, weight="bold")
    top = HEADER
    for row in rows:
        canvas.text(16, top + row.side // 2, row.name, va="center", color=MUTED)
        for column in range(min(columns, len(row.view.images))):
            left = MARGIN + column * (CELL + GAP)
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
    lines = [
        "  ".join(entries[at : at + _CODES_PER_LINE])
        for at in range(0, len(entries), _CODES_PER_LINE)
    ]
    for number, line in enumerate(lines):
        canvas.text(
            left,
            top + _LINE_HEIGHT * number,
            line,
            size=8,
            color=MUTED,
            family="DejaVu Sans Mono",
        )


def _entry(code: str, value: np.ndarray) -> str:
    """Returns a code and its value: a class number as it is, others rounded."""
    value = np.asarray(value)
    whole = np.issubdtype(value.dtype, np.integer)
    return f"{code} {int(value)}" if whole else f"{code} {float(value):.2f}"


def draw_views(
    path: str | os.PathLike,
    view1: View,
    view2: View,
    *,
    learned: str | None = None,
    title: str = "",
    half_size: View | None = None,
) -> None:
    """Writes the picture that `build_views` describes to `path`."""
    figure = build_views(
        view1, view2, learned=learned, title=title, half_size=half_size
    )
    save(path, figure)
