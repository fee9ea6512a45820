"""Figures that relate the structure to the parameter of the augmentation.

Each has a summary that holds all that is drawn, small enough to be kept beside the
results. A figure draws one summary or several, which then share one scale.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from duet_jax.figures.style import (
    BLUE,
    FAINT,
    MUTED,
    ORANGE,
    SERIES,
    SHARES,
    colorbar,
    grid,
    label_below,
    layout,
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


class Marginals(NamedTuple):
    """Mean structure marginals by parameter; see `summarize_marginals`.

    Attributes:
      predicted: mean over the images of a column, [G, columns]; NaN without images.
      target: likewise.
      distance: total variation distance from the target: mean, 10th and 90th percentile
        of the images, and the mean of the uniform marginal, [4, columns].
      edges: of the columns, [columns + 1].
      levels: the parameter of every column if it has few values, else None.
      unit: of the parameter.
      topology: "circle" if the first and the last bin are neighbors, else "line".
    """

    predicted: np.ndarray
    target: np.ndarray
    distance: np.ndarray
    edges: np.ndarray
    levels: np.ndarray | None
    unit: str
    topology: Topology


def summarize_marginals(
    parameters: np.ndarray,
    marginals: np.ndarray,
    targets: np.ndarray,
    *,
    unit: str,
    topology: Topology,
    limits: tuple[float, float] | None = None,
    levels: Sequence[float] | None = None,
) -> Marginals:
    """Returns the mean marginals by parameter.

    Args:
      parameters: of the augmentation, in its own units, [n].
      marginals: predicted over the structure bins, [n, G], rows summing to 1.
      targets: prescribed for these parameters, [n, G], rows summing to 1.
      unit: of the parameters.
      topology: "circle" if the first and the last bin are neighbors, else "line".
      limits: the range of the parameter, divided into equal intervals; the extremes of
        `parameters` if None.
      levels: the values of the parameter, if they are few: one column for each, in this
        order, whatever the limits.
    """
    parameters = np.asarray(parameters, float)
    marginals, targets = np.asarray(marginals, float), np.asarray(targets, float)
    columns = _columns(parameters, levels, limits)
    distances = np.abs(marginals - targets).sum(axis=1) / 2
    uniform = np.abs(1 / targets.shape[1] - targets).sum(axis=1) / 2
    means = (columns.mean(distances), columns.mean(uniform))
    band = columns.quantiles(distances, (0.1, 0.9))
    return Marginals(
        columns.mean(marginals).T,
        columns.mean(targets).T,
        np.stack([means[0], *band, means[1]]),
        columns.edges,
        columns.levels,
        unit,
        topology,
    )


@styled
def build_marginals(panels: Mapping[str, Marginals], *, title: str = "") -> Figure:
    """Draws mean structure marginals by parameter, beside their targets; a row each.

    Left: predicted marginals, middle: targets, all on one color scale. A network that
    has learned the parameter shows the stripe of the targets; one that ignores it shows
    equal columns. Right: their total variation distance (half the sum of absolute
    differences, from 0 to 1): mean, and the band from the 10th to the 90th percentile
    of the images; for comparison, the distance of the uniform marginal.

    Args:
      panels: the name written above each row -> its marginals; "" for no name.
      title: of the figure.

    Returns:
      The figure; the images of the first two of a row's three axes are [G, columns],
      masked in columns without examples.
    """
    panels = {name: _with_arrays(each) for name, each in panels.items()}
    figure = titled(11, 0.3 + 3.6 * len(panels), title)
    rows = figure.subplots(len(panels), 3, squeeze=False, width_ratios=(1, 1, 0.8))
    both = [np.stack([each.predicted, each.target]) for each in panels.values()]
    top = max(float(np.nanmax(each)) for each in both)
    for axes, (name, each) in zip(rows, panels.items(), strict=True):
        image = _draw_means(axes[:2], each, top)
        prefix = f"{name}: " if name else ""
        axes[0].set_title(f"{prefix}predicted marginal, mean", loc="left")
        axes[1].set_title("target, mean", loc="left")
        circle = each.topology == "circle"
        axes[0].set_ylabel("bin (last and first are neighbors)" if circle else "bin")
        axes[1].tick_params(labelleft=False)
        _draw_distances(axes[2], each)
        for panel in axes:
            _mark_parameter(panel, each)
    colorbar(figure, image, "probability", ax=rows[:, :2], aspect=25, pad=0.02)
    units = dict.fromkeys(each.unit for each in panels.values())
    label = f"parameter [{', '.join(units)}]"
    label_below(figure, label, x=0.5, ha="center", size=9)
    return figure


def _with_arrays(summary: NamedTuple) -> NamedTuple:
    """Returns a summary whose lists, as JSON has them, are arrays; None becomes NaN."""
    values = {
        name: np.asarray(value, float) if isinstance(value, list) else value
        for name, value in summary._asdict().items()
    }
    return summary._replace(**values)


def _draw_means(axes: Sequence[Axes], drawn: Marginals, top: float) -> AxesImage:
    """Draws the predicted and the target marginals; `top` is the darkest color."""
    for panel, mean in zip(axes, (drawn.predicted, drawn.target), strict=True):
        image = panel.imshow(
            np.ma.masked_invalid(mean),
            cmap=SHARES,
            vmin=0,
            vmax=top,
            origin="lower",
            aspect="auto",
            extent=(drawn.edges[0], drawn.edges[-1], -0.5, len(mean) - 0.5),
            interpolation="nearest",
        )
        panel.yaxis.set_major_locator(locator("bins", 8))
    return image


def _draw_distances(axes: Axes, drawn: Marginals) -> None:
    """Draws the distance of the marginals from the targets, by parameter."""
    distance, low, high, uniform = drawn.distance
    x = (drawn.edges[1:] + drawn.edges[:-1]) / 2
    few = len(x) <= 12
    marker = "o" if few else None
    if few:
        band = axes.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", lw=5)
        band.lines[2][0].set(color=BLUE, alpha=0.3)
    else:
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
    (mean,) = axes.plot(x, distance, color=BLUE, marker=marker, ms=4)
    (flat,) = axes.plot(x, uniform, color=MUTED, ls=":", marker=marker)
    flat.set_markersize(3)
    axes.set_title("distance to the target", loc="left")
    axes.set(xlim=(drawn.edges[0], drawn.edges[-1]), ylim=(0, 1))
    axes.set_ylabel("total variation")
    grid(axes)
    legend(axes, [mean, flat], ["predicted", "uniform marginal"], loc="best")


def _mark_parameter(axes: Axes, drawn: Marginals) -> None:
    if drawn.levels is None:
        axes.xaxis.set_major_locator(locator(drawn.unit))
    else:
        names = [f"{level:.4g}" for level in drawn.levels]
        axes.set_xticks((drawn.edges[1:] + drawn.edges[:-1]) / 2, names)


class Readout(NamedTuple):
    """What was read, by what was applied; see `summarize_readout`.

    Attributes:
      counts: images by parameter, [read, applied].
      applied: edges of the columns, [columns + 1].
      read: edges of the rows, [rows + 1].
      levels: the parameter of every column if it has few values, else None.
      unit: of the parameter.
      topology: "circle" if the ends of the range are the same parameter, else "line".
    """

    counts: np.ndarray
    applied: np.ndarray
    read: np.ndarray
    levels: np.ndarray | None
    unit: str
    topology: Topology

    @property
    def percent(self) -> np.ndarray:
        """Counts in percent of their column; NaN in columns without images."""
        totals = self.counts.sum(axis=0)
        return 100 * self.counts / np.where(totals == 0, np.nan, totals)[None, :]

    @property
    def top(self) -> float:
        """The largest percentage of the columns with enough images to tell."""
        # Columns of few images have large shares, which would make all others pale.
        totals = self.counts.sum(axis=0)
        telling = totals >= min(_TELLING, totals.max())
        return float(self.percent[:, telling].max())


def summarize_readout(
    true: np.ndarray,
    predicted: np.ndarray,
    *,
    unit: str,
    topology: Topology,
    limits: tuple[float, float],
    levels: Sequence[float] | None = None,
) -> Readout:
    """Counts images by the parameter that was applied and by the one that was read.

    Args:
      true: parameters of the augmentation, [n].
      predicted: the parameters read from the features, [n].
      unit: of both.
      topology: "circle" if the ends of `limits` are the same parameter, else "line".
      limits: the range of the parameter. On a circle one period, into which both are
        wrapped; on a line, both are clipped to it.
      levels: the values of the parameter, if they are few: one column for each.
    """
    low, high = map(float, limits)
    true, predicted = (
        _within(np.asarray(values, float), low, high, topology)
        for values in (true, predicted)
    )
    read = np.linspace(low, high, _cells(len(true), fewest=8) + 1)
    applied = read
    if levels is not None:
        levels = np.sort(np.asarray(levels, float))
        applied = np.array([low, *(levels[1:] + levels[:-1]) / 2, high])
    counts = np.histogram2d(predicted, true, (read, applied))[0]
    return Readout(counts, applied, read, levels, unit, topology)


def _within(
    values: np.ndarray, low: float, high: float, topology: Topology
) -> np.ndarray:
    if topology == "circle":
        return low + np.mod(values - low, high - low)
    return np.clip(values, low, high)


@styled
def build_readout(panels: Mapping[str, Readout], *, title: str = "") -> Figure:
    """Draws parameters that were read against those that were applied; a panel each.

    The color of a cell is its share of the images in its column, so that rare
    parameters show like the others; cells without images are white. All panels have one
    color scale. The solid line is the exact reading; on a circle, the dotted one is
    half a turn off.

    Args:
      panels: the name written above each panel -> its counts; "" for no name.
      title: of the figure.

    Returns:
      The figure; its first axes are the panels, whose meshes hold percentages,
      [read, applied], masked in columns without images.
    """
    panels = {name: _with_arrays(each) for name, each in panels.items()}
    rows, columns = layout(len(panels))
    single = len(panels) == 1
    size = (5.8, 5.6) if single else (1.2 + 4.1 * columns, 0.6 + 4.2 * rows)
    figure = titled(*size, title)
    top = max(each.top for each in panels.values())
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(len(panels))]
    for panel, (name, each) in zip(axes, panels.items(), strict=True):
        mesh = _draw_shares(panel, each, top)
        if not single:
            panel.set_title(name, loc="left")
    more = any(np.nanmax(each.percent) > top for each in panels.values())
    colorbar(
        figure,
        mesh,
        "share of the images with this parameter [%]",
        ax=axes,
        shrink=0.8 / rows**0.5,
        aspect=30,
        pad=0.02,
        extend="max" if more else "neither",
    )
    handles = [Line2D([], [], color=ORANGE, lw=1)]
    if any(each.topology == "circle" for each in panels.values()):
        handles.append(Line2D([], [], color=MUTED, lw=1, ls=":"))
    names = ["exact", "half a turn off"][: len(handles)]
    options = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    where = axes[0] if single else figure
    options = options if single else {"loc": "upper right"}
    legend(where, handles, names, ncols=2, **options)
    return figure


def _draw_shares(axes: Axes, drawn: Readout, top: float) -> QuadMesh:
    """Draws counts in percent of their column; `top` is the darkest color."""
    shares = np.ma.masked_invalid(drawn.percent)
    edges = drawn.applied, drawn.read
    # A path for each cell would make an SVG file of a megabyte.
    pixels = {"cmap": SHARES, "vmin": 0, "vmax": top, "rasterized": True}
    mesh = axes.pcolormesh(*edges, shares, **pixels)
    ends = drawn.read[[0, -1]]
    axes.plot(ends, ends, color=ORANGE, lw=1)
    if drawn.topology == "circle":
        half = (ends[1] - ends[0]) / 2
        for way in (half, -half):
            axes.plot(ends, ends + way, color=MUTED, lw=1, ls=":")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(locator(drawn.unit))
    if drawn.levels is not None:
        axes.set_xticks(drawn.levels, [f"{level:.4g}" for level in drawn.levels])
    axes.set(xlabel=f"applied [{drawn.unit}]", ylabel=f"read [{drawn.unit}]")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    return mesh


_STROKES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D")


class Shift(NamedTuple):
    """How well shifted bins predict the features of the transformed image.

    Attributes:
      bins: of the structure; a shift by all of them is a full turn.
      shifts: in bins, [K], without 0, where the error is 0 by construction.
      curves: name -> error by shift, [K]; values that are not finite leave a gap.
    """

    bins: int
    shifts: np.ndarray
    curves: Mapping[str, np.ndarray]


@styled
def build_shift(panels: Mapping[str, Shift], *, title: str = "") -> Figure:
    """Draws errors by shift, on circles: a shift by all bins is none; a panel each.

    The distance from the center is the error, on one axis for all panels. No shift is
    on top; shifts go counter-clockwise, as images turn.

    Args:
      panels: the name written above each panel -> its errors; "" for no name.
      title: of the figure.

    Returns:
      The figure; its first axes are the panels, with one line per curve, labeled with
      its index in `curves`.
    """
    rows, columns = layout(len(panels))
    figure = titled(max(5.6, 0.4 + 3.9 * columns), 1.0 + 4.1 * rows, title)
    every = [np.asarray(v, float) for p in panels.values() for v in p.curves.values()]
    finite = np.concatenate([values[np.isfinite(values)] for values in every])
    top = 1.05 * (finite.max() if finite.size and finite.max() > 0 else 1.0)
    for number, (name, each) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, projection="polar")
        lines = _draw_shift(axes, each)
        axes.set_title(name, loc="left", pad=14)
        axes.set_ylim(0, top)
    names = list(each.curves)
    place = {"loc": "upper left", "bbox_to_anchor": (0, -0.08), "borderaxespad": 0}
    where = figure.axes[columns * (rows - 1)]
    made = legend(where, lines, names, ncols=len(names), columnspacing=1, **place)
    made.set_title("angle: shift in bins; radius: relative error", {"size": 9})
    made.get_title().set_color(MUTED)
    return figure


def _draw_shift(axes: PolarAxes, drawn: Shift) -> list[Line2D]:
    angles = 2 * np.pi * np.asarray(drawn.shifts, float) / drawn.bins
    lines = []
    for number, values in enumerate(drawn.curves.values()):
        style = {
            "color": SERIES[number % len(SERIES)],
            "ls": _STROKES[number % len(_STROKES)],
            "marker": _MARKS[number % len(_MARKS)],
        }
        values = np.asarray(values, float)
        lines += axes.plot(angles, values, ms=4, lw=1.4, label=str(number), **style)
    axes.set_theta_zero_location("N")
    shown = np.arange(0, drawn.bins, -(-drawn.bins // 12))
    names = [str(shift) if shift else "no shift" for shift in shown]
    axes.set_thetagrids(360 * shown / drawn.bins, names)
    axes.yaxis.set_major_locator(locator("", 4))
    axes.set_rlabel_position(180 / drawn.bins)
    axes.tick_params(pad=2, labelsize=8)
    axes.grid(color=FAINT, lw=0.6)
    axes.spines[:].set_color(FAINT)
    return lines
