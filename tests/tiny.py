"""The smallest settings with which everything still runs for real."""

import ml_collections
import numpy as np

from configs import smoke
from duet_jax import settings
from duet_jax.data import load_dataset
from duet_jax.types import Dataset, Split


def config(**changes) -> ml_collections.ConfigDict:
    """The smoke configuration, resolved; names with __ for dots."""
    config = smoke.get_config()
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return settings.check(config, smoke.get_config())


def dataset(train: int, test: int, *, side: int = 16, channels: int = 1) -> Dataset:
    """Smooth random images of three classes, which differ in brightness."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int32) % 3
        images = rng.uniform(0, 120, (count, side // 4, side // 4, channels))
        images += 60 * labels[:, None, None, None]
        images = images.repeat(4, 1).repeat(4, 2)
        return Split(images.astype(np.uint8), labels)

    return Dataset("tiny", split(train), split(test), ("dark", "dim", "bright"))


def digits(config: ml_collections.ConfigDict) -> Dataset:
    """The digits as `config` wants them."""
    return load_dataset("digits", image_size=config.dataset.image_size)
