"""The augmentations of the views, with the parameters that were drawn.

Read `spec.py` (what an augmentation is), then a record in `geometric.py` or
`photometric.py`, then `stack.py`.
"""

from duet_jax.augmentations.record import (
    Augmentation,
    Frame,
    Options,
    Prediction,
    Scale,
)
from duet_jax.augmentations.stack import (
    AUGMENTATIONS,
    LEARNABLE,
    PREDICTABLE,
    Stack,
    check_learned,
    check_predicted,
    evaluation_view,
    make_stack,
    measuring_stack,
    normalise,
    to_float,
    without,
)

__all__ = [
    "AUGMENTATIONS",
    "LEARNABLE",
    "PREDICTABLE",
    "Augmentation",
    "Frame",
    "Options",
    "Prediction",
    "Scale",
    "Stack",
    "check_learned",
    "check_predicted",
    "evaluation_view",
    "make_stack",
    "measuring_stack",
    "normalise",
    "to_float",
    "without",
]
