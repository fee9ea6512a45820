"""The augmentations of the views, and the parameters they draw.

Read `record.py` (what an augmentation is), then a record in `geometric.py` or
`photometric.py`, then `stack.py`. `random_stack` is for programs of your own.
"""

from duet_jax.augmentations.geometric import crop_and_resize, rotate, turn
from duet_jax.augmentations.library import Draw, random_stack
from duet_jax.augmentations.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    solarize,
)
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
    "Draw",
    "Options",
    "Prediction",
    "Stack",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "blur",
    "check_learned",
    "check_predicted",
    "crop_and_resize",
    "difference",
    "make_stack",
    "measuring_stack",
    "normalize",
    "options_read",
    "points",
    "random_stack",
    "rotate",
    "solarize",
    "split_codes",
    "to_float",
    "turn",
    "without",
]
