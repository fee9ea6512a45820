"""The measures of equivariance on encoders whose answers are known."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from duet_jax import figures
from duet_jax.augmentations import Options, make_stack, normalize
from duet_jax.errors import UsageError
from duet_jax.evaluation import (
    actions,
    equivariance,
    local,
    matrix,
    options,
    readouts,
)
from duet_jax.evaluation.codes import Difference, make_code
from duet_jax.methods import CARE, DUET, EncoderSettings, SimCLR, TwoViews
from duet_jax.methods.groups import Group
from duet_jax.methods.networks import split
from duet_jax.models import representation
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.types import Split

BINS, CHANNELS, SIDE = 5, 4, 8
# Of features: enough for the linear maps, and few enough to be quick.
TRAIN, TEST = 150, 60


def two_views(codes=("sca", "rot"), channels=1):
    stack = make_stack(
        codes, input_side=SIDE, image_size=SIDE, channels=channels, options=Options()
    )
    settings = EncoderSettings(
        "Cifar10_ResNet", in_channels=1, blocks=(1, 1, 1), widths=(8,) * 4
    )
    return TwoViews(stack, settings, 8, 8, 0, 0.1)


def duet(codes=("sca", "rot")):
    group = Group("rot", BINS, "von_mises", 3.0)
    return DUET(two_views(codes), (group,), 1.0)


def matrices(images):
    """A matrix for every image: bins of one pattern, and of the image's own."""
    own = np.float32(images).reshape(len(images), -1)[:, : BINS * CHANNELS] / 128 - 1
    pattern = 8 * np.cos(2 * np.pi * np.arange(BINS) / BINS)[:, None]
    return own.reshape(-1, BINS, CHANNELS) + np.float32(pattern)


def perfect(images, stack=None, draws=None):
    """Features whose bins move by exactly as much as the image turns."""
    found = matrices(images)
    if stack is not None and "rot" in stack.codes:
        by = BINS * (np.asarray(stack.structure(draws)["rot"]) - 0.5)
        found = np.asarray(representation.shift(found, by))
    return represented(found)


def invariant(images, stack=None, draws=None):
    return represented(matrices(images))


def at_random(images, stack=None, draws=None):
    shape = (len(images), BINS, CHANNELS)
    at_random.calls += 1
    return represented(np.random.default_rng(at_random.calls).normal(size=shape))


at_random.calls = 0


def represented(found):
    full = np.float32(found).reshape(len(found), -1)
    structure = np.asarray(representation.structure(jnp.asarray(np.float32(found))))
    return {"full": full, "content": found.sum(axis=1), "structure": structure}


def evaluation_of(encoder, method=None):
    generator = np.random.default_rng(0)
    splits = {
        name: Split(
            generator.integers(0, 256, (count, SIDE, SIDE, 1), np.uint8),
            np.zeros(count, np.int32),
        )
        for name, count in (("train", TRAIN), ("test", TEST))
    }
    return types.SimpleNamespace(
        run=types.SimpleNamespace(
            method=method or duet(),
            encoder=encoder,
            config=types.SimpleNamespace(seed=0),
        ),
        split=splits.__getitem__,
        timed=lambda name: contextlib.nullcontext(),
    )


@pytest.fixture(scope="module")
def found():
    """What is measured of rotation, by encoder."""
    encoders = {"perfect": perfect, "invariant": invariant, "random": at_random}
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readouts.mlp, "HIDDEN", (64, 64))
        patch.setattr(readouts.mlp, "MOST_EPOCHS", 30)
        patch.setattr(actions, "_VIEWS", 21)
        patch.setattr(actions, "_OUTPUTS", 170)  # eight views at a time
        patch.setattr(matrix, "LEARNABLE", ("sca", "rot", "ron", "hue", "bri", "sol"))
        for name, encoder in encoders.items():
            evaluation = evaluation_of(encoder)
            code = make_code(evaluation, "rot")
            results[name] = {
                **readouts.measure(evaluation, code),
                **actions.measure(evaluation, code),
                "matrix": matrix.measure(evaluation),
            }
    return results


def brackets(scores, name):
    low, high = scores[f"{name}_interval"]
    return low - 1e-9 <= scores[name] <= high + 1e-9


# Retrieval.


