"""Figures of circular parameters: errors by angle, and one image at many angles."""

from collections.abc import Callable, Sequence

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
_NEAR = 30  # degrees within which a reading counts as right, or as half a turn off


def _wrap(degrees: np.ndarray) -> np.ndarray:
    """Returns the same angles in [-180, 180)."""
    return np.mod(degrees + 180, 360) - 180


@styled
def build_polar(true: np.ndarray, predicted: np.ndarray, *, title: str = "") -> Figure:
    """Draws the errors of angles read from the structure, by true angle.

    Left: median error and the band from the 10th to the 90th percentile, around the
    circle of error zero. Middle: share of the readings within 30 degrees of the true
    angle, and of those within 30 degrees of the opposite one; a guess has a chance of
    one in six for either. Right: histogram of all errors. The sectors are 15 degrees
    wide and centered on the multiples of 15 degrees.

    Args:
      true: angles applied, in radians, [n]; any period.
      predicted: angles read, in radians, [n]; any period.
      title: written above.

    Returns:
      The figure. The second line of its first axes shows the medians in degrees; the
      bars of the second axes are the shares in percent, first those of right readings,
      then those of opposite ones. Sectors without examples have neither.
    """
    true = np.rad2deg(np.asarray(true, float))
    errors = _wrap(np.rad2deg(np.asarray(predicted, float)) - true)
    sector = np.round(np.mod(true, 360) / np.rad2deg(_WIDTH)).astype(int) % _SECTORS
    right = np.abs(errors) <= _NEAR
    opposite = np.abs(errors) >= 180 - _NEAR
    figure = titled(11, 4.4, title)
    axes = [figure.add_subplot(1, 3, n, projection="polar") for n in (1, 2)]
    _draw_error_ring(axes[0], errors, sector)
    _draw_near(axes[1], right, opposite, sector)
    _draw_errors(figure.add_subplot(1, 3, 3), errors, right, opposite)
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


def _draw_error_ring(axes: PolarAxes, errors: np.ndarray, sector: np.ndarray) -> None:
    low, median, high = (
        _by_sector(_around_mean(level), errors, sector) for level in (0.1, 0.5, 0.9)
    )
    reach = float(np.nanmax(np.abs([low, high])))
    limit = next((limit for limit in (30, 60, 90) if reach <= limit), 180)
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
    _dress(axes, "error by true angle")
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


def _draw_near(
    axes: PolarAxes, right: np.ndarray, opposite: np.ndarray, sector: np.ndarray
) -> None:
    handles = []
    for hits, color, part in ((right, LIGHT, 0.9), (opposite, ORANGE, 0.4)):
        share = 100 * _by_sector(np.mean, hits, sector)
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


def _draw_errors(
    axes: Axes, errors: np.ndarray, right: np.ndarray, opposite: np.ndarray
) -> None:
    edges = np.linspace(-180, 180, 73)
    weights = np.full(len(errors), 100 / len(errors))
    axes.hist(errors, edges, weights=weights, color=BLUE)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(xlim=(-180, 180), xlabel="read minus true [degrees]")
    axes.set_ylabel("images [%] in 5°")
    axes.set_xticks(np.arange(-180, 181, 90))
    grid(axes)
    median = np.median(np.abs(errors))
    axes.set_title(
        f"all errors: median size {median:.3g}°\n{100 * right.mean():.0f} % within "
        f"{_NEAR}°, {100 * opposite.mean():.0f} % half a turn off",
        loc="left",
    )


_LABEL, _BARS, _BELOW = 18, 64, 34  # pixels


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

    Bars are the predicted marginal, the outline is the target; all have the same scale.
    A row has at most eight steps.

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
    canvas = Canvas(columns, rows * height, title)
    top = max(float(marginals.max()), float(targets.max()))
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
