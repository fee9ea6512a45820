"""Measures of actions, on representations that are known to move with them, or not."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation
from sklearn import metrics as sklearn_metrics

from duet_jax.metrics import actions

IMAGES, VIEWS = 40, 12


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def turned(d, seed=0):
    """A rotation of d dimensions."""
    found = np.linalg.qr(normal(d, d, seed=seed))[0]
    found[0] *= np.sign(np.linalg.det(found))
    return found


def relative(columns):
    return float(actions.relative_error(columns.mean(axis=0)))


# Retrieval.


def test_ranks_of_a_perfect_prediction():
    views = normal(IMAGES, VIEWS, 6)
    found = actions.ranks(2.5 * views, views)
    np.testing.assert_array_equal(found.reciprocal(), 1)
    np.testing.assert_array_equal(found.hits(1), 1)


def test_ranks_of_what_is_invariant_are_those_of_chance():
    views = np.repeat(normal(IMAGES, 1, 6), VIEWS, axis=1)
    found = actions.ranks(views, views)
    mrr, hits = actions.chance(VIEWS)
    np.testing.assert_allclose(found.reciprocal(), mrr)
    for most in (1, 5, 10, 20):
        np.testing.assert_allclose(found.hits(most), hits(most))


def test_ranks_of_random_predictions_are_those_of_chance():
    views, predicted = normal(500, VIEWS, 6), normal(500, VIEWS, 6, seed=1)
    found = actions.ranks(predicted, views)
    mrr, hits = actions.chance(VIEWS)
    assert mrr == pytest.approx(sum(1 / (1 + i) for i in range(VIEWS)) / VIEWS)
    # 6,000 ranks: a standard deviation of .0036, and of .006 for a share.
    assert found.reciprocal().mean() == pytest.approx(mrr, abs=0.011)
    assert found.hits(5).mean() == pytest.approx(hits(5), abs=0.02)


def test_ranks_agree_with_scikit_learn():
    views = normal(IMAGES, VIEWS, 6)
    predicted = views + normal(IMAGES, VIEWS, 6, seed=1)
    cosines = np.array(
        [
            sklearn_metrics.pairwise.cosine_similarity(p, v)
            for p, v in zip(predicted, views, strict=True)
        ]
    ).reshape(-1, VIEWS)
    right = np.tile(np.arange(VIEWS), IMAGES)
    found = actions.ranks(predicted, views)
    mrr = sklearn_metrics.label_ranking_average_precision_score(
        np.eye(VIEWS)[right], cosines
    )
    assert found.reciprocal().mean() == pytest.approx(mrr)
    for most in (1, 5, 10):
        hits = sklearn_metrics.top_k_accuracy_score(right, cosines, k=most)
        assert found.hits(most).mean() == pytest.approx(hits)
    assert 0.2 < mrr < 0.9


def test_what_is_not_finite_is_found_last():
    views = normal(2, VIEWS, 6)
    predicted = views.copy()
    predicted[1, 3, 0] = np.nan
    found = actions.ranks(predicted, views)
    assert found.reciprocal()[1, 3] == pytest.approx(1 / VIEWS)
    assert found.hits(VIEWS - 1)[1, 3] == 0
    assert found.reciprocal().sum() == pytest.approx(2 * VIEWS - 1 + 1 / VIEWS)


def test_ties_share_their_ranks():
    found = actions.Ranks(np.array([0, 1, 2]), np.array([1, 2, 3]))
    expected = [1, (1 / 2 + 1 / 3) / 2, (1 / 3 + 1 / 4 + 1 / 5) / 3]
    np.testing.assert_allclose(found.reciprocal(), expected)
    np.testing.assert_allclose(found.hits(1), [1, 0, 0])
    np.testing.assert_allclose(found.hits(4), [1, 1, 2 / 3])


def test_nearest():
    others, queries = normal(3000, 5), normal(1500, 5, seed=1)
    cosines = sklearn_metrics.pairwise.cosine_similarity(queries, others)
    np.testing.assert_array_equal(
        actions.nearest(queries, others), cosines.argmax(axis=1)
    )


def test_distance_of_parameters():
    found = actions.parameter_distance(
        np.array([0, 0, 0.1, 0.9]), np.array([0.5, 0.25, 0.9, 0.1]), circular=True
    )
    np.testing.assert_allclose(found, [1, 0.5, *2 * [np.sin(np.deg2rad(36)) ** 2]])
    wanted, at_random = (np.random.default_rng(i).uniform(size=20_000) for i in (0, 1))
    chance = actions.parameter_distance(wanted, at_random, circular=True).mean()
    assert chance == pytest.approx(0.5, abs=0.01)
    line = actions.parameter_distance(np.array([0.2]), np.array([0.9]), circular=False)
    np.testing.assert_allclose(line, 0.49)


# Geometry.


@pytest.mark.parametrize("d", [2, 3, 16])
def test_the_rotation_of_rotated_representations(d):
    base, matrix = normal(50, d) + 3, turned(d, seed=1)
    moved = base @ matrix.T
    found = actions.rotation(base, moved)
    np.testing.assert_allclose(found, matrix, atol=1e-9)
    assert relative(actions.residuals(base, moved, found)) < 1e-9
    assert relative(actions.residuals(base, moved)) > 0.1


def test_the_rotation_agrees_with_scipy():
    base = normal(60, 5)
    moved = base @ turned(5, seed=1).T + 0.5 * normal(60, 5, seed=2)
    theirs = orthogonal_procrustes(base, moved)[0].T
    assert np.linalg.det(theirs) > 0
    np.testing.assert_allclose(actions.rotation(base, moved), theirs, atol=1e-9)
    # In space, where theirs corrects the sign as well: a mirror image.
    base = normal(60, 3)
    moved = base * np.array([[1, 1, -1]]) + 0.1 * normal(60, 3, seed=2)
    found = actions.rotation(base, moved)
    theirs, length = Rotation.align_vectors(moved, base)
    np.testing.assert_allclose(found, theirs.as_matrix(), atol=1e-9)
    assert np.linalg.det(found) == pytest.approx(1)
    columns = actions.residuals(base, moved, found)
    assert np.sqrt(columns[:, 0].sum()) == pytest.approx(length)
    expected = np.linalg.norm(base @ found.T - moved) / np.linalg.norm(moved)
    assert relative(columns) == pytest.approx(expected)


def test_random_representations_are_no_rotation():
    base, moved = normal(2000, 4), normal(2000, 4, seed=1)
    found = relative(actions.residuals(base, moved, actions.rotation(base, moved)))
    assert found == pytest.approx(np.sqrt(2), abs=0.1)


def test_gamma_is_the_formula():
    base, moved = normal(30, 4), normal(30, 4, seed=1)
    f, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (base, moved))
    other = actions.derangement(30)
    expected = [
        (np.sum((g[j] - g[i]) ** 2) - np.sum((f[j] - f[i]) ** 2)) ** 2
        / (np.sum((g[j] - f[j]) ** 2) + np.sum((g[i] - f[i]) ** 2)) ** 2
        for i, j in enumerate(other)
    ]
    np.testing.assert_allclose(actions.gamma(base, moved), expected, rtol=1e-4)
    assert np.mean(expected) > 0.1


def test_gamma_of_rotations_and_of_what_is_invariant():
    base = normal(30, 4)
    assert actions.gamma(base, base @ turned(4, seed=1).T).max() < 1e-10
    assert np.isnan(actions.gamma(base, 3 * base)).all()
    assert np.isnan(actions.gamma(base[:1], base[1:2])).all()  # no pair


def test_maps_compose_if_they_are_a_group():
    base = normal(80, 4)
    one, other = turned(4, seed=1), turned(4, seed=2)
    first, second, both = (
        actions.linear_map(base, base @ matrix.T)
        for matrix in (one, other, one @ other)
    )
    np.testing.assert_allclose(first, one, atol=1e-9)
    exact = actions.composition_residuals(base, both, first, second)
    assert relative(exact) < 1e-9
    wrong = actions.composition_residuals(base, both, second, first)
    assert relative(wrong) > 0.3
    frobenius = actions.composition_residuals(np.eye(4), both, second, first)
    expected = np.linalg.norm(both - second @ first) / np.linalg.norm(both)
    assert relative(frobenius) == pytest.approx(expected)


def test_a_linear_map_leaves_out_what_does_not_vary():
    base = np.concatenate([normal(50, 3), np.zeros((50, 2))], axis=1)
    moved = base[:, ::-1]
    found = actions.linear_map(base, moved)
    np.testing.assert_allclose(base @ found.T, moved, atol=1e-9)
    theirs = np.linalg.lstsq(base, moved, rcond=None)[0].T
    np.testing.assert_allclose(found, theirs, atol=1e-9)


def test_relative_errors_without_a_size():
    assert np.isnan(actions.relative_error(np.zeros(2)))
