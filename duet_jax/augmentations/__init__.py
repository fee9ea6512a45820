"""The augmentations of the views, and the parameters they draw.

Read `record.py` (what an augmentation is), then a record in `geometric.py` or
`photometric.py`, then `stack.py`.
"""

from duet_jax.augmentations.record import Augmentation, Options, Prediction
from duet_jax.augmentations.stack import (
    AUGMENTATIONS,
    LEARNABLE,
    PREDICTABLE,
    Stack,
    check_learned,
    check_predicted,
    difference,
    make_stack,
    measuring_stack,
    normalize,
    options_read,
    points,
    split_codes,
    to_float,
    without,
)

__all__ = [
    "AUGMENTATIONS",
    "LEARNABLE",
    "PREDICTABLE",
    "Augmentation",
    "Options",
    "Prediction",
    "Stack",
    "check_learned",
    "check_predicted",
    "difference",
    "make_stack",
    "measuring_stack",
    "normalize",
    "options_read",
    "points",
    "split_codes",
    "to_float",
    "without",
]
