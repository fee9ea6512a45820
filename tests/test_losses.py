import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax import losses, targets


def oracle_nt_xent(a, b, temperature):
    """NT-Xent in float64, written out candidate by candidate."""
    both = np.concatenate([a, b]).astype(np.float64)
    both /= np.sqrt(np.maximum((both**2).sum(1, keepdims=True), 1e-12))
    total, hits, n = 0.0, 0, len(a)
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        similar = np.exp(both[i] @ both.T / temperature)
        similar[i] = 0
        total += -np.log(similar[positive] / similar.sum())
        hits += np.argmax(similar) == positive
    return total / n, hits / (2 * n)


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_nt_xent_equals_the_sum_written_out(batch, temperature):
    a, b = np.random.default_rng(batch).normal(size=(2, batch, 6)).astype(np.float32)
    b = a + 0.5 * b
    scores = losses.nt_xent(a, b, temperature)
    loss, top1 = oracle_nt_xent(a, b, temperature)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.top1, top1, rtol=1e-6)


def test_nt_xent_in_closed_form():
    # Orthogonal pairs: one positive with cosine 1 and 2n-2 candidates with cosine 0.
    eye = jnp.eye(4)
    expected = 2 * np.log(1 + 6 * np.exp(-10))
    np.testing.assert_allclose(losses.nt_xent(eye, eye, 0.1).loss, expected, atol=2e-6)
    # Identical images everywhere: 2n-1 candidates, all alike.
    ones = jnp.ones((4, 3))
    scores = losses.nt_xent(ones, ones, 0.1)
    np.testing.assert_allclose(scores.loss, 2 * np.log(7), rtol=1e-6)
    assert scores.top1 == scores.top5 == 0  # a collapse must not look perfect


def test_nt_xent_does_not_see_padding():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    padded_a = np.concatenate([a, np.full((3, 6), 7, np.float32)])
    padded_b = np.concatenate([b, np.zeros((3, 6), np.float32)])
    mask = jnp.arange(8) < 5

    def loss(a, b, mask):
        return losses.nt_xent(a, b, 0.1, mask).loss

    np.testing.assert_allclose(
        losses.nt_xent(padded_a, padded_b, 0.1, mask),
        losses.nt_xent(a, b, 0.1),
        rtol=1e-6,
    )
    plain = jax.grad(loss, argnums=(0, 1))(a, b, None)
    masked = jax.grad(loss, argnums=(0, 1))(padded_a, padded_b, mask)
    for expected, actual in zip(plain, masked, strict=True):
        np.testing.assert_allclose(actual[:5], expected, atol=1e-6)
        np.testing.assert_array_equal(actual[5:], 0)


def test_nt_xent_of_a_single_real_example_is_zero():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    scores = losses.nt_xent(a, b, 0.1, jnp.array([True, False, False, False]))
    np.testing.assert_allclose(scores, (0.0, 1.0, 1.0), atol=1e-6)


def test_nt_xent_of_bfloat16_is_computed_in_float32():
    a, b = np.random.default_rng(0).normal(size=(2, 16, 32))
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    scores = losses.nt_xent(a, b, 0.1)
    wide = losses.nt_xent(a.astype(jnp.float32), b.astype(jnp.float32), 0.1)
    assert scores.loss.dtype == jnp.float32
    np.testing.assert_array_equal(scores.loss, wide.loss)


def test_jensen_shannon_bounds_and_symmetry():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), size=(2, 20)).astype(np.float32)
    forward = losses.jensen_shannon(jnp.log(p), q)
    backward = losses.jensen_shannon(jnp.log(q), p)
    np.testing.assert_allclose(forward, backward, atol=1e-6)
    np.testing.assert_allclose(losses.jensen_shannon(jnp.log(p), p), 0, atol=1e-6)
    m = (p + q) / 2
    oracle = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    np.testing.assert_allclose(forward, oracle, atol=1e-6)
    # Disjoint distributions are as far apart as two can be.
    apart = losses.jensen_shannon(jnp.array([[500.0, 0, 0]]), jnp.array([[0.0, 0, 1]]))
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_jensen_shannon_is_finite_for_any_logits(scale):
    logits = scale * jnp.array([[1.0, -1, 0, 0.5], [0, 0, 0, -1]])
    target = jnp.array([[0.0, 0, 1, 0], [0.25, 0.25, 0.25, 0.25]])
    values, gradient = jax.value_and_grad(
        lambda x: losses.jensen_shannon(x, target).sum()
    )(logits)
    assert np.isfinite(values)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (5, [1, 1, 1])]
)
def test_top_k(k, expected):
    logits = jnp.array([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
    hits = losses.top_k(logits, jnp.array([0, 2, 1]), k)
    np.testing.assert_array_equal(hits, expected)


def test_neither_ties_nor_nan_count_as_right():
    for value in (0.0, jnp.nan):
        hits = losses.top_k(jnp.full((2, 9), value), jnp.array([0, 8]), 5)
        np.testing.assert_array_equal(hits, 0)


def test_masked_mean():
    values = jnp.array([1.0, 2, jnp.nan])
    assert losses.masked_mean(values, jnp.array([True, True, False])) == 1.5
    assert losses.masked_mean(values[:2], None) == 1.5


@pytest.mark.parametrize("name", targets.TARGETS)
@pytest.mark.parametrize("num_bins", [2, 8, 16])
@pytest.mark.parametrize("width", [1e-4, 0.2, 3.0, 500.0])
def test_targets_are_distributions_peaked_at_their_value(name, num_bins, width):
    values = (jnp.arange(num_bins) + 0.5) / num_bins  # the middles of the bins
    rows = targets.TARGETS[name](values, num_bins, width)
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    assert (rows >= 0).all()
    flat = (name == "von_mises" and width < 0.1) or (name == "gaussian" and width > 1)
    if not flat:
        np.testing.assert_array_equal(rows.argmax(1), np.arange(num_bins))


def test_von_mises_is_circular_and_the_gaussian_is_not():
    ends = jnp.array([0.0, 1.0])
    circle = targets.von_mises(ends, 8, 3.0)
    np.testing.assert_allclose(circle[0], circle[1], atol=1e-6)
    line = targets.gaussian(ends, 8, 0.2)
    np.testing.assert_allclose(line[0], line[1][::-1], atol=1e-6)
    assert abs(line[0] - line[1]).max() > 0.4


def test_von_mises_turns_with_its_value():
    rows = targets.von_mises(jnp.array([0.2, 0.2 + 1 / 8]), 8, 3.0)
    np.testing.assert_allclose(rows[1], np.roll(rows[0], 1), atol=3e-3)
