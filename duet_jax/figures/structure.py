"""Figures that relate the structure to the parameter of the augmentation."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from duet_jax.figures.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    SHARES,
    colorbar,
    grid,
    legend,
    locator,
    styled,
    titled,
)

Topology = Literal["circle", "line"]

_MOST_CELLS = 48  # along an axis of a heat map
_TELLING = 10  # images that a column needs to count for the color scale


class _Columns(NamedTuple):
    """Examples grouped by their parameter.

    Attributes:
      index: the column of every example, [n].
      edges: of the columns along the axis, [columns + 1].
      levels: the parameter of every column if it has few values; the axis then counts
        them.
    """

    index: np.ndarray
    edges: np.ndarray
    levels: np.ndarray | None

    @property
    def number(self) -> int:
        return len(self.edges) - 1

    @property
    def centers(self) -> np.ndarray:
        return (self.edges[1:] + self.edges[:-1]) / 2

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Returns means of [n, ...] by column, [columns, ...]; NaN if empty."""
        counts = np.bincount(self.index, minlength=self.number)
        sums = np.zeros((self.number, *values.shape[1:]))
        np.add.at(sums, self.index, values)
        counts = counts.reshape(-1, *[1] * (values.ndim - 1)).astype(float)
        return sums / np.where(counts == 0, np.nan, counts)

    def quantiles(self, values: np.ndarray, at: Sequence[float]) -> np.ndarray:
        """Returns quantiles of [n] by column, [len(at), columns]; NaN if empty."""
        found = np.full((len(at), self.number), np.nan)
        for column in np.unique(self.index):
            found[:, column] = np.quantile(values[self.index == column], at)
        return found


def _columns(
    parameters: np.ndarray,
    levels: Sequence[float] | None,
    limits: tuple[float, float] | None,
) -> _Columns:
    """Groups by level if given, else in equal intervals between the limits."""
    if levels is not None:
        levels = np.asarray(levels, float)
        index = np.abs(parameters[:, None] - levels[None, :]).argmin(axis=1)
        return _Columns(index, np.arange(len(levels) + 1) - 0.5, levels)
    low, high = limits or _interval(parameters)
    edges = np.linspace(low, high, _cells(len(parameters), fewest=1) + 1)
    index = np.searchsorted(edges[1:-1], parameters, side="right")
    return _Columns(index, edges, None)