def test_a_perfect_encoder_is_found(found):
    retrieval = found["perfect"]["retrieval"]
    assert {*retrieval["predictors"]} == {
        actions.SHIFT,
        actions.MAPPED,
        actions.UNMOVED,
    }
    for predictor in (actions.SHIFT, actions.MAPPED):
        scores = retrieval["predictors"][predictor]
        assert scores["mrr"] == pytest.approx(1, abs=1e-6)
        assert scores["hits_1"] == pytest.approx(1, abs=1e-6)
        # The nearest view of all images may be another image's.
        assert scores["pre"] < 0.01
    unmoved = retrieval["predictors"][actions.UNMOVED]
    assert unmoved["mrr"] < 2 * retrieval["chance"]["mrr"]
    assert unmoved["pre"] == pytest.approx(0.5, abs=0.1)


def test_an_invariant_encoder_is_found_by_chance(found):
    retrieval = found["invariant"]["retrieval"]
    chance = retrieval["chance"]
    assert chance["hits_5"] == pytest.approx(5 / 21)
    for scores in retrieval["predictors"].values():
        for name in ("mrr", "hits_1", "hits_5", "hits_10"):
            assert scores[name] == pytest.approx(chance[name], abs=1e-3)


def test_a_random_encoder_is_found_by_chance(found):
    retrieval = found["random"]["retrieval"]
    chance = retrieval["chance"]
    for name, scores in retrieval["predictors"].items():
        # View 0 is where the predictions begin: one of the 21 is found by all.
        slack = 0.04 if name == actions.MAPPED else 1 / 21 + 0.04
        assert scores["mrr"] == pytest.approx(chance["mrr"], abs=slack)
        # A map that has learned nothing predicts the same for all images: ten queries.
        slack = 0.3 if name == actions.MAPPED else 0.1
        assert scores["pre"] == pytest.approx(chance["pre"], abs=slack)


def test_every_number_has_an_interval(found):
    for results in found.values():
        for scores in results["retrieval"]["predictors"].values():
            for name in ("mrr", "hits_1", "hits_5", "hits_10", "pre"):
                assert brackets(scores, name)
        for name in ("procrustes", "unmoved", "composition", "gamma"):
            if results["geometry"][name] is not None:
                assert brackets(results["geometry"], name)
        for row in results["matrix"].values():
            for scores in (row["chance"], *row["representations"].values()):
                known = {"accuracy", "error", "r_squared"} & {*scores}
                assert known
                assert all(brackets(scores, name) for name in known)
        for scores in (*results["relative"].values(), results["mlp"]["full"]):
            for name in ("error", "r_squared", "mean_r_squared"):
                assert brackets(scores, name)


def test_measured_again_they_are_the_same(found):
    evaluation = evaluation_of(perfect)
    code = make_code(evaluation, "rot")
    again = actions._compare(evaluation, code)
    assert again == found["perfect"]["geometry"]


# Geometry.


def test_geometry_of_a_perfect_encoder(found):
    geometry = found["perfect"]["geometry"]
    assert geometry["procrustes"] == pytest.approx(0, abs=1e-5)
    assert geometry["unmoved"] > 0.5
    assert geometry["gamma"] == pytest.approx(0, abs=1e-6)
    assert geometry["composition"] == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(
        geometry["actions"],
        [-180, -135, -90, -45, 45, 90, 135],
    )


def test_geometry_of_an_invariant_encoder(found):
    geometry = found["invariant"]["geometry"]
    assert geometry["procrustes"] == pytest.approx(0, abs=1e-5)
    assert geometry["unmoved"] == 0
    assert geometry["gamma"] is None  # there is nothing to compare
    assert geometry["composition"] == pytest.approx(0, abs=1e-4)


def test_geometry_of_a_random_encoder(found):
    geometry = found["random"]["geometry"]
    assert geometry["procrustes"] == pytest.approx(np.sqrt(2), abs=0.1)
    assert geometry["composition"] > 0.7


# Which views and transformations there are.


def code_of(name, options=None, side=SIDE):
    stack = make_stack(
        ("sca",),
        input_side=side,
        image_size=side,
        channels=3,
        options=options or Options(),
    )
    views = dataclasses.replace(two_views(), stack=stack)
    return make_code(evaluation_of(perfect, SimCLR(views)), name)


@pytest.mark.parametrize("name", ["rot", "bri", "hue", "sca", "ron", "fli", "sol"])
@pytest.mark.parametrize("side", [8, 32])
def test_views_are_all_different(name, side):
    code = code_of(name, side=side)
    values = actions._views(code)
    assert values[0] == code.identity()
    apart = np.abs(values[:, None] - values[None, :])
    if code.circular:
        apart = np.minimum(apart, 1 - apart)
    assert (apart + np.eye(len(values))).min() > (0.008 if name != "sca" else 0.02)
    # They are those that images have.
    possible = code.values(code.draws_at(values[1:]))
    np.testing.assert_allclose(possible, values[1:], atol=1e-5)
    counts = {"ron": 4, "fli": 2, "sca": len(values)}
    assert len(values) == counts.get(name, 50)
    assert len(values) > {"sca": 4}.get(name, 0)


