"""Figures of the views, the metrics and the representations of a run.

Each `build_*` returns a figure; `draw_*` writes it to a file atomically. No window
system is used.
"""

from duet_jax.figures.bars import build_bars
from duet_jax.figures.canvas import COLUMNS
from duet_jax.figures.circle import build_polar, build_turned
from duet_jax.figures.confusion import build_confusion
from duet_jax.figures.curves import build_curves, draw_curves
from duet_jax.figures.embedding import build_embedding
from duet_jax.figures.structure import build_marginals, build_readout, build_shift
from duet_jax.figures.views import build_views, draw_views

__all__ = [
    "COLUMNS",
    "build_bars",
    "build_confusion",
    "build_curves",
    "build_embedding",
    "build_marginals",
    "build_polar",
    "build_readout",
    "build_shift",
    "build_turned",
    "build_views",
    "draw_curves",
    "draw_views",
]
