"""Runs that nobody has trained: quick to make, and their weights are all different."""

import pathlib

import jax
import numpy as np
import tiny
from flax import nnx

from duet_jax.config import build
from duet_jax.methods.networks import split
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.runs.trained_run import Run
from duet_jax.types import DatasetFacts


def run(directory: pathlib.Path, channels: int = 1, **changes) -> Run:
    """A run without checkpoints, of random weights and running statistics.

    Args:
      directory: its work directory, in which nothing is written.
      channels: of the images, which are those of the digits otherwise.
      **changes: of the smoke configuration; see `tiny.config`.
    """
    config = tiny.config(**changes)
    side = config.dataset.image_size + (2 if config.dataset.center_crop else 0)
    names = tuple("0123456789")
    facts = DatasetFacts("digits", side, channels, names, 1442, 355)
    method = build.make_method(config, facts)
    _, params, stats = split(method.init(nnx.Rngs(3)).encoder)
    rng = np.random.default_rng(0)
    # Means around 0: others would let the ReLUs make the same of every image.
    ranges = {"mean": (-0.1, 0.1), "var": (0.5, 1.0)}

    def drawn(path, leaf):
        return rng.uniform(*ranges[path[-1].key], leaf.shape).astype("f4")

    stats = jax.tree.map_with_path(drawn, stats)
    encoder = FrozenEncoder(method, batch_size=8).use(params, stats)
    return Run(directory, config, facts, 7, method, encoder)
