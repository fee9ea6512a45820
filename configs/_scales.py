"""The scales at which an experiment can be run: the meaning of `--scale`.

The configuration of a row has four layers, each a change of the one before:

    base.py  ->  COMMON of the experiment  ->  the scale  ->  the row itself

so that a row keeps what it is about (its method, its stack) at any scale. The scales
for CPUs change the size and what depends on it: learning rate and schedule, and DUET's
lambda unless a row sets it.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import base

# Values by dotted field of base.py.
Delta = Mapping[str, Any]

# An encoder of 128 features on images of 16 pixels, for CPUs.
_NARROW = {
    "dataset.image_size": 16,
    "dataset.center_crop": False,
    "encoder.name": "Cifar10_ResNet",
    "encoder.blocks": (1, 1, 1),
    "encoder.widths": (16, 16, 32, 128),
    "projector.hidden": 256,
    "projector.output": 64,
    "essl.hidden": 256,
    "augself.hidden": 256,
    "optimizer.schedule": "step",
    "optimizer.learning_rate": 2e-3,
    "duet.structure_weight": 100.0,
}

SCALES: dict[str, Delta] = {
    # The reference's: resnet32, 800 epochs of batch 1024, all images.
    "full": {},
    # Every tenth image of CIFAR-10. docs/results.md says how long that takes.
    "short": {
        **_NARROW,
        "dataset.train_fraction": 0.1,
        "batch_size": 128,
        "epochs": 15,
        "warmup_epochs": 1,
        "evaluate_every": 5,
        "checkpoint.every": 5,
    },
    # To see that everything works; mostly compilation. Nothing is learned.
    "tiny": {
        **_NARROW,
        "encoder.widths": (8, 8, 8, 32),
        "projector.hidden": 16,
        "projector.output": 8,
        "essl.hidden": 16,
        "augself.hidden": 16,
        "care.chunk": 4,
        "sie.hidden": 8,
        "dataset.train_fraction": 0.05,
        "batch_size": 16,
        "epochs": 2,
        "warmup_epochs": 1,
        "evaluate_every": 1,
        "checkpoint.every": 1,
        "tensorboard": False,
    },
}


def build(
    rows: Mapping[str, Delta], common: Delta, name: str
) -> ml_collections.ConfigDict:
    """Returns the configuration of a row.

    Args:
      rows: changes by the row's name.
      common: what all rows of the experiment change.
      name: of the row, at full scale; `<row>@<scale>` for another.

    Raises:
      KeyError: there is no such row or scale.
    """
    row, _, scale = name.partition("@")
    config = base.get_config()
    for delta in (common, SCALES[scale or "full"], rows[row]):
        config.update_from_flattened_dict(dict(delta))
    return config
