"""Confusion matrices."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from duet_jax.figures.style import (
    FAINT,
    INK,
    MUTED,
    SHARES,
    colorbar,
    layout,
    shorten,
    styled,
    titled,
)

_MOST_NUMBERS = 20  # classes up to which the percentages are written
_MOST_NAMES = 25  # names along an axis
_MOST_CELLS = 500  # cells along an axis; there are hardly more pixels
_LETTERS = 20


class Confusion(NamedTuple):
    """A confusion matrix.

    Attributes:
      matrix: numbers of examples, [true class, predicted class].
      class_names: one name per class.
    """

    matrix: np.ndarray
    class_names: Sequence[str]


@styled
def build_confusion(panels: Mapping[str, Confusion], *, title: str = "") -> Figure:
    """Draws confusion matrices, each row in percent of its true class; a panel each.

    The color follows the square root of the percentage, so that rare mistakes among
    many classes are visible. Up to 20 classes, the percentages above zero are written
    into their cells; with more classes, only some are named, with their numbers. With
    more than 500 classes, a cell shows the maximum of several percentages.

    Args:
      panels: the name written above each panel -> its matrix; "" for no name.
      title: of the figure.

    Returns:
      The figure; its first axes are the panels, whose images hold the percentages,
      masked in the rows of classes without examples, which are hatched.
    """
    rows, columns = layout(len(panels))
    most = max(len(each.matrix) for each in panels.values())
    side = 8.4 if most > 10 else 6.9
    if len(panels) > 1:
        side = 6.9 if most > 10 else 5.6
    figure = titled(side * columns + 0.6, side * rows, title)
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(len(panels))]
    for panel, (name, each) in zip(axes, panels.items(), strict=True):
        image = _draw_matrix(panel, each)
        panel.set_title(name, loc="left")
    options = {"ax": axes, "shrink": 0.7 / rows**0.5, "aspect": 30, "pad": 0.02}
    bar = colorbar(figure, image, "share of the true class [%]", **options)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])
    return figure


def _draw_matrix(axes: Axes, drawn: Confusion) -> AxesImage:
    matrix = np.asarray(drawn.matrix, float)
    percent, empty = _percentages(matrix)
    axes.patch.set(facecolor="white", edgecolor=FAINT, hatch="////")
    axes.spines[:].set_visible(True)
    end = len(matrix) - 0.5
    image = axes.imshow(
        _largest(percent),
        cmap=SHARES,
        norm=PowerNorm(0.5, 0, 100),
        extent=(-0.5, end, end, -0.5),
        interpolation="nearest",
    )
    _name_classes(axes, drawn.class_names)
    if empty.any():
        axes.set_ylabel("true class (hatched: no examples)")
    if len(matrix) <= _MOST_NUMBERS:
        _write_percentages(axes, percent, matrix)
    return image


def _percentages(matrix: np.ndarray) -> tuple[np.ma.MaskedArray, np.ndarray]:
    """Returns each row in percent, and which rows have no examples."""
    totals = matrix.sum(axis=1, keepdims=True)
    empty = totals == 0
    percent = 100 * matrix / np.where(empty, 1, totals)
    return np.ma.masked_where(np.broadcast_to(empty, matrix.shape), percent), empty


def _largest(percent: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Returns the maxima of square blocks, at most `_MOST_CELLS` per axis.

    A mean would dilute the diagonal, whose neighbors are small.
    """
    block = -(-len(percent) // _MOST_CELLS)
    starts = np.arange(0, len(percent), block)
    values = percent.filled(-1)
    for axis in (0, 1):
        values = np.maximum.reduceat(values, starts, axis=axis)
    return np.ma.masked_less(values, 0)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Labels both axes with as many names as are legible."""
    many = len(class_names) > _MOST_NUMBERS
    every = -(-len(class_names) // _MOST_NAMES) if many else 1
    places = range(0, len(class_names), every)
    names = [shorten(class_names[place], _LETTERS) for place in places]
    if every > 1:
        names = [f"{name} · {place}" for place, name in zip(places, names, strict=True)]
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.tick_params(labelsize=7 if many else 9, length=3 if every > 1 else 0)
    axes.set(xlabel="predicted class", ylabel="true class")


def _write_percentages(
    axes: Axes, percent: np.ma.MaskedArray, matrix: np.ndarray
) -> None:
    size = 9 if len(matrix) <= 10 else 7
    for row, column in np.argwhere(matrix > 0):
        share = percent[row, column]
        text = f"{share:.0f}" if share >= 0.5 else "<1"
        color = "white" if share > 35 else INK if share >= 0.5 else MUTED
        axes.text(column, row, text, ha="center", va="center", size=size, color=color)
