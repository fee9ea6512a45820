"""What is kept, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax.checkpoints import Checkpoints
from duet_jax.errors import UsageError
from duet_jax.types import TrainState


def state(step):
    params = {"encoder": {"kernel": jnp.full((2, 3), float(step))}}
    stats = {"encoder": {"mean": jnp.full((3,), -float(step))}}
    moments = (jnp.asarray(step, jnp.int32), params)
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, moments)


def save_all(checkpoints, accuracies):
    for step, accuracy in enumerate(accuracies, 1):
        checkpoints.save(state(step), {"online_top1": accuracy})


@pytest.mark.parametrize(
    ("keep", "accuracies", "kept", "best"),
    [
        (1, [0.9, 0.1, 0.2], [1, 3], 1),
        (2, [0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5], 2),
        (2, [0.1, 0.2, 0.3], [2, 3], 3),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, accuracies, kept, best):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        save_all(checkpoints, accuracies)
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        assert checkpoints.all_steps() == kept
        assert checkpoints.best_step() == best
        assert checkpoints.latest_step() == len(accuracies)


def test_every_array_comes_back(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save_all(checkpoints, [0.1, 0.2])
    with Checkpoints(tmp_path) as checkpoints:
        for step, restored in (
            (2, checkpoints.restore(state(0))),
            (1, checkpoints.restore(state(0), step=1)),
        ):
            jax.tree.map(np.testing.assert_array_equal, restored, state(step))
        params, stats = checkpoints.restore_model(state(0).params, state(0).batch_stats)
        np.testing.assert_array_equal(params["encoder"]["kernel"], 2)
        np.testing.assert_array_equal(stats["encoder"]["mean"], -2)


def test_the_best_of_none(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
        assert checkpoints.find("best") == 1
        monkeypatch.setattr(checkpoints, "best_step", lambda: None)
        with pytest.raises(UsageError, match=r"no checkpoint of .* has an accuracy"):
            checkpoints.find("best")


def test_a_remainder_of_a_killed_save_is_ignored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(state(2), {"online_top1": 0.2})
    with Checkpoints(tmp_path) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(state(0)).step, 2)


def test_a_step_is_not_saved_twice(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_all(checkpoints, [0.1])
        with pytest.raises(UsageError, match=r"checkpoint 1 .* exists already"):
            checkpoints.save(state(1), {"online_top1": 0.3})
