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
    found = {name: mse.get(name) for name in KNOBS}
    known = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return min(known, key=known.__getitem__, default="")