def _cells(examples: int, fewest: int) -> int:
    """Returns a number of intervals that suits the number of examples."""
    return int(np.clip(0.75 * np.sqrt(examples), fewest, _MOST_CELLS))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the extremes, widened if they are equal."""
    low, high = float(np.min(values)), float(np.max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


@styled
def build_marginals(
    parameters: np.ndarray,
    marginals: np.ndarray,
    targets: np.ndarray,
    *,
    unit: str,
    topology: Topology,
    title: str = "",
    limits: tuple[float, float] | None = None,
    levels: Sequence[float] | None = None,
) -> Figure:
    """Draws the mean structure marginal by parameter, beside its target.

    Left: predicted marginals, middle: targets, on the same color scale. A network that
    has learned the parameter shows the stripe of the targets; one that ignores it shows
    equal columns. Right: their total variation distance (half the sum of absolute
    differences, from 0 to 1): mean, and the band from the 10th to the 90th percentile
    of the images; for comparison, the distance of the uniform marginal.

    Args:
      parameters: of the augmentation, in its own units, [n].
      marginals: predicted over the structure bins, [n, G], rows summing to 1.
      targets: prescribed for these parameters, [n, G], rows summing to 1.
      unit: of the parameters.
      topology: "circle" if the first and the last bin are neighbors, else "line".
      title: of the figure.
      limits: the range of the parameter, divided into equal intervals; the extremes of
        `parameters` if None.
      levels: the values of the parameter, if they are few: one column for each, in this
        order, whatever the limits.

    Returns:
      The figure; the images of its first two axes are [G, columns], masked in columns
      without examples.
    """
    parameters = np.asarray(parameters, float)
    marginals, targets = np.asarray(marginals, float), np.asarray(targets, float)
    columns = _columns(parameters, levels, limits)
    figure = titled(11, 3.9, title)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    image = _draw_means(axes[:2], columns, (marginals, targets))
    axes[0].set_title("predicted marginal, mean", loc="left")
    axes[1].set_title("target, mean", loc="left")
    circle = topology == "circle"
    axes[0].set_ylabel("bin (last and first are neighbors)" if circle else "bin")
    axes[1].tick_params(labelleft=False)
    colorbar(figure, image, "probability", ax=axes[:2], aspect=25, pad=0.02)
    _draw_distances(axes[2], columns, marginals, targets)
    for panel in axes:
        _mark_parameter(panel, columns, unit)
    figure.supxlabel(f"parameter [{unit}]", size=9, color=MUTED)
    return figure


def _draw_means(
    axes: Sequence[Axes], columns: _Columns, distributions: Sequence[np.ndarray]
) -> AxesImage:
    """Draws the mean of each distribution by parameter, on one color scale."""
    means = [np.ma.masked_invalid(columns.mean(each).T) for each in distributions]
    for panel, mean in zip(axes, means, strict=True):
        image = panel.imshow(
            mean,
            cmap=SHARES,
            vmin=0,
            vmax=max(float(mean.max()) for mean in means),
            origin="lower",
            aspect="auto",
            extent=(columns.edges[0], columns.edges[-1], -0.5, len(mean) - 0.5),
            interpolation="nearest",
        )
        panel.yaxis.set_major_locator(locator("bins", 8))
    return image


def _draw_distances(
    axes: Axes, columns: _Columns, marginals: np.ndarray, targets: np.ndarray
) -> None:
    """Draws the distance of the marginals from the targets, by parameter."""
    distances = np.abs(marginals - targets).sum(axis=1) / 2
    uniform = np.abs(1 / targets.shape[1] - targets).sum(axis=1) / 2
    low, high = columns.quantiles(distances, (0.1, 0.9))
    few = columns.number <= 12
    x, marker = columns.centers, "o" if few else None
    if few:
        band = axes.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", lw=5)
        band.lines[2][0].set(color=BLUE, alpha=0.3)
    else:
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
    (mean,) = axes.plot(x, columns.mean(distances), color=BLUE, marker=marker, ms=4)
    (flat,) = axes.plot(x, columns.mean(uniform), color=MUTED, ls=":", marker=marker)
    flat.set_markersize(3)
    axes.set_title("distance to the target", loc="left")
    axes.set(xlim=(columns.edges[0], columns.edges[-1]), ylim=(0, 1))
    axes.set_ylabel("total variation")
    grid(axes)
    legend(axes, [mean, flat], ["predicted", "uniform marginal"], loc="best")


def _mark_parameter(axes: Axes, columns: _Columns, unit: str) -> None:
    if columns.levels is None:
        axes.xaxis.set_major_locator(locator(unit))
    else:
        names = [f"{level:.4g}" for level in columns.levels]
        axes.set_xticks(columns.centers, names)


@styled
def build_readout(
    true: np.ndarray,
    predicted: np.ndarray,
    *,
    unit: str,
    topology: Topology,
    title: str = "",
    limits: tuple[float, float],
    levels: Sequence[float] | None = None,
) -> Figure:
    """Draws the parameter that was read against the one that was applied.

    The color of a cell is its share of the images in its column, so that rare
    parameters show like the others; cells without images are white. The solid line is
    the exact reading; on a circle, the dotted one is half a turn off.

    Args:
      true: parameters of the augmentation, [n].
      predicted: the parameters read from the features, [n].
      unit: of both.
      topology: "circle" if the ends of `limits` are the same parameter, else "line".
      title: of the figure.
      limits: the range of the parameter. On a circle one period, into which both are
        wrapped; on a line, both are clipped to it.
      levels: the values of the parameter, if they are few: one column for each.

    Returns:
      The figure; the mesh of its first axes holds percentages, [predicted, true],
      masked in columns without images.
    """
    low, high = map(float, limits)
    true, predicted = (
        _within(np.asarray(values, float), low, high, topology)
        for values in (true, predicted)
    )
    y_edges = np.linspace(low, high, _cells(len(true), fewest=8) + 1)
    x_edges = y_edges
    if levels is not None:
        ordered = np.sort(np.asarray(levels, float))
        x_edges = np.array([low, *(ordered[1:] + ordered[:-1]) / 2, high])
    counts = np.histogram2d(predicted, true, (y_edges, x_edges))[0]
    figure = titled(5.8, 5.6, title)
    axes = figure.add_subplot(aspect="equal")
    _draw_shares(figure, axes, x_edges, y_edges, counts)
    _draw_identity(axes, low, high, topology)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(locator(unit))
    if levels is not None:
        axes.set_xticks(ordered, [f"{level:.4g}" for level in ordered])
    axes.set(xlabel=f"applied [{unit}]", ylabel=f"read [{unit}]")
    axes.set(xlim=(low, high), ylim=(low, high))
    return figure


def _draw_shares(
    figure: Figure,
    axes: Axes,
    x_edges: np.ndarray,
    y_edges: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Draws counts, [y, x], in percent of their column."""
    totals = counts.sum(axis=0)
    percent = 100 * counts / np.where(totals == 0, np.nan, totals)[None, :]
    # Columns of few images have large shares, which would make all others pale.
    telling = totals >= min(_TELLING, totals.max())
    top, largest = percent[:, telling].max(), np.nanmax(percent)
    mesh = axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_invalid(percent),
        cmap=SHARES,
        vmin=0,
        vmax=top,
    )
    colorbar(
        figure,
        mesh,
        "share of the images with this parameter [%]",
        ax=axes,
        shrink=0.8,
        aspect=30,
        pad=0.02,
        extend="max" if largest > top else "neither",
    )


