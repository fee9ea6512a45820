"""Charts that compare methods case by case: dots with intervals."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from duet_jax.figures.style import FAINT, INK, MUTED, SERIES, legend, styled, titled
from duet_jax.methods import METHODS

# Case -> values of the seeds, for one method.
Cases = Mapping[str, Sequence[float]]

_LEAST_WIDTH = 9.0  # inches
_WIDTH = 0.7  # of a group of dots; the distance between groups is 1
# These have the same color in every figure; other methods take the remaining ones.
NAMES = {name: method.__name__ for name, method in METHODS.items()}


@styled
def build_dots(
    panels: Mapping[str, Mapping[str, Cases]],
    *,
    chance: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draws one panel for every measure, one above the other.

    The axes begin where the values do, so that differences can be seen.

    Args:
      panels: title of the measure -> method -> case -> values of the seeds. A dot is
        their mean, its line the standard deviation to both sides, a ring one seed. The
        case "" of a method is a line across its panel if there are other cases.
      chance: title of the measure -> what a guess reaches, a dotted line.
      title: of the figure.
    """
    chance = chance or {}
    colors = _colors([method for panel in panels.values() for method in panel])
    cases = _cases(panels)
    # Wide enough for the title beside the legend.
    width = max(_LEAST_WIDTH, 2.0 + 0.3 * len(cases) * len(colors))
    figure = titled(min(width, 24.0), 0.8 + 2.2 * len(panels), title)
    for number, (measure, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        _draw(axes, panel, cases, colors)
        if measure in chance:
            _draw_chance(axes, chance[measure])
        axes.set_title(measure, loc="left")
    _draw_legend(figure, panels, colors, any(name in panels for name in chance))
    return figure


def _colors(methods: Sequence[str]) -> dict[str, str]:
    """Returns the color of each method, in the order of the dots."""
    known = dict.fromkeys([*NAMES, *methods])
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
    axes.grid(color=FAINT, lw=0.6, axis="y")
    axes.set_axisbelow(True)
    step = _WIDTH / len(colors)
    for place, (method, color) in enumerate(colors.items()):
        found = panel.get(method, {})
        for x, case in enumerate(cases):
            if found.get(case):
                middle = x + (place - (len(colors) - 1) / 2) * step
                _draw_dot(axes, middle, 0.3 * step, found[case], color)
        if found.get("") and cases != [""]:
            mean = statistics.fmean(found[""])
            axes.axhline(mean, color=color, lw=1.2, ls="--")
    for border in range(1, len(cases)):
        axes.axvline(border - 0.5, color=FAINT, lw=0.6)
    axes.set_xticks(range(len(cases)), [case or "(none)" for case in cases])
    if len(cases) > 12:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.margins(y=0.12)


def _draw_dot(
    axes: Axes, middle: float, aside: float, values: Sequence[float], color: str
) -> None:
    """Draws the mean with its deviation, and the seeds a little to the right."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values)
        axes.errorbar(middle, mean, spread, color=color, lw=1.6, capsize=3)
        rings = {"ls": "", "marker": "o", "ms": 3, "mfc": "white", "mec": color}
        axes.plot([middle + aside] * len(values), values, mew=0.8, **rings)
    axes.plot([middle], [mean], "o", ms=6, color=color)


def _draw_chance(axes: Axes, chance: float) -> None:
    """Draws the line of a guess, or says where it is if it is far below the values."""
    low, high = axes.get_ylim()
    if chance > low - 0.5 * (high - low):
        axes.axhline(chance, color=INK, lw=1, ls=":")
    else:
        text = f"chance {chance:.3g}, below"
        place = {"xy": (1, 0), "xycoords": "axes fraction", "ha": "right"}
        axes.annotate(text, **place, xytext=(-4, 3), textcoords="offset points", size=8)


def _draw_legend(
    figure: Figure,
    panels: Mapping[str, Mapping[str, Cases]],
    colors: Mapping[str, str],
    guessed: bool,
) -> None:
    dot = {"marker": "o", "ls": "", "ms": 6}
    entries = {
        NAMES.get(m, m): Line2D([], [], color=c, **dot) for m, c in colors.items()
    }
    for method, color in colors.items():
        across = any(panel.get(method, {}).get("") for panel in panels.values())
        if across and _cases(panels) != [""]:
            name = f"{NAMES.get(method, method)} without it"
            entries[name] = Line2D([], [], color=color, lw=1.2, ls="--")
    values = [v for p in panels.values() for each in p.values() for v in each.values()]
    if any(len(each) > 1 for each in values):
        entries["± standard deviation"] = Line2D([], [], color=MUTED, lw=1.6)
        ring = {"marker": "o", "ls": "", "ms": 3, "mfc": "white", "mec": MUTED}
        entries["one seed"] = Line2D([], [], **ring)
    if guessed:
        entries["chance"] = Line2D([], [], color=INK, lw=1, ls=":")
    legend(figure, entries.values(), [*entries], loc="upper right", ncols=len(entries))
