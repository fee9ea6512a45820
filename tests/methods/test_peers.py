"""AugSelf, EquiMod, CARE and SIE: second losses by hand, masks, gradients, refusals."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from scored import BATCH, DATA, SIDE, initial

from duet_jax.augmentations import LEARNABLE
from duet_jax.config import build, checks
from duet_jax.errors import UsageError
from duet_jax.methods import METHODS, EquiMod
from duet_jax.methods.base import Predictive, encode_views
from duet_jax.training import train_step

PEERS = ("augself", "equimod", "care", "sie")
SECOND = {"augself": "prediction_loss"}  # of the others: equivariance_loss
CODES = ("rot", "fli", "sca")
KEY = jax.random.key(3)
CHUNK = 5  # does not divide the batch
MASK = jnp.arange(BATCH) < BATCH - 3


def configured(name, **changes):
    config = tiny.smoke.get_config()
    config.update(method=name, learned=",".join(CODES))
    config.augmentation.stack = ("sca", "rot", "fli")
    config.augself.hidden = 16
    config.care.chunk = CHUNK
    config.sie.hidden = 8
    for field, value in changes.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return config


def built(name, channels=3, **changes):
    return build.make_method(configured(name, **changes), DATA[channels])


def shown(method, images, *, train):
    """The views of images; compiled, which takes less than one step at a time."""
    make_views = functools.partial(method.make_views, train=train)
    return jax.jit(make_views)(KEY, images)


def made(name, channels=3):
    """A method, augmented views of a batch, and its labels."""
    method = built(name, channels)
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=channels)
    views = shown(method, data.train.images, train=True)
    return method, views, jnp.asarray(data.train.labels)


def inner(method, networks, views, features, by_hand):
    """What the second loss of a method is a formula of."""
    name = type(method).__name__
    if name == "AugSelf":
        pair = jnp.concatenate(features, axis=1)
        return {code: networks.predictor[code](pair) for code in CODES}
    if name == "CARE":
        return tuple(networks.projector(each, train=False) for each in features)
    if name == "EquiMod":
        plain = networks.encoder(views.plain.images, train=False)
        read = [method.embed(networks, plain), by_hand["second"]]
        predicted = networks.predictor(jnp.concatenate(read, axis=1))
        return predicted, method.embed(networks, features[1])
    one, other = (method.embed(networks, each) for each in features)
    made = networks.predictor.output(
        nnx.relu(networks.predictor.hidden(by_hand["apart"]))
    )
    return one, other, made


@functools.partial(jax.jit, static_argnums=(0, 1))
def examined(method, graphdef, params, stats, views, labels, by_hand):
    """Metrics, norms of the second loss's gradient, and `inner`; with a mask."""

    def second(params):
        networks = nnx.merge(graphdef, params, stats)
        loss, metrics = method.loss(networks, views, labels, MASK, train=False)
        name = SECOND.get(type(method).__name__.lower(), "equivariance_loss")
        return metrics[name], (loss, metrics)

    gradient, (loss, metrics) = jax.grad(second, has_aux=True)(params)
    networks = nnx.merge(graphdef, params, stats)
    features = encode_views(networks, views, train=False)
    found = inner(method, networks, views, features, by_hand)
    reached = {part: optax.tree.norm(tree) for part, tree in gradient.items()}
    return metrics | {"total": loss}, reached, found


# --- by hand, in NumPy ----------------------------------------------------------------


def told(method):
    """The parameters of both views, and what is between: read off the draws."""
    draws = method.draws(KEY, BATCH)
    columns = {}
    for view in ("first", "second"):
        stages = jax.tree.map(np.asarray, draws[view])
        box = [stages["sca"][part] for part in ("top", "left", "height", "width")]
        columns[view] = {
            "rot": np.deg2rad(stages["rot"]["degrees"] + 180),
            "fli": np.pi / 2 + np.pi * stages["fli"]["mirrored"],
            "sca": np.stack(box, axis=1) / SIDE,
        }
    first, second = columns["first"], columns["second"]
    apart = {code: second[code] - first[code] for code in CODES}
    return {
        name: jnp.asarray(
            np.concatenate(
                [turned(each["rot"]), turned(each["fli"]), each["sca"]], axis=1
            ),
            jnp.float32,
        )
        for name, each in {"second": second, "apart": apart}.items()
    }