@pytest.mark.parametrize("degrees", [180.0, 45.0, 30.0, 1.0])
def test_actions_where_a_part_of_the_circle_is_drawn(degrees):
    code = code_of("rot", Options(rotation_degrees=degrees))
    found = code.parameter(actions._shared_actions(code))
    step = degrees / 4
    expected = [-4, -3, -2, -1, 1, 2, 3, 4][: 7 if degrees == 180 else 8]
    np.testing.assert_allclose(found, np.multiply(expected, step), atol=0.01 * degrees)


def test_crops_of_the_whole_image_are_no_action():
    code = code_of("sca", Options(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0)))
    assert not len(actions._shared_actions(code))
    assert actions._compare(evaluation_of(perfect), code) == {}
    nothing = {"retrieval": {"predictors": {}, "chance": {}, "images": 1, "views": 1}}
    nothing["retrieval"]["chance"] = dict.fromkeys(
        ("mrr", "hits_1", "hits_5", "hits_10", "pre"), 0.5
    )
    (table,) = actions.tables(code, {**nothing, "geometry": {}})
    assert table.title.startswith("sca:")


def sized(images, stack=None, draws=None):
    """Features that tell the size of a crop exactly."""
    value = np.zeros(len(images))
    if stack is not None and "sca" in stack.codes:
        value = np.asarray(stack.structure(draws)["sca"])
    noise = matrices(images).reshape(len(images), -1)[:, :6]
    return {"full": np.float32(np.c_[np.cos(3 * value), np.sin(3 * value), noise / 9])}


def test_a_perfect_encoder_of_crops_is_found():
    evaluation = evaluation_of(sized, SimCLR(two_views()))
    code = make_code(evaluation, "sca")
    found = actions._retrieve(evaluation, code)
    assert found["views"] < 50  # crops of whole pixels
    scores = found["predictors"][actions.MAPPED]
    assert scores["mrr"] > 0.95
    assert scores["pre"] < 0.01


# Readouts.


def test_readouts_of_a_perfect_encoder(found):
    for results in (
        found["perfect"]["mlp"]["full"],
        found["perfect"]["relative"]["mlp"],
    ):
        assert results["r_squared"] > 0.7
        assert results["mean_r_squared"] > 0.7
        assert results["error"] < 40
    # The angle between two views is no linear function of both.
    assert found["perfect"]["relative"]["ridge"]["r_squared"] < 0.3


@pytest.mark.parametrize("name", ["invariant", "random"])
def test_readouts_where_there_is_nothing_to_read(found, name):
    for results in (found[name]["mlp"]["full"], *found[name]["relative"].values()):
        assert results["r_squared"] < 0.15
        assert results["error"] > 70


def test_differences_of_two_views():
    evaluation = evaluation_of(perfect, SimCLR(two_views(("rot", "ron", "bri"))))
    turn, quarter, bright = (
        Difference(make_code(evaluation, name)) for name in ("rot", "ron", "bri")
    )
    first, second = np.array([0.1, 0.9]), np.array([0.3, 0.1])
    np.testing.assert_allclose(turn.between(first, second), [0.2, 0.2])
    np.testing.assert_allclose(bright.between(first, second), [0.6, 0.1])
    assert turn.levels is None
    assert quarter.levels == (0, 0.25, 0.5, 0.75)
    np.testing.assert_allclose(turn.distance(0.1, 0.9), 72)  # degrees
    # Factors from 0.6 to 1.4: differences cover twice as much.
    np.testing.assert_allclose(bright.distance(0.5, 0.75), 0.4)


# The matrix.


def test_the_matrix_of_a_perfect_encoder(found):
    rows = found["perfect"]["matrix"]
    assert [*rows][:2] == ["rot", "sca"]
    assert {*rows} == {"rot", "sca", "ron", "bri", "sol"}  # the images are gray
    assert [rows[c]["role"] for c in ("rot", "sca", "bri")] == [
        "learned",
        "in the stack",
        "left out",
    ]
    turned = rows["rot"]["representations"]
    assert turned["full"]["r_squared"] > 0.8
    assert turned["content"]["r_squared"] < 0.1
    wanted = {name: each["should_be"] for name, each in turned.items()}
    assert wanted == {"full": "high", "content": "low", "structure": "high"}
    for name in ("sca", "bri"):
        for scores in rows[name]["representations"].values():
            assert scores["r_squared"] < 0.1


