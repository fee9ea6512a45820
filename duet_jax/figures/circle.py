"""Figures of circular parameters: errors by angle, and one image at many angles."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from duet_jax.figures.canvas import (
    CELL,
    COLUMNS,
    HEADER,
    Canvas,
    column_left,
    draw_image,
    enlargement,
)
from duet_jax.figures.style import (
    BLUE,
    FAINT,
    INK,
    LIGHT,
    MUTED,
    ORANGE,
    grid,
    legend,
    styled,
    titled,
)

_SECTORS = 24
_WIDTH = 2 * np.pi / _SECTORS  # radians
_ANGLES = np.arange(_SECTORS) * _WIDTH  # centers of the sectors
_FINE = np.linspace(0, 2 * np.pi, 361)  # of a circle
_EDGES = np.linspace(-180, 180, 73)  # degrees, of the histogram of errors
_NEAR = 30  # degrees within which a reading counts as right, or as half a turn off


def _wrap(degrees: np.ndarray) -> np.ndarray:
    """Returns the same angles in [-180, 180)."""
    return np.mod(degrees + 180, 360) - 180


class Polar(NamedTuple):
    """Errors of angles by true angle; see `summarize_polar`.

    Attributes:
      error: 10th, 50th and 90th percentile of the errors by sector, in degrees,
        [3, 24]; NaN without examples.
      near: percent of the readings by sector that are right, and that are half a turn
        off, [2, 24]; NaN without examples.
      errors: percent of all readings by error, in bins of 5 degrees from -180, [72].
      size: median size of all errors, in degrees.
      right: percent of all readings that are right.
      opposite: percent of all readings that are half a turn off.
    """

    error: np.ndarray
    near: np.ndarray
    errors: np.ndarray
    size: float
    right: float
    opposite: float


def summarize_polar(true: np.ndarray, predicted: np.ndarray) -> Polar:
    """Returns the errors of angles read from the structure, by true angle.

    A reading is right within 30 degrees of the true angle, and half a turn off within
    30 degrees of the opposite one. The sectors are 15 degrees wide and centered on the
    multiples of 15 degrees.

    Args:
      true: angles applied, in radians, [n]; any period.
      predicted: angles read, in radians, [n]; any period.
    """
    true = np.rad2deg(np.asarray(true, float))
    errors = _wrap(np.rad2deg(np.asarray(predicted, float)) - true)
    sector = np.round(np.mod(true, 360) / np.rad2deg(_WIDTH)).astype(int) % _SECTORS
    right = np.abs(errors) <= _NEAR
    opposite = np.abs(errors) >= 180 - _NEAR
    quantiles = [
        _by_sector(_around_mean(level), errors, sector) for level in (0.1, 0.5, 0.9)
    ]
    shares = [100 * _by_sector(np.mean, hits, sector) for hits in (right, opposite)]
    return Polar(
        np.stack(quantiles),
        np.stack(shares),
        100 * np.histogram(errors, _EDGES)[0] / len(errors),
        float(np.median(np.abs(errors))),
        float(100 * right.mean()),
        float(100 * opposite.mean()),
    )


@styled
def build_polar(panels: Mapping[str, Polar], *, title: str = "") -> Figure:
    """Draws the errors of angles read from the structure, by true angle; a row each.

    Left: median error and the band from the 10th to the 90th percentile, around the
    circle of error zero. Middle: share of the readings that are right, and of those
    half a turn off; a guess has a chance of one in six for either. Right: histogram of
    all errors. All rows have the same axes.

    Args:
      panels: the name written above each row -> its errors; "" for no name.
      title: of the figure.

    Returns:
      The figure, with three axes a row. The second line of the first shows the medians
      in degrees; the bars of the second are the shares in percent, first those of right
      readings, then those of opposite ones. Sectors without examples have neither.
    """
    panels = {
        name: each._replace(
            **{k: np.asarray(getattr(each, k), float) for k in Polar._fields[:3]}
        )
        for name, each in panels.items()
    }
    figure = titled(11, 0.2 + 4.2 * len(panels), title)
    reach = max(
        np.nanmax(np.abs(each.error[[0, 2]]), initial=0) for each in panels.values()
    )
    limit = next((limit for limit in (30, 60, 90) if reach <= limit), 180)
    highest = 1.05 * max(each.errors.max() for each in panels.values())
    for row, (name, each) in enumerate(panels.items()):
        places = (len(panels), 3, 3 * row + 1), (len(panels), 3, 3 * row + 2)
        ring, near = (figure.add_subplot(*p, projection="polar") for p in places)
        prefix = f"{name}: " if name else ""
        _draw_error_ring(ring, each.error, limit, f"{prefix}error by true angle")
        _draw_near(near, each.near)
        errors = figure.add_subplot(len(panels), 3, 3 * row + 3)
        _draw_errors(errors, each)
        errors.set_ylim(0, highest)
    return figure


def _by_sector(
    function: Callable[[np.ndarray], float], values: np.ndarray, sector: np.ndarray
) -> np.ndarray:
    """Returns `function` of the values of each sector, NaN for empty sectors."""
    found = [
        function(values[sector == number]) if (sector == number).any() else np.nan
        for number in range(_SECTORS)
    ]
    return np.array(found)


def _around_mean(level: float) -> Callable[[np.ndarray], float]:
    """Returns a function for the quantile of angles, relative to their mean."""

    def quantile(degrees: np.ndarray) -> float:
        mean = np.rad2deg(np.angle(np.exp(1j * np.deg2rad(degrees)).mean()))
        return float(_wrap(mean) + np.quantile(_wrap(degrees - mean), level))

    return quantile


def _draw_error_ring(
    axes: PolarAxes, error: np.ndarray, limit: int, title: str
) -> None:
    low, median, high = error
    (zero,) = axes.plot(_FINE, np.zeros_like(_FINE), color=INK, lw=1)
    # A closed line.
    around = [np.append(values, values[0]) for values in (_ANGLES, median)]
    (line,) = axes.plot(*around, color=BLUE, lw=1.6, marker="o", ms=3)
    for turn in (-360, 360, 0):
        # A band that leaves the ring at half a turn continues on its other side.
        inside = (low + turn < 180) & (high + turn >= -180)
        spans = np.where(inside, high - low, np.nan)
        style = {"color": BLUE, "alpha": 0.25}
        band = _draw_bars_around(axes, spans, 0.9, low + turn, **style)
    _dress(axes, title)
    axes.set_ylim(-limit, limit)
    axes.set_rorigin(-3 * limit)
    ticks = np.array([-limit, -limit / 2, 0, limit / 2, limit])
    _name_radii(axes, ticks, [_signed(tick, "+") for tick in ticks])
    _legend_below(axes, [line, band, zero], ["median", "10 to 90 %", "no error"])


def _draw_bars_around(
    axes: PolarAxes,
    lengths: np.ndarray,
    part: float,
    base: np.ndarray | float = 0,
    **style,
) -> BarContainer:
    """Draws bars as wide as `part` of their sectors, none for empty sectors."""
    bases = np.broadcast_to(base, lengths.shape)
    known = np.isfinite(lengths)  # Polar axes fail on bars of length NaN.
    width = part * _WIDTH
    return axes.bar(_ANGLES[known], lengths[known], width, bases[known], **style)


def _draw_near(axes: PolarAxes, near: np.ndarray) -> None:
    handles = []
    for share, color, part in zip(near, (LIGHT, ORANGE), (0.9, 0.4), strict=True):
        handles.append(_draw_bars_around(axes, share, part, color=color))
    chance = np.full_like(_FINE, 100 * 2 * _NEAR / 360)
    handles += axes.plot(_FINE, chance, color=INK, lw=1, ls=":")
    _dress(axes, "right, and half a turn off")
    axes.set_ylim(0, 100)
    _name_radii(axes, [25, 50, 75, 100], ["25", "50", "75", "100 %"])
    _legend_below(axes, handles, [f"within {_NEAR}°", "half a turn off", "guess"])


def _legend_below(axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08)}
    legend(axes, handles, names, ncols=len(names), columnspacing=1, **place)


def _signed(degrees: float, plus: str = "") -> str:
    """Returns whole degrees, with a typographic minus sign."""
    sign = "\N{MINUS SIGN}" if degrees < 0 else plus if degrees > 0 else ""
    return f"{sign}{abs(degrees):.0f}°"


def _name_radii(axes: PolarAxes, radii: Sequence[float], names: Sequence[str]) -> None:
    """Labels the circles between two spokes, on a light background."""
    axes.set_rgrids(radii, names)
    axes.set_rlabel_position(22.5)
    axes.yaxis.set_zorder(3)  # names are not covered by what is drawn
    for text in axes.get_yticklabels():
        text.set(size=7, bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})


def _dress(axes: PolarAxes, title: str) -> None:
    """Puts angle zero on top, counter-clockwise: images turn this way."""
    axes.set_theta_zero_location("N")
    names = [_signed(angle) for angle in (0, 45, 90, 135, 180, -135, -90, -45)]
    axes.set_thetagrids(np.arange(0, 360, 45), names)
    axes.tick_params(pad=1, labelsize=8)
    axes.grid(color=FAINT, lw=0.6)
    axes.spines[:].set_color(FAINT)
    axes.set_title(title, loc="left", pad=14)


def _draw_errors(axes: Axes, drawn: Polar) -> None:
    axes.bar(_EDGES[:-1], drawn.errors, np.diff(_EDGES), align="edge", color=BLUE)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(xlim=(-180, 180), xlabel="read minus true [degrees]")
    axes.set_ylabel("images [%] in 5°")
    axes.set_xticks(np.arange(-180, 181, 90))
    grid(axes)
    axes.set_title(
        f"all errors: median size {drawn.size:.3g}°\n{drawn.right:.0f} % within "
        f"{_NEAR}°, {drawn.opposite:.0f} % half a turn off",
        loc="left",
    )


_LABEL, _BARS, _BELOW = 18, 64, 34  # pixels
_TOPS = (0.25, 0.5)  # ends of the axis of probabilities; else 1


@styled
def build_turned(
    images: np.ndarray,
    marginals: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draws one image at several parameters, each with its structure marginal.

    Bars are the predicted marginal, the outline is the target; all have the same scale,
    from 0 to the next of 0.25, 0.5 and 1. A row has at most eight steps.

    Args:
      images: the image at every step, normalized to [-0.5, 0.5],
        [steps, side, side, channels].
      marginals: predicted over the structure bins, [steps, G].
      targets: prescribed for these parameters, [steps, G].
      labels: written above the images, such as the parameters.
      title: of the figure.

    Returns:
      The figure; the axes alternate between an image and its marginal.
    """
    marginals, targets = np.asarray(marginals, float), np.asarray(targets, float)
    steps, side = np.asarray(images).shape[:2]
    shown = min(CELL, enlargement(side) * side)
    rows = -(-steps // COLUMNS)
    columns = -(-steps // rows)
    height = _LABEL + shown + _BARS + _BELOW
    canvas = Canvas(column_left(columns), rows * height, title)
    largest = max(float(marginals.max()), float(targets.max()))
    # Few scales, so that figures of several runs have the same.
    top = next((each for each in _TOPS if largest <= each), 1.0)
    for step in range(steps):
        row, column = divmod(step, columns)
        left, above = column_left(column), HEADER + row * height
        canvas.text(left, above, labels[step])
        draw_image(canvas.axes(left, above + _LABEL, shown, shown), images[step])
        bars = canvas.axes(left, above + _LABEL + shown + 8, shown, _BARS)
        _draw_bars(bars, marginals[step], targets[step], top)
        below = {"size": 7, "color": MUTED}
        end = above + _LABEL + shown + _BARS + 10
        canvas.text(left, end, "bin 0", **below)
        canvas.text(left + shown, end, str(marginals.shape[1] - 1), ha="right", **below)
    for row in range(rows):
        beside = HEADER + row * height + _LABEL + shown + 20
        canvas.text(16, beside, "marginal", color=BLUE, size=8)
        canvas.text(16, beside + 16, "target", color=ORANGE, size=8)
        canvas.text(16, beside + 32, f"0 to {top:.2g}", color=MUTED, size=8)
    return canvas.figure


def _draw_bars(
    axes: Axes, marginal: np.ndarray, target: np.ndarray, top: float
) -> None:
    bins = len(marginal)
    axes.bar(np.arange(bins), marginal, width=0.9, color=BLUE)
    axes.stairs(target, np.arange(bins + 1) - 0.5, color=ORANGE, lw=1.4)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(xlim=(-0.5, bins - 0.5), ylim=(0, 1.03 * top))