def turned(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def second_of_augself(method, found, by_hand, kept):
    apart = np.asarray(by_hand["apart"], np.float64)[kept]
    outputs = {code: np.asarray(x, np.float64)[kept] for code, x in found.items()}
    differ = (apart[:, 2] < 0).astype(int)  # the cosine of half a turn
    assert 0 < differ.sum() < len(differ)
    logits = outputs["fli"]
    right = logits[np.arange(len(differ)), differ]
    by_code = {
        "rot": np.square(outputs["rot"] - apart[:, :2]).mean(),
        "fli": (np.log(np.exp(logits).sum(axis=1)) - right).mean(),
        "sca": np.square(outputs["sca"] - apart[:, 4:]).mean(),
    }
    return {
        "prediction_loss": np.mean([*by_code.values()]),
        **{f"prediction_loss_{code}": x for code, x in by_code.items()},
    }


def second_of_equimod(method, found, by_hand, kept):
    predicted, true = (unit(x)[kept] for x in found)
    rows = np.concatenate([predicted, true])
    logits = rows @ rows.T / method.two_views.temperature
    np.fill_diagonal(logits, -np.inf)
    positive = np.roll(np.arange(len(rows)), len(true))
    own = logits[np.arange(len(rows)), positive]
    direction = np.log(np.exp(logits).sum(axis=1)) - own
    return {"equivariance_loss": 2 * direction.mean()}


def second_of_care(method, found, by_hand, kept):
    one, other = map(unit, found)
    places, changes = np.flatnonzero(kept), []
    for i in places:
        for j in places:
            if i != j and i // CHUNK == j // CHUNK:
                changes.append((one[i] @ one[j] - other[i] @ other[j]) ** 2)
    assert len(changes) == 5 * 4 + 4 * 3  # nine images count
    return {"equivariance_loss": np.mean(changes)}


def second_of_sie(method, found, by_hand, kept):
    one, other, made = (np.asarray(x, np.float64)[kept] for x in found)
    size = one.shape[1]
    predicted = np.empty_like(one)
    for row, (x, weights) in enumerate(zip(one, made, strict=True)):
        *matrix, bias = weights.reshape(size + 1, size) / np.sqrt(size)
        predicted[row] = x + x @ np.array(matrix) + bias
    error = np.square(predicted - other).mean()
    terms = []
    for each in (one, other):
        covariances = np.cov(each.T)
        deviations = np.sqrt(np.diag(covariances) + 1e-4)
        terms.append(np.maximum(0, 1 - deviations).mean() / 2)
        apart = np.square(covariances).sum() - np.square(np.diag(covariances)).sum()
        terms.append(0.04 * apart / size)
    return {"equivariance_loss": error + sum(terms), "prediction_loss": error}


BY_HAND = {
    "augself": second_of_augself,
    "equimod": second_of_equimod,
    "care": second_of_care,
    "sie": second_of_sie,
}
# Parts whose weights the second loss does not train.
UNTOUCHED = {
    "augself": {"projector", "online_probe"},
    "equimod": {"projector", "online_probe"},
    "care": {"online_probe"},
    "sie": {"projector", "online_probe"},
}


@pytest.mark.parametrize("name", PEERS)
def test_the_second_loss(name):
    method, views, labels = made(name)
    by_hand = told(method)
    state = initial(method)
    metrics, reached, found = examined(method, *state, views, labels, by_hand)
    expected = BY_HAND[name](method, found, by_hand, np.asarray(MASK))
    for each, value in expected.items():
        np.testing.assert_allclose(metrics[each], value, rtol=2e-4, err_msg=each)
    own = metrics[SECOND.get(name, "equivariance_loss")]
    assert method.weight * own > 0
    total = metrics["nt_xent"] + metrics["online_loss"] + method.weight * own
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert metrics["total"] == metrics["loss"]

    assert reached["encoder"] > 0
    assert {part for part, norm in reached.items() if not norm} == UNTOUCHED[name]

    # Padding has no part in anything that is reported.
    noise = jax.random.uniform(jax.random.key(9), views.first.images.shape) - 0.5
    again, _, _ = examined(method, *state, padded(views, noise), labels, by_hand)
    for each, value in metrics.items():
        np.testing.assert_allclose(again[each], value, rtol=1e-5, err_msg=each)


def padded(views, noise):
    """Views with other images and parameters where the mask is false."""

    def choose(own, other):
        kept = MASK.reshape(-1, *[1] * (own.ndim - 1))
        return jnp.where(kept, own, other)

    def replaced(view):
        others = {k: choose(x, 1 - x) for k, x in view.parameters.items()}
        return view._replace(images=choose(view.images, noise), parameters=others)

    return type(views)(*(view and replaced(view) for view in views))


# --- training -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", PEERS)
def test_trains(name, channels):
    config = configured(name)
    method = build.make_method(config, DATA[channels])
    graphdef = train_step.graph_definition(method)
    rate = optax.constant_schedule(3e-3)
    optimizer = optax.adamw(rate)
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=channels).train
    update = jax.jit(train_step.make_train_step(method, graphdef, optimizer, rate))
    state = jax.jit(lambda key: train_step.initial_state(method, optimizer, key))(
        train_step.initial_key(0)
    )
    for step in range(2):
        state, metrics = update(
            state, jax.random.fold_in(KEY, step), data.images, data.labels
        )
        assert metrics["skipped"] == 0
        assert np.isfinite([*metrics.values()]).all()
    assert state.step == 2
    assert SECOND.get(name, "equivariance_loss") in metrics


# --- the views ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 12, 17])
def test_images_of_a_chunk_share_their_draws(n):
    config = configured("care")
    config.augmentation.stack = ("sca", "rot", "hue")
    draws = build.make_method(config, DATA[3]).draws(KEY, n)
    for view in ("first", "second"):
        assert draws[view]["jitter"]["order"].shape == ()
        degrees = np.asarray(draws[view]["rot"]["degrees"])
        assert degrees.shape == (n,)
        chunks = np.arange(n) // CHUNK
        own = [np.unique(degrees[chunks == each]) for each in np.unique(chunks)]
        assert all(len(each) == 1 for each in own)
        assert len(np.unique(own)) == len(own)
    assert draws["first"]["rot"]["degrees"][0] != draws["second"]["rot"]["degrees"][0]


