"""Confusion matrices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from duet_jax.figures.style import (
    FAINT,
    INK,
    MUTED,
    SHARES,
    colorbar,
    shorten,
    styled,
    titled,
)

_MOST_NUMBERS = 20  # classes up to which the percentages are written
_MOST_NAMES = 25  # names along an axis
_MOST_CELLS = 500  # cells along an axis; there are hardly more pixels
_LETTERS = 20


@styled
def build_confusion(
    matrix: np.ndarray, class_names: Sequence[str], *, title: str = ""
) -> Figure:
    """Draws a confusion matrix, each row in percent of its true class.

    The color follows the square root of the percentage, so that rare mistakes among
    many classes are visible. Up to 20 classes, the percentages above zero are written
    into their cells; with more classes, only some are named, with their numbers. With
    more than 500 classes, a cell shows the maximum of several percentages.

    Args:
      matrix: numbers of examples, [true class, predicted class].
      class_names: one name per class.
      title: written above.

    Returns:
      The figure; the image of its first axes holds the percentages, masked in the rows
      of classes without examples, which are hatched.
    """
    matrix = np.asarray(matrix, float)
    percent, empty = _percentages(matrix)
    width = 9.0 if len(matrix) > 10 else 7.5
    figure = titled(width, width - 0.6, title)
    axes = figure.add_subplot()
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
    options = {"ax": axes, "shrink": 0.7, "aspect": 30, "pad": 0.02}
    bar = colorbar(figure, image, "share of the true class [%]", **options)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])
    _name_classes(axes, class_names)
    if empty.any():
        axes.set_ylabel("true class (hatched: no examples)")
    if len(matrix) <= _MOST_NUMBERS:
        _write_percentages(axes, percent, matrix)
    return figure


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
