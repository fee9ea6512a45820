"""The knobs of controlled generation, and which of them is the best."""

import math
from collections.abc import Mapping

KNOBS = ("steer", "shift", "linear map")
"""The predictions that see no transformed image of the one that is changed."""


def best_knob(mse: Mapping[str, float | None]) -> str:
    """Returns which of `KNOBS` has the smallest squared error.

    Args:
      mse: prediction -> its mean squared error; what is not finite is left out.

    Returns:
      Its name; "" if there is none.
    """
    known = {
        name: mse[name]
        for name in KNOBS
        if isinstance(mse.get(name), int | float) and math.isfinite(mse[name])
    }
    return min(known, key=known.__getitem__, default="")
