"""Projections of the representations to the plane."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from duet_jax.figures.style import (
    FAINT,
    SERIES,
    colorbar,
    legend,
    locator,
    shorten,
    styled,
    titled,
)

_MOST_NAMES = 20  # classes in a legend
_MARKERS = ("o", "^", "s")
_LETTERS = 16


class Coloring(NamedTuple):
    """A parameter that colors the points.

    Attributes:
      name: of the parameter.
      values: of every image, [n].
      unit: of the parameter; may be empty.
      circular: whether the parameter, and with it the color map, is circular.
      limits: of the colors; one period of a circle. The extremes of `values` if None.
    """

    name: str
    values: np.ndarray
    unit: str = ""
    circular: bool = False
    limits: tuple[float, float] | None = None


@styled
def build_embedding(
    points: Mapping[str, np.ndarray],
    *,
    classes: np.ndarray,
    class_names: Sequence[str],
    parameters: Sequence[Coloring] = (),
    title: str = "",
) -> Figure:
    """Draws projections of the representations, one per column.

    One row is colored by class, which shows content, and one by the parameter of each
    augmentation, which shows structure. Without any all points have one color.

    Args:
      points: name of the projection, such as "PCA" -> coordinates, [n, 2].
      classes: class of every image, [n], from 0.
      class_names: one name per class; up to 20 are listed, each with a color and a
        marker, more are colored by their number. Empty without labels.
      parameters: of the images.
      title: of the figure.

    Returns:
      The figure; the last axes of every row hold its legend or color bar.
    """
    rows = {}  # title -> paint(axes, places), label and unit of its color bar
    if class_names:
        paint = functools.partial(
            _scatter_classes, classes=classes, num_classes=len(class_names)
        )
        rows[", by class"] = paint, "number of the class", ""
    for name, values, unit, circular, limits in parameters:
        paint = functools.partial(
            _scatter_values, values=values, circular=circular, limits=limits
        )
        rows[f", by {name}"] = paint, f"{name} [{unit}]" if unit else name, unit
    if not rows:
        same = np.zeros(len(classes), int)
        paint = functools.partial(_scatter_classes, classes=same, num_classes=1)
        rows[""] = paint, "", ""
    figure = titled(1.8 + 3.8 * len(points), 0.6 + 3.8 * len(rows), title)
    widths = [1.0] * len(points) + [0.4]
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    for panels, (by, (paint, *bar)) in zip(axes, rows.items(), strict=True):
        for panel, (projection, places) in zip(panels, points.items(), strict=False):
            _clear(panel, f"{projection}{by}")
            drawn = paint(panel, np.asarray(places, float))
        if drawn is None:
            _name_classes(panels[-1], class_names)
        else:
            _add_bar(panels[-1], drawn, *bar)
    return figure


def _clear(axes: Axes, title: str) -> None:
    """Removes the ticks: the axes of a projection have no unit."""
    axes.set_title(title, loc="left")
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    axes.spines[:].set(visible=True, color=FAINT)


def _size(points: int) -> float:
    """Returns the area of a marker, smaller if there are many."""
    return float(np.clip(12000 / points, 5, 30))


def _mark(number: int) -> dict:
    """Returns color and marker of a class; colors repeat with another marker."""
    marker = _MARKERS[number // len(SERIES)]
    return {"color": SERIES[number % len(SERIES)], "marker": marker}


def _scatter_classes(
    axes: Axes, places: np.ndarray, classes: np.ndarray, num_classes: int
) -> PathCollection | None:
    """Draws one collection per class or, for many classes, one with a color map.

    Returns:
      The collection with a color map, if any.
    """
    classes = np.asarray(classes)
    if num_classes > _MOST_NAMES:
        return _scatter_values(axes, places, classes, False, (0, num_classes - 1))
    for number in range(num_classes):
        chosen = places[classes == number]
        size = _size(len(places))
        axes.scatter(*chosen.T, s=size, alpha=0.75, lw=0, **_mark(number))
    return None


def _scatter_values(
    axes: Axes,
    places: np.ndarray,
    values: np.ndarray,
    circular: bool,
    limits: tuple[float, float] | None,
) -> PathCollection:
    values = np.asarray(values, float)
    low, high = limits or (float(values.min()), float(values.max()))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return axes.scatter(
        *places.T,
        c=values,
        s=_size(len(places)),
        lw=0,
        alpha=0.85,
        vmin=low,
        vmax=high,
        cmap=_cycle() if circular else "viridis",
    )


def _cycle() -> ListedColormap:
    """Returns the color map twilight with its white darkened."""
    colors = matplotlib.colormaps["twilight"](np.linspace(0, 1, 256))[:, :3]
    light = colors @ np.array([0.2126, 0.7152, 0.0722])
    dimmed = np.minimum(1, 0.68 / light)
    return ListedColormap(colors * dimmed[:, None], name="cycle")


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    handles = [
        Line2D([], [], ls="", ms=6, mew=0, **_mark(number))
        for number in range(len(class_names))
    ]
    names = [shorten(name, _LETTERS) for name in class_names]
    axes.set_axis_off()
    options = {"loc": "upper left", "borderaxespad": 0, "labelspacing": 0.35}
    legend(axes, handles, names, fontsize=8, handletextpad=0.2, **options)


def _add_bar(axes: Axes, drawn: PathCollection, label: str, unit: str) -> None:
    """Draws the color bar at the left of `axes`, which contain nothing else."""
    axes.set_axis_off()
    place = axes.inset_axes((0, 0, 0.1, 1))
    bar = colorbar(axes.figure, drawn, label, cax=place, ticks=locator(unit))
    bar.solids.set_alpha(1)
