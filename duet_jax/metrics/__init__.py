"""Measures: pure functions of arrays that say how good representations are.

`equivariance.py` is about parameters that are read off representations, `actions.py`
about what a transformation does to them, `monitors.py` about their spread.
"""

from duet_jax.metrics.actions import (
    chance,
    composition_residuals,
    gamma,
    linear_map,
    nearest,
    parameter_distance,
    ranks,
    relative_error,
    residuals,
    rotation,
)
from duet_jax.metrics.equivariance import (
    bootstrap,
    errors,
    mean_r_squared,
    points,
    r_squared,
    read_structure,
    shift_errors,
    values_at,
)
from duet_jax.metrics.monitors import (
    alignment,
    alpha_req,
    lidar,
    rank_me,
    uniformity,
)

__all__ = [
    "alignment",
    "alpha_req",
    "bootstrap",
    "chance",
    "composition_residuals",
    "errors",
    "gamma",
    "lidar",
    "linear_map",
    "mean_r_squared",
    "nearest",
    "parameter_distance",
    "points",
    "r_squared",
    "rank_me",
    "ranks",
    "read_structure",
    "relative_error",
    "residuals",
    "rotation",
    "shift_errors",
    "uniformity",
    "values_at",
]
