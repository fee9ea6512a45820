"""Figures of decoded images: reconstructions, and what controls them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from duet_jax.figures.canvas import (
    CELL,
    COLUMNS,
    GAP,
    HEADER,
    Canvas,
    column_left,
    draw_image,
    enlargement,
)
from duet_jax.figures.structure import Topology
from duet_jax.figures.style import (
    MUTED,
    SERIES,
    grid,
    label_below,
    legend,
    locator,
    shorten,
    styled,
    titled,
)
from duet_jax.metrics.knobs import KNOBS, best_knob

# Each has the same color in every figure.
_REAL = "real image"
_PREDICTIONS = (*KNOBS, "oracle", "unchanged", "another image", _REAL)
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STROKES = ("-", "--", "-.")  # dotted is chance

_CHANCE = {"color": MUTED, "ls": ":", "lw": 1}

_FEW = 4  # parameters that are drawn as points
_STEP, _WIDTH = 0.1, 0.8  # between the points of a group, of a group at most


@styled
def build_reconstructions(
    images: np.ndarray, decoded: Mapping[str, np.ndarray], *, title: str = ""
) -> Figure:
    """Draws up to eight images above what is decoded from their representations.

    Args:
      images: normalized to [-0.5, 0.5], [n, side, side, channels].
      decoded: representation -> the decoded images, like `images`; a row each.
      title: of the figure.

    Returns:
      The figure; a row's images are the images of its axes, in order.
    """
    rows = {"image": images, **decoded}
    columns = min(COLUMNS, len(images))
    side = min(CELL, enlargement(images.shape[1]) * images.shape[1])
    canvas = Canvas(column_left(columns), len(rows) * (side + GAP), title)
    top = HEADER
    for name, row in rows.items():
        canvas.text(16, top + side // 2, name, va="center", color=MUTED)
        for column in range(columns):
            axes = canvas.axes(column_left(column), top, side, side)
            draw_image(axes, row[column])
        top += side + GAP
    return canvas.figure


class Control(NamedTuple):
    """Errors of images whose parameter was asked for, by that parameter.

    Every error is a mean over the images with the ends of its 95 % interval, [3, F].

    Attributes:
      unit: of the parameter.
      topology: "circle" if the parameters divide a circle evenly, else "line".
      parameters: those asked for, [F], in any order.
      mse: prediction -> squared error of the decoded images.
      error: prediction -> error of the parameter read off them: in its unit, or the
        share of wrong levels.
      chance: `error` of a constant answer.
      levels: true if the parameter has few values.
    """

    unit: str
    topology: Topology
    parameters: np.ndarray
    mse: Mapping[str, np.ndarray]
    error: Mapping[str, np.ndarray]
    chance: float
    levels: bool

    @property
    def few(self) -> bool:
        """True for points instead of lines."""
        return bool(self.levels) or len(self.parameters) <= _FEW

    @property
    def best(self) -> str:
        """See `best_knob`; of the mean over the parameters."""
        return best_knob({name: values[0].mean() for name, values in self.mse.items()})


class _Line(NamedTuple):
    """The errors of one prediction, as they are drawn.

    Attributes:
      name: in the legend.
      panel: holds the errors.
      prediction: whose they are.
      color: of the prediction.
      number: of its mark and stroke.
    """

    name: str
    panel: Control
    prediction: str
    color: str
    number: int

    @property
    def look(self) -> dict[str, Any]:
        """Options of a line with marks."""
        stroke = _STROKES[self.number % len(_STROKES)]
        return {
            "color": self.color,
            "marker": _MARKS[self.number % len(_MARKS)],
            "ls": "" if self.panel.few else stroke,
            "ms": 4,
            "lw": 1.4,
        }


class _Row(NamedTuple):
    """Two axes, with one line each for every prediction that they have.

    Attributes:
      name: written above.
      lines: of both axes.
    """

    name: str
    lines: Sequence[_Line]


@styled
def build_control(panels: Mapping[str, Control], *, title: str = "") -> Figure:
    """Draws errors by the parameter that was asked for; a row of two axes each.

    Left the squared error of the decoded images, right the error of the parameter that
    is read off them, where the dotted line is a constant answer. The band, or the bar
    if the parameter has few values, is a 95 % interval. All rows share their ranges.
    With several panels the first row compares them: the best knob of each, with a mark
    and a stroke of the panel. A color is a prediction in all rows.

    Args:
      panels: the name written above each row -> its errors; "" for no name.
      title: of the figure.

    Returns:
      The figure; the lines of its axes, two axes a row, are labeled with their names.
    """
    panels = {name: _with_arrays(each) for name, each in panels.items()}
    rows = _rows(panels)
    figure = titled(12, 0.6 + 2.9 * len(rows), title)
    alike = len({each.few for each in panels.values()}) == 1
    both = figure.subplots(len(rows), 2, squeeze=False, sharex=alike, sharey="col")
    for axes, row in zip(both, rows, strict=True):
        _draw_row(axes, row)
    for axes in both[0]:  # the others share it
        axes.set_ylim(bottom=0)
    own = len(rows) - len(panels)  # the legend of the panels is beside the first
    for number in {0, own}:
        _name_lines(both[number, 1], rows[number].lines, chance=number == own)
    units = ", ".join(dict.fromkeys(each.unit for each in panels.values()))
    place = {"x": 0.45, "ha": "center", "size": 9}
    label_below(figure, f"parameter asked for [{units}]", **place)
    return figure


def _with_arrays(panel: Control) -> Control:
    """Returns a panel whose lists, as JSON has them, are arrays; None becomes NaN."""
    mse, error = (
        {name: np.asarray(values, float) for name, values in each.items()}
        for each in (panel.mse, panel.error)
    )
    mse.pop(_REAL, None)  # is compared with itself
    parameters = np.asarray(panel.parameters, float)
    return panel._replace(parameters=parameters, mse=mse, error=error)


def _rows(panels: Mapping[str, Control]) -> list[_Row]:
    """Returns a row of all predictions for each panel, and one of the best before."""
    named = [name for each in panels.values() for name in (*each.mse, *each.error)]
    known = [name for name in dict.fromkeys((*_PREDICTIONS, *named)) if name in named]
    looks = {
        p: (SERIES[n % len(SERIES)], n)
        for n, p in enumerate(dict.fromkeys((*_PREDICTIONS, *known)))
    }
    rows = [
        _Row(name, [_Line(p, each, p, *looks[p]) for p in known])
        for name, each in panels.items()
    ]
    best = [
        _Line(
            f"{shorten(name, 24)}: {each.best}", each, each.best, looks[each.best][0], n
        )
        for n, (name, each) in enumerate(panels.items())
        if each.best
    ]
    return [_Row("best knobs", best), *rows] if best and len(panels) > 1 else rows


def _draw_row(axes: Sequence[Axes], row: _Row) -> None:
    prefix = f"{shorten(row.name, 32)}: " if row.name else ""
    axes[0].set_title(f"{prefix}decoded image", loc="left")
    axes[1].set_title("parameter read off the decoded image", loc="left")
    axes[0].set_ylabel("mean squared error")
    panel = row.lines[0].panel
    share = "share of wrong levels"
    axes[1].set_ylabel(share if panel.levels else f"error [{panel.unit}]")
    step = min(_STEP, _WIDTH / len(row.lines))
    for axis, errors in zip(axes, ("mse", "error"), strict=True):
        for place, line in enumerate(row.lines):
            values = getattr(line.panel, errors).get(line.prediction)
            if values is not None:
                aside = step * (place - (len(row.lines) - 1) / 2)
                _draw_line(axis, line, values, aside)
        grid(axis)
        axis.xaxis.set_major_locator(locator(panel.unit))
        if panel.few:
            names = [f"{value:.4g}" for value in np.sort(panel.parameters)]
            axis.set_xticks(range(len(names)), names)
            axis.set_xlim(-0.5, len(names) - 0.5)
    for chance in {line.panel.chance for line in row.lines}:
        axes[1].axhline(chance, **_CHANCE)


def _draw_line(axes: Axes, line: _Line, values: np.ndarray, aside: float) -> None:
    """Draws errors, [3, F], with their intervals; points stand `aside`."""
    order = np.argsort(line.panel.parameters)
    x, values = line.panel.parameters[order], values[:, order]
    look = {**line.look, "label": line.name}
    if line.panel.few:
        x = np.arange(len(x)) + aside
        axes.vlines(x, values[1], values[2], color=look["color"], lw=1.4)
        axes.plot(x, values[0], **look)
        return
    if line.panel.topology == "circle":  # its end is its beginning
        turn = np.ptp(x) * len(x) / (len(x) - 1)
        x, values = np.append(x, x[0] + turn), np.hstack([values, values[:, :1]])
    axes.fill_between(x, values[1], values[2], color=look["color"], alpha=0.2, lw=0)
    axes.plot(x, values[0], markevery=(line.number % 3, 3), **look)
    axes.margins(x=0)


def _name_lines(axes: Axes, lines: Sequence[_Line], *, chance: bool) -> None:
    """Draws the legend right of the axes."""
    entries = {line.name: Line2D([], [], **line.look) for line in lines}
    entries |= {"chance": Line2D([], [], **_CHANCE)} if chance else {}
    place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.03), "borderaxespad": 0}
    legend(axes, entries.values(), [*entries], **place)
