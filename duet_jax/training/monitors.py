"""The sample of test images that the monitors of `metrics.monitors` are measured on.

A training measures it with every evaluation, and `--mode=monitors` measures the same
images and views, so that the numbers of a checkpoint are those of its row.
"""

import jax
import numpy as np

from duet_jax.augmentations import Stack
from duet_jax.metrics.monitors import MONITORS, monitors
from duet_jax.runs.frozen_encoder import Draws
from duet_jax.types import Array

# Augmented views of each image. LiDAR alone asks for more than two.
VIEWS = 4
# Of the draws: not of the run, nor of the epoch, so that all can be compared.
_SEED = 0


def sample_size(wanted: int, num_test: int) -> int:
    """Returns how many images are measured; 0 if there is no pair of them.

    Args:
      wanted: `config.monitor.images`.
      num_test: number of test images. The first of `data.order.evaluation_order` are
        taken, which is the same in every run.
    """
    count = min(wanted, num_test)
    return count if count > 1 else 0


def draw(stack: Stack, images: int, view: int | Array) -> Draws:
    """Returns the augmentations of one of the VIEWS of each image, by stage.

    Args:
      stack: that the training augments with.
      images: number of images in the sample.
      view: which of the views, from 0.
    """
    key = jax.random.fold_in(jax.random.key(_SEED), view)
    return stack.draw(key, images)


def measure(plain: np.ndarray, views: np.ndarray) -> dict[str, float]:
    """Returns all monitors by name; NaN if a feature is not finite.

    Args:
      plain: features of the images as they are, [images, dimensions].
      views: of their augmented views, [images, VIEWS, dimensions].
    """
    if np.isfinite(plain).all() and np.isfinite(views).all():
        return monitors(plain, views)
    return dict.fromkeys(MONITORS, float("nan"))
