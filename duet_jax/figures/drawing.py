"""Pictures as data: what is kept of a picture, so that it can be drawn again.

Pictures of several runs that are drawn together share one color scale and one range of
each axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from duet_jax.figures.circle import Polar, build_polar
from duet_jax.figures.confusion import Confusion, build_confusion
from duet_jax.figures.crosstalk import Crosstalk, build_crosstalk
from duet_jax.figures.generated import Control, build_control
from duet_jax.figures.knob import Knob, build_knob
from duet_jax.figures.matrix import Matrix, build_matrix
from duet_jax.figures.structure import (
    Marginals,
    Readout,
    Shift,
    build_marginals,
    build_readout,
    build_shift,
)

_DIGITS = 4  # after the point: finer than any color or line

# Kind -> its summary, and what draws one or several of them.
KINDS: dict[str, tuple[type, Callable[..., Figure]]] = {
    "confusion": (Confusion, build_confusion),
    "knob": (Knob, build_knob),
    "control": (Control, build_control),
    "crosstalk": (Crosstalk, build_crosstalk),
    "matrix": (Matrix, build_matrix),
    "marginals": (Marginals, build_marginals),
    "polar": (Polar, build_polar),
    "readout": (Readout, build_readout),
    "shift": (Shift, build_shift),
}


class Drawing(NamedTuple):
    """A picture as data.

    Attributes:
      kind: key of KINDS.
      title: of the figure.
      summary: what is drawn, of the kind's type.
    """

    kind: str
    title: str
    summary: Any

    def figure(self) -> Figure:
        """Draws it alone."""
        return draw({"": self}, title=self.title)

    def stored(self) -> dict[str, Any]:
        """Returns it as nested dicts of arrays, rounded, for `restored`."""
        return _rounded(self)


def _rounded(value: Any) -> Any:
    if hasattr(value, "_asdict"):  # of a NamedTuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, np.ndarray | float):
        return np.round(value, _DIGITS)
    return value


def restored(stored: Mapping[str, Any]) -> Drawing:
    """Returns a drawing from JSON.

    Raises:
      ValueError: it holds no drawing.
    """
    try:
        kind, title = stored["kind"], str(stored["title"])
        return Drawing(kind, title, KINDS[kind][0](**stored["summary"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no drawing: {error}") from error


def draw(drawings: Mapping[str, Drawing], *, title: str = "") -> Figure:
    """Draws drawings of one kind together, on one scale.

    Args:
      drawings: the name written above each -> the drawing; "" for no name.
      title: of the figure.
    """
    (kind,) = {each.kind for each in drawings.values()}
    summaries = {name: each.summary for name, each in drawings.items()}
    return KINDS[kind][1](summaries, title=title)
