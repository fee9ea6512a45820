"""Losses, targets and the optimiser against the reference's arrays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from duet_jax import losses, optim
from duet_jax.losses import targets
from duet_jax.models import representation
from golden_parts.arrays import load

# Ten times the differences between float32 and float64 that were measured with the
# reference itself; see golden/README.md.
LOSS_RTOL = 1e-5
GRADIENT_RTOL = 1e-5  # of the largest entry
TARGET_ATOL = 2e-6


def assert_close_to_max(actual, expected, rtol):
    """Compares with a tolerance relative to the largest expected entry."""
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-30)
    )


def float64_name(arrays, name):
    """The float64 twin of an array where there is one."""
    return f"{name}_f64" if f"{name}_f64" in arrays else None


def nt_xent_cases():
    names = sorted(n for n in load("nt_xent") if re.fullmatch(r"B\d+_T[\d.]+_loss", n))
    return [re.fullmatch(r"B(\d+)_T([\d.]+)_loss", n).groups() for n in names]


@pytest.mark.parametrize(("batch", "temperature"), nt_xent_cases())
def test_nt_xent(batch, temperature):
    arrays = load("nt_xent")
    prefix = f"B{batch}_T{temperature}"
    pair = [arrays[f"B{batch}_embedding{i}"] for i in (1, 2)]

    def loss(a, b):
        return losses.nt_xent(a, b, float(temperature)).loss

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*pair)
    np.testing.assert_allclose(value, arrays[f"{prefix}_loss_mean"], rtol=LOSS_RTOL)
    np.testing.assert_allclose(value, arrays[f"{prefix}_loss"].mean(), rtol=LOSS_RTOL)
    for i, gradient in enumerate(gradients, 1):
        assert_close_to_max(gradient, arrays[f"{prefix}_grad{i}"], GRADIENT_RTOL)

    with jax.enable_x64(True):
        pair64 = [x.astype(np.float64) for x in pair]
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*pair64)
        np.testing.assert_allclose(value, arrays[f"{prefix}_loss_mean_f64"], rtol=1e-9)
        for i, gradient in enumerate(gradients, 1):
            assert_close_to_max(gradient, arrays[f"{prefix}_grad{i}_f64"], 1e-9)


@pytest.mark.parametrize(("batch", "temperature"), nt_xent_cases())
def test_retrieval_accuracies(batch, temperature):
    arrays = load("nt_xent")
    pair = [arrays[f"B{batch}_embedding{i}"] for i in (1, 2)]
    scores = losses.nt_xent(*pair, float(temperature))
    prefix = f"B{batch}_T{temperature}_ntxent"
    for k, value in ((1, scores.top1), (5, scores.top5)):
        if f"{prefix}_total_top{k}_mean" not in arrays:
            continue  # the reference has no top 5 for five examples or fewer
        # Ours is the mean of the two directions for every batch size; the reference's
        # total is their sum for five examples or fewer.
        directions = [arrays[f"{prefix}_{d}_top{k}_mean"] for d in ("ABAA", "BABB")]
        np.testing.assert_allclose(100 * value, np.mean(directions), rtol=1e-5)
        if int(batch) > 5:
            expected = arrays[f"{prefix}_total_top{k}_mean"]
            np.testing.assert_allclose(100 * value, expected, rtol=1e-5)


def test_nt_xent_of_vanishing_embeddings():
    arrays = load("nt_xent")
    pair = [arrays[f"Z_embedding{i}"] for i in (1, 2)]

    def loss(a, b):
        return losses.nt_xent(a, b, 0.1).loss

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*pair)
    np.testing.assert_allclose(value, arrays["Z_loss_mean"], rtol=LOSS_RTOL)
    for i, gradient in enumerate(gradients, 1):
        assert_close_to_max(gradient, arrays[f"Z_grad{i}"], GRADIENT_RTOL)


TARGET_SETTINGS = {"ga": (targets.gaussian, 0.2), "vm": (targets.von_mises, 3.0)}


def group_cases():
    bins = sorted(
        int(n.removeprefix("logits_G"))
        for n in load("group_loss")
        if re.fullmatch(r"logits_G\d+", n)
    )
    return [(kind, g) for kind in TARGET_SETTINGS for g in bins]


@pytest.mark.parametrize(("kind", "num_bins"), group_cases())
def test_targets(kind, num_bins):
    arrays = load("group_loss")
    function, width = TARGET_SETTINGS[kind]
    values = arrays["params"][:, 0]
    actual = function(jnp.asarray(values), num_bins, width)
    name = f"targets_{kind}_G{num_bins}"
    np.testing.assert_allclose(actual, arrays[name][:, 0], rtol=0, atol=TARGET_ATOL)
    raw = arrays[f"{name}_unnormalised"][:, 0]
    raw = raw / raw.sum(1, keepdims=True)
    np.testing.assert_allclose(actual, raw, rtol=0, atol=TARGET_ATOL)
    if float64_name(arrays, name):
        with jax.enable_x64(True):
            actual = function(jnp.asarray(values, jnp.float64), num_bins, width)
            # The reference's float64 run starts from the float32 parameters, too.
            expected = arrays[f"{name}_f64"][:, 0]
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "num_bins"), group_cases())
def test_jensen_shannon(kind, num_bins):
    arrays = load("group_loss")
    logits = arrays[f"logits_G{num_bins}"]
    target = arrays[f"targets_{kind}_G{num_bins}"].repeat(logits.shape[1], axis=1)

    def loss(logits, target):
        rows = logits.reshape(-1, num_bins), target.reshape(-1, num_bins)
        return losses.jensen_shannon(*rows).mean()

    value, gradient = jax.value_and_grad(loss)(logits, target)
    name = f"{kind}_G{num_bins}"
    np.testing.assert_allclose(value, arrays[f"js_{name}"], rtol=LOSS_RTOL)
    assert_close_to_max(gradient, arrays[f"js_grad_{name}"], GRADIENT_RTOL)
    with jax.enable_x64(True):
        wide = logits.astype(np.float64)
        exact = arrays[f"targets_{kind}_G{num_bins}_f64"]
        exact = exact.repeat(logits.shape[1], axis=1)
        value, gradient = jax.value_and_grad(loss)(wide, exact)
        np.testing.assert_allclose(value, arrays[f"js_{name}_f64"], rtol=1e-9)
        assert_close_to_max(gradient, arrays[f"js_grad_{name}_f64"], 1e-9)


def test_jensen_shannon_where_the_reference_overflows():
    arrays = load("group_loss")
    leads, reference = arrays["js_overflow_logit"], arrays["js_overflow_value_f32"]
    target = targets.gaussian(jnp.array([0.5]), 8, 0.2)

    def loss(lead):
        logits = jnp.zeros((1, 8)).at[0, 0].set(lead)
        return losses.jensen_shannon(logits, target)[0]

    for lead, expected in zip(leads, reference, strict=True):
        value, gradient = jax.value_and_grad(loss)(jnp.float32(lead))
        assert np.isfinite(value)
        assert np.isfinite(gradient)
        if np.isfinite(expected):
            np.testing.assert_allclose(value, expected, rtol=LOSS_RTOL)
    # One certain bin: half of KL(p||m) and KL(q||m) in closed form.
    q = np.asarray(target[0], np.float64)
    m = (q + np.eye(8)[0]) / 2
    closed = (-np.log(m[0]) + np.sum(q * np.log(q / m))) / 2
    np.testing.assert_allclose(loss(jnp.float32(leads.max())), closed, rtol=1e-5)


def duet_total(arrays, kind, weight, train):
    """DUET's loss on stored embeddings, joint features and parameters."""
    function, width = TARGET_SETTINGS[kind]
    values = [jnp.asarray(arrays[f"duet_params{i}"])[:, 0] for i in (1, 2)]

    def loss(embedding1, embedding2, joint1, joint2):
        contrast = losses.nt_xent(embedding1, embedding2, 0.1).loss
        divergence = [
            losses.jensen_shannon(
                representation.structure_logits(joint[:, 0]),
                function(value.astype(joint.dtype), joint.shape[2], width),
            ).mean()
            for joint, value in zip((joint1, joint2), values, strict=True)
        ]
        structure = sum(divergence) / 2 if train else divergence[1]
        return contrast + weight * structure, (contrast, structure)

    return loss


