"""The metrics of a run over its epochs."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from duet_jax.figures.style import BLUE, MUTED, ORANGE, grid, save, styled, titled

_SPLIT_COLOURS = {"train": BLUE, "test": ORANGE}


class _Panel(NamedTuple):
    """One quantity over time.

    Attributes:
      title: with the unit.
      curves: line style by the row entry it draws.
      scale: factor from the row to the axis.
      from_zero: whether the axis starts at zero.
      noisy: whether a running mean shows more than the values themselves.
    """

    title: str
    curves: Mapping[str, str]
    scale: float = 1.0
    from_zero: bool = False
    noisy: bool = True


_PANELS = (
    _Panel("loss", {"loss": "-"}),
    _Panel("NT-Xent", {"nt_xent": "-"}),
    _Panel("structure loss (Jensen-Shannon)", {"structure_loss": "-"}),
    _Panel("prediction loss", {"prediction_loss": "-"}),
    _Panel(
        "accuracy of the online probe [%]",
        {"online_top1": "-", "online_top5": "--"},
        scale=100,
        from_zero=True,
    ),
    _Panel("learning rate", {"learning_rate": "-"}, from_zero=True, noisy=False),
    _Panel("images per second", {"images_per_second": "-"}, from_zero=True),
)

_COLUMNS_OF_PANELS = 3
_FEW, _MANY = 30, 200  # points: up to here with markers, from there on smoothed


def _series(rows: Sequence[Mapping], split: str, name: str) -> np.ndarray:
    """Returns abscissa and values of one curve, [2, points]; NaN where not finite."""
    axis = _abscissa(rows)
    points = [
        (row.get(axis), row.get(name))
        for row in rows
        if row.get("split") == split and name in row
    ]
    series = np.array(points, float).reshape(-1, 2).T
    return np.where(np.isfinite(series), series, np.nan)


def _abscissa(rows: Sequence[Mapping]) -> str:
    """Epochs, unless a row does not say its own."""
    return "epoch" if all("epoch" in row for row in rows) else "step"


def _has_values(rows: Sequence[Mapping], panel: _Panel) -> bool:
    return any(
        np.isfinite(_series(rows, split, name)[1]).any()
        for split in _SPLIT_COLOURS
        for name in panel.curves
    )


@styled
def build_curves(
    rows: Sequence[Mapping], *, title: str = "", num_classes: int | None = None
) -> Figure:
    """Lays out one panel for every quantity the rows tell about.

    Args:
      rows: as `read_rows` returns them, in any order of splits. Entries may be
        missing, None or not finite; such points leave a gap. With many points the
        curve is a running mean over the pale measurements.
      title: written above.
      num_classes: draws the accuracy of guessing.

    Returns:
      The figure; its axes are the panels, titled on the left.
    """
    panels = [panel for panel in _PANELS if _has_values(rows, panel)]
    lines = max(1, -(-len(panels) // _COLUMNS_OF_PANELS))
    figure = titled(12, 0.7 + 3.1 * lines, title)
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", color=MUTED)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, _COLUMNS_OF_PANELS, number)
        _draw_panel(axes, panel, rows, num_classes)
    _draw_legend(figure, panels, rows, num_classes)
    return figure


def _draw_panel(
    axes: Axes, panel: _Panel, rows: Sequence[Mapping], num_classes: int | None
) -> None:
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(_abscissa(rows))
    grid(axes)
    for split, name in itertools.product(_SPLIT_COLOURS, panel.curves):
        _draw_curve(axes, panel, _series(rows, split, name), split, name)
    if num_classes and "online_top1" in panel.curves:
        axes.axhline(100 / num_classes, color=MUTED, lw=1, ls=":", label="chance")
    axes.set_xlim(left=0)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,.6g}")


def _draw_curve(
    axes: Axes, panel: _Panel, series: np.ndarray, split: str, name: str
) -> None:
    """Draws the measurements and, where they are many, their running mean."""
    x, y = series[0], panel.scale * series[1]
    finite = np.isfinite(x) & np.isfinite(y)
    many = panel.noisy and finite.sum() > _MANY
    options = {"color": _SPLIT_COLOURS[split], "ls": panel.curves[name], "lw": 1.6}
    if finite.any():
        measured = options | ({"alpha": 0.25, "lw": 0.8} if many else {})
        marker = "o" if finite.sum() <= _FEW else None
        axes.plot(x, y, marker=marker, ms=3, label=f"{split} {name}", **measured)
    if many:
        window = np.ones(finite.sum() // 50)
        mean_x, mean_y = (
            np.convolve(values[finite], window / window.size, "valid")
            for values in (x, y)
        )
        axes.plot(mean_x, mean_y, label=f"{split} {name}, mean", **options)


def _draw_legend(
    figure: Figure,
    panels: Sequence[_Panel],
    rows: Sequence[Mapping],
    num_classes: int | None,
) -> None:
    """One legend for all panels, above them, where it covers no data."""
    entries = [
        (split, {"color": colour})
        for split, colour in _SPLIT_COLOURS.items()
        if any(row.get("split") == split for row in rows)
    ]
    if any("online_top5" in panel.curves for panel in panels):
        entries += [
            ("top-1", {"color": MUTED}),
            ("top-5", {"color": MUTED, "ls": "--"}),
        ]
        if num_classes:
            entries.append(("chance", {"color": MUTED, "ls": ":", "lw": 1}))
    if entries:
        figure.legend(
            handles=[Line2D([], [], label=name, **style) for name, style in entries],
            loc="upper right",
            ncols=len(entries),
            frameon=False,
        )


def draw_curves(
    path: str | os.PathLike,
    rows: Sequence[Mapping],
    *,
    title: str = "",
    num_classes: int | None = None,
) -> None:
    """Writes the picture that `build_curves` describes to `path`."""
    save(path, build_curves(rows, title=title, num_classes=num_classes))
