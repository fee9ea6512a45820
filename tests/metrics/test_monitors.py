"""Monitors of features: against other statements of them, and where they are known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.special

from duet_jax.metrics import monitors
from duet_jax.metrics.monitors import (
    MONITORS,
    alignment,
    alpha_req,
    lidar,
    rank_me,
    uniformity,
)

RNG = np.random.default_rng(0)
# Images and dimensions: more of the one, more of the other.
SHAPES = [(60, 12), (9, 30)]


def features(images, dimensions, views=None):
    """Features of unlike directions, around a mean."""
    scales = np.arange(1, dimensions + 1) ** -0.7
    of_images = RNG.normal(size=(images, dimensions)) * scales + 0.2
    if views is None:
        return of_images
    noise = RNG.normal(size=(images, views, dimensions)) * 0.3
    return of_images[:, None, :] + noise


def orthogonal(dimensions):
    return scipy.linalg.qr(RNG.normal(size=(dimensions, dimensions)))[0]


def with_spectrum(deviations, images):
    """Centered features whose covariance has exactly these eigenvalues' roots."""
    raw = RNG.normal(size=(images, len(deviations)))
    left = scipy.linalg.qr(raw - raw.mean(axis=0), mode="economic")[0]
    return left * deviations @ orthogonal(len(deviations))


