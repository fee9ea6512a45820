"""Style shared by all figures: color-blind safe colors, fonts, legends, files."""

import os
import pathlib
import warnings
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from duet_jax.runtime import files

BLUE, ORANGE, LIGHT = "#2a6fb0", "#d9680f", "#a9c5df"
ACCENT, INK, MUTED, FAINT = "#b3261e", "#222222", "#666666", "#dddddd"

# Okabe and Ito's palette by contrast, with the blue and orange of this project.
SERIES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#c9a400", INK)

# White is zero: an empty cell looks empty.
SHARES = "Blues"

DPI = 100
FOOT = 22  # pixels below every figure, for the small print

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    # Names of classes and runs may contain dollar signs.
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    # The same figure is the same file.
    "svg.hashsalt": "duet_jax",
}

# Decorates functions that make or write a figure; restores matplotlib's settings.
styled = matplotlib.rc_context(_STYLE)


@styled
def save(path: str | os.PathLike, figure: Figure, small_print: str = "") -> None:
    """Writes `figure` as PNG and as SVG beside it, replacing each file atomically.

    Args:
      path: of the PNG file; its directory is made.
      figure: with room for the small print, from `titled` or a `Canvas`.
      small_print: written at the bottom; see `small_print`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sign(figure, small_print)
    for target, options in (
        (path, {}),
        (path.with_suffix(".svg"), {"metadata": {"Date": None}}),
    ):
        with files.replacing(target) as partial, warnings.catch_warnings():
            # Names of classes may be in any script; missing glyphs are drawn as boxes.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            figure.savefig(partial, **options)


@styled
def sign(figure: Figure, small_print: str) -> None:
    """Writes the small print at the bottom, cut to the width of the figure."""
    width, height = figure.get_size_inches() * DPI
    text = shorten(small_print, int(width / 5))  # a letter has five pixels
    figure.text(16 / width, 8 / height, text, size=7, color=MUTED)


def remove(path: pathlib.Path) -> None:
    """Removes the files that `save` writes, as far as they are there."""
    for each in (path, path.with_suffix(".svg")):
        each.unlink(missing_ok=True)


def small_print(method: str, data: str, step: int, seed: int) -> str:
    """Returns what a picture is of, in one line: method, data set, step and seed."""
    return f"{method} · {shorten(data, 40)} · step {step} · seed {seed}"


def titled(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure, width and height in inches, titled on the left.

    The small print comes below that height.
    """
    foot = FOOT / DPI
    share = foot / (height + foot)
    figure = Figure(figsize=(width, height + foot), layout="constrained")
    place = (0, share, 1, 1 - share)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, rect=place)
    figure.suptitle(title or " ", x=0.144 / width, ha="left", size=12, weight="bold")
    return figure


def label_below(figure: Figure, text: str, **style: object) -> None:
    """Writes a line below the axes of a `titled` figure, above the small print."""
    height = figure.get_size_inches()[1] * DPI
    bottom, line = FOOT / height, 16 / height
    figure.get_layout_engine().set(rect=(0, bottom + line, 1, 1 - bottom - line))
    figure.text(y=bottom, s=text, va="bottom", color=MUTED, **style)


def layout(panels: int) -> tuple[int, int]:
    """Returns rows and columns for a number of panels, at most three in a row."""
    columns = 2 if panels == 4 else min(panels, 3)
    return -(-panels // columns), columns


def grid(axes: Axes) -> None:
    """Draws faint lines at the ticks, behind everything."""
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)


def legend(
    where: Axes | Figure, handles: Iterable[Artist], names: Sequence[str], **options
) -> Legend:
    """Adds a legend without a frame, in which names may begin with an underscore."""
    # Matplotlib skips such labels, but accepts such texts.
    places = [str(number) for number in range(len(names))]
    made = where.legend([*handles], places, frameon=False, **options)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)
    return made


def colorbar(figure: Figure, drawn: ScalarMappable, label: str, **options) -> Colorbar:
    """Adds a color bar without an outline."""
    bar = figure.colorbar(drawn, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def shorten(name: str, length: int) -> str:
    """Returns `name`, cut to at most `length` characters including an ellipsis."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def locator(unit: str, most: int = 6) -> MaxNLocator:
    """Returns a locator of at most about `most` round ticks.

    Degrees are divided as parts of a circle, bins are integers.
    """
    degrees = unit == "degrees"
    steps = [1, 1.5, 3, 4.5, 9, 10] if degrees else [1, 2, 2.5, 5, 10]
    return MaxNLocator(most, steps=steps, integer=unit == "bins")
