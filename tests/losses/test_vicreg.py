"""The terms of VICReg, against NumPy and in closed form."""

import jax
import numpy as np
import pytest

from duet_jax.losses import covariance, variance_hinge

TERMS = {"variance": variance_hinge, "covariance": covariance}


def by_hand(term, embeddings):
    matrix = np.cov(np.asarray(embeddings, np.float64).T)  # unbiased
    if term == "variance":
        return np.maximum(0, 1 - np.sqrt(np.diag(matrix) + 1e-4)).mean()
    return np.square(matrix - np.diag(np.diag(matrix))).sum() / len(matrix)


@pytest.mark.parametrize("term", TERMS)
def test_the_terms_are_those_of_the_examples_that_count(term):
    embeddings = np.asarray(jax.random.normal(jax.random.key(0), (9, 4))) * [
        2,
        0.5,
        1,
        1,
    ]
    embeddings = embeddings.astype(np.float32)
    mask = np.arange(9) % 4 != 1
    found = TERMS[term](embeddings), TERMS[term](embeddings, mask)
    expected = by_hand(term, embeddings), by_hand(term, embeddings[mask])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_collapsed_embeddings_have_no_variance():
    embeddings = np.ones((5, 3), np.float32)
    np.testing.assert_allclose(variance_hinge(embeddings), 0.99, rtol=1e-6)
    assert covariance(embeddings) == 0
    slope = jax.grad(variance_hinge)(embeddings)
    assert np.isfinite(slope).all()


def test_dimensions_that_are_one_and_the_same():
    column = np.array([[-1.0], [1.0]], np.float32)  # of variance 2
    assert variance_hinge(np.repeat(column, 3, axis=1)) == 0
    np.testing.assert_allclose(covariance(np.repeat(column, 3, axis=1)), 2 * 4)


@pytest.mark.parametrize("term", TERMS)
def test_a_single_example_is_finite(term):
    mask = np.array([True, False, False])
    embeddings = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.isfinite(TERMS[term](embeddings, mask))
