"""The decoder: shapes for every side, and that it can learn an image."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from duet_jax.models.decoder import Decoder


def decoder(side, **options):
    settings = {"channels": 3, "width": 4, "rngs": nnx.Rngs(0)} | options
    return Decoder(12, side=side, **settings)


@pytest.mark.parametrize("side", [8, 9, 16, 17, 20, 24, 28, 32, 33, 36, 63, 64])
def test_any_side(side):
    network = decoder(side)
    assert network(jnp.ones((2, 12))).shape == (2, side, side, 3)
    assert 4 <= network.start <= 8
    # Less than one step of the first map is cut off.
    made = network.start * 2 ** len(network.stages)
    assert side <= made < side + 2 ** len(network.stages)


@pytest.mark.parametrize(("side", "channels"), [(16, [32, 16, 8]), (8, [16, 8])])
def test_channels_halve(side, channels):
    network = decoder(side, width=8)
    halved = [stage.conv1.kernel.shape[2:] for stage in network.stages]
    assert halved == list(itertools.pairwise(channels))
    assert network.features == channels[0]
    assert network.output.kernel.shape[2:] == (8, 3)


def test_it_learns_two_images():
    """The representation decides which."""
    network = decoder(8, channels=1, width=8)
    graphdef, params = nnx.split(network, nnx.Param)
    images = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8, 8, 1)))
    given = jnp.eye(2, 12)
    optimizer = optax.adam(3e-3)

    def loss(params):
        return jnp.mean(jnp.square(nnx.merge(graphdef, params)(given) - images))

    @jax.jit
    def step(params, state):
        change, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, change), state

    state = optimizer.init(params)
    before = float(loss(params))
    for _ in range(200):
        params, state = step(params, state)
    assert float(loss(params)) < 0.01 * min(before, float(images.var()))
