"""Figures of the views, the metrics and the representations of a run.

Each `build_*` returns a figure; `draw_*` writes it to files atomically. No window
system is used.
"""

from duet_jax.figures.canvas import COLUMNS
from duet_jax.figures.circle import (
    Polar,
    build_polar,
    build_turned,
    summarize_polar,
)
from duet_jax.figures.confusion import Confusion, build_confusion
from duet_jax.figures.crosstalk import Crosstalk, build_crosstalk
from duet_jax.figures.curves import build_curves, build_overlay, draw_curves
from duet_jax.figures.dots import build_dots
from duet_jax.figures.drawing import Drawing, draw, restored
from duet_jax.figures.embedding import Coloring, build_embedding
from duet_jax.figures.generated import (
    Control,
    build_control,
    build_reconstructions,
)
from duet_jax.figures.knob import (
    Dial,
    Knob,
    build_knob,
    check_knob,
    frames_of,
    make_sheet,
)
from duet_jax.figures.matrix import Matrix, build_matrix
from duet_jax.figures.structure import (
    Marginals,
    Readout,
    Shift,
    build_marginals,
    build_readout,
    build_shift,
    summarize_marginals,
    summarize_readout,
)
from duet_jax.figures.views import build_views, draw_views

__all__ = [
    "COLUMNS",
    "Coloring",
    "Confusion",
    "Control",
    "Crosstalk",
    "Dial",
    "Drawing",
    "Knob",
    "Marginals",
    "Matrix",
    "Polar",
    "Readout",
    "Shift",
    "build_confusion",
    "build_control",
    "build_crosstalk",
    "build_curves",
    "build_dots",
    "build_embedding",
    "build_knob",
    "build_marginals",
    "build_matrix",
    "build_overlay",
    "build_polar",
    "build_readout",
    "build_reconstructions",
    "build_shift",
    "build_turned",
    "build_views",
    "check_knob",
    "draw",
    "draw_curves",
    "draw_views",
    "frames_of",
    "make_sheet",
    "restored",
    "summarize_marginals",
    "summarize_polar",
    "summarize_readout",
]
