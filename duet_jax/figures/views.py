"""The views that a run trains on, with their structure values."""

import os
import textwrap
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from duet_jax.augmentations.record import Frame, Scale
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


# Code -> its scale, and the frame that it takes; see `Stack.scales`.
Scales = Mapping[str, tuple[Scale, Frame]]


class _Row(NamedTuple):
    """One row of images with the values below them.

    Attributes:
      name: written at its left.
      images: normalized to [-0.5, 0.5], [n, side, side, channels].
      side: of an image in the figure, in pixels.
      texts: code -> the value of every image as text, [n].
      gauges: the codes that are shown on a gauge, with their structure values.
    """

    name: str
    images: np.ndarray
    side: int
    texts: Mapping[str, list[str]]
    gauges: Mapping[str, np.ndarray] = {}

    @property
    def codes(self) -> list[str]:
        """Those written as text alone."""
        return [code for code in self.texts if code not in self.gauges]

    @property
    def height(self) -> int:
        lines = -(-len(self.codes) // _CODES_PER_LINE)
        gauges = _GAUGE_HEIGHT * len(self.gauges)
        return self.side + gauges + _LINE_HEIGHT * lines + 20


def _rows(
    views: Mapping[str, View], learned: Collection[str], scales: Scales
) -> list[_Row]:
    """Returns the rows of views; all images are enlarged by the same factor."""
    scale = enlargement(next(iter(views.values())).images.shape[1])
    rows = []
    for name, view in views.items():
        side = min(CELL, scale * view.images.shape[1])
        # Prediction targets are no structure values: without a gauge and a scale.
        predicted = name == "half size"
        texts = {}
        for code, values in view.structure.items():
            own = None if predicted else scales.get(code)
            texts[code] = [_text(value, own) for value in np.asarray(values)]
        gauges = {
            code: np.asarray(view.structure[code])
            for code in learned
            if code in view.structure and not predicted
        }
        rows.append(_Row(name, view.images, side, texts, gauges))
    return rows


def _text(value: np.ndarray, scale: tuple[Scale, Frame] | None) -> str:
    """Returns a structure value in own units, or as it is without a scale."""
    if scale is None:
        whole = np.issubdtype(value.dtype, np.integer)
        return str(int(value)) if whole else f"{float(value):.2f}"
    own, frame = scale
    parameter = float(own.parameter(np.float32(value), frame))
    if own.unit == "degrees":
        return f"{round(parameter)}°"
    return f"{parameter:.2f}" if own.levels is None else f"{round(parameter)}"


@styled
def build_views(
    view1: View,
    view2: View,
    *,
    learned: Collection[str] = (),
    title: str = "",
    half_size: View | None = None,
    original: np.ndarray | None = None,
    scales: Scales | None = None,
) -> Figure:
    """Draws the views of up to eight images, one image per column.

    Args:
      view1: the first views, normalized to [-0.5, 0.5], [n, side, side, channels].
        The parameters of their augmentations are written below the images.
      view2: the second views of the same images.
      learned: the codes that the method learns; their structure values in [0, 1] are
        shown on gauges.
      title: of the figure.
      half_size: the views for the ESSL predictor, drawn at the same scale as the
        others; `structure` holds the prediction targets, integers if they are classes.
      original: the images as they are, like those of the views but of any side; drawn
        in the first row.
      scales: turn structure values into parameters; codes without one show their
        structure values.

    Returns:
      The figure; a row's images are the images of its axes, in order.
    """
    scales = scales or {}
    views = {"view 1": view1, "view 2": view2}
    if half_size is not None:
        views["half size"] = half_size
    rows = _rows(views, learned, scales)
    if original is not None:
        side = original.shape[1]
        shown = min(CELL, enlargement(side) * side)
        rows.insert(0, _Row("original", original, shown, {}))
    columns = min(COLUMNS, len(view1.images))
    width = Canvas(column_left(columns), 0, title).width
    about = _about([row.texts for row in rows], scales, width)
    height = sum(row.height for row in rows) + _LINE_HEIGHT * len(about)
    canvas = Canvas(width, height, title)
    top = HEADER
    for row in rows:
        canvas.text(16, top + row.side // 2, row.name, va="center", color=MUTED)
        for column in range(min(columns, len(row.images))):
            left = column_left(column)
            axes = canvas.axes(left, top, row.side, row.side)
            draw_image(axes, row.images[column])
            _draw_values(canvas, left, top + row.side + 5, row, column)
        top += row.height
    for line in about:
        canvas.text(16, top, line, size=8, color=MUTED)
        top += _LINE_HEIGHT
    return canvas.figure


def _about(texts: list[Mapping[str, Any]], scales: Scales, width: int) -> list[str]:
    """Returns the units of the parameters, in lines that fit `width` pixels."""
    codes = dict.fromkeys(code for each in texts for code in each if code in scales)
    units = " · ".join(f"{code}: {scales[code][0].unit}" for code in codes)
    return textwrap.wrap(units, max(24, (width - 32) // 6))  # a letter has six pixels


def _draw_values(canvas: Canvas, left: int, top: int, row: _Row, column: int) -> None:
    """Writes the parameters of one image, the learned ones with gauges."""
    for code, values in row.gauges.items():
        value = float(values[column])
        text = f"{code} {row.texts[code][column]}"
        canvas.text(left, top, text, size=10, weight="bold", color=ACCENT)
        gauge = canvas.axes(left, top + 16, CELL, 10)
        gauge.set(xlim=(-0.04, 1.04), ylim=(-1, 1))
        gauge.plot([0, 1], [0, 0], color=FAINT, lw=3, solid_capstyle="round")
        gauge.plot([value], [0], "o", color=ACCENT, ms=6, clip_on=False)
        top += _GAUGE_HEIGHT
    entries = [f"{code} {row.texts[code][column]}" for code in row.codes]
    style = {"size": 8, "color": MUTED, "family": "DejaVu Sans Mono"}
    for start in range(0, len(entries), _CODES_PER_LINE):
        line = "  ".join(entries[start : start + _CODES_PER_LINE])
        canvas.text(left, top, line, **style)
        top += _LINE_HEIGHT


def draw_views(
    path: str | os.PathLike,
    view1: View,
    view2: View,
    *,
    small_print: str = "",
    **options: Any,
) -> None:
    """Writes the figure of `build_views`, which takes the same options, to `path`.

    An SVG file is written beside the PNG; `small_print` comes below the views.
    """
    save(path, build_views(view1, view2, **options), small_print)