# --- against other statements ---------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_me_is_numpys(shape):
    rows = features(*shape)
    gram = rows @ rows.T if shape[0] < shape[1] else rows.T @ rows
    singular = np.sqrt(scipy.linalg.eigvalsh(gram).clip(0))
    p = singular / singular.sum() + 1e-7
    np.testing.assert_allclose(rank_me(rows), np.exp(-(p * np.log(p)).sum()), rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_alpha_req_is_numpys(shape):
    rows = features(*shape)
    found = np.sort(scipy.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    found = found[: min(shape[0] - 1, shape[1])]  # the others are exactly zero
    slope = np.polyfit(np.log(1 + np.arange(len(found))), np.log(found), 1)[0]
    np.testing.assert_allclose(alpha_req(rows), -slope, rtol=1e-7)


def test_alignment_and_uniformity_are_scipys(monkeypatch):
    monkeypatch.setattr(monitors, "_BLOCK", 16)  # of 60: the last one is smaller
    first, second = features(60, 12), features(60, 12)
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    expected = np.mean([np.sum((a - b) ** 2) for a, b in zip(one, other, strict=True)])
    np.testing.assert_allclose(alignment(first, second), expected, rtol=1e-12)
    apart = scipy.spatial.distance.pdist(one, "sqeuclidean")
    expected = np.log(np.mean(np.exp(-2 * apart)))
    np.testing.assert_allclose(uniformity(first), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_lidar_is_that_of_the_paper(shape):
    """The matrices as they are written down, and their roots by another way."""
    rows = features(*shape, views=3)
    means = rows.mean(axis=1)
    between = np.cov(means.T)
    within = np.mean([np.cov(each.T) for each in rows], axis=0) + 1e-4 * np.eye(
        shape[1]
    )
    inverse_root = np.real(scipy.linalg.inv(scipy.linalg.sqrtm(within)))
    values = scipy.linalg.eigvalsh(inverse_root @ between @ inverse_root).clip(0)
    p = values / values.sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    np.testing.assert_allclose(lidar(rows), expected, rtol=1e-7)


# --- known values ---------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [2, 16])
def test_even_spectra(dimensions):
    rows = with_spectrum(np.ones(dimensions), 40)
    # The smoothing adds 1e-7 (log d - 1) for each direction.
    assert rank_me(rows) == pytest.approx(dimensions, rel=1e-5)
    assert alpha_req(rows) == pytest.approx(0, abs=1e-9)


def test_one_direction():
    rows = RNG.normal(size=(40, 1)) * RNG.normal(size=(1, 16))
    assert rank_me(rows) == pytest.approx(1, rel=1e-4)
    # All of 40 images, and 16 dimensions.
    assert alpha_req(rows) == pytest.approx(-2 * math.log2(40 * 2**-23))
    many = rows[:, None, :] * RNG.normal(1, 0.1, (40, 4, 1))
    assert lidar(many) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_power_laws(exponent):
    deviations = np.arange(1, 65) ** (-exponent / 2)
    assert alpha_req(with_spectrum(deviations, 200)) == pytest.approx(
        exponent, rel=1e-6
    )


def test_what_is_below_rounding_is_not_fitted():
    """Float32 leaves it in directions that hold nothing, and it would decide."""
    deviations = np.zeros(64)
    deviations[:8] = np.arange(1, 9) ** -0.5
    rows = with_spectrum(deviations, 200) + 1.0
    assert alpha_req(rows.astype(np.float32)) == pytest.approx(1, abs=1e-3)


def test_uniform_directions():
    """Of a circle: E exp(-2 |z - z'|²) = e^-4 I_0(4). In many dimensions: e^-4."""
    angles = 2 * np.pi * np.arange(2000) / 2000
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    expected = np.log(scipy.special.ive(0, 4))  # scaled by e^-4 already
    # Without its own neighbour a point is as near to the others as the mean but 1 / n.
    assert uniformity(circle) == pytest.approx(expected, abs=2e-3)
    wide = RNG.normal(size=(200, 4000))
    assert uniformity(wide) == pytest.approx(-4, abs=0.02)
    assert alignment(wide[:100], wide[100:]) == pytest.approx(2, abs=0.02)
    assert alignment(wide, -3 * wide) == pytest.approx(4)


def test_lidar_counts_directions_in_which_images_differ():
    """Five of twenty; the views of an image differ in all."""
    of_images = np.zeros((4000, 20))
    of_images[:, :5] = 30 * RNG.normal(size=(4000, 5))
    rows = of_images[:, None, :] + RNG.normal(size=(4000, 4, 20))
    # Each of the fifteen others has 1/4 beside 900.
    assert lidar(rows) == pytest.approx(5, rel=0.02)
    # Without a difference between images, each direction has the same 1/4.
    assert lidar(RNG.normal(size=(4000, 4, 20))) == pytest.approx(20, rel=0.02)


# --- collapse -------------------------------------------------------------------------


def constant(value):
    return np.full((10, 6), value, np.float32)


COLLAPSED = {
    "zeros": constant(0.0),
    "equal": constant(1.7),
    "large": constant(1e30),
    "one direction": np.float32(np.outer(np.arange(1, 11), np.arange(1, 7))),
    "rounding": constant(1.0) + np.float32(1e-7) * np.float32(RNG.normal(size=(10, 6))),
    "two images": constant(1.0)[:2],
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapsed_features_have_finite_monitors(name):
    plain = COLLAPSED[name]
    found = monitors.monitors(plain, np.repeat(plain[:, None], 3, axis=1))
    assert set(found) == set(MONITORS)
    assert all(
        type(value) is float and math.isfinite(value) for value in found.values()
    )
    assert found["rank_me"] == pytest.approx(1, abs=1e-3)
    assert found["alignment"] == pytest.approx(0, abs=1e-12)
    assert found["uniformity"] == pytest.approx(0, abs=1e-9)
    assert found["alpha_req"] > 20
    assert 1 <= found["lidar"] <= 6.01


def test_a_pair_is_needed():
    with pytest.raises(ValueError, match="uniformity is of pairs, and there are 1"):
        uniformity(np.ones((1, 3)))
    for shape in ((1, 3, 2), (3, 1, 2)):
        with pytest.raises(ValueError, match="LiDAR compares images and views: "):
            lidar(np.ones(shape))


# --- what makes no difference ---------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_rotation_and_order_make_no_difference(shape):
    plain, views = features(*shape), features(*shape, views=3)
    before = monitors.monitors(plain, views)
    turn, order = orthogonal(shape[1]), RNG.permutation(shape[0])
    turned = monitors.monitors(plain[order] @ turn, views[order] @ turn)
    assert turned == pytest.approx(before, rel=1e-9)
    # By what leaves the ridge of LiDAR as small beside the variance within images.
    scaled = monitors.monitors(1e3 * plain, 1e3 * views)
    assert scaled == pytest.approx(before, rel=1e-2)
    del before["lidar"], scaled["lidar"]
    assert scaled == pytest.approx(before, rel=1e-9)


def test_images_that_are_there_twice():
    """The spectra are those of one copy; pairs of copies are no further apart."""
    plain = features(60, 12)
    twice = np.concatenate([plain, plain])
    assert rank_me(twice) == pytest.approx(rank_me(plain), rel=1e-9)
    assert alpha_req(twice) == pytest.approx(alpha_req(plain), rel=1e-9)
    pairs, copies = 60 * 59 * 4, 60 * 2
    expected = (pairs * math.exp(uniformity(plain)) + copies) / (pairs + copies)
    assert uniformity(twice) == pytest.approx(math.log(expected), rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_narrow_types(dtype):
    """They are computed in float64 of what the features hold."""
    plain, views = (
        jnp.asarray(x, dtype) for x in (features(60, 12), features(60, 12, 3))
    )
    found = monitors.monitors(plain, views)
    wide = monitors.monitors(
        *(np.asarray(x).astype(np.float64) for x in (plain, views))
    )
    assert found == wide


def test_float32_features_have_the_monitors_of_float64():
    plain, views = features(60, 12), features(60, 12, 3)
    narrow = monitors.monitors(np.float32(plain), np.float32(views))
    # Singular values move by 6e-8 of the largest, of which the smallest is a sixth.
    assert narrow == pytest.approx(monitors.monitors(plain, views), rel=1e-5)
