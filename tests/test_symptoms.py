"""Warnings in words about runs that learn nothing."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from duet_jax import symptoms
from duet_jax.augmentations import AUGMENTATIONS, LEARNABLE
from duet_jax.methods.base import feature_spread
from duet_jax.settings import fields


def messages(caplog):
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


# --- the spread of the features -------------------------------------------------------


def test_spread_of_even_directions_is_one():
    features = jax.random.normal(jax.random.key(0), (4096, 32))
    np.testing.assert_allclose(feature_spread(features, None), 1, atol=0.02)
    # Lengths do not matter.
    lengths = jnp.linspace(1, 100, 4096)[:, None]
    stretched = feature_spread(features * lengths, None)
    np.testing.assert_allclose(stretched, feature_spread(features, None), rtol=1e-5)


def test_spread_is_numpys():
    features = np.random.default_rng(0).uniform(size=(7, 5)).astype(np.float32)
    mask = np.arange(7) < 4
    for rows, given in ((features, None), (features[:4], jnp.asarray(mask))):
        directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        expected = directions.std(axis=0).mean() * 5**0.5
        found = feature_spread(jnp.asarray(features), given)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-3, 1e4])
def test_spread_of_equal_features_is_nothing(value):
    features = jnp.full((64, 32), value) * jnp.linspace(-1, 1, 32)[None, :]
    assert feature_spread(features, None) < 1e-5 < symptoms.COLLAPSED


def test_spread_is_computed_in_float32():
    features = jax.random.normal(jax.random.key(0), (8, 4)).astype(jnp.bfloat16)
    assert feature_spread(features, None).dtype == jnp.float32


# --- rows -----------------------------------------------------------------------------

FINE = {"feature_spread": 0.5, "online_top1": 0.25, "skipped": 0.0}


def test_a_healthy_run_is_not_warned_about(caplog):
    watch = symptoms.Symptoms()
    for step in range(20):
        watch.train(FINE)
        watch.test(step, {**FINE, "online_top1": 0.25 + step / 1000})
    assert not messages(caplog)


@pytest.mark.parametrize("split", ["training", "test"])
def test_collapsed_features_once(split, caplog):
    watch = symptoms.Symptoms()
    collapsed = {**FINE, "feature_spread": 1e-6}
    for step in range(3):
        watch.train(collapsed) if split == "training" else watch.test(step, collapsed)
    (message,) = messages(caplog)
    assert f"all {split} images" in message
    assert "feature_spread=1e-06" in message
    assert "collapsed" in message


def test_constant_accuracy(caplog):
    watch = symptoms.Symptoms()
    for step, accuracy in enumerate([0.2, 0.1, 0.1, 0.1, 0.1]):
        watch.test(step, {**FINE, "online_top1": accuracy})
    assert not messages(caplog)
    for step in range(5, 9):
        watch.test(step, {**FINE, "online_top1": 0.1})
    (message,) = messages(caplog)
    assert "exactly 0.1 in the last 5 evaluations, up to step 5:" in message
    assert "single class" in message


def test_a_perfect_accuracy_may_stay(caplog):
    watch = symptoms.Symptoms()
    for step in range(9):
        watch.test(step, {**FINE, "online_top1": 1.0})
    assert not messages(caplog)


def test_skipped_updates(caplog):
    watch = symptoms.Symptoms()
    for _ in range(2):
        watch.train({**FINE, "skipped": 3.0})
    (message,) = messages(caplog)
    assert message.startswith("3 updates were not finite and left out ")


# --- structure ------------------------------------------------------------------------


def test_structure_that_varies_is_fine(caplog):
    symptoms.check_structure("rot", np.full(4, 0.5), np.array([0.5, 0.5, 0.5, 0.6]))
    assert not messages(caplog)


@pytest.mark.parametrize("code", LEARNABLE)
def test_structure_that_is_all_the_same(code, caplog):
    symptoms.check_structure(code, np.full(4, 0.5), np.full(4, 0.5))
    (message,) = messages(caplog)
    assert message.startswith(
        f"every image of the first batch has structure 0.5 for '{code}': there is "
        "nothing to learn; see config.augmentation."
    )


def test_structure_that_is_not_finite(caplog):
    symptoms.check_structure("rot", np.array([0.5, np.nan]), np.array([0.1, np.inf]))
    (message,) = messages(caplog)
    assert message.startswith("2 of 4 structure values for 'rot'")


def test_fields_are_those_of_the_configuration():
    assert set(symptoms.FIELDS) == set(LEARNABLE) <= set(AUGMENTATIONS)
    known = dict(fields(base.get_config()))
    assert {name for each in symptoms.FIELDS.values() for name in each} <= set(known)
