import functools
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import PATIENCE

from duet_jax import losses
from duet_jax.errors import UsageError
from duet_jax.losses import targets

ROOT = pathlib.Path(__file__).parents[2]


def oracle_nt_xent(a, b, temperature):
    """NT-Xent in float64, written out candidate by candidate."""
    both = np.concatenate([a, b]).astype(np.float64)
    both /= np.sqrt(np.maximum((both**2).sum(1, keepdims=True), 1e-12))
    total, hits, n = 0.0, np.zeros(2), len(a)
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        similar = np.exp(both[i] @ both.T / temperature)
        similar[i] = 0
        total += -np.log(similar[positive] / similar.sum())
        rank = (similar > similar[positive]).sum()
        hits += rank < 1, rank < 5
    return total / n, *(hits / (2 * n))


def pair_and_mask(batch, masked):
    rng = np.random.default_rng(batch)
    a, b = rng.normal(size=(2, batch, 6)).astype(np.float32)
    # Some pairs are retrieved and some are not; one example counts at least.
    mask = np.arange(batch) % 3 != 1 if masked else np.ones(batch, bool)
    return a, a + b, mask


@functools.partial(jax.jit, static_argnames="block")
def value_and_gradients(a, b, temperature, mask, block):
    def loss(*arguments):
        contrast = losses.nt_xent(*arguments, mask, block=block)
        return contrast.loss, contrast

    gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    return gradient(a, b, temperature)[::-1]


def assert_close(actual, expected, tolerance):
    """Compares with a tolerance relative to the largest expected entry."""
    scale = max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_nt_xent_equals_the_sum_written_out(batch, temperature):
    a, b = np.random.default_rng(batch).normal(size=(2, batch, 6)).astype(np.float32)
    b = a + 0.5 * b
    scores = losses.nt_xent(a, b, temperature)
    loss, top1, top5 = oracle_nt_xent(a, b, temperature)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((scores.top1, scores.top5), (top1, top5), rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_of_the_directions_is_that_over_all_anchors(masked):
    a, b, mask = pair_and_mask(9, masked)
    found = losses.nt_xent(a, b, 0.5, mask, reduction="mean")
    total, *hits = oracle_nt_xent(a[mask], b[mask], 0.5)  # over n, of 2 n anchors
    np.testing.assert_allclose(found.loss, total / 2, rtol=1e-5)
    np.testing.assert_allclose([found.top1, found.top5], hits, rtol=1e-6)
    np.testing.assert_allclose(
        losses.nt_xent(a, b, 0.5, mask, reduction="sum").loss, total, rtol=1e-5
    )
    with pytest.raises(UsageError, match=r"reduction='none'.*sum, mean"):
        losses.nt_xent(a, b, 0.5, reduction="none")


def test_retrieval_among_pairs_that_are_hardly_alike():
    """Positives of every rank: the fifth counts for top-5, the sixth does not."""
    a, b = np.random.default_rng(0).normal(size=(2, 32, 6)).astype(np.float32)
    scores = losses.nt_xent(a, b + a / 2, 0.1)
    _, top1, top5 = oracle_nt_xent(a, b + a / 2, 0.1)
    np.testing.assert_allclose((scores.top1, scores.top5), (top1, top5), rtol=1e-6)
    assert 0 < top1 < top5 < 1


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


@pytest.mark.parametrize("block", [None, 3])
def test_nt_xent_does_not_see_padding(block):
    a, b = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    padded_a = np.concatenate([a, np.full((3, 6), 7, np.float32)])
    padded_b = np.concatenate([b, np.zeros((3, 6), np.float32)])
    mask = np.arange(8) < 5
    plain, expected = value_and_gradients(a, b, 0.1, None, None)
    padded, actual = value_and_gradients(padded_a, padded_b, 0.1, mask, block)
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    for one, other in zip(actual[:2], expected[:2], strict=True):
        assert_close(one[:5], other, 1e-6)
        np.testing.assert_array_equal(one[5:], 0)


def test_nt_xent_of_a_single_real_example_is_zero():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    scores = losses.nt_xent(a, b, 0.1, jnp.array([True, False, False, False]))
    np.testing.assert_allclose(scores, (0.0, 1.0, 1.0), atol=1e-6)


@pytest.mark.parametrize("block", [None, 3])
def test_nt_xent_of_nothing_but_padding_is_zero(block):
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    scores, gradients = value_and_gradients(a, b, 0.1, np.zeros(4, bool), block)
    assert scores.loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_nt_xent_of_bfloat16_is_computed_in_float32():
    a, b = np.random.default_rng(0).normal(size=(2, 16, 32))
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    scores = losses.nt_xent(a, b, 0.1)
    wide = losses.nt_xent(a.astype(jnp.float32), b.astype(jnp.float32), 0.1)
    assert scores.loss.dtype == jnp.float32
    np.testing.assert_array_equal(scores.loss, wide.loss)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [18, 17, 4])
