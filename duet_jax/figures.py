"""Pictures of a run: the views it trains on and the curves of its metrics.

Each `draw_*` writes what its `build_*` returns. Files appear whole or not at all, so a
viewer that reloads them never meets half of one. No window system is touched.
"""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from duet_jax.types import View

COLUMNS = 8

_SPLIT_COLOURS = {"train": "#2a6fb0", "test": "#d9680f"}
_ACCENT, _INK, _MUTED, _FAINT = "#b3261e", "#222222", "#666666", "#dddddd"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "figure.dpi": 100,
    "savefig.dpi": "figure",
}


def _save(path: str | os.PathLike, figure: Figure) -> None:
    """Writes `figure` in the format of the suffix, replacing the file at once."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with matplotlib.rc_context(_STYLE):
        figure.savefig(partial)
    os.replace(partial, path)


# Views. The layout is in pixels, so that every pixel of an image is a whole number of
# pixels of the picture.

_CELL, _GAP, _MARGIN, _HEADER = 128, 16, 78, 48
_GAUGE_HEIGHT, _LINE_HEIGHT, _CODES_PER_LINE = 30, 14, 2


class _Canvas:
    """A figure whose parts are placed in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        dpi = _STYLE["figure.dpi"]
        self.figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)

    def axes(self, x: int, y: int, width: int, height: int) -> Axes:
        """Returns axes in a box given by its upper left corner, without a frame."""
        bottom = self.height - y - height
        box = np.array([x, bottom, width, height], float)
        scale = np.array([self.width, self.height] * 2)
        axes = self.figure.add_axes(tuple(box / scale))
        axes.set_axis_off()
        return axes

    def text(self, x: int, y: int, text: str, **style: object) -> None:
        """Writes `text` with its upper left corner at (x, y)."""
        style = {"ha": "left", "va": "top"} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)