def test_the_matrix_of_a_random_encoder(found):
    for row in found["random"]["matrix"].values():
        for scores in row["representations"].values():
            assert abs(matrix.skill(scores, row["chance"])) < 0.35


def test_what_should_be_where():
    method = duet(("sca", "rot", "bri"))
    expected = {
        ("rot", "structure"): "high",
        ("bri", "structure"): "low",
        ("fli", "structure"): "",
        ("bri", "full"): "low",
        ("fli", "full"): "",
        ("bri", "content"): "low",
        ("rot", "invariant"): "low",
        ("rot", "equivariant"): "high",
    }
    for (code, name), wanted in expected.items():
        assert matrix.expected(method, code, name) == wanted
    care = CARE(two_views(("sca", "rot")), 0.1, 4)
    assert matrix.expected(care, "rot", "full") == ""
    baseline = SimCLR(two_views(("sca", "rot")))
    assert matrix.expected(baseline, "rot", "full") == "low"
    colored = SimCLR(two_views(("sca", "jit"), channels=3))
    assert matrix.expected(colored, "hue", "full") == "low"


def test_the_picture_of_the_matrix(found):
    rows = found["perfect"]["matrix"]
    drawing = matrix.draw(rows)
    again = figures.restored(
        {**drawing._asdict(), "summary": drawing.summary._asdict()}
    )
    figure = figures.draw({"one": drawing, "other": again}, title="a title")
    first, second = figure.axes[:2]
    skills = first.images[0].get_array()
    np.testing.assert_allclose(skills, second.images[0].get_array())
    assert skills.shape == (len(rows), 3)
    assert skills[0, 0] == pytest.approx(
        rows["rot"]["representations"]["full"]["r_squared"]
    )
    assert "▲" in first.texts[0].get_text()
    assert "learned" in first.get_yticklabels()[0].get_text()


# Local equivariance.


class Angular:
    """Features that are sums over sectors of the image, as harmonics of the angle."""

    state = ({}, {})

    def differentiable(self):
        place = np.arange(SIDE) - (SIDE - 1) / 2
        x, y = place[None, :], -place[:, None]
        inside = np.exp(-(np.hypot(x, y) ** 2) / 4)
        waves = inside * np.exp(-1j * np.arange(3)[:, None, None] * np.arctan2(y, x))

        def represent(state, views):
            spectrum = jnp.einsum("fhw,nhwc->nfc", waves, views + 0.5)
            bins = jnp.fft.irfft(spectrum, BINS, axis=1)
            return {
                "full": jnp.repeat(bins, 2, axis=2).reshape(len(views), -1),
                "layer stem": jnp.mean(views, (1, 2)) + 0.5,
                "layer last": jnp.ones((len(views), 3)),
            }

        return represent


@pytest.fixture(scope="module")
def local_errors():
    evaluation = evaluation_of(
        Angular(), DUET(two_views(), (Group("rot", BINS, "von_mises", 3.0),), 1.0)
    )
    smooth = np.random.default_rng(0).uniform(0, 200, (TEST, 3, 3, 1))
    images = np.asarray(jax.image.resize(smooth, (TEST, SIDE, SIDE, 1), "cubic"))
    images = Split(np.uint8(np.clip(images, 0, 200)), np.zeros(TEST))
    evaluation.split = {"test": images}.__getitem__
    return images.images / 255, local.measure(evaluation)


def test_features_that_turn_with_the_image(local_errors):
    _, found = local_errors
    errors = found["rotation"]["full"]
    assert errors["bins shifted"]["error"] < 0.6 * errors["invariant"]["error"]
    assert {*found["translation"]["full"]} == {"invariant"}
    assert {*found} == {"rotation", "translation", "scale", "brightness"}


def test_the_derivative_is_the_known_one(local_errors):
    images, found = local_errors
    mean = images.mean(axis=(1, 2, 3))  # it grows by a hundredth per percent
    expected = np.sqrt(np.mean((mean / 100) ** 2)) / mean.std()
    scores = found["brightness"]["layers"]["stem"]
    assert scores["error"] == pytest.approx(expected, rel=1e-4)
    assert brackets(scores, "error")
    assert np.isnan(found["brightness"]["layers"]["last"]["error"])  # all the same
    assert [*found["rotation"]["layers"]] == ["stem", "last"]


@pytest.mark.parametrize("name", local.FLOWS)
def test_flows_begin_with_the_image(name):
    flow = local.FLOWS[name]
    images = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.8, (2, 9, 9, 3)))
    images = images.astype(jnp.float32)
    np.testing.assert_allclose(flow.apply(images, 0.0), images, atol=1e-6)
    moved = flow.apply(images, 3.0)
    assert float(jnp.abs(moved - images).mean()) > 1e-3