# Precision: the suffix of its arrays, its type, the tolerance.
LOSS_PRECISIONS = {
    "float32": ("", np.float32, LOSS_RTOL),
    "float64": ("_f64", np.float64, 1e-9),
}


@pytest.mark.parametrize("precision", LOSS_PRECISIONS)
@pytest.mark.parametrize("phase", ["train", "test"])
@pytest.mark.parametrize("weight", [10, 1000])
@pytest.mark.parametrize("kind", TARGET_SETTINGS)
def test_duet_loss(kind, weight, phase, precision):
    arrays = load("group_loss")
    suffix, dtype, rtol = LOSS_PRECISIONS[precision]
    loss = duet_total(arrays, kind, weight, phase == "train")
    names = ("embedding1", "embedding2", "joint1", "joint2")
    inputs = [arrays[f"duet_{name}"].astype(dtype) for name in names]
    with jax.enable_x64(precision == "float64"):
        (total, (contrast, structure)), gradients = jax.value_and_grad(
            loss, argnums=(0, 1, 2, 3), has_aux=True
        )(*inputs)
        prefix = f"duet_{kind}_lambda{weight}_{phase}"
        for value, name in (
            (total, "loss"),
            (contrast, "nce_loss"),
            (weight * structure, "group_loss"),
            (structure, "group_0_loss"),
        ):
            expected = arrays[f"{prefix}_{name}_mean{suffix}"]
            np.testing.assert_allclose(value, expected, rtol=rtol)
        for name, gradient in zip(names, gradients, strict=True):
            expected = arrays[f"{prefix}_grad_{name}{suffix}"]
            assert_close_to_max(gradient, expected, rtol)