def _within(
    values: np.ndarray, low: float, high: float, topology: Topology
) -> np.ndarray:
    if topology == "circle":
        return low + np.mod(values - low, high - low)
    return np.clip(values, low, high)


def _draw_identity(axes: Axes, low: float, high: float, topology: Topology) -> None:
    """Draws the line of exact readings, and on a circle that of opposite ones."""
    ends = np.array([low, high])
    (exact,) = axes.plot(ends, ends, color=ORANGE, lw=1)
    handles, names = [exact], ["exact"]
    if topology == "circle":
        for half in ((high - low) / 2, (low - high) / 2):
            (opposite,) = axes.plot(ends, ends + half, color=MUTED, lw=1, ls=":")
        handles.append(opposite)
        names.append("half a turn off")
    options = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    legend(axes, handles, names, ncols=2, **options)


_STROKES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D")


@styled
def build_shift(
    shifts: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    title: str = "",
) -> Figure:
    """Draws how well shifted bins agree with the features of the turned image.

    Args:
      shifts: of the structure bins, [K], in bins.
      curves: name -> values by shift, [K], or mean, lower and upper end of a band,
        [3, K]. Values that are not finite leave a gap.
      ylabel: written above the axis of the values.
      title: of the figure.

    Returns:
      The figure; its axes have one line per curve, labeled with its index in `curves`.
    """
    shifts = np.asarray(shifts, float)
    figure = titled(7, 4.2, title)
    axes = figure.add_subplot()
    lines = []
    for number, values in enumerate(curves.values()):
        mean, *band = np.atleast_2d(np.asarray(values, float))
        style = {
            "color": SERIES[number % len(SERIES)],
            "ls": _STROKES[number % len(_STROKES)],
            "marker": _MARKS[number % len(_MARKS)],
        }
        lines += axes.plot(shifts, mean, ms=4, label=str(number), **style)
        if band:
            axes.fill_between(shifts, *band, color=style["color"], alpha=0.18, lw=0)
    axes.set_xlabel("shift [bins]")
    axes.set_title(ylabel, loc="left")
    axes.xaxis.set_major_locator(locator("bins", 8))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.axhline(0, color=INK, lw=0.6, zorder=0)
    grid(axes)
    below = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "borderaxespad": 0}
    legend(axes, lines, list(curves), ncols=len(lines), **below)
    return figure
