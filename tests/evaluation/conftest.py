"""What several files of this directory share."""

import functools

import pytest
from sklearn import manifold

from duet_jax.evaluation import control, generation


@pytest.fixture(scope="module")
def quick_measures():
    """Maps with a quarter of the steps, and fewer transformed images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "STEPS", 4)
        patch.setattr(generation, "_TRAINING_IMAGES", 200)
        patch.setattr(generation, "_TEST_IMAGES", 30)
        patch.setattr(generation, "_STEPS_TOGETHER", {2: 4})
        patch.setattr(generation, "_TEST_TOGETHER", 10)
        quick = functools.partial(manifold.TSNE, max_iter=250)
        patch.setattr(manifold, "TSNE", quick)
        yield
