"""Bar charts that compare methods case by case."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from duet_jax.figures.style import INK, MUTED, SERIES, grid, legend, styled, titled

# Case -> values of the seeds, for one method.
Cases = Mapping[str, Sequence[float]]

_LEAST_WIDTH = 9.0  # inches
_WIDTH = 0.8  # of a group of bars; the distance between groups is 1
# These have the same color in every figure; other methods take the remaining ones.
_NAMES = {"simclr": "SimCLR", "essl": "ESSL", "duet": "DUET"}


@styled
def build_bars(panels: Mapping[str, Mapping[str, Cases]], *, title: str = "") -> Figure:
    """Draws one panel for every measure, one above the other.

    Args:
      panels: title of the measure -> method -> case -> values of the seeds. A bar is
        their mean, its whisker the standard deviation, a dot one seed. The case "" of a
        method is a line across its panel if there are other cases.
      title: of the figure.
    """
    colors = _colors([method for panel in panels.values() for method in panel])
    cases = _cases(panels)
    # Wide enough for the title beside the legend.
    width = max(_LEAST_WIDTH, 2.0 + 0.3 * len(cases) * len(colors))
    figure = titled(min(width, 24.0), 0.8 + 2.0 * len(panels), title)
    for number, (measure, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        _draw(axes, panel, cases, colors)
        axes.set_title(measure, loc="left")
    _draw_legend(figure, panels, colors)
    return figure


def _colors(methods: Sequence[str]) -> dict[str, str]:
    """Returns the color of each method, in the order of the bars."""
    known = dict.fromkeys([*_NAMES, *methods])
    every = dict(zip(known, itertools.cycle(SERIES), strict=False))
    return {method: color for method, color in every.items() if method in methods}


def _cases(panels: Mapping[str, Mapping[str, Cases]]) -> list[str]:
    found = dict.fromkeys(
        case for panel in panels.values() for each in panel.values() for case in each
    )
    return [case for case in found if case] or [*found]


def _draw(
    axes: Axes,
    panel: Mapping[str, Cases],
    cases: Sequence[str],
    colors: Mapping[str, str],
) -> None:
    grid(axes)
    axes.grid(visible=False, axis="x")
    step = _WIDTH / len(colors)
    for place, (method, color) in enumerate(colors.items()):
        found = panel.get(method, {})
        for x, case in enumerate(cases):
            if found.get(case):
                middle = x + (place - (len(colors) - 1) / 2) * step
                _draw_bar(axes, middle, 0.9 * step, found[case], color)
        if found.get("") and cases != [""]:
            mean = statistics.fmean(found[""])
            axes.axhline(mean, color=color, lw=1.2, ls="--")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xticks(range(len(cases)), [case or "(none)" for case in cases])
    if len(cases) > 12:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlim(-0.6, len(cases) - 0.4)


def _draw_bar(
    axes: Axes, middle: float, width: float, values: Sequence[float], color: str
) -> None:
    mean = statistics.fmean(values)
    axes.bar(middle, mean, width, color=color)
    if len(values) > 1:
        spread = statistics.stdev(values)
        axes.errorbar(middle, mean, spread, color=INK, lw=1, capsize=2)
    places = [
        middle + width * (0.5 * (n + 0.5) / len(values) - 0.25)
        for n in range(len(values))
    ]
    axes.plot(places, values, "o", ms=3, mfc="white", mec=INK, mew=0.6)


def _draw_legend(
    figure: Figure,
    panels: Mapping[str, Mapping[str, Cases]],
    colors: Mapping[str, str],
) -> None:
    entries = {_NAMES.get(m, m): Patch(color=color) for m, color in colors.items()}
    for method, color in colors.items():
        across = any(panel.get(method, {}).get("") for panel in panels.values())
        if across and _cases(panels) != [""]:
            name = f"{_NAMES.get(method, method)} without it"
            entries[name] = Line2D([], [], color=color, lw=1.2, ls="--")
    entries["one seed"] = Line2D([], [], marker="o", ls="", ms=3, mfc="white", mec=INK)
    legend(figure, entries.values(), [*entries], loc="upper right", ncols=len(entries))
