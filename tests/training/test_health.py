"""Warnings in words about runs that learn nothing."""

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import base
from duet_jax.augmentations import AUGMENTATIONS, LEARNABLE, Options, make_stack
from duet_jax.config.checks import fields
from duet_jax.methods.base import feature_spread
from duet_jax.training import health


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
    assert feature_spread(features, None) < 1e-5 < health.COLLAPSED


def test_spread_is_computed_in_float32():
    features = jax.random.normal(jax.random.key(0), (8, 4)).astype(jnp.bfloat16)
    assert feature_spread(features, None).dtype == jnp.float32


# --- rows -----------------------------------------------------------------------------

FINE = {"feature_spread": 0.5, "online_top1": 0.25, "skipped": 0.0, "examples": 355}


def test_a_healthy_run_is_not_warned_about(caplog):
    watch = health.Symptoms()
    for step in range(20):
        watch.train(FINE)
        watch.test(step, {**FINE, "online_top1": 0.25 + step / 1000})
    assert not messages(caplog)


def told_of_ranks(ranks, caplog, directions=128):
    """Messages about evaluations with these values of rank_me."""
    watch = health.Symptoms(directions)
    for step, rank in enumerate(ranks):
        accuracy = 0.25 + step / 1000
        watch.test(step, {**FINE, "online_top1": accuracy, "rank_me": rank})
    return messages(caplog)


@pytest.mark.parametrize(
    "ranks",
    [
        [95, 67, 46, 40, 42],  # SimCLR on digits
        [5, 5.5, 40, 60],  # near an untrained network at first
        [50, 13, 13],  # above a tenth
        [25, 6.5, 6.5, 6.5],  # above a twentieth, and a quarter of the highest
        [math.nan] * 4,
    ],
)
def test_ranks_of_sound_runs(ranks, caplog):
    assert not told_of_ranks(ranks, caplog)


def test_few_images_or_dimensions_have_few_directions(caplog):
    assert not told_of_ranks([1.1] * 5, caplog, directions=8)


@pytest.mark.parametrize(
    ("ranks", "step"),
    [([74, 5.1, 11], 1), ([74, 12], 1), ([6, 6, 6, 6], 2), ([9, 6, 6, 6], 3)],
)
def test_dimensional_collapse_once(ranks, step, caplog):
    (message,) = told_of_ranks(ranks, caplog)
    rank = f"{ranks[step]:.3g}"
    assert (
        f"features of step {step} are spread over {rank} directions of 128" in message
    )
    assert "config.optimizer.learning_rate" in message
    assert "\n" not in message


def test_a_complete_collapse_is_told_once(caplog):
    """It is one of dimensions too."""
    watch = health.Symptoms(128)
    watch.test(1, {**FINE, "rank_me": 90})
    watch.test(2, {**FINE, "rank_me": 1.0, "feature_spread": 1e-6})
    (message,) = messages(caplog)
    assert "almost equal" in message


@pytest.mark.parametrize("split", ["training", "test"])
def test_collapsed_features_once(split, caplog):
    watch = health.Symptoms()
    collapsed = {**FINE, "feature_spread": 1e-6}
    for step in range(3):
        watch.train(collapsed) if split == "training" else watch.test(step, collapsed)
    (message,) = messages(caplog)
    assert f"all {split} images" in message
    assert "feature_spread=1e-06" in message
    assert "collapsed" in message


def test_constant_accuracy(caplog):
    watch = health.Symptoms()
    for step, accuracy in enumerate([0.2, 0.1, 0.1, 0.1, 0.1]):
        watch.test(step, {**FINE, "online_top1": accuracy})
    assert not messages(caplog)
    for step in range(5, 9):
        watch.test(step, {**FINE, "online_top1": 0.1})
    (message,) = messages(caplog)
    assert "exactly 0.1 in the last 5 evaluations, up to step 5:" in message
    assert "single class" in message


def test_a_perfect_accuracy_may_stay(caplog):
    watch = health.Symptoms()
    for step in range(9):
        watch.test(step, {**FINE, "online_top1": 1.0})
    assert not messages(caplog)


@pytest.mark.parametrize(
    ("examples", "accuracy", "said"),
    [
        (1, 0.0, False),
        (2, 0.5, False),
        (49, 0.0, False),  # all were wrong, and few they are
        (50, 0.0, True),
        (56, 0.1, True),
        (200, 0.5, True),
        (355, 0.98, False),  # a trained probe that rests
        (10_000, 0.98, True),
    ],
)
def test_a_constant_accuracy_over_few_answers_says_nothing(
    examples, accuracy, said, caplog
):
    watch = health.Symptoms()
    for step in range(9):
        watch.test(step, {**FINE, "online_top1": accuracy, "examples": examples})
    assert len(messages(caplog)) == said


