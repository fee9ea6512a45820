"""Metrics of a run over its epochs."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from duet_jax.figures.style import (
    BLUE,
    MUTED,
    ORANGE,
    SERIES,
    grid,
    label_below,
    legend,
    save,
    shorten,
    styled,
    titled,
)

_SPLIT_COLORS = {"train": BLUE, "test": ORANGE}
_STROKES = {"train": "-", "test": "--"}  # where colors tell runs


class _Panel(NamedTuple):
    """One quantity over time.

    Attributes:
      title: with the unit.
      curves: split and entry of its rows -> line style.
      scale: factor from the row to the axis.
      from_zero: whether the axis starts at zero.
      noisy: whether to draw a running mean over many values.
      alone: title where the first of several curves is drawn alone; "" for the same.
    """

    title: str
    curves: Mapping[tuple[str, str], str]
    scale: float = 1.0
    from_zero: bool = False
    noisy: bool = True
    alone: str = ""


def _both(name: str) -> dict[tuple[str, str], str]:
    """Returns the curves of a metric of augmented views, alike in both splits."""
    return {("train", name): "-", ("test", f"augmented_{name}"): "-"}


_PANELS = (
    _Panel("loss", _both("loss")),
    _Panel("NT-Xent", _both("nt_xent")),
    _Panel(
        "structure loss (Jensen-Shannon)",
        {("train", "structure_loss"): "-", ("test", "structure_loss"): "-"},
    ),
    _Panel(
        "prediction loss",
        {("train", "prediction_loss"): "-", ("test", "prediction_loss"): "-"},
    ),
    _Panel(
        "equivariance loss",
        {("train", "equivariance_loss"): "-", ("test", "equivariance_loss"): "-"},
    ),
    _Panel(
        "online probe, augmented images [%]",
        _both("online_top1"),
        scale=100,
        from_zero=True,
    ),
    _Panel(
        "online probe, plain images [%]",
        {("test", "online_top1"): "-", ("test", "online_top5"): "--"},
        scale=100,
        from_zero=True,
    ),
    _Panel(
        "RankMe (solid), LiDAR (dashed)",
        {("test", "rank_me"): "-", ("test", "lidar"): "--"},
        from_zero=True,
        alone="RankMe",
    ),
    _Panel("alpha-ReQ", {("test", "alpha_req"): "-"}, from_zero=True),
    _Panel(
        "uniformity (solid), alignment (dashed)",
        {("test", "uniformity"): "-", ("test", "alignment"): "--"},
        alone="uniformity",
    ),
    _Panel(
        "learning rate", {("train", "learning_rate"): "-"}, from_zero=True, noisy=False
    ),
    _Panel("images per second", {("train", "images_per_second"): "-"}, from_zero=True),
)
# Losses that are a mean over the learned codes, and then reported by code as well.
_BY_CODE = ("structure_loss", "prediction_loss")
_NOTE = (
    "Test curves beside those of training are of augmented views, too, and use the "
    "running statistics of batch normalization."
)

_COLUMNS_OF_PANELS = 3
_FEW, _MANY = 30, 200  # points: with markers up to _FEW, smoothed above _MANY


def _series(rows: Sequence[Mapping], split: str, name: str) -> np.ndarray:
    """Returns x and y of one curve, [2, points]; NaN if not finite."""
    axis = _abscissa(rows)
    points = [
        (row.get(axis), row.get(name))
        for row in rows
        if row.get("split") == split and name in row
    ]
    series = np.array(points, float).reshape(-1, 2).T
    return np.where(np.isfinite(series), series, np.nan)


def _abscissa(rows: Sequence[Mapping]) -> str:
    """Returns "epoch" if all rows have it, else "step"."""
    return "epoch" if all("epoch" in row for row in rows) else "step"


def _has_values(rows: Sequence[Mapping], panel: _Panel) -> bool:
    return any(np.isfinite(_series(rows, *curve)[1]).any() for curve in panel.curves)


def _panels(rows: Sequence[Mapping]) -> list[_Panel]:
    """Returns the panels that have values; losses by code follow their mean."""
    names = dict.fromkeys(name for row in rows for name in row)
    panels = []
    for panel in _PANELS:
        panels.append(panel)
        loss = next(name for _, name in panel.curves)
        codes = [n.removeprefix(f"{loss}_") for n in names if n.startswith(f"{loss}_")]
        if loss in _BY_CODE:
            panels += [_of_code(panel, loss, code) for code in codes]
    return [panel for panel in panels if _has_values(rows, panel)]


def _of_code(panel: _Panel, loss: str, code: str) -> _Panel:
    curves = {
        (split, f"{loss}_{code}"): style for (split, _), style in panel.curves.items()
    }
    return panel._replace(title=f"{panel.title}, {code}", curves=curves)


@styled
def build_curves(
    rows: Sequence[Mapping], *, title: str = "", num_classes: int | None = None
) -> Figure:
    """Draws one panel for every quantity in the rows.

    Where both splits are drawn, their views are augmented alike.

    Args:
      rows: as returned by `read_rows`, in any order of splits. Entries that are
        missing, None or not finite leave a gap. Many points are drawn pale, with their
        running mean.
      title: of the figure.
      num_classes: if given, the accuracy of guessing is drawn.

    Returns:
      The figure; its axes are the panels, titled on the left.
    """
    panels = _panels(rows)
    lines = max(1, -(-len(panels) // _COLUMNS_OF_PANELS))
    figure = titled(12, 0.7 + 3.1 * lines, title)
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", color=MUTED)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, _COLUMNS_OF_PANELS, number)
        _draw_panel(axes, panel, {"": rows}, num_classes)
    _draw_legend(figure, panels, rows, num_classes)
    if any(row.get("split") == "test" for row in rows):
        label_below(figure, _NOTE, x=0.012, ha="left", fontsize=8)
    return figure


def _draw_panel(
    axes: Axes,
    panel: _Panel,
    runs: Mapping[str, Sequence[Mapping]],
    num_classes: int | None,
) -> None:
    """Draws the curves of runs: color -> rows; "" for colors that tell the split."""
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(_abscissa([row for rows in runs.values() for row in rows]))
    grid(axes)
    for color, rows in runs.items():
        for (split, name), stroke in panel.curves.items():
            options = {"color": color or _SPLIT_COLORS[split], "ls": stroke}
            options["label"] = f"{split} {name}"
            only = bool(color)
            _draw_curve(axes, panel, _series(rows, split, name), options, only)
    if num_classes and _is_accuracy(panel):
        axes.axhline(100 / num_classes, color=MUTED, lw=1, ls=":", label="chance")
    axes.set_xlim(left=0)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,.6g}")


def _is_accuracy(panel: _Panel) -> bool:
    return any(name.endswith("_top1") for _, name in panel.curves)


def _draw_curve(
    axes: Axes, panel: _Panel, series: np.ndarray, options: dict, only: bool
) -> None:
    """Draws the values and, if they are many, their running mean, or that `only`."""
    x, y = series[0], panel.scale * series[1]
    finite = np.isfinite(x) & np.isfinite(y)
    many = panel.noisy and finite.sum() > _MANY
    if finite.any() and not (many and only):
        pale = {"alpha": 0.25, "lw": 0.8} if many else {"lw": 1.6}
        marker = "o" if finite.sum() <= _FEW else None
        axes.plot(x, y, marker=marker, ms=3, **options | pale)
    if many:
        window = np.ones(finite.sum() // 50)
        mean_x, mean_y = (
            np.convolve(values[finite], window / window.size, "valid")
            for values in (x, y)
        )
        label = f"{options['label']}, mean"
        axes.plot(mean_x, mean_y, lw=1.6, **options | {"label": label})


def _draw_legend(
    figure: Figure,
    panels: Sequence[_Panel],
    rows: Sequence[Mapping],
    num_classes: int | None,
) -> None:
    """Draws one legend for all panels, above them, where it covers no data."""
    styles = {
        split: {"color": color}
        for split, color in _SPLIT_COLORS.items()
        if any(row.get("split") == split for row in rows)
    }
    if any(map(_is_accuracy, panels)):
        styles["top-1"] = {"color": MUTED}
        styles["top-5"] = {"color": MUTED, "ls": "--"}
        if num_classes:
            styles["chance"] = {"color": MUTED, "ls": ":", "lw": 1}
    if styles:
        handles = [Line2D([], [], **style) for style in styles.values()]
        legend(figure, handles, [*styles], loc="upper right", ncols=len(styles))


@styled
def build_overlay(
    runs: Mapping[str, Sequence[Mapping]],
    *,
    title: str = "",
    num_classes: int | None = None,
) -> Figure:
    """Draws the curves of several runs over each other, one panel for every quantity.

    Training rows are solid, test rows dashed; a run has one color. Where many values
    were recorded, only their running mean is drawn.

    Args:
      runs: name -> rows, as for `build_curves`.
      title: of the figure.
      num_classes: if given, the accuracy of guessing is drawn.

    Returns:
      The figure; its axes are the panels, titled on the left.
    """
    every = [row for rows in runs.values() for row in rows]
    panels = _panels(every)
    lines = max(1, -(-len(panels) // _COLUMNS_OF_PANELS))
    figure = titled(12, 0.9 + 3.1 * lines, title)
    colors = dict(zip(runs, itertools.cycle(SERIES), strict=False))
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", color=MUTED)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, _COLUMNS_OF_PANELS, number)
        # Of several curves of a split, such as top-1 and top-5, the first.
        first: dict[str, str] = {}
        for split, name in panel.curves:
            first.setdefault(split, name)
        curves = {(s, first[s]): _STROKES[s] for s in first}
        only = panel._replace(title=panel.alone or panel.title, curves=curves)
        of_colors = {colors[name]: rows for name, rows in runs.items()}
        _draw_panel(axes, only, of_colors, num_classes)
    _name_runs(figure, colors, every, num_classes)
    if any(row.get("split") == "test" for row in every):
        label_below(figure, _NOTE, x=0.012, ha="left", fontsize=8)
    return figure


def _name_runs(
    figure: Figure,
    colors: Mapping[str, str],
    rows: Sequence[Mapping],
    num_classes: int | None,
) -> None:
    styles = {shorten(name, 24): {"color": color} for name, color in colors.items()}
    for split, stroke in _STROKES.items():
        if any(row.get("split") == split for row in rows):
            styles[split] = {"color": MUTED, "ls": stroke}
    if num_classes:
        styles["chance"] = {"color": MUTED, "ls": ":", "lw": 1}
    handles = [Line2D([], [], **style) for style in styles.values()]
    columns = min(6, len(styles))
    legend(figure, handles, [*styles], loc="upper right", ncols=columns)


def draw_curves(
    path: str | os.PathLike,
    rows: Sequence[Mapping],
    *,
    small_print: str = "",
    **options,
) -> None:
    """Writes the figure of `build_curves`, which takes the same options, to `path`.

    An SVG file is written beside the PNG; `small_print` comes below the curves.
    """
    save(path, build_curves(rows, **options), small_print)
