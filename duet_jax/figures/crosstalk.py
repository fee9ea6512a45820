"""Crosstalk: matrices of how one parameter is read when another is applied."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from duet_jax.figures.style import INK, MUTED, SHARES, colorbar, styled, titled


class Crosstalk(NamedTuple):
    """What moves the readings of K codes.

    Attributes:
      codes: that are read, and applied; one for each row and column.
      units: of the codes' parameters.
      matrices: "<reader> moves" and "<reader> errs" -> means over images in the unit of
        the row, [K read, K applied]; NaN where a code has no such reader.
      exact: how far exact readings move when their own code is applied, [K].
      chance: error of a constant answer, [K].
    """

    codes: Sequence[str]
    units: Sequence[str]
    matrices: Mapping[str, np.ndarray]
    exact: np.ndarray
    chance: np.ndarray


@styled
def build_crosstalk(panels: Mapping[str, Crosstalk], *, title: str = "") -> Figure:
    """Draws what moves the readings, a matrix for each reader and question.

    The numbers are in the unit of their row. The color is their share: of what an exact
    reading moves when its own code is applied, or of the error of a constant answer. An
    ideal representation is dark on the diagonal of "moves" and white elsewhere.

    Args:
      panels: the name written above each row of matrices -> the matrices; "" for none.
      title: of the figure.

    Returns:
      The figure; its first axes are the matrices, row by row, whose images hold the
      shares, masked where there is no reader.
    """
    names = [*dict.fromkeys(name for each in panels.values() for name in each.matrices)]
    most = max(len(each.codes) for each in panels.values())
    side = 1.1 + 0.75 * most
    figure = titled(
        1.3 + (side + 0.5) * len(names), 0.7 + (side + 0.5) * len(panels), title
    )
    axes = figure.subplots(len(panels), len(names), squeeze=False)
    for row, (run, each) in zip(axes, panels.items(), strict=True):
        for panel, name in zip(row, names, strict=True):
            image = _draw_matrix(panel, each, name)
            above = f"{run}: " if run and panel is row[0] else ""
            panel.set_title(f"{above}{name}", loc="left")
        row[0].set_ylabel("code that is read")
    label = "share of an exact move,\nor of a constant's error"
    colorbar(figure, image, label, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    return figure


def _draw_matrix(axes: Axes, drawn: Crosstalk, name: str) -> AxesImage:
    count, moves = len(drawn.codes), name.endswith("moves")
    nothing = np.full((count, count), np.nan)
    matrix = np.asarray(drawn.matrices.get(name, nothing), float)
    whole = np.asarray(drawn.exact if moves else drawn.chance, float)
    shares = matrix / np.where(whole > 0, whole, np.nan)[:, None]
    masked = np.ma.masked_invalid(shares)
    image = axes.imshow(masked, cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isfinite(value):
            axes.text(column, row, "-", ha="center", va="center", color=MUTED)
            continue
        color = "white" if shares[row, column] > 0.55 else INK
        text = f"{value:.3g}{'°' if drawn.units[row] == 'degrees' else ''}"
        axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set_xticks(range(count), drawn.codes)
    axes.set_yticks(range(count), drawn.codes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    axes.set_xlabel("applied alone" if moves else "applied as well")
    return image