class _Row(NamedTuple):
    """One row of images with what is written beneath them.

    Attributes:
      name: written at its left.
      view: the images and their values.
      side: of an image in the picture, in pixels.
      codes: those listed.
      learned: the code shown on a gauge instead, if the view has it.
    """

    name: str
    view: View
    side: int
    codes: tuple[str, ...]
    learned: str | None

    @property
    def height(self) -> int:
        gauge = _GAUGE_HEIGHT if self.learned else 0
        lines = -(-len(self.codes) // _CODES_PER_LINE)
        return self.side + gauge + _LINE_HEIGHT * lines + 20


def _rows(
    view1: View, view2: View, learned: str | None, half_size: View | None
) -> list[_Row]:
    """Returns the rows; all images are enlarged by the same whole number."""
    scale = max(1, _CELL // view1.images.shape[1])
    rows = []
    for name, view in (("view 1", view1), ("view 2", view2), ("half size", half_size)):
        if view is not None:
            side = min(_CELL, scale * view.images.shape[1])
            # A prediction target is no structure value and would leave the gauge.
            values = view.structure if view is not half_size else ()
            emphasised = learned if learned in values else None
            codes = tuple(code for code in view.structure if code != emphasised)
            rows.append(_Row(name, view, side, codes, emphasised))
    return rows


def build_views(
    view1: View,
    view2: View,
    *,
    learned: str | None = None,
    title: str = "",
    half_size: View | None = None,
) -> Figure:
    """Lays out the views of up to eight images, one image a column.

    Args:
      view1: the first views, normalised to [-0.5, 0.5], [n, side, side, channels].
        Its structure values in [0, 1] are written under the images.
      view2: the second views of the same images.
      learned: the code whose value the method learns, shown on a gauge.
      title: written above.
      half_size: the views the ESSL predictor sees, drawn at the same scale as the
        others; `structure` holds the prediction targets, class numbers if integer.

    Returns:
      The figure; a row's images are the images of its axes, in order.
    """
    rows = _rows(view1, view2, learned, half_size)
    columns = min(COLUMNS, len(view1.images))
    # At least as wide as the title, which has about eleven pixels a letter.
    width = max(_MARGIN + columns * (_CELL + _GAP), 32 + 11 * len(title))
    with matplotlib.rc_context(_STYLE):
        canvas = _Canvas(width, _HEADER + sum(row.height for row in rows))
        canvas.text(16, 14, title, size=12, weight="bold")
        top = _HEADER
        for row in rows:
            canvas.text(16, top + row.side // 2, row.name, va="center", color=_MUTED)
            for column in range(min(columns, len(row.view.images))):
                left = _MARGIN + column * (_CELL + _GAP)
                axes = canvas.axes(left, top, row.side, row.side)
                _draw_image(axes, row.view.images[column])
                _draw_values(canvas, left, top + row.side + 5, row, column)
            top += row.height
    return canvas.figure


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    """Fills `axes` with an image, [side, side, channels] in [-0.5, 0.5]."""
    pixels = np.clip(np.asarray(image, np.float32) + 0.5, 0, 1)
    grey = pixels.shape[-1] == 1
    axes.imshow(
        pixels[..., 0] if grey else pixels,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )


def _draw_values(canvas: _Canvas, left: int, top: int, row: _Row, column: int) -> None:
    """Writes the structure values of one image, the learned one with a gauge."""
    structure = row.view.structure
    if row.learned:
        value = float(structure[row.learned][column])
        text = f"{row.learned} {value:.2f}"
        canvas.text(left, top, text, size=10, weight="bold", color=_ACCENT)
        gauge = canvas.axes(left, top + 16, _CELL, 10)
        gauge.set(xlim=(-0.04, 1.04), ylim=(-1, 1))
        gauge.plot([0, 1], [0, 0], color=_FAINT, lw=3, solid_capstyle="round")
        gauge.plot([value], [0], "o", color=_ACCENT, ms=6, clip_on=False)
        top += _GAUGE_HEIGHT
    entries = [_entry(code, structure[code][column]) for code in row.codes]
    lines = [
        "  ".join(entries[at : at + _CODES_PER_LINE])
        for at in range(0, len(entries), _CODES_PER_LINE)
    ]
    for number, line in enumerate(lines):
        canvas.text(
            left,
            top + _LINE_HEIGHT * number,
            line,
            size=8,
            color=_MUTED,
            family="DejaVu Sans Mono",
        )


def _entry(code: str, value: np.ndarray) -> str:
    """Returns a code and its value: a class number as it is, others rounded."""
    value = np.asarray(value)
    whole = np.issubdtype(value.dtype, np.integer)
    return f"{code} {int(value)}" if whole else f"{code} {float(value):.2f}"


def draw_views(
    path: str | os.PathLike,
    view1: View,
    view2: View,
    *,
    learned: str | None = None,
    title: str = "",
    half_size: View | None = None,
) -> None:
    """Writes the picture that `build_views` describes to `path`."""
    figure = build_views(
        view1, view2, learned=learned, title=title, half_size=half_size
    )
    _save(path, figure)


# Curves.


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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 0.7 + 3.1 * lines), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        figure.suptitle(title or " ", x=0.012, ha="left", size=12, weight="bold")
        if not panels:
            figure.text(0.5, 0.5, "no metrics yet", ha="center", color=_MUTED)
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
    axes.grid(color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
    for split, name in itertools.product(_SPLIT_COLOURS, panel.curves):
        _draw_curve(axes, panel, _series(rows, split, name), split, name)
    if num_classes and "online_top1" in panel.curves:
        axes.axhline(100 / num_classes, color=_MUTED, lw=1, ls=":", label="chance")
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
            ("top-1", {"color": _MUTED}),
            ("top-5", {"color": _MUTED, "ls": "--"}),
        ]
        if num_classes:
            entries.append(("chance", {"color": _MUTED, "ls": ":", "lw": 1}))
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
    _save(path, build_curves(rows, title=title, num_classes=num_classes))
