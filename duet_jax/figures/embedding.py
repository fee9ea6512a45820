"""Representations in the plane, coloured by what they might tell."""

from collections.abc import Mapping, Sequence

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
    legend,
    locator,
    shorten,
    styled,
    titled,
)

_MOST_NAMES = 20  # classes up to which a legend names them
_MARKERS = ("o", "^", "s")
_LETTERS = 16


@styled
def build_embedding(
    points: Mapping[str, np.ndarray],
    *,
    classes: np.ndarray,
    class_names: Sequence[str],
    values: np.ndarray | None = None,
    name: str = "",
    unit: str = "",
    circular: bool = False,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Lays out projections of the representations, one a column.

    The first row is coloured by class, the second by the parameter of an augmentation:
    content shows in the first, structure in the second.

    Args:
      points: name of the projection, such as "PCA", -> places in the plane, [n, 2].
      classes: class of every image, [n], from 0.
      class_names: one name per class; up to 20 are listed, with one colour and marker
        each, more are coloured by their number.
      values: parameter of every image, [n]; without it there is no second row.
      name: of the parameter.
      unit: of the parameter; may be empty.
      circular: whether the parameter comes round again, and its colours with it.
      limits: of the colours; one period of a circle. The extremes of `values` if None.
      title: written above.

    Returns:
      The figure; its axes are titled with projection and colouring, and every row ends
      with the place of its legend or colour bar.
    """
    rows = 1 if values is None else 2
    figure = titled(1.8 + 3.8 * len(points), 0.6 + 3.8 * rows, title)
    widths = [1.0] * len(points) + [0.4]
    axes = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for number, (projection, places) in enumerate(points.items()):
        panels = axes[:, number]
        for panel, by in zip(panels, ("class", name), strict=False):
            _clear(panel, f"{projection}, by {by}")
        places = np.asarray(places, float)
        by_class = _scatter_classes(panels[0], places, classes, len(class_names))
        if values is not None:
            by_value = _scatter_values(panels[1], places, values, circular, limits)
    if by_class is None:
        _name_classes(axes[0, -1], class_names)
    else:
        _add_bar(axes[0, -1], by_class, "number of the class", "")
    if values is not None:
        label = f"{name} [{unit}]" if unit else name
        _add_bar(axes[1, -1], by_value, label, unit)
    return figure


def _clear(axes: Axes, title: str) -> None:
    """Leaves a frame: the axes of a projection have no unit."""
    axes.set_title(title, loc="left")
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    axes.spines[:].set(visible=True, color=FAINT)


def _size(points: int) -> float:
    """Returns the area of a marker, smaller where there are many."""
    return float(np.clip(12000 / points, 5, 30))


def _mark(number: int) -> dict:
    """Returns colour and marker of a class; colours repeat with another marker."""
    marker = _MARKERS[number // len(SERIES)]
    return {"color": SERIES[number % len(SERIES)], "marker": marker}


def _scatter_classes(
    axes: Axes, places: np.ndarray, classes: np.ndarray, num_classes: int
) -> PathCollection | None:
    """Draws one collection per class, or if they are many, one on a colour map."""
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
    """Returns twilight with its white darkened, which white paper would swallow."""
    colours = matplotlib.colormaps["twilight"](np.linspace(0, 1, 256))[:, :3]
    light = colours @ np.array([0.2126, 0.7152, 0.0722])
    dimmed = np.minimum(1, 0.68 / light)
    return ListedColormap(colours * dimmed[:, None], name="cycle")


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
    """Draws the colour bar at the left of `axes`, which holds nothing else."""
    axes.set_axis_off()
    place = axes.inset_axes((0, 0, 0.1, 1))
    bar = axes.figure.colorbar(drawn, cax=place, ticks=locator(unit))
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    bar.set_label(label)
