import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier

from duet_jax import losses
from duet_jax.errors import UsageError
from duet_jax.metrics import classification
from duet_jax.metrics.equivariance import mean_r_squared
from duet_jax.probes import inputs, knn, logistic, mlp, ridge, sgd

CLASSES = 3


def blobs(n, d=8, spread=0.2, seed=0, centres_seed=0):
    """Classes around orthogonal centres; separable for a small spread."""
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % CLASSES
    centres = np.linalg.qr(np.random.default_rng(centres_seed).normal(size=(d, d)))[0]
    features = centres[labels] + spread * rng.normal(size=(n, d)) / np.sqrt(d)
    return features.astype(np.float32), labels.astype(np.int32)


def digits():
    x, y = load_digits(return_X_y=True)
    # Weakly informative random features, so that accuracies are away from 1.
    weights = np.random.default_rng(0).normal(size=(64, 48))
    x = np.maximum(x @ weights / 40, 0).astype(np.float32)
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


# --- every classifier


def by_logistic(features, labels, queries):
    fit = logistic.fit_with_selection(
        features, labels, num_classes=CLASSES, strengths=(1e-1, 1e-3)
    )
    return fit.logits(queries)


def by_sgd(features, labels, queries):
    key = jax.random.key(0)
    state = sgd.start(key, features.shape[1], CLASSES, repeats=2)
    for index in range(5):
        state = sgd.epoch(
            state,
            jax.random.fold_in(key, index),
            features,
            labels,
            epochs=5,
            batch_size=64,
        )
    return sgd.logits(state, queries)[1]


def by_knn(features, labels, queries):
    return knn.classify(features, labels, queries, num_classes=CLASSES, k=9)


CLASSIFIERS = (by_logistic, by_sgd, by_knn)


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_separable_features_are_classified_without_error(classify):
    queries, truth = blobs(150, seed=1)
    assert (
        classification.classification(classify(*blobs(300), queries), truth).top1 == 1
    )


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_shuffled_labels_give_chance(classify):
    # So wide that classes overlap: the votes of neighboring queries are then nearly
    # independent, and the count of hits nearly binomial.
    features, labels = blobs(300, spread=8)
    queries, truth = blobs(600, spread=8, seed=1)
    shuffled = np.random.default_rng(1).permutation(labels)
    top1 = classification.classification(
        classify(features, shuffled, queries), truth
    ).top1
    deviation = np.sqrt(1 / 3 * 2 / 3 / 600)
    assert abs(top1 - 1 / 3) < 4 * deviation


# --- inputs


def test_held_out_tenth_is_every_tenth_of_each_class():
    labels = np.array([0] * 25 + [1] * 9 + [2] * 2 + [3])
    held_out = inputs.held_out_tenth(labels)
    assert np.flatnonzero(held_out).tolist() == [9, 19, 25 + 8, 25 + 9 + 1]
    order = np.random.default_rng(0).permutation(len(labels))
    counts = np.bincount(labels[order][inputs.held_out_tenth(labels[order])])
    assert counts.tolist() == [2, 1, 1]
    # A balanced set of tens loses a tenth exactly.
    assert inputs.held_out_tenth(np.arange(100) % 10).sum() == 10


def test_standardization_over_several_blocks():
    rng = np.random.default_rng(0)
    x = rng.normal(1000, 3, size=(inputs.BLOCK + 50, 2)).astype(np.float32)
    x[:, 1] *= 1e-12
    z = inputs.standardization(x).apply(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-5)


def test_constant_features_become_zero():
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    x[:, 0], x[:, 1], x[:, 2] = 0, 0.1, 1e20
    z = inputs.standardization(x).apply(x)
    assert np.all(z[:, :3] == 0)
    assert abs(z[:, 3].std() - 1) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(4, int)}, r"labels=\(4,\) do not fit features=\(5, 2\)"),
        ({"labels": np.full(5, 3)}, r"outside of the num_classes=3 .* use 0 to 2"),
        ({"labels": np.full(5, -1)}, r"labels go from -1 to -1"),
        ({"features": np.zeros((0, 2))}, r"features=\(0, 2\) is not a filled matrix"),
        ({"features": np.zeros(5)}, r"features=\(5,\) is not a filled matrix"),
        ({"features": np.full((5, 2), np.nan)}, r"NaN or infinite values in 2 of 2"),
        ({"l2": ()}, r"l2=\(\) must be positive"),
        ({"l2": (1.0, 0.0)}, r"l2=\(1.0, 0.0\) must be positive"),
    ],
)
def test_logistic_errors_are_one_line(change, message):
    arguments = {"features": np.eye(5, 2), "labels": np.arange(5) % 3, "l2": (1.0,)}
    with pytest.raises(UsageError, match=message) as error:
        logistic.fit(num_classes=3, **{**arguments, **change})
    assert "\n" not in str(error.value)


