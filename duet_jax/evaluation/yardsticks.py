"""What results are compared with: raw pixels, and the encoder before its training.

Neither depends on the checkpoint. Their scores are computed once for a data set and a
configuration, and kept in the cache directory of the data.
"""

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from duet_jax.data import cache
from duet_jax.methods.networks import split
from duet_jax.runs.frozen_encoder import (
    ExternalEncoder,
    FrozenEncoder,
    PixelEncoder,
)
from duet_jax.runs.trained_run import Run
from duet_jax.training.train_step import initial_key

_log = logging.getLogger(__name__)

# To be increased when a measure changes its numbers.
_FORMAT = 2
UNTRAINED, PIXELS, CHANCE = "untrained encoder", "raw pixels", "chance"

Scores = dict[str, Any]


def yardsticks(
    run: Run, about: Mapping[str, Any], measure: Callable[[FrozenEncoder], Scores]
) -> dict[str, Scores]:
    """Returns the scores of the untrained encoder and of the raw pixels, by name.

    Args:
      run: whose encoder is compared with them. The untrained one is its own, with the
        weights that it began with; there is none of an encoder from elsewhere.
      about: everything else that the scores depend on, JSON-able: the measure with its
        settings, and the images.
      measure: returns the scores of an encoder, JSON-able.
    """
    views = run.method.two_views
    sides = [views.stack.input_side, views.stack.image_size, views.stack.channels]
    settings = {name: str(value) for name, value in vars(views.encoder).items()}
    encoders = [
        (UNTRAINED, _untrained, [sides, settings, run.config.seed]),
        (PIXELS, _pixels, [sides]),
    ]
    if isinstance(run.encoder, ExternalEncoder):
        del encoders[0]
    found = {}
    for name, encoder, parts in encoders:
        found[name] = cache.remembered(
            run.config.dataset.cache_dir,
            "yardstick",
            [_FORMAT, name, parts, about],
            functools.partial(_measure, run, name, encoder, measure),
            lambda scores: isinstance(scores, dict),
        )
    return found


def _measure(
    run: Run,
    name: str,
    encoder: Callable[[Run], FrozenEncoder],
    measure: Callable[[FrozenEncoder], Scores],
) -> Scores:
    _log.info("%-12s %s: measured once for these images", "comparison", name)
    return measure(encoder(run))


@functools.lru_cache(maxsize=1)
def _untrained(run: Run) -> FrozenEncoder:
    """Returns the encoder with the weights of step 0, in the programs of the run's."""

    @jax.jit
    def begin(seed: jax.Array) -> tuple[dict, dict]:
        networks = run.method.init(nnx.Rngs(initial_key(seed)))
        return split(networks.encoder)[1:]

    return copy.copy(run.encoder).use(*begin(np.uint32(run.config.seed)))


@functools.lru_cache(maxsize=1)
def _pixels(run: Run) -> FrozenEncoder:
    return PixelEncoder(run.method, batch_size=run.config.batch_size)


def chance(train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Returns the accuracies of always naming the most frequent training classes.

    Args:
      train_labels: int, [images].
      test_labels: int, [images].
    """
    frequent = np.argsort(-np.bincount(train_labels), kind="stable")
    return {
        f"top{count}": float(np.isin(test_labels, frequent[:count]).mean())
        for count in (1, 5)
    }