def test_without_derivatives_nothing_is_local():
    assert local.measure(evaluation_of(perfect)) == {}
    assert local.tables({}) == []


# The option.


def test_measures_are_chosen():
    assert options.chosen_measures(None) == options.MEASURES
    assert options.chosen_measures("basic") == ()
    assert options.chosen_measures("local,matrix") == ("local", "matrix")


def test_derivatives_that_are_asked_for_in_vain():
    evaluation = evaluation_of(perfect)
    with pytest.raises(UsageError, match="an encoder from elsewhere does not have"):
        equivariance.measure(evaluation, "rot", "local")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("locl", "--measures"),
        ("basic,local", "write it alone"),
        ("", "--measures"),
    ],
)
def test_measures_that_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        options.check_equivariance(measures=text)


# Real encoders.


@pytest.fixture(scope="module")
def encoder():
    """An encoder of this project with the weights that it begins with."""
    settings = EncoderSettings(
        "Cifar10_ResNet", in_channels=1, blocks=(1, 1, 1), widths=(8, 8, 8, 20)
    )
    views = dataclasses.replace(two_views(), encoder=settings)
    method = dataclasses.replace(duet(), two_views=views)
    networks = method.init(nnx.Rngs(0))
    return FrozenEncoder(method, batch_size=16).use(*split(networks.encoder)[1:])


def test_the_differentiable_form_is_the_encoder(encoder):
    views = np.float32(normal_views(7))
    found = encoder.differentiable()(encoder.state, views)
    for name, expected in encoder.of_views(views).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    layers = [name for name in found if name.startswith("layer ")]
    assert layers == ["layer stem", "layer stage1", "layer stage2", "layer stage3"]
    assert found["layer stage3"].shape == (7, 20)


def normal_views(count):
    return np.random.default_rng(0).uniform(-0.4, 0.3, (count, SIDE, SIDE, 1))


def test_derivatives_of_a_real_encoder_are_those_of_small_steps(encoder):
    function, state = encoder.differentiable(), encoder.state
    views, flow = np.float32(normal_views(7)) + 0.5, local.FLOWS["brightness"]
    parts = local._derivatives(function, state, flow, [], views)
    assert parts["full"][1].shape == (7, 20)
    before, after = (
        np.float64(
            function(state, normalize(flow.apply(jnp.asarray(views), t)))["full"]
        )
        for t in (-0.1, 0.1)
    )
    steps = (after - before) / 0.2
    # Some units of ReLU begin or cease to act within the step.
    apart = np.linalg.norm(parts["full"][1] - steps) / np.linalg.norm(steps)
    assert apart < 0.1


class Told:
    """A predictor of its own: it adds what it is told to the features."""

    learned = ("rot",)
    predictive_parts = ("predictor",)

    def __init__(self, right):
        self.two_views = two_views()
        self.right = right

    def embed(self, networks, features):
        assert networks.predictor == "the network"
        return features[:, :2]

    def predict(self, networks, embedded, parameters):
        assert {*parameters} == {"rot", "sca"}
        angle = 2 * jnp.pi * (parameters["rot"] - 0.5)
        moved = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return embedded * 0 + moved if self.right else embedded


def pointing(images, stack=None, draws=None):
    """Features that begin with the direction of the turn."""
    angle = np.zeros(len(images))
    if stack is not None and "rot" in stack.codes:
        angle = 2 * np.pi * (np.asarray(stack.structure(draws)["rot"]) - 0.5)
    noise = matrices(images).reshape(len(images), -1)
    return {"full": np.float32(np.c_[np.cos(angle), np.sin(angle), noise])}


@pytest.mark.parametrize("right", [True, False])
def test_a_method_with_a_predictor_of_its_own(right):
    evaluation = evaluation_of(pointing, Told(right))
    evaluation.run.networks = lambda name: types.SimpleNamespace(
        predictor="the network"
    )
    found = actions._retrieve(evaluation, make_code(evaluation, "rot"))
    mrr = found["predictors"][actions.OWN]["mrr"]
    if right:
        assert mrr == pytest.approx(1)
        assert found["predictors"][actions.OWN]["pre"] == pytest.approx(0, abs=1e-6)
    else:
        assert mrr < 0.2
    others = actions._retrieve(evaluation, make_code(evaluation, "ron"))
    assert actions.OWN not in others["predictors"]
    # Quarter turns: each is one view.
    assert others["views"] == 4
    assert others["chance"]["hits_1"] == 0.25