def mean_spread(features, batch_size):
    """As the program has it of a test split: batches padded, means by their images."""
    total = 0.0
    for start in range(0, len(features), batch_size):
        rows = features[start : start + batch_size]
        padding = [(0, batch_size - len(rows)), (0, 0)]
        mask = jnp.arange(batch_size) < len(rows)
        total += len(rows) * float(feature_spread(jnp.pad(rows, padding), mask))
    return total / len(features)


@pytest.mark.parametrize(("images", "batch_size"), [(1, 2), (1, 32), (3, 2), (33, 32)])
def test_an_image_that_is_alone_has_not_collapsed(images, batch_size, caplog):
    features = jax.random.normal(jax.random.key(0), (images, 16))
    spread = mean_spread(features, batch_size)
    assert images > 1 or spread == 0
    watch = health.Symptoms()
    watch.test(1, {**FINE, "feature_spread": spread, "examples": images})
    assert not messages(caplog)


def test_two_test_images_can_collapse(caplog):
    features = jnp.ones((2, 16))
    spread = mean_spread(features, 2)
    health.Symptoms().test(1, {**FINE, "feature_spread": spread, "examples": 2})
    assert len(messages(caplog)) == 1


def test_skipped_updates(caplog):
    watch = health.Symptoms()
    for _ in range(2):
        watch.train({**FINE, "skipped": 3.0})
    (message,) = messages(caplog)
    assert message.startswith("3 updates were not finite and skipped ")


# --- structure ------------------------------------------------------------------------

ENOUGH = health.FEWEST_VALUES // 2  # images, of which there are two views


def test_structure_that_varies_is_fine(caplog):
    second = np.append(np.full(ENOUGH - 1, 0.5), 0.6)
    health.check_structure("rot", np.full(ENOUGH, 0.5), second, ("config.field",))
    assert not messages(caplog)


def test_few_values_may_be_the_same(caplog):
    """Of the batches of two images one in eight is mirrored alike."""
    same = np.full(ENOUGH - 1, 0.25)
    health.check_structure("fli", same, same, ("config.field",))
    assert not messages(caplog)


@pytest.mark.parametrize("code", LEARNABLE)
def test_structure_that_is_all_the_same(code, caplog):
    same, fields = np.full(ENOUGH, 0.5), AUGMENTATIONS[code].fields
    health.check_structure(code, same, same, fields)
    (message,) = messages(caplog)
    assert message.startswith(
        f"every image of the first batch has structure 0.5 for '{code}': there is "
        "nothing to learn; "
    )
    assert "\n" not in message
    for field in fields:
        assert field in message
    assert fields or "no field of the configuration determines" in message


@pytest.mark.parametrize("names", [(), ("config.augmentation.rotation_degrees",)])
def test_structure_that_is_not_finite(names, caplog):
    first, second = np.array([0.5, np.nan]), np.array([0.1, np.inf])
    health.check_structure("rot", first, second, names)
    (message,) = messages(caplog)
    assert message.startswith("2 of 4 structure values for 'rot'")
    assert (" and ".join(names) or "record") in message


def test_fields_are_those_of_the_configuration():
    known = {f"config.{name}" for name, _ in fields(base.get_config())}
    for record in AUGMENTATIONS.values():
        assert set(record.fields) <= known
        assert len(set(record.fields)) == len(record.fields)


@pytest.mark.parametrize("code", LEARNABLE)
def test_fields_are_those_that_decide_what_is_drawn(code):
    """Each field is changed by itself: the values move, or the record is silent."""

    def drawn(options):
        stack = make_stack(
            (code,), input_side=16, image_size=16, channels=3, options=options
        )
        return np.asarray(stack.structure(stack.draw(jax.random.key(0), 100))[code])

    usual = drawn(Options())
    deciding = {
        f"config.augmentation.{field.name}"
        for field in dataclasses.fields(Options)
        if not np.allclose(usual, drawn(other_option(field.name)), atol=1e-5)
    }
    assert deciding == set(AUGMENTATIONS[code].fields)


def other_option(name):
    return Options(**{name: getattr(tiny.OTHER_OPTIONS, name)})