def test_simclr_loss_on_the_same_embeddings():
    arrays = load("group_loss")
    scores = losses.nt_xent(arrays["duet_embedding1"], arrays["duet_embedding2"], 0.1)
    np.testing.assert_allclose(scores.loss, arrays["baseline_loss_mean"], rtol=1e-5)
    for k, value in ((1, scores.top1), (5, scores.top5)):
        expected = arrays[f"baseline_ntxent_total_top{k}_mean"]
        np.testing.assert_allclose(100 * value, expected, rtol=1e-5)


def essl_cases():
    names = load("essl_loss")
    return sorted(n.removesuffix("_labels") for n in names if n.endswith("_labels"))


@pytest.mark.parametrize("precision", LOSS_PRECISIONS)
@pytest.mark.parametrize("case", [c for c in essl_cases() if c != "probe"])
def test_essl_loss(case, precision):
    arrays = load("essl_loss")
    suffix, dtype, rtol = LOSS_PRECISIONS[precision]
    labels = arrays[f"{case}_labels"]
    classes = np.issubdtype(labels.dtype, np.integer)

    def loss(embedding1, embedding2, logits):
        contrast = losses.nt_xent(embedding1, embedding2, 0.1).loss
        if classes:
            rows = losses.cross_entropy(logits, labels)
        else:
            rows = losses.squared_error(logits[:, 0], labels[:, 0])
        return contrast + 0.4 * rows.mean(), (contrast, rows.mean())

    names = ("embedding1", "embedding2", f"{case}_logits")
    inputs = [arrays[name].astype(dtype) for name in names]
    with jax.enable_x64(precision == "float64"):
        (total, (contrast, prediction)), gradients = jax.value_and_grad(
            loss, argnums=(0, 1, 2), has_aux=True
        )(*inputs)
        for value, name in (
            (total, "loss"),
            (contrast, "nce_loss"),
            (prediction, "essl_loss"),
        ):
            expected = arrays[f"{case}_{name}_mean{suffix}"]
            np.testing.assert_allclose(value, expected, rtol=rtol)
        short = ("embedding1", "embedding2", "logits")
        for name, gradient in zip(short, gradients, strict=True):
            expected = arrays[f"{case}_grad_{name}{suffix}"]
            assert_close_to_max(gradient, expected, rtol)
        if classes:
            for k in (1, 5):
                hits = losses.top_k(jnp.asarray(inputs[2]), labels, k)
                expected = arrays[f"{case}_essl_top_{k}_mean{suffix}"]
                np.testing.assert_allclose(100 * hits.mean(), expected, rtol=1e-5)


def test_online_probe_loss():
    arrays = load("essl_loss")
    logits, labels = jnp.asarray(arrays["probe_logits"]), arrays["probe_labels"]
    loss = losses.cross_entropy(logits, labels).mean()
    np.testing.assert_allclose(loss, arrays["probe_loss_mean"], rtol=LOSS_RTOL)
    for k in (1, 5):
        accuracy = 100 * losses.top_k(logits, labels, k).mean()
        expected = arrays[f"probe_top_{k}_mean"]
        np.testing.assert_allclose(accuracy, expected, rtol=1e-5)