def test_selection_needs_a_class_with_two_examples():
    with pytest.raises(UsageError, match="no class with two examples"):
        logistic.fit_with_selection(np.eye(3), np.arange(3), num_classes=3)


# --- logistic


@functools.cache
def small_problem():
    x, y = blobs(203, d=6, spread=3.0)
    x = x * np.array([1, 10, 1e-3, 1, 5, 1], np.float32) + 2
    return np.concatenate([x, x[:, :1] + 0.1 * x[:, 1:2]], axis=1), y


def float64_objective(x, y, kernel, bias, l2):
    """The objective as the docstring states it, and its largest absolute gradient."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    logits = x @ kernel + bias[None]
    logits -= logits.max(1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.eye(len(bias))[y]
    loss = -np.mean(np.log(p[np.arange(len(y)), y])) + l2 / 2 * np.sum(kernel**2)
    slope = (p - truth) / len(y)
    return loss, max(
        np.abs(x.T @ slope + l2 * kernel).max(), np.abs(slope.sum(0)).max()
    )


@pytest.mark.parametrize("whole", [True, False])
def test_logistic_equals_scikit_learn(whole, monkeypatch):
    # One block or several with padding; all strengths together or one at a time.
    if not whole:
        monkeypatch.setattr(logistic, "_BLOCK_ROWS", (32, 32))
        monkeypatch.setattr(logistic, "_STATE_BYTES", 1)
    x, y = small_problem()
    strengths = (1.0, 1e-2, 1e-4)
    solutions = logistic.fit(
        x, y, num_classes=CLASSES, l2=strengths, tolerance=2e-7, max_evaluations=300
    )
    for l2, solution in zip(strengths, solutions, strict=True):
        z = solution.standardization.apply(x).astype(np.float64)
        theirs = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10000)
        theirs.fit(z, y)
        kernel, bias = solution.linear
        scale = np.abs(theirs.coef_).max()
        np.testing.assert_allclose(kernel.T, theirs.coef_, atol=1e-3 * scale)
        # The bias is determined up to a constant; scikit-learn centres it too.
        bias = bias - bias.mean()
        centred = theirs.intercept_ - theirs.intercept_.mean()
        np.testing.assert_allclose(bias, centred, atol=1e-3 * scale)
        loss, _ = float64_objective(z, y, kernel, bias, l2)
        best, _ = float64_objective(z, y, theirs.coef_.T, theirs.intercept_, l2)
        np.testing.assert_allclose(loss, best, rtol=1e-6)
        np.testing.assert_allclose(solution.loss, best, rtol=1e-6)


def test_logistic_reports_its_gradient():
    x, y = small_problem()
    for solution in logistic.fit(x, y, num_classes=CLASSES, l2=(1e-1, 1e-3)):
        z = solution.standardization.apply(x)
        _, norm = float64_objective(z, y, *solution.linear, solution.l2)
        assert solution.converged
        assert norm <= logistic.TOLERANCE * 1.05
        np.testing.assert_allclose(solution.gradient_norm, norm, atol=1e-6)


def test_logistic_says_when_it_has_not_converged():
    x, y = small_problem()
    (solution,) = logistic.fit(x, y, num_classes=CLASSES, l2=(1e-4,), max_evaluations=2)
    assert not solution.converged
    assert solution.iterations <= 2
    assert solution.gradient_norm > logistic.TOLERANCE
    fit = logistic.fit_with_selection(
        x, y, num_classes=CLASSES, strengths=(1e-4,), max_evaluations=2
    )
    assert not fit.converged


def test_gradient_of_the_cross_entropy_is_that_of_autodiff():
    rng = np.random.default_rng(0)
    linear = logistic.Linear(
        jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
    )
    x = rng.normal(size=(12, 4)).astype(np.float32)
    y = rng.integers(0, 3, size=12)
    weights = np.r_[np.full(10, 0.1), 0, 0].astype(np.float32)
    blocks = logistic._Blocks(
        x.reshape(3, 4, 4), y.reshape(3, 4), weights.reshape(3, 4)
    )

    def plain(linear):
        logits = jnp.einsum("nd,sdc->snc", x[:10], linear.kernel)
        logits += linear.bias[:, None, :]
        return jnp.mean(jax.vmap(losses.cross_entropy, (0, None))(logits, y[:10]), 1)

    loss, gradient = logistic.cross_entropy(linear, blocks)
    np.testing.assert_allclose(loss, plain(linear), rtol=1e-5)
    expected = jax.grad(lambda linear: jnp.sum(plain(linear)))(linear)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        gradient,
        expected,
    )


def test_logistic_with_fewer_examples_than_features():
    x, y = blobs(20, d=60, spread=1.0)
    x[:, 3] = 7  # constant
    strengths = (1e-1, 1e-4)
    solutions = logistic.fit(x, y, num_classes=CLASSES, l2=strengths, tolerance=1e-7)
    for solution in solutions:
        assert solution.converged
        assert np.all(np.isfinite(solution.linear.kernel))
        logits = solution.logits(x)
        otherwise = x.copy()
        otherwise[:, 3] = -100
        np.testing.assert_array_equal(solution.logits(otherwise), logits)
        assert classification.classification(logits, y).top1 == 1
        z = solution.standardization.apply(x).astype(np.float64)
        theirs = LogisticRegression(
            C=1 / (solution.l2 * len(y)), tol=1e-9, max_iter=20000
        ).fit(z, y)
        best, _ = float64_objective(
            z, y, theirs.coef_.T, theirs.intercept_, solution.l2
        )
        np.testing.assert_allclose(solution.loss, best, rtol=1e-4)


def test_logistic_separates_perfectly_without_trouble():
    x, y = blobs(60, spread=0.001)
    (solution,) = logistic.fit(x * 1e4, y, num_classes=CLASSES, l2=(1e-8,))
    assert solution.converged
    assert solution.loss < 1e-3
    assert np.all(np.isfinite(solution.logits(x)))


def test_a_start_is_the_same_decision_under_another_standardization():
    x, y = small_problem()
    fit = functools.partial(logistic.fit, num_classes=CLASSES, l2=(1e-3,))
    (half,) = fit(x[:100], y[:100])
    # Without an evaluation to go anywhere the start is what comes out.
    (same,) = fit(x, y, start=half, max_evaluations=0)
    assert same.iterations == 0
    assert not same.converged
    assert not np.allclose(same.linear.kernel, half.linear.kernel, rtol=1e-3)
    np.testing.assert_allclose(same.logits(x), half.logits(x), rtol=1e-3, atol=1e-3)
    (warm,) = fit(x, y, start=half)
    (cold,) = fit(x, y)
    np.testing.assert_allclose(warm.loss, cold.loss, rtol=1e-5)
    (done,) = fit(x, y, start=cold)
    assert done.iterations <= 1


def test_selection_on_digits_equals_that_with_scikit_learn():
    (x, y), (tx, ty) = digits()
    strengths = (1e-1, 1e-2)
    ours = logistic.fit_with_selection(x, y, num_classes=10, strengths=strengths)
    held_out = inputs.held_out_tenth(y)

    def theirs(l2, features, labels, queries, truth):
        mean, std = features.mean(0), features.std(0)
        std[std == 0] = 1
        model = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-6, max_iter=5000)
        model.fit((features - mean[None]) / std[None], labels)
        return model.score((queries - mean[None]) / std[None], truth)

    accuracies = {
        l2: theirs(l2, x[~held_out], y[~held_out], x[held_out], y[held_out])
        for l2 in strengths
    }
    assert ours.held_out == pytest.approx(accuracies, abs=0.5 / held_out.sum())
    best = max(strengths, key=lambda l2: (accuracies[l2], l2))
    assert ours.l2 == best
    test = classification.classification(ours.logits(tx), ty).top1
    assert 0.8 < test < 0.98
    assert abs(test - theirs(best, x, y, tx, ty)) <= 0.002
    assert ours.converged


def test_selection_prefers_the_stronger_of_equals_and_repeats_itself():
    x, y = blobs(60)
    first, second = (
        logistic.fit_with_selection(x, y, num_classes=CLASSES, strengths=strengths)
        for strengths in ((1e-3, 1e-1), (1e-1, 1e-3))
    )
    assert first.held_out == {1e-1: 1.0, 1e-3: 1.0}
    assert first.l2 == 1e-1
    jax.tree.map(
        np.testing.assert_array_equal,
        first.linear,
        second.linear,
    )


# --- sgd


def test_sgd_is_that_of_torch_written_out():
    x, y = blobs(53, spread=1.0)
    key, order_key = jax.random.split(jax.random.key(3))
    state = sgd.start(key, 8, CLASSES, repeats=2)
    kernels, biases = np.array(state.kernel, float), np.array(state.bias, float)
    velocities = [[0.0, 0.0], [0.0, 0.0]]
    step, batch, epochs = 0, 16, 2
    for epoch in range(epochs):
        epoch_key = jax.random.fold_in(order_key, epoch)
        state = sgd.epoch(
            state, epoch_key, x, y, epochs=epochs, batch_size=batch, learning_rate=3.0
        )
        orders = [jax.random.permutation(k, 53) for k in jax.random.split(epoch_key, 2)]
        for first in range(0, 48, batch):
            rate = 3.0 * (1 + np.cos(np.pi * step / 6)) / 2
            step += 1
            for r, order in enumerate(orders):
                chosen = np.asarray(order)[first : first + batch]
                logits = x[chosen] @ kernels[r] + biases[r][None]
                p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                error = (p - np.eye(CLASSES)[y[chosen]]) / batch
                velocities[r][0] = 0.9 * velocities[r][0] + x[chosen].T @ error
                velocities[r][1] = 0.9 * velocities[r][1] + error.sum(0)
                kernels[r] -= rate * velocities[r][0]
                biases[r] -= rate * velocities[r][1]
    assert state.step == 6
    np.testing.assert_allclose(state.kernel, kernels, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.bias, biases, rtol=1e-4, atol=1e-5)
    expected = np.einsum("nd,rdc->rnc", x, kernels) + biases[:, None]
    np.testing.assert_allclose(sgd.logits(state, x), expected, rtol=1e-4, atol=1e-4)


def test_sgd_starts_within_the_bounds_of_torch():
    state = sgd.start(jax.random.key(0), 400, 50)
    assert state.kernel.shape == (5, 400, 50)
    assert 0.0499 < np.abs(state.kernel).max() <= 0.05
    np.testing.assert_allclose(np.std(state.kernel), 0.05 / np.sqrt(3), rtol=0.01)
    assert np.abs(state.bias).max() <= 0.05
    assert len(np.unique(state.kernel[:, 0, 0])) == 5


def test_sgd_repeats_are_reproducible_and_differ():
    x, y = blobs(40, spread=2.0)

    def run():
        state = sgd.start(jax.random.key(0), 8, CLASSES, repeats=2)
        # Ten thousand examples a batch: clipped to the forty there are.
        return sgd.epoch(state, jax.random.key(1), x, y, batch_size=10**4)

    first, second = run(), run()
    assert first.step == 1
    np.testing.assert_array_equal(first.kernel, second.kernel)
    assert not np.allclose(first.kernel[0], first.kernel[1])


def test_sgd_features_must_fit_the_state():
    state = sgd.start(jax.random.key(0), 8, CLASSES)
    with pytest.raises(UsageError, match=r"features=\(4, 7\) do not fit .* 8 dim"):
        sgd.epoch(state, jax.random.key(0), np.zeros((4, 7)), np.zeros(4, int))


# --- ridge


def regression(n, d=7, k=2, noise=0.5):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)) * np.geomspace(1e-3, 100, d) + 30
    targets = x / np.geomspace(1e-3, 100, d) @ rng.normal(size=(d, k))
    return x.astype(np.float32), targets + noise * rng.normal(size=(n, k)) + 3


@pytest.mark.parametrize(("n", "d"), [(50, 7), (20, 40), (inputs.BLOCK + 7, 3)])
def test_ridge_equals_scikit_learn(n, d):
    x, targets = regression(n, d)
    (fit,) = ridge.fit(x, targets, l2=[1e-2])
    z = x.astype(np.float64)
    mean, std = z.mean(0), z.std(0)
    theirs = Ridge(alpha=1e-2 * n).fit((z - mean[None]) / std[None], targets)
    # Their features are standardised in float64, ours by a float32 mean and scale.
    np.testing.assert_allclose(fit.kernel.T, theirs.coef_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        fit.predict(x), theirs.predict((z - mean[None]) / std[None]), rtol=1e-5
    )


def test_ridge_is_a_minimum():
    x, targets = regression(50)
    (fit,) = ridge.fit(x, targets, l2=[0.1])
    z = fit.standardization.apply(x.astype(np.float64))
    residual = fit.predict(x) - targets
    np.testing.assert_allclose(z.T @ residual / 50 + 0.1 * fit.kernel, 0, atol=1e-11)
    np.testing.assert_allclose(residual.mean(0), 0, atol=1e-11)


def test_ridge_selects_on_the_held_out_tenth_and_refits():
    x, targets = regression(80, d=30, noise=3.0)
    strengths = (1e-4, 1.0, 1e4)
    fit = ridge.fit_with_selection(x, targets, strengths=strengths)
    held_out = np.arange(80) % 10 == 9
    candidates = ridge.fit(x[~held_out], targets[~held_out], l2=strengths)
    expected = {
        each.l2: mean_r_squared(targets[held_out], each.predict(x[held_out]))
        for each in candidates
    }
    assert fit.held_out == expected
    assert fit.l2 == max(expected, key=expected.get) == 1.0
    (whole,) = ridge.fit(x, targets, l2=[1.0])
    np.testing.assert_array_equal(fit.kernel, whole.kernel)


def test_ridge_predicts_what_is_linear_and_no_more():
    x, targets = regression(300, noise=0.0)
    fit = ridge.fit_with_selection(x[:200], targets[:200])
    assert mean_r_squared(targets[200:], fit.predict(x[200:])) > 0.999
    noise = np.random.default_rng(0).normal(size=(300, 2))
    fit = ridge.fit_with_selection(x[:200], noise[:200])
    assert mean_r_squared(noise[200:], fit.predict(x[200:])) < 0.05


def test_ridge_with_constant_features_and_targets():
    x, targets = regression(40)
    x[:, 2], targets[:, 1] = 0.1, 5.0
    fit = ridge.fit_with_selection(x, targets)
    assert np.all(np.isfinite(fit.kernel))
    predictions = fit.predict(x)
    np.testing.assert_allclose(predictions[:, 1], 5)
    x[:, 2] = -100
    np.testing.assert_array_equal(fit.predict(x), predictions)


def test_r_squared_in_closed_form():
    targets = np.array([[0.0, 1.0], [2.0, 1.0]])  # the second output does not vary
    assert mean_r_squared(targets, targets) == 1
    assert mean_r_squared(targets, np.ones((2, 2))) == 0
    assert mean_r_squared(targets, np.full((2, 2), 3.0)) == 1 - 10 / 2
    x = np.random.default_rng(0).normal(size=(30, 2))
    assert {*ridge.fit_with_selection(x, np.ones((30, 1))).held_out.values()} == {0.0}


def test_ridge_errors():
    x, targets = regression(20)
    with pytest.raises(UsageError, match=r"targets=\(20,\) do not fit"):
        ridge.fit(x, targets[:, 0], l2=[1.0])
    with pytest.raises(UsageError, match="hold NaN"):
        ridge.fit(x, targets * np.nan, l2=[1.0])
    with pytest.raises(UsageError, match=r"l2=\(-1.0,\) must be positive"):
        ridge.fit(x, targets, l2=[-1.0])
    with pytest.raises(UsageError, match="no class with two examples"):
        ridge.fit_with_selection(x[:1], targets[:1])


# --- knn


def oracle_votes(bank, labels, queries, num_classes, k, temperature):
    """Votes in float64, by a stable sort of all similarities."""
    bank, queries = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        for rows in (bank.astype(np.float64), queries.astype(np.float64))
    )
    similarity = queries @ bank.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    similarity = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(queries), num_classes))
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[nearest]), weights)
    return votes


@pytest.mark.parametrize("k", [1, 13, 1000])
@pytest.mark.parametrize(("query_block", "bank_block"), [(1024, 8192), (16, 32)])
def test_knn_equals_brute_force(k, query_block, bank_block):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(150, 5)), rng.normal(size=(50, 5))
    labels = rng.integers(0, 8, size=150)
    bank, queries = bank.astype(np.float32), queries.astype(np.float32)
    expected = oracle_votes(bank, labels, queries, 8, k, 0.1)
    arguments = {"num_classes": 8, "k": k}
    votes = knn.classify(
        bank,
        labels,
        queries,
        query_block=query_block,
        bank_block=bank_block,
        **arguments,
    )
    np.testing.assert_allclose(votes, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(votes.argmax(1), expected.argmax(1))
    five = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    expected_five = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(five, expected_five)


@pytest.mark.parametrize("bank_block", [4, 7, 8192])
def test_knn_takes_the_first_of_equally_similar_rows(bank_block):
    # Rows of ±1 in four dimensions have length 2: every similarity is exact, and
    # among 60 rows of 16 kinds nearly all are tied.
    rng = np.random.default_rng(0)
    bank = rng.choice([-1, 1], size=(60, 4)).astype(np.float32)
    queries = rng.choice([-1, 1], size=(20, 4)).astype(np.float32)
    labels = rng.integers(0, 4, size=60)
    # A temperature at which float32 adds the weights, 1 and 2^-60, without rounding.
    temperature = 0.5 / (60 * np.log(2))
    votes = knn.classify(
        bank,
        labels,
        queries,
        num_classes=4,
        k=3,
        temperature=temperature,
        bank_block=bank_block,
    )
    expected = oracle_votes(bank, labels, queries, 4, 3, temperature)
    np.testing.assert_allclose(votes, expected, rtol=1e-5)
    np.testing.assert_array_equal(votes.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_knn_of_equal_votes_equals_scikit_learn(k):
    """Also where two classes have as many votes: most queries, of eight classes."""
    rng = np.random.default_rng(1)
    bank, queries = rng.normal(size=(150, 5)), rng.normal(size=(50, 5))
    labels = rng.integers(0, 8, size=150)
    votes = knn.classify(
        bank.astype(np.float32),
        labels,
        queries.astype(np.float32),
        num_classes=8,
        k=k,
        weights="uniform",
        bank_block=32,
    )
    theirs = KNeighborsClassifier(min(k, 150), metric="cosine").fit(bank, labels)
    counts = theirs.predict_proba(queries) * min(k, 150)
    best = np.sort(counts, axis=1)[:, -2:]
    assert (best[:, 0] == best[:, 1]).any() or k != 10
    np.testing.assert_array_equal(np.floor(votes), np.round(counts))
    np.testing.assert_array_equal(votes.argmax(1), theirs.predict(queries))
    answers = rng.integers(0, 8, size=50)
    found = classification.classification(votes, answers)
    assert found.top1 == theirs.score(queries, answers)


def test_knn_without_direction_or_room_for_exp():
    bank = np.array([[0, 0], [3e-30, 0], [0, 2e30]], np.float32)
    queries = np.array([[5e30, 0], [0, 1e-30], [0, 0]], np.float32)
    votes = knn.classify(
        bank, np.arange(3), queries, num_classes=3, k=2, temperature=1e-4
    )
    # A query without direction is equally near to all: the first two are taken.
    np.testing.assert_array_equal(votes, [[0, 1, 0], [0, 0, 1], [1, 1, 0]])


def test_knn_compiles_one_comparison_for_all_blocks():
    bank, labels = blobs(50)
    before = knn._merge_jit._cache_size()
    # Three blocks of queries and four of the bank, the last of both incomplete.
    knn.classify(
        bank, labels, bank[:43], num_classes=3, k=5, query_block=17, bank_block=15
    )
    assert knn._merge_jit._cache_size() == before + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0 and temperature=0.1 must be positive; use 200 and 0.1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"weights": "distance"}, "weights='distance' .*similarity, uniform"),
        ({"queries": np.zeros((2, 3))}, r"queries=\(2, 3\) do not fit bank=\(4, 2\)"),
        ({"bank_labels": np.full(4, 9)}, "outside of the num_classes=3"),
    ],
)
def test_knn_errors(change, message):
    arguments = {
        "bank": np.zeros((4, 2)),
        "bank_labels": np.zeros(4, int),
        "queries": np.zeros((2, 2)),
    }
    with pytest.raises(UsageError, match=message):
        knn.classify(num_classes=3, **{**arguments, **change})


# --- scores


def test_scores_in_closed_form():
    values = np.array([[3, 1, 0], [1, 3, 0], [2, 1, 3], [5, 1, 0.0]])
    labels = np.array([0, 1, 0, 1])
    result = classification.classification(values, labels)
    assert result.top1 == 0.5
    assert result.top5 == 1  # three classes
    np.testing.assert_array_equal(result.per_class, [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(result.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert result.examples == 4


@pytest.mark.parametrize("num_classes", [2, 5, 6, 9])
def test_scores_agree_with_the_losses(num_classes):
    rng = np.random.default_rng(0)
    # Few values, so that ties abound.
    values = rng.integers(0, 4, size=(200, num_classes)).astype(np.float32)
    labels = rng.integers(0, num_classes, size=200)
    result = classification.classification(values, labels)
    for k, ours in ((1, result.top1), (5, result.top5)):
        theirs = np.mean(np.asarray(losses.top_k(values, labels, k)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert np.trace(result.confusion) == round(result.top1 * 200)
    np.testing.assert_array_equal(
        result.confusion.sum(1), np.bincount(labels, minlength=num_classes)
    )


def test_nan_is_wrong_and_a_tie_counts_against_the_label():
    values = np.array([[np.nan, 1], [2, np.nan], [np.nan, np.nan], [1, 1], [0, 1]])
    result = classification.classification(values, np.array([1, 0, 0, 0, 1]))
    assert result.top1 == 0.2
    assert result.top5 == 0.4  # two classes, but a NaN is never right
    np.testing.assert_array_equal(result.confusion, [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("values", "labels"),
    [(np.zeros((2, 3)), np.zeros(3, int)), (np.zeros((0, 3)), np.zeros(0, int))],
)
def test_scores_must_fit_the_labels(values, labels):
    with pytest.raises(UsageError, match="do not fit"):
        classification.classification(values, labels)


# The small network.


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mlp, "HIDDEN", (64, 64))


def test_a_network_reads_what_a_linear_map_cannot(quick):
    x = np.random.default_rng(0).normal(3.0, 2.0, (1500, 3)).astype(np.float32)
    y = np.stack([np.sin(x[:, 0]), 5 + x[:, 1] * x[:, 2] / 16], axis=1)
    found = mlp.fit(x[:1000], y[:1000])
    score = r2_score(y[1000:], found.predict(x[1000:]))
    linear = ridge.fit_with_selection(x[:1000], y[:1000]).predict(x[1000:])
    assert score > 0.2 + r2_score(y[1000:], linear)
    # Training ended when the held-out tenth did not improve, or at the limit.
    assert found.held_out[found.epoch - 1] == min(found.held_out)
    late = len(found.held_out) - found.epoch
    assert late == mlp.PATIENCE or len(found.held_out) == mlp.MOST_EPOCHS


def test_a_network_names_classes(quick):
    x = np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = mlp.fit(x[:600], labels[:600], num_classes=2)
    outputs = found.predict(x[600:])
    assert outputs.shape == (300, 2)
    assert np.mean(outputs.argmax(axis=1) == labels[600:]) > 0.9


def test_a_network_is_the_same_again(quick):
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    one, other = (mlp.fit(x, x[:, :1], seed=seed) for seed in (0, 0))
    np.testing.assert_array_equal(one.predict(x), other.predict(x))
    assert not np.array_equal(mlp.fit(x, x[:, :1], seed=1).predict(x), one.predict(x))


def test_the_outputs_of_a_network_are_those_of_its_layers(quick):
    x = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    found = mlp.fit(x, x[:, :2] + 7)
    h = found.standardization.apply(x)
    *hidden, (kernel, bias) = found.weights
    for each, own in hidden:
        h = np.maximum(h @ np.asarray(each) + np.asarray(own), 0)
    expected = h @ np.asarray(kernel) + np.asarray(bias) + found.mean
    assert found.mean == pytest.approx((x[:, :2] + 7).mean(axis=0), abs=1e-5)
    np.testing.assert_allclose(found.predict(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((9, 2)), "targets="),
        (np.zeros(10), "targets="),
        (np.full((10, 1), np.nan), "NaN"),
    ],
)
def test_targets_that_a_network_refuses(targets, message):
    with pytest.raises(UsageError, match=message):
        mlp.fit(np.ones((10, 3)), targets)
