"""The matrix: what each representation knows of every augmentation, as a heat map."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from duet_jax.figures.style import INK, MUTED, SHARES, colorbar, styled, titled

# What an entry should be -> the sign before its number.
_SIGNS = {"high": "▲ ", "low": "▽ ", "": ""}
_CELL = (1.15, 0.36)  # inches


class Matrix(NamedTuple):
    """What C representations know of R augmentations.

    Attributes:
      rows: codes of the augmentations.
      roles: what each is to the method: "learned", "in the stack" or "left out"; "" if
        nobody knows.
      columns: names of the representations.
      skills: 0 for a constant answer, 1 if exact, [R, C]; NaN where it is not known.
      texts: what is written, R lists of C.
      wanted: "high", "low" or "" for neither, likewise.
    """

    rows: Sequence[str]
    roles: Sequence[str]
    columns: Sequence[str]
    skills: np.ndarray
    texts: Sequence[Sequence[str]]
    wanted: Sequence[Sequence[str]]


@styled
def build_matrix(panels: Mapping[str, Matrix], *, title: str = "") -> Figure:
    """Draws one heat map beside the other.

    Args:
      panels: the name written above each -> the matrix; "" for none.
      title: of the figure.

    Returns:
      The figure; its first axes are the matrices, whose images hold the skills.
    """
    widths = [len(each.columns) for each in panels.values()]
    most = max(len(each.rows) for each in panels.values())
    figure = titled(
        1.6 * len(panels) + _CELL[0] * sum(widths) + 1.2,
        1.5 + _CELL[1] * most,
        title,
    )
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for panel, (name, each) in zip(axes, panels.items(), strict=True):
        image = _draw(panel, each)
        panel.set_title(name, loc="left")
    label = "▲ should be high, ▽ should be low\n0: a constant answer, 1: exact"
    colorbar(figure, image, label, ax=list(axes), shrink=0.9, aspect=30, pad=0.02)
    return figure


def _draw(axes: Axes, drawn: Matrix) -> AxesImage:
    skills = np.asarray(drawn.skills, float)
    image = axes.imshow(
        np.ma.masked_invalid(skills), cmap=SHARES, vmin=0, vmax=1, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(skills):
        text = f"{_SIGNS[drawn.wanted[row][column]]}{drawn.texts[row][column]}"
        color = "white" if value > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", color=color)
    names = [
        f"{code} ({role})" if role else code
        for code, role in zip(drawn.rows, drawn.roles, strict=True)
    ]
    axes.set_xticks(range(len(drawn.columns)), drawn.columns)
    axes.set_yticks(range(len(names)), names)
    for label, role in zip(axes.get_yticklabels(), drawn.roles, strict=True):
        label.set_color(MUTED if role == "left out" else INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    return image
