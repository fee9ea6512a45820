"""The loss of decoders: its value, what it counts, and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from duet_jax.config import build
from duet_jax.methods.networks import split
from duet_jax.methods.reconstruction import Reconstruction
from duet_jax.training import train_step
from duet_jax.types import DatasetFacts

BATCH, LABELS = 4, jnp.zeros(4, jnp.int32)
NAMES = ("full", "content", "structure")


def built(side=8, *, channels=1, method="duet", **changes):
    facts = DatasetFacts("tiny", side, channels, ("0", "1"), 0, 0)
    config = tiny.config(dataset__image_size=side, method=method, **changes)
    views = build.two_views(config, facts)
    return Reconstruction(views, build.make_method(config, facts), width=2)


@pytest.fixture(scope="module")
def scored():
    """Views, what is decoded from each, and all that the loss returns."""
    method = built()
    side = method.two_views.stack.image_size
    images = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 1), np.uint8)
    graphdef = train_step.graph_definition(method)

    @jax.jit
    def compute(key, images, mask):
        _, params, stats = split(method.init(nnx.Rngs(0)))
        views = method.make_views(key, images, train=True)

        def loss(params, name, mask, train):
            networks = nnx.merge(graphdef, params, stats)
            value, scores = method.loss(networks, views, LABELS, mask, train=train)
            return scores[name], (value, scores, split(networks)[2])

        score = functools.partial(jax.value_and_grad, has_aux=True)(loss)
        networks = nnx.merge(graphdef, params, stats)
        decoded = []
        for view in (views.first, views.second):
            given = method.source.representations(
                networks.encoder(view.images, train=False)
            )
            decoded.append({n: networks.decoders[n](given[n]) for n in NAMES})
        return {
            "views": [views.first.images, views.second.images],
            "decoded": decoded,
            "stats": stats,
            "training": {n: score(params, f"mse_{n}", None, True) for n in NAMES},
            "test": loss(params, "loss", mask, False)[1],
        }

    mask = jnp.asarray([True, True, True, False])
    return jax.device_get(compute(jax.random.key(1), images, mask))


def errors(scored, name, view):
    square = np.square(scored["decoded"][view][name] - scored["views"][view])
    return square.mean(axis=(1, 2, 3))


def test_squared_errors_of_both_views_are_summed_over_representations(scored):
    means = {
        name: np.mean([errors(scored, name, view) for view in (0, 1)]) for name in NAMES
    }
    _, (loss, scores, _) = scored["training"]["full"][0]
    assert set(scores) == {"loss", "feature_spread", *(f"mse_{n}" for n in NAMES)}
    for name in NAMES:
        np.testing.assert_allclose(scores[f"mse_{name}"], means[name], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(means.values()), rtol=1e-5)
    assert scores["loss"] == loss


def test_in_evaluation_the_second_view_counts_and_no_padding(scored):
    loss, scores, _ = scored["test"]
    means = {name: errors(scored, name, 1)[:3].mean() for name in NAMES}
    for name in NAMES:
        np.testing.assert_allclose(scores[f"mse_{name}"], means[name], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(means.values()), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_learns_from_its_own_representation(name, scored):
    (_, (_, _, stats)), gradient = scored["training"][name]
    assert set(gradient) == {"decoders"}  # the encoder has no parameters left
    for other, own in gradient["decoders"].items():
        changes = [np.any(leaf != 0) for leaf in jax.tree.leaves(own)]
        assert any(changes) if other == name else not any(changes)
    assert set(stats) == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, stats, scored["stats"])


@pytest.mark.parametrize(
    ("method", "names", "codes"),
    [
        ("duet", NAMES, ("sca", "rot")),
        ("simclr", ("full",), ("sca", "rot")),
        # What it predicts is not in its own stack, and is to be decoded as well.
        ("essl", ("full",), ("sca", "rot")),
    ],
)
@pytest.mark.parametrize(
    ("side", "channels", "dtype"),
    [(8, 3, "float32"), (20, 1, "bfloat16"), (28, 3, "bfloat16")],
)
def test_shapes_of_every_method(method, names, codes, side, channels, dtype):
    decoding = built(side, channels=channels, method=method, compute_dtype=dtype)
    assert decoding.two_views.stack.codes == codes

    def step(images):
        graphdef, params, stats = split(decoding.init(nnx.Rngs(0)))
        views = decoding.make_views(jax.random.key(0), images, train=True)
        networks = nnx.merge(graphdef, params, stats)
        return params, decoding.loss(networks, views, LABELS, None, train=True)

    images = jax.ShapeDtypeStruct((BATCH, side, side, channels), jnp.uint8)
    params, (loss, scores) = jax.eval_shape(step, images)
    assert {*params["decoders"]} == {*names}
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert {k for k in scores if k.startswith("mse")} == {f"mse_{n}" for n in names}


def test_an_update_in_bfloat16():
    method = built(20, compute_dtype="bfloat16", method="simclr")
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 20, 20, 1), np.uint8)

    @jax.jit
    def compute(images):
        graphdef, params, stats = split(method.init(nnx.Rngs(0)))
        views = method.make_views(jax.random.key(0), images, train=True)

        def loss(params):
            networks = nnx.merge(graphdef, params, stats)
            return method.loss(networks, views, LABELS, None, train=True)[0]

        return jax.value_and_grad(loss)(params)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(compute(images)))
