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


def cosine(done):
    return (1 + np.cos(np.pi * done)) / 2


# Four epochs of two steps, one of them warm-up, extended to eight.
RUN = {"epochs": 4, "warmup_epochs": 1, "steps_per_epoch": 2}


@pytest.mark.parametrize("schedule", ["epoch", "step"])
@pytest.mark.parametrize("begin", [4, 5, 8])
def test_an_extension_falls_from_the_last_rate_to_the_new_end(schedule, begin):
    before = rates(8, **RUN, schedule=schedule)
    values = rates(17, **RUN, schedule=schedule, extensions=[(begin, 8)])
    np.testing.assert_array_equal(values[:begin], before[:begin])
    steps = np.arange(begin, 17)
    epochs = steps // 2 if schedule == "epoch" else steps / 2
    first = begin // 2 if schedule == "epoch" else begin / 2
    expected = before[begin - 1] * cosine((epochs - first) / (8 - first))
    np.testing.assert_allclose(values[begin:], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(values[begin], before[begin - 1], rtol=1e-6)
    assert before[begin - 1] > 0
    np.testing.assert_allclose(values[16], 0, atol=1e-7)


def test_extensions_in_a_row():
    once = rates(10, **RUN, extensions=[(6, 8)])
    twice = rates(24, **RUN, extensions=[(6, 8), (10, 12)])
    np.testing.assert_array_equal(twice[:10], once)
    expected = once[9] * cosine((np.arange(10, 24) // 2 - 5) / 7)
    np.testing.assert_allclose(twice[10:], expected, rtol=1e-5)
    # From an older checkpoint, where newer ones were damaged.
    back = rates(24, **RUN, extensions=[(6, 8), (4, 12)])
    np.testing.assert_array_equal(back, rates(24, **RUN, extensions=[(4, 12)]))


@pytest.mark.parametrize("schedule", ["epoch", "step"])
@pytest.mark.parametrize("begin", [1, 3, 4])
def test_an_extension_in_the_warm_up_is_the_longer_schedule(schedule, begin):
    """Whose cosine begins with the end of the warm-up, after step 4."""
    common = {"warmup_epochs": 2, "steps_per_epoch": 2, "schedule": schedule}
    values = rates(16, epochs=3, extensions=[(begin, 8)], **common)
    np.testing.assert_array_equal(values, rates(16, epochs=8, **common))
