"""Measures of equivariance, on representations whose equivariance is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score

from duet_jax import losses
from duet_jax.losses import targets
from duet_jax.metrics import equivariance

BINS = [3, 8, 16]


def close(ours, expected, atol):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def drawn(n, seed=0):
    """Structure values, both ends among them."""
    values = np.random.default_rng(seed).uniform(size=n).astype(np.float32)
    values[:2] = 0, 1
    return values


# Values read off marginals.


@pytest.mark.parametrize("num_bins", [1, 2, *BINS])
def test_bin_centers_are_those_of_the_targets(num_bins):
    centers = equivariance.bin_centers(num_bins)
    grid = np.arange(100 * num_bins) / (100 * num_bins - 1)
    close(centers, [chunk.mean() for chunk in np.split(grid, num_bins)], 1e-12)
    # In the limit of a flat target every bin has its points' share of the mean.
    flat = targets.gaussian(jnp.array([0.5]), num_bins, 1e4)
    close(flat @ centers.astype(np.float32)[:, None], 0.5, 1e-5)


def test_one_bin_is_read_as_its_centre():
    centers = equivariance.bin_centers(8)
    for circular in (False, True):
        close(equivariance.read_structure(np.eye(8), circular=circular), centers, 1e-12)


def test_reading_goes_over_the_end_of_the_circle_only_there():
    ends = np.zeros((1, 8))
    ends[0, [0, -1]] = 0.5
    close(equivariance.read_structure(ends, circular=False), 0.5, 1e-12)
    (value,) = equivariance.read_structure(ends, circular=True)
    assert 0 <= value < 1
    close(equivariance.errors(0.0, value, circular=True), 0, 1e-12)
    # Just below 0 is 0 and not 1.
    tilted = ends + np.array([[-1e-18, *[0] * 6, 1e-18]])
    assert 0 <= equivariance.read_structure(tilted, circular=True)[0] < 1


def test_uniform_marginals():
    uniform = np.full((2, 8), 1 / 8)
    close(equivariance.read_structure(uniform, circular=False), 0.5, 1e-12)
    assert np.isfinite(equivariance.read_structure(uniform, circular=True)).all()


def test_certainty():
    uniform, pointed = np.full((1, 8), 1 / 8), np.eye(8)
    # Eight bins are not quite evenly spaced: see `bin_centers`.
    close(equivariance.certainty(uniform), 0, 2e-3)
    close(equivariance.certainty(pointed), 1, 1e-12)
    # Two neighbours, 100/799 of a turn apart: the middle of the chord.
    both = (pointed[:1] + pointed[1:2]) / 2
    close(equivariance.certainty(both), np.cos(np.pi * 100 / 799), 1e-12)


def test_points_and_back():
    values = drawn(50)
    circle = equivariance.points(values, circular=True)
    close(np.linalg.norm(circle, axis=1), 1, 1e-12)
    back = equivariance.values_at(0.1 * circle, circular=True)
    close(equivariance.errors(values, back, circular=True), 0, 1e-7)
    line = equivariance.points(values, circular=False)
    close(equivariance.values_at(line, circular=False), values, 1e-12)
    outside = np.array([[-0.2], [1.3]])
    close(equivariance.values_at(outside, circular=False), [0, 1], 1e-12)


def test_reading_turns_with_the_bins():
    marginals = np.random.default_rng(0).dirichlet(np.full(8, 0.5), 20)
    read = equivariance.read_structure(marginals, circular=True)
    for shift in (1, 5, -2):
        turned = np.roll(marginals, shift, axis=1)
        turned = equivariance.read_structure(turned, circular=True)
        found = equivariance.errors(read + shift / 8, turned, circular=True)
        # The spacing of the bins, 100/799, differs from 1/8 by 1.6e-4 of a turn, at
        # the end of the circle by 1.1e-3; a vague marginal enlarges it.
        close(found, 0, 6e-3)


@pytest.mark.parametrize("num_bins", BINS)
@pytest.mark.parametrize("width", [1.0, 3.0, 10.0])
def test_perfect_marginals_on_the_circle(num_bins, width):
    check_perfect(targets.von_mises, num_bins, width, circular=True)


@pytest.mark.parametrize("num_bins", [2, *BINS])
@pytest.mark.parametrize("width", [0.2, 1.0])
def test_perfect_marginals_on_the_line(num_bins, width):
    check_perfect(targets.gaussian, num_bins, width, circular=False)
    # Without the correction, the ends are read from far inside.
    ends = np.asarray(targets.gaussian(jnp.array([0.0, 1.0]), num_bins, width))
    low, high = equivariance.read_structure(ends, circular=False)
    assert low > 0.12
    close(high, 1 - low, 1e-6)


def check_perfect(target, num_bins, width, *, circular):
    def prescribed(values):
        return target(values, num_bins, width)

    true = drawn(300)
    marginals = np.asarray(prescribed(true))
    read = equivariance.read_structure(marginals, circular=circular)
    read = equivariance.calibrated(
        read, prescribed, num_bins=num_bins, circular=circular
    )
    assert read.min() >= 0
    assert read.max() <= 1
    close(equivariance.errors(true, read, circular=circular), 0, 1e-4)


def test_calibration_by_a_known_curve():
    # Two bins at .2487 and .7513; the first has 1 - v², so the reading is quadratic.
    def prescribed(values):
        return np.stack([1 - values**2, values**2], axis=1)

    low, high = equivariance.bin_centers(2)
    true = np.linspace(0, 1, 50)
    read = low + (high - low) * true**2
    found = equivariance.calibrated(read, prescribed, num_bins=2, circular=False)
    # The curve is flat at 0, where six digits of the reading are three of the value.
    close(found, true, 1e-3)
    outside = equivariance.calibrated(
        np.array([0.1, 0.9]), prescribed, num_bins=2, circular=False
    )
    close(outside, [0, 1], 1e-12)


def test_calibration_where_a_bin_leaves_the_value_open():
    def prescribed(values):
        return targets.gaussian(values, 4, 1e-4)

    centers = equivariance.bin_centers(4)
    found = equivariance.calibrated(centers, prescribed, num_bins=4, circular=False)
    close(found, [0.125, 0.375, 0.625, 0.875], 2e-3)


@pytest.mark.parametrize("offset", [0.1, -0.1])
def test_calibration_goes_over_the_end_of_the_circle(offset):
    # Every reading is a tenth of a turn further on, or behind.
    def prescribed(values):
        return targets.von_mises(values + offset, 8, 3.0)

    true = np.linspace(0, 1, 41)[:-1]
    read = (true + offset) % 1
    found = equivariance.calibrated(read, prescribed, num_bins=8, circular=True)
    # Up to the bias of the readings themselves, .0005.
    close(equivariance.errors(true, found, circular=True), 0, 1e-3)
    assert found.min() >= 0
    assert found.max() < 1


def test_two_bins_of_a_circle_are_not_corrected():
    values = np.array([0.25, 0.0, 0.75])
    found = equivariance.calibrated(
        values, lambda v: targets.von_mises(v, 2, 3.0), num_bins=2, circular=True
    )
    np.testing.assert_array_equal(found, values)


# Scores of readings.


def test_errors_go_the_short_way_round():
    true, read = np.array([0.99, 0.01, 0.5, 0.2]), np.array([0.01, 0.99, 0.7, 0.7])
    circle = equivariance.errors(true, read, circular=True)
    close(circle, [0.02, -0.02, 0.2, -0.5], 1e-12)
    line = equivariance.errors(true, read, circular=False)
    close(line, [-0.98, 0.98, 0.2, 0.5], 1e-12)


def score(true, read, *, circular):
    points = (equivariance.points(x, circular=circular) for x in (true, read))
    return equivariance.r_squared(*points)


def test_r_squared_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    true, read = rng.uniform(size=(2, 50))
    read = 0.8 * true + 0.2 * read
    line = score(true, read, circular=False)
    assert line == pytest.approx(r2_score(true, read))
    angles = 2 * np.pi * np.stack([true, read])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    expected = r2_score(*points, multioutput="variance_weighted")
    assert score(true, read, circular=True) == pytest.approx(expected)
    # Far from 0 in float32, as features may be.
    far = (1000 + points).astype(np.float32)
    assert equivariance.r_squared(*far) == pytest.approx(expected, abs=1e-3)


def test_r_squared_of_perfect_and_of_ignorant_readings():
    true = (np.arange(80) % 8) / 8
    assert score(true, true, circular=True) == 1
    assert score(true, true + 1, circular=True) == pytest.approx(1)
    # Invariant features: the best regression predicts the mean everywhere.
    mean = np.full_like(true, true.mean())
    assert score(true, mean, circular=False) == pytest.approx(0)
    points = equivariance.points(true, circular=True)
    assert equivariance.r_squared(points, 0 * points) == pytest.approx(0)
    # A reading has to say something: half a turn off on average is -1.
    constant = np.full_like(true, 0.3)
    assert score(true, constant, circular=True) == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e6])
def test_r_squared_of_equal_values_is_undefined(value):
    true, read = np.full(30, value), drawn(30)
    assert np.isnan(score(true, read, circular=False))
    assert np.isnan(score(true % 1, read, circular=True))
    ends = np.array([0.0, 1.0])  # one point of the circle
    assert np.isnan(score(ends, ends, circular=True))


def test_nearest_level():
    levels, values = (0.125, 0.375, 0.625, 0.875), np.array([0, 0.26, 0.5, 0.99, 1.4])
    line = equivariance.nearest_level(values, levels, circular=False)
    np.testing.assert_array_equal(line, [0, 1, 1, 3, 3])
    circle = equivariance.nearest_level(
        np.array([0.99, 0.01]), (0.05, 0.5), circular=True
    )
    np.testing.assert_array_equal(circle, [0, 0])
    undefined = equivariance.nearest_level(
        np.array([np.nan, np.inf, 0.4]), levels, circular=False
    )
    np.testing.assert_array_equal(undefined, [-1, -1, 1])


def test_divergence_of_a_constant():
    # Two opposite targets: the mean shares half of each. JS(e1, (1/2, 1/2)) is
    # (log(4/3) + log(2/3)/2 + log(2)/2) / 2.
    expected = (np.log(4 / 3) + np.log(2 / 3) / 2 + np.log(2) / 2) / 2
    assert equivariance.constant_divergence(np.eye(2)) == pytest.approx(expected)
    assert equivariance.constant_divergence(np.eye(5)[[2, 2, 2]]) == 0
    prescribed = targets.von_mises(drawn(200), 8, 3.0)
    mean = jnp.broadcast_to(prescribed.mean(0), prescribed.shape)
    theirs = losses.jensen_shannon(jnp.log(mean), prescribed).mean()
    ours = equivariance.constant_divergence(prescribed)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


# Intervals.


def test_bootstrap_of_the_mean_has_the_width_of_the_normal_theory():
    sample = np.random.default_rng(0).exponential(size=2000)
    low, high = equivariance.bootstrap(sample, resamples=2000)
    error = sample.std() / np.sqrt(len(sample))
    # The standard deviation of an end of the interval is .06 of this error.
    close([low, high], sample.mean() + 1.96 * error * np.array([-1, 1]), 0.25 * error)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(1).normal(2.0, 3.0, (300, 80))
    intervals = [equivariance.bootstrap(s, resamples=200) for s in samples]
    covered = np.mean([low <= 2 <= high for low, high in intervals])
    # 300 trials at .95 have a standard deviation of .0126; percentile intervals of 80
    # examples are a little narrow.
    assert 0.90 < covered < 0.98


def test_bootstrap_is_deterministic_and_keeps_rows_together():
    sample = drawn(60)
    first = equivariance.bootstrap(sample)
    assert first == equivariance.bootstrap(sample)
    rows = np.stack([sample, -sample], axis=1)
    apart = equivariance.bootstrap(rows, lambda means: np.abs(means.sum(axis=1)))
    close(apart, (0, 0), 1e-15)


def test_bootstrap_is_that_of_resampled_examples():
    sample, generator = np.float64(drawn(40)), np.random.default_rng(0)
    means = [
        sample[generator.integers(40, size=40, dtype=np.int32)].mean()
        for _ in range(1000)
    ]
    close(equivariance.bootstrap(sample), np.quantile(means, [0.025, 0.975]), 1e-12)


def test_intervals_of_r_squared():
    generator = np.random.default_rng(0)
    true = generator.normal(3.0, [1.0, 5.0], (70, 2))
    predicted = true + generator.normal(size=(70, 2))
    draws = np.random.default_rng(0)
    rows = [draws.integers(70, size=70, dtype=np.int32) for _ in range(1000)]
    for found, score in zip(
        equivariance.r_squared_intervals(true, predicted),
        (equivariance.r_squared, equivariance.mean_r_squared),
        strict=True,
    ):
        each = [score(true[chosen], predicted[chosen]) for chosen in rows]
        close(found, np.quantile(each, [0.025, 0.975]), 1e-9)


def test_r_squared_pooled_and_averaged():
    generator = np.random.default_rng(0)
    true = generator.normal(3.0, [1.0, 5.0], (70, 2))
    predicted = true + generator.normal(size=(70, 2))
    averaged = equivariance.mean_r_squared(true, predicted)
    assert averaged == pytest.approx(r2_score(true, predicted))
    pooled = r2_score(true, predicted, multioutput="variance_weighted")
    assert equivariance.r_squared(true, predicted) == pytest.approx(pooled)
    assert averaged < pooled - 0.1
    constant = np.concatenate([true, np.ones((70, 1))], axis=1)
    also = np.concatenate([predicted, np.zeros((70, 1))], axis=1)
    assert equivariance.mean_r_squared(constant, also) == pytest.approx(averaged)
    assert np.isnan(equivariance.mean_r_squared(np.ones((5, 2)), np.ones((5, 2))))


def test_bootstrap_of_what_is_undefined():
    intervals, ones = equivariance.r_squared_intervals, np.ones((5, 1))
    assert np.isnan(intervals(ones, drawn(5)[:, None])).all()
    # Half of the resamples of two examples hold one of them twice.
    two = np.array([[0.0], [1.0]])
    close(intervals(two, two), ((1, 1), (1, 1)), 1e-12)
    assert np.isnan(equivariance.bootstrap(np.array([1.0, np.nan]))).all()


# Shifts.


def contents(n, num_bins=8, channels=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, num_bins, channels)).astype(np.float32)


@pytest.mark.parametrize("shift", [0, 1, 3, 8, -2])
def test_rotating_bins_are_predicted_perfectly(shift):
    original = contents(20)
    transformed = np.empty_like(original)
    for b in range(8):
        transformed[:, (b + shift) % 8] = original[:, b]
    found = equivariance.shift_errors(original, transformed, shift)
    np.testing.assert_array_equal(found["relative_error"]["shifted"], 0)
    close(found["cosine"]["shifted"], 1, 1e-6)
    whole = shift % 8 == 0
    assert (found["relative_error"]["unshifted"].max() == 0) == whole
    # Length matters to the error, not to the cosine.
    longer = equivariance.shift_errors(3 * original, transformed, shift)
    close(longer["relative_error"]["shifted"], 2, 1e-6)
    close(longer["cosine"]["shifted"], 1, 1e-6)
    # A float64 copy gives the same: sums do not depend on the width of what comes in.
    wide = equivariance.shift_errors(original * 1.0, transformed.astype(float), shift)
    close(
        wide["relative_error"]["unshifted"], found["relative_error"]["unshifted"], 1e-6
    )


def test_direction_of_the_shift_is_that_of_the_targets():
    values = np.float32([0.1, 0.3, 0.9])
    original = targets.von_mises(values, 8, 3.0)[:, :, None]
    transformed = targets.von_mises((values + 3 / 8) % 1, 8, 3.0)[:, :, None]
    found = equivariance.shift_errors(original, transformed, 3)["relative_error"]
    assert found["shifted"].mean() < 5e-3
    assert found["unshifted"].mean() > 0.5
    back = equivariance.shift_errors(original, transformed, -3)["relative_error"]
    assert back["shifted"].mean() > 0.5


def test_invariant_representations_in_closed_form():
    # Image i is in one bin and one channel only, with length i + 1.
    original = np.zeros((2, 4, 2))
    original[0, 1, 0], original[1, 2, 1] = 1, 2
    found = equivariance.shift_errors(original, original, 1)
    np.testing.assert_array_equal(found["relative_error"]["unshifted"], 0)
    close(found["cosine"]["unshifted"], 1, 1e-12)
    close(found["relative_error"]["shifted"], np.sqrt(2), 1e-12)
    close(found["cosine"]["shifted"], 0, 1e-12)
    # The other of two images is orthogonal, and twice or half as long.
    close(found["relative_error"]["random"], np.sqrt([1 + 4, 1 + 1 / 4]), 1e-12)
    close(found["cosine"]["random"], 0, 1e-12)
    # In the order of the stored results.
    assert list(found) == ["relative_error", "cosine"]
    for predictions in found.values():
        assert list(predictions) == ["shifted", "unshifted", "random"]


def random_errors(features):
    found = equivariance.shift_errors(features, features, 0)
    return found["relative_error"]["random"]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 50])
def test_random_pairs_are_other_images(n):
    # One channel each, so that only an image itself is not orthogonal.
    apart = np.eye(n)[:, None, :]
    close(random_errors(apart), np.sqrt(2), 1e-12)
    np.testing.assert_array_equal(random_errors(np.ones((n, 4, 2))), 0)
    # Every image serves once: the lengths of the others are all lengths.
    lengths = 1.5 ** np.arange(n)
    found = random_errors(lengths[:, None, None])
    signs = np.array([[-1], [1]])
    others = lengths * (1 + signs * found)  # longer or shorter
    matches = np.isclose(others[:, :, None], lengths).any(axis=0)
    assert matches.any(axis=0).all()


def test_representations_without_length():
    original = contents(3)
    transformed = original.copy()
    transformed[1] = 0
    for found in equivariance.shift_errors(original, transformed, 0).values():
        undefined = np.isnan(found["shifted"])
        np.testing.assert_array_equal(undefined, [False, True, False])


def test_bfloat16_is_compared_as_float32():
    narrow = jnp.asarray(contents(4), jnp.bfloat16)
    wide = np.asarray(narrow, np.float32)
    ours = equivariance.shift_errors(narrow, np.roll(narrow, 1, 1) * 2, 2)
    expected = equivariance.shift_errors(wide, np.roll(wide, 1, 1) * 2, 2)
    np.testing.assert_array_equal(
        ours["relative_error"]["shifted"], expected["relative_error"]["shifted"]
    )


@pytest.mark.parametrize("shapes", [((1, 4, 2), (1, 4, 2)), ((3, 4, 1), (3, 4, 2))])
def test_shapes_that_cannot_be_compared(shapes):
    with pytest.raises(ValueError, match="must be equal, with two images or more"):
        equivariance.shift_errors(*map(np.ones, shapes), 1)
