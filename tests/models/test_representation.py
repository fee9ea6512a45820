"""Content and structure, and what changes one and not the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax.models import representation

BINS = [2, 3, 7, 8, 16]
SHIFTS = [0.0, 0.25, -0.5, 0.5, 1.5, 2.5, -3.7, 11.0, 100.125]


@pytest.fixture(params=BINS)
def matrix(request):
    shape = (5, request.param, 6)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("by", [-9, -1, 0, 1, 2, 5, 40])
def test_whole_shifts_move_bins(matrix, by):
    moved = representation.shift(matrix, by)
    np.testing.assert_allclose(moved, np.roll(matrix, by, axis=1), atol=5e-6)


@pytest.mark.parametrize("by", SHIFTS)
def test_a_shift_back_is_the_inverse(matrix, by):
    back = representation.shift(representation.shift(matrix, by), -by)
    np.testing.assert_allclose(back, matrix, atol=5e-6)


@pytest.mark.parametrize("by", SHIFTS)
def test_a_shift_keeps_content_and_length(matrix, by):
    moved = representation.shift(matrix, by)
    contents = [np.asarray(representation.content(each)) for each in (matrix, moved)]
    np.testing.assert_allclose(contents[1], contents[0], atol=5e-6)
    lengths = [np.linalg.norm(each, axis=(1, 2)) for each in (matrix, moved)]
    np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-5)


@pytest.mark.parametrize("bins", BINS)
def test_a_shift_is_exact_below_the_highest_frequency(bins):
    """Of a sum of waves it is the sum of the shifted waves."""
    generator = np.random.default_rng(1)
    places = np.arange(bins)
    by = np.array([0.3, -1.7])
    wanted, given = np.zeros((2, 2, bins, 3))
    for frequency in range((bins + 1) // 2):
        height, start = generator.normal(size=(2, 3))
        for example, moved in enumerate(by):
            for waves, at in ((given, places), (wanted, places - moved)):
                turns = 2 * np.pi * frequency * at[:, None] / bins
                waves[example] += height * np.cos(turns + start)
    found = representation.shift(jnp.asarray(given, jnp.float32), by)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_every_example_has_its_own_shift(matrix):
    by = np.linspace(-2, 3, len(matrix))
    together = representation.shift(matrix, by)
    for example, moved in enumerate(by):
        alone = representation.shift(matrix[example : example + 1], moved)
        np.testing.assert_allclose(together[example], alone[0], atol=2e-6)


@pytest.mark.parametrize("marginal", representation.MARGINALS)
def test_it_steers_to_any_structure(matrix, marginal):
    wanted = np.random.default_rng(2).dirichlet(np.ones(matrix.shape[1]), len(matrix))
    steered = representation.steer(matrix, np.log(wanted), marginal)
    found = representation.structure(steered, marginal)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    contents = [np.asarray(representation.content(each)) for each in (matrix, steered)]
    np.testing.assert_allclose(contents[1], contents[0], atol=1e-5)


def test_steering_to_the_own_structure_changes_nothing(matrix):
    own = jnp.log(representation.structure(matrix))
    np.testing.assert_allclose(representation.steer(matrix, own), matrix, atol=2e-6)
    logits = representation.structure_logits(matrix) + 7
    np.testing.assert_allclose(representation.steer(matrix, logits), matrix, atol=2e-6)


def test_steering_is_the_smallest_change(matrix):
    """Other changes with the same effect add what is orthogonal to it."""
    wanted = np.random.default_rng(3).normal(size=matrix.shape[:2])
    change = np.asarray(representation.steer(matrix, wanted)) - matrix
    other = np.random.default_rng(4).normal(size=matrix.shape)
    other -= other.mean(axis=2, keepdims=True)  # no effect on the logits
    other -= other.mean(axis=1, keepdims=True)  # nor on the content
    assert abs(float((change * other).sum())) < 1e-4 * np.linalg.norm(other)


def test_a_sum_is_as_many_times_the_mean_as_there_are_channels(matrix):
    mean, total = (representation.structure_logits(matrix, m) for m in ("mean", "sum"))
    np.testing.assert_allclose(total, matrix.shape[2] * mean, rtol=1e-5, atol=1e-5)


def test_types_are_kept():
    matrix = jnp.ones((2, 4, 3), jnp.float32)
    assert representation.shift(matrix, 0.5).dtype == jnp.float32
    assert representation.steer(matrix, np.zeros((2, 4))).dtype == jnp.float32
    half = jax.jit(lambda x, by: representation.shift(x, by))(matrix, 0.5)
    np.testing.assert_allclose(half, matrix, atol=1e-6)
