import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from duet_jax.errors import UsageError
from duet_jax.training import optim


def rates(steps, **settings):
    rate = optim.learning_rate(1.0, **settings)
    return np.asarray(jax.vmap(rate)(jnp.arange(steps)))


def test_rate_is_constant_within_an_epoch():
    values = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4).reshape(10, 4)
    np.testing.assert_array_equal(values, values[:, :1].repeat(4, 1))
    np.testing.assert_allclose(values[:4, 0], [0.001, 0.5, 1, 0.96194], rtol=1e-5)


def test_rate_by_step_follows_the_same_curve():
    by_epoch = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4)[::4]
    by_step = rates(40, epochs=10, warmup_epochs=2, steps_per_epoch=4, schedule="step")
    np.testing.assert_allclose(by_step[::4], by_epoch, rtol=1e-6)
    assert (np.diff(by_step[:9]) > 0).all()
    assert (np.diff(by_step[8:]) < 0).all()


def test_no_warm_up_starts_at_the_full_rate():
    values = rates(5, epochs=5, warmup_epochs=0, steps_per_epoch=1)
    expected = (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_warm_up_only():
    values = rates(4, epochs=4, warmup_epochs=4, steps_per_epoch=1)
    np.testing.assert_allclose(values, [0.001, 0.25, 0.5, 0.75], rtol=1e-6)


def test_weight_decay_reaches_every_parameter():
    optimizer = optim.adamw(lambda step: 0.1, weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for value in jax.tree.leaves(optax.apply_updates(params, updates)):
        np.testing.assert_allclose(value, 1 - 0.1 * 0.5, rtol=1e-6)


def test_unknown_schedule():
    with pytest.raises(UsageError, match=r"optimizer.schedule='steps'.*epoch, step"):
        optim.learning_rate(
            1.0, epochs=1, warmup_epochs=0, steps_per_epoch=1, schedule="steps"
        )