def least_squares(arrays):
    inputs, outputs = arrays["X"], arrays["Y"]

    def loss(params):
        prediction = inputs @ params["W"] + params["b"][None, :]
        return jnp.mean(jnp.square(prediction - outputs))

    return loss


def optim_rates():
    names = load("optim")
    return sorted(n[2:-5] for n in names if re.fullmatch(r"lr[\d.]+_loss", n))


@pytest.mark.parametrize("rate", optim_rates())
@pytest.mark.parametrize("wide", [False, True])
def test_adamw(rate, wide):
    arrays = load("optim")
    suffix = "_f64" if wide else ""
    rtol = 1e-9 if wide else 1e-5
    b1, b2, eps, weight_decay, _ = arrays["hyper_beta1_beta2_eps_wd_lr"]
    with jax.enable_x64(wide):
        data = {
            k: v.astype(np.float64 if wide else np.float32)
            for k, v in arrays.items()
            if k in ("X", "Y", "W0", "b0")
        }
        # Python numbers, so that they do not widen a float32 computation.
        optimizer = optim.adamw(
            lambda step: float(rate),
            b1=float(b1),
            b2=float(b2),
            eps=float(eps),
            weight_decay=float(weight_decay),
        )
        params = {"W": jnp.asarray(data["W0"]), "b": jnp.asarray(data["b0"])}
        state = optimizer.init(params)
        loss = least_squares(data)
        for i in range(len(arrays[f"lr{rate}_loss"])):
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            expected = arrays[f"lr{rate}_loss{suffix}"][i]
            np.testing.assert_allclose(value, expected, rtol=rtol)
            for name in ("W", "b"):
                expected = arrays[f"lr{rate}_grad_{name}{suffix}"][i]
                assert_close_to_max(gradients[name], expected, rtol)
                expected = arrays[f"lr{rate}_{name}{suffix}"][i]
                assert_close_to_max(params[name], expected, rtol)
        for name, moment in (("exp_avg", state[0].mu), ("exp_avg_sq", state[0].nu)):
            expected = arrays[f"lr{rate}_{name}_W{suffix}"]
            assert_close_to_max(moment["W"], expected, rtol)


def test_adamw_under_the_schedule():
    arrays = load("optim")
    rates = arrays["scheduled_lr"]
    with jax.enable_x64(True):
        data = {k: arrays[k].astype(np.float64) for k in ("X", "Y", "W0", "b0")}
        rate = optim.learning_rate(
            4e-4, epochs=len(rates), warmup_epochs=5, steps_per_epoch=1
        )
        optimizer = optim.adamw(rate)
        params = {"W": jnp.asarray(data["W0"]), "b": jnp.asarray(data["b0"])}
        state = optimizer.init(params)
        loss = least_squares(data)
        for i, expected_rate in enumerate(rates):
            np.testing.assert_allclose(rate(jnp.asarray(i)), expected_rate, rtol=1e-9)
            gradients = jax.grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            assert_close_to_max(params["W"], arrays["scheduled_W_f64"][i], 1e-8)


def schedule_cases():
    pattern = r"lr_epochs(\d+)_warmup(\d+)"
    found = [re.fullmatch(pattern, name) for name in load("optim")]
    return [tuple(map(int, m.groups())) for m in found if m]


@pytest.mark.parametrize(("epochs", "warmup"), schedule_cases())
def test_learning_rate(epochs, warmup):
    arrays = load("optim")
    name = f"lr_epochs{epochs}_warmup{warmup}"
    rate = optim.learning_rate(
        4e-4, epochs=epochs, warmup_epochs=warmup, steps_per_epoch=3
    )
    steps = jnp.arange(3 * epochs)
    actual = np.asarray(jax.vmap(rate)(steps)).reshape(epochs, 3)
    # Constant within an epoch; float32 loses what the end of the cosine cancels.
    expected = np.repeat(arrays[name][:, None], 3, axis=1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-10)
    after = rate(jnp.asarray(3 * epochs))
    np.testing.assert_allclose(after, arrays[f"{name}_after_last"], atol=1e-10)