def test_nt_xent_gradient_is_that_of_the_sum_written_out(block, masked):
    def loss(a, b, temperature):
        both = jnp.concatenate([a[mask], b[mask]])
        both /= jnp.linalg.norm(both, axis=1, keepdims=True)
        n = len(both) // 2
        logits = both @ both.T / temperature + jnp.diag(jnp.full(2 * n, -jnp.inf))
        return -jnp.diag(jnp.roll(jax.nn.log_softmax(logits), n, axis=1)).sum() / n

    a, b, mask = pair_and_mask(9, masked)
    with jax.enable_x64(True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        expected = jax.grad(loss, argnums=(0, 1, 2))(a, b, 0.1)
        contrast, actual = value_and_gradients(a, b, 0.1, mask, block)
        np.testing.assert_allclose(contrast.loss, loss(a, b, 0.1), rtol=1e-12)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == np.float64
            assert_close(one, other, 1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "block"), [(1, 1), (2, 2), (3, 5), (16, 8), (41, 8)])
def test_nt_xent_in_blocks_is_nt_xent(batch, block, masked):
    a, b, mask = pair_and_mask(batch, masked)
    # Logits of 500 are rounded by 3e-5, and probabilities by as much.
    for temperature, tolerance in ((1.0, 1e-6), (0.2, 1e-6), (0.002, 6e-5)):
        plain, expected = value_and_gradients(a, b, temperature, mask, 2 * batch)
        blocked, actual = value_and_gradients(a, b, temperature, mask, block)
        assert_close(blocked.loss, plain.loss, tolerance)
        assert (blocked.top1, blocked.top5) == (plain.top1, plain.top5)
        for one, other in zip(actual[:2], expected[:2], strict=True):
            assert one.dtype == np.float32
            assert_close(one, other, tolerance)
            np.testing.assert_array_equal(one[~mask], 0)


@pytest.mark.parametrize("block", [1, 3, 8])
def test_nt_xent_in_blocks_of_collapsed_features(block):
    ones = jnp.ones((4, 3))
    scores = losses.nt_xent(ones, ones, 0.1, block=block)
    np.testing.assert_allclose(scores.loss, 2 * np.log(7), rtol=1e-6)
    assert scores.top1 == scores.top5 == 0
    scores = losses.nt_xent(ones.at[0].set(jnp.nan), ones, 0.1, block=block)
    assert np.isnan(scores.loss)
    assert scores.top1 == scores.top5 == 0


def temporary_bytes(pairs, block):
    """What the compiler sets aside for the loss and its gradient, beside arguments."""

    def loss(a, b):
        return losses.nt_xent(a, b, 0.1, block=block).loss

    shape = jax.ShapeDtypeStruct((pairs, 16), jnp.float32)
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_nt_xent_of_large_batches_takes_memory_in_proportion():
    small, large = (temporary_bytes(pairs, None) for pairs in (4096, 16384))
    assert large < 1.1 * 4 * small
    assert small < 4 * (2 * 4096 * 1024) * 4  # four blocks of logits in float32
    # All logits at once, which is what this is instead of.
    small, large = (temporary_bytes(pairs, 2 * pairs) for pairs in (4096, 16384))
    assert large > 0.9 * 16 * small


ON_EIGHT_DEVICES = """
    import re
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from duet_jax import losses

    jax.config.update("jax_numpy_rank_promotion", "raise")
    EXCHANGES = (
        "all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective"
    )
    BATCH = 48
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, BATCH, 5)).astype(np.float32)
    arrays = (a, a + b, np.arange(BATCH) < 43)

    def loss(a, b, mask, block):
        contrast = losses.nt_xent(a, b, 0.1, mask, block=block)
        return contrast.loss, contrast

    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=3)
    for block in (2 * BATCH, 16):
        gradients, contrast = step(*arrays, block)
        with jax.set_mesh(mesh):
            compiled = step.lower(*jax.device_put(arrays, split), block).compile()
            actual, scores = compiled(*jax.device_put(arrays, split))
        np.testing.assert_allclose(scores, contrast, rtol=1e-6)
        for one, other in zip(actual, gradients, strict=True):
            assert one.sharding.is_equivalent_to(split, 2), one.sharding
            np.testing.assert_allclose(
                one, other, rtol=0, atol=1e-6 * np.abs(other).max()
            )
        for line in compiled.as_text().splitlines():
            found = re.search(r"= (.*) (" + "|".join(EXCHANGES) + ")[-a-z]*[(]", line)
            if found:
                print(block, found[2], found[1])
"""


def test_nt_xent_on_eight_devices_exchanges_embeddings_only():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(ON_EIGHT_DEVICES)],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    exchanged = done.stdout.splitlines()
    assert any(line.startswith("96 all-gather") for line in exchanged)
    assert any(line.startswith("16 all-gather") for line in exchanged)
    for line in exchanged:
        for shape in re.findall(r"[a-z]+[0-9]*\[([0-9,]*)\]", line):
            size = np.prod([int(n) for n in shape.split(",") if n])
            assert size <= 2 * 48 * 5, line


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
    rows = targets.TARGETS[name].distribution(values, num_bins, width)
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