def test_alike_images_of_a_chunk_have_alike_views():
    method = built("care")
    images = tiny.dataset(2, 1, side=SIDE, channels=3).train.images
    views = shown(method, np.repeat(images[:1], 7, axis=0), train=True)
    for view in views[:2]:
        for row in range(1, CHUNK):
            np.testing.assert_array_equal(view.images[row], view.images[0])
        assert (np.asarray(view.images[CHUNK]) != np.asarray(view.images[0])).any()


def test_equimod_starts_from_the_plain_image():
    method = built("equimod")
    images = tiny.dataset(4, 1, side=SIDE, channels=3).train.images
    for train in (True, False):
        views = shown(method, images, train=train)
        np.testing.assert_allclose(views.plain.images, images / 255 - 0.5, atol=1e-6)
    assert set(method.draws(KEY, 4)) == {"first", "second", "plain"}
    np.testing.assert_array_equal(views.plain.parameters["sca"][0], [0, 0, 1, 1])


# --- what they predict ----------------------------------------------------------------


def test_who_predicts():
    found = {name for name in PEERS if isinstance(built(name), Predictive)}
    assert found == {"equimod", "sie"}
    assert not isinstance(built("simclr"), Predictive)


@pytest.mark.parametrize("name", ["equimod", "sie"])
def test_predictions_need_the_named_parts_only(name):
    method = built(name)
    networks = nnx.merge(*initial(method))
    parts = {part: getattr(networks, part) for part in method.predictive_parts}
    alone = types.SimpleNamespace(**parts)
    features = jax.random.normal(KEY, (3, 32))
    embedded = method.embed(alone, features)
    stack = method.two_views.stack
    one, other = (
        method.predict(alone, embedded, stack.parameters(params))
        for params in (stack.identity(3), stack.draw(KEY, 3))
    )
    assert embedded.shape == one.shape == other.shape == (3, 16)
    assert {x.dtype for x in (embedded, one, other)} == {jnp.dtype("float32")}
    assert (np.abs(one - other).max(axis=1) > 0).all()


def test_sie_is_told_what_leads_from_the_image_as_it_is():
    method = built("sie")
    networks = nnx.merge(*initial(method))
    embedded = jax.random.normal(KEY, (2, 16))
    stack = method.two_views.stack
    drawn = stack.parameters(stack.draw(KEY, 2))
    plain = stack.parameters(stack.identity(2))
    by_hand = networks.predictor(embedded, method._told(plain, drawn))
    np.testing.assert_array_equal(method.predict(networks, embedded, drawn), by_hand)
    nothing = [1, 0, 1, 0, 0, 0, 0, 0]  # no turn, no mirror, the same box
    np.testing.assert_allclose(method._told(plain, plain)[0], nothing, atol=1e-6)


def test_the_halves_of_sie():
    features = jnp.arange(64.0).reshape(2, 32)
    found = built("sie").representations(features)
    assert set(found) == {"full", "invariant", "equivariant"}
    np.testing.assert_array_equal(found["invariant"], features[:, :16])
    np.testing.assert_array_equal(found["equivariant"], features[:, 16:])


# --- the configuration ----------------------------------------------------------------

REFUSED = {
    **{
        f"{name}, not in the stack": (
            {"method": name, "learned": "rot,blu"},
            "config.learned='rot,blu': blu is not in .*stack='sca rot fli'; add it",
        )
        for name in ("augself", "equimod", "sie")
    },
    "no structure": (
        {"method": "sie", "learned": "res"},
        rf"learned='res' .* has no structure .*{' '.join(LEARNABLE)}",
    ),
    "nothing": ({"method": "equimod", "learned": ""}, "config.learned=''"),
    "a chunk of one": (
        {"method": "care", "care__chunk": 1},
        "config.care.chunk=1 must be from 2 to 65536: the angles between images",
    ),
    "no halves": (
        {"method": "sie", "encoder__widths": (8, 8, 8, 31)},
        r"config.encoder.widths=\(8, 8, 8, 31\) makes 31 features, .* such as 32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_settings_are_refused(case):
    changes, message = REFUSED[case]
    changes = {"method": "simclr", **changes}
    name = changes.pop("method")
    with pytest.raises(UsageError, match=message) as error:
        checks.check(configured(name, **changes), tiny.smoke.get_config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_does(name):
    learned = "rot" if name == "essl" else "rot,fli"
    changes = {"duet__num_bins": 4, "learned": learned}
    text = built(name, **changes).describe()
    assert ("rot" in text) == (name not in ("simclr", "care"))
    assert ("weight" in text) == (name != "simclr")


def test_the_default_description():
    expected = "learned rot fli sca, weight 1.0"
    assert isinstance(built("equimod"), EquiMod)
    assert built("equimod").describe() == expected
