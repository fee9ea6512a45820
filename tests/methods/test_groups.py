"""Several augmentations in one representation: every pair that can be learned."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from scored import (
    BATCH,
    DATA,
    NEEDS_COLOUR,
    NO_PREDICTION,
    TABLE,
    TRAINS,
    blank,
    initial,
    make_both,
    scores,
    update,
)

from duet_jax.augmentations import AUGMENTATIONS, LEARNABLE
from duet_jax.config import build, checks
from duet_jax.errors import UsageError
from duet_jax.methods import groups
from duet_jax.methods.base import Views, encode_views, group_of
from duet_jax.methods.groups import Group

SIDE, BINS = 8, 4
PAIRS = [*itertools.combinations(LEARNABLE, 2)]
ALIKE = {("rot", "ron")}


def built(codes, channels=3, method="duet", **changes):
    config = tiny.smoke.get_config()
    config.update(method=method, learned=",".join(codes))
    config.augmentation.stack = tuple(codes)
    config.dataset.image_size = SIDE
    config.encoder.widths = (8, 8, 8, 32)
    config.duet.num_bins = BINS
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    images = DATA[channels]._replace(side=SIDE)
    return build.make_method(config, images)


# --- by hand, in NumPy ----------------------------------------------------------------


def by_hand(features, values, topologies):
    """The divergence of each group from its target, from [K, G, C]; and the content."""
    joint = np.asarray(features, np.float64).reshape(
        len(features), len(topologies), BINS, -1
    )
    divergences = []
    for place, topology in enumerate(topologies):
        logits = joint[:, place].mean(axis=2)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        targets = target(np.asarray(values[place], np.float64), topology)
        middle = (shares + targets) / 2
        halves = [(p * np.log(p / middle)).sum(axis=1) for p in (shares, targets)]
        divergences.append(sum(halves) / 2)
    return divergences, joint.sum(axis=2).reshape(len(features), -1)


def target(values, topology):
    """100 points a bin, from 0 to 1; kappa 3 on circles, sigma 0.2 on lines."""
    apart = np.linspace(0, 1, 100 * BINS)[None, :] - values[:, None]
    density = np.exp(-np.square(apart / 0.2) / 2)
    if topology == "circle":
        density = np.exp(3 * np.cos(2 * np.pi * apart))
    shares = density.reshape(len(values), BINS, 100).sum(axis=2)
    return shares / shares.sum(axis=1, keepdims=True)


class Given(Group):
    """A group with given targets: one compilation serves all pairs."""

    def targets(self, values):
        return values


def given(method, views):
    """The method and its views, with the targets of its groups in their place."""
    shared = [
        Given(f"any{group.place}", BINS, "gaussian", 1.0, place=group.place, of=2)
        for group in method.groups
    ]
    made = [
        view._replace(
            structure={
                f"any{group.place}": group.targets(view.structure[group.code])
                for group in method.groups
            }
        )
        for view in views[:2]
    ]
    return dataclasses.replace(blank(method), groups=tuple(shared)), Views(*made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def encoded(method, graphdef, params, stats, views):
    networks = nnx.merge(graphdef, params, stats)
    return encode_views(networks, views, train=True)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("codes", PAIRS, ids="+".join)
def test_every_pair_trains_or_is_refused(codes, channels):
    gray = [code for code in codes if code in NEEDS_COLOUR and channels == 1]
    if codes in ALIKE:
        with pytest.raises(UsageError, match="both turn the image; leave out one"):
            built(codes, channels)
        return
    if gray:
        with pytest.raises(UsageError, match=f"{gray[0]} .* needs images with 3"):
            built(codes, channels)
        return
    method = built(codes, channels)
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=channels)
    views = method.make_views(jax.random.key(1), data.train.images, train=True)
    drawn = [[view.structure[code] for code in codes] for view in views[:2]]
    topologies = [AUGMENTATIONS[code].topology for code in codes]
    shared, views = given(method, views)
    graphdef, params, stats = initial(shared)
    labels = jnp.asarray(data.train.labels)
    for _ in range(2):
        features = encoded(shared, graphdef, params, stats, views)
        expected = [[], []]
        for found, values in zip(features, drawn, strict=True):
            divergences, content = by_hand(found, values, topologies)
            np.testing.assert_allclose(
                groups.content(found, method.groups), content, rtol=1e-5, atol=1e-6
            )
            for each, divergence in zip(expected, divergences, strict=True):
                each.append(divergence.mean())
        params, stats, metrics = update(shared, graphdef, params, stats, views, labels)
        means = [np.mean(each) for each in expected]
        for place, mean in enumerate(means):
            found = metrics[f"structure_loss_any{place}"]
            np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            metrics["structure_loss"], np.mean(means), rtol=1e-4, atol=1e-6
        )
        parts = metrics["nt_xent"] + metrics["online_loss"]
        weighted = method.structure_weight * metrics["structure_loss"]
        np.testing.assert_allclose(metrics["loss"], parts + weighted, rtol=1e-5)


# --- ESSL -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("codes", PAIRS, ids="+".join)
def test_essl_predicts_every_pair_or_refuses_it(codes, channels):
    refused = [code for code in codes if TABLE[code][1] is not TRAINS]
    gray = [code for code in codes if code in NEEDS_COLOUR and channels == 1]
    if refused or gray or codes in ALIKE:
        reason = (
            NO_PREDICTION if refused else "3 channels" if gray else "leave out one of"
        )
        if refused and gray and codes.index(gray[0]) < codes.index(refused[0]):
            reason = "3 channels"
        with pytest.raises(UsageError, match=reason) as error:
            built(codes, channels, method="essl")
        assert "\n" not in str(error.value)
        return
    method = built(codes, channels, method="essl")
    assert not method.two_views.stack.codes
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, channels), np.uint8)
    views = jax.eval_shape(make_both(method), jax.random.key(1), images)
    copies = [{4: 4, 2: 2, 1: 1}[p.num_outputs] for p in method.predictions.values()]
    for view in (views[True].prediction, views[False].prediction):
        assert len(view.images) == BATCH * np.prod(copies)
        assert {code: len(x) for code, x in view.targets.items()} == dict.fromkeys(
            codes, len(view.images)
        )
    found = scores(method, views[True], True)
    for code in codes:
        assert f"prediction_loss_{code}" in found
        classes = method.predictions[code].classification
        assert (f"prediction_top1_{code}" in found) == classes


def test_essl_transforms_an_image_by_all_codes():
    method = built(("ron", "fli"), method="essl")
    data = tiny.dataset(3, 1, side=SIDE, channels=3)
    view = method.make_views(jax.random.key(0), data.train.images, train=False)
    images, targets = view.prediction
    assert images.shape == (3 * 8, SIDE // 2, SIDE // 2, 3)
    np.testing.assert_array_equal(targets["ron"][:8], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(targets["fli"][:8], [0, 1] * 4)
    for own in range(3):
        upright = np.asarray(images[8 * own])
        for copy in range(8):
            turned = np.rot90(upright, copy // 2)
            expected = turned[:, ::-1] if copy % 2 else turned
            np.testing.assert_allclose(images[8 * own + copy], expected, atol=1e-6)


def test_essl_weighs_its_codes_alike():
    method = built(("ron", "hue"), method="essl")
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=3)
    views = method.make_views(jax.random.key(0), data.train.images, train=True)
    graphdef, params, stats = initial(method)
    assert {*params["predictor"]} == {"ron", "hue"}
    labels = jnp.asarray(data.train.labels)
    losses = []
    for _ in range(6):
        params, stats, metrics = update(method, graphdef, params, stats, views, labels)
        losses.append(float(metrics["loss"]))
        mean = (metrics["prediction_loss_ron"] + metrics["prediction_loss_hue"]) / 2
        np.testing.assert_allclose(metrics["prediction_loss"], mean, rtol=1e-6)
        total = metrics["nt_xent"] + metrics["online_loss"] + 0.4 * mean
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    assert losses[-1] < losses[0]


# --- a group --------------------------------------------------------------------------

UNEQUAL = (
    Group("rot", 2, "von_mises", 3.0, place=0, of=2),
    Group("hue", 8, "gaussian", 0.2, place=1, of=2),
)


def test_groups_may_have_other_numbers_of_bins():
    features = np.arange(64, dtype=np.float32).reshape(2, 32)
    first, second = UNEQUAL
    assert first.matrix(features).shape == (2, 2, 8)
    assert second.matrix(features).shape == (2, 8, 2)
    np.testing.assert_array_equal(first.matrix(features)[0, 1], np.arange(8, 16))
    np.testing.assert_array_equal(second.matrix(features)[0, 1], [18, 19])
    content = np.asarray(groups.content(features, UNEQUAL))
    assert content.shape == (2, 8 + 2)
    np.testing.assert_array_equal(content[0, :8], np.arange(8) + np.arange(8, 16))
    np.testing.assert_array_equal(content[0, 8:], [16 * 8 + 56, 17 * 8 + 56])


@pytest.mark.parametrize("place", [0, 1])
def test_a_group_is_replaced_alone(place):
    features = jnp.arange(64, dtype=jnp.float32).reshape(2, 32)
    group, other = UNEQUAL[place], UNEQUAL[1 - place]
    changed = group.replace(features, group.matrix(features) + 1)
    np.testing.assert_array_equal(other.block(changed), other.block(features))
    np.testing.assert_array_equal(group.block(changed), group.block(features) + 1)


def test_representations_are_named_by_code():
    method = built(("rot", "hue"), duet__num_bins=(4, 8))
    found = method.representations(jnp.ones((3, 32)))
    shapes = {name: each.shape for name, each in found.items()}
    assert shapes == {
        "full": (3, 32),
        "content": (3, 16 // 4 + 16 // 8),
        "structure_rot": (3, 4),
        "structure_hue": (3, 8),
    }
    networks = nnx.eval_shape(lambda: method.init(nnx.Rngs(0)))
    assert networks.projector.hidden1.kernel.shape[0] == shapes["content"][1]
    assert group_of(method, "hue").num_bins == 8
    assert group_of(method, "sca") is None
    assert group_of(built(("rot", "hue"), method="essl"), "hue") is None


def test_one_code_keeps_its_names():
    method = built(("rot",))
    assert {*method.representations(jnp.ones((3, 32)))} == {
        *("full", "content", "structure")
    }
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=3)
    views = jax.eval_shape(make_both(method), jax.random.key(1), data.train.images)
    parts = {name for name in scores(method, views[True], True) if "structure" in name}
    assert parts == {"structure_loss"}


# --- the configuration ----------------------------------------------------------------

REFUSED = {
    "the same code twice": ({"learned": "rot,rot"}, "names rot 2 times; name it once"),
    "mirrors and a turn": (
        {"learned": "fli,rot,flv", "augmentation__stack": ("rot", "fli", "flv")},
        "fli, flv and rot did each, as two mirrors are half a turn; leave out one",
    ),
    "without structure": (
        {"learned": "rot,jit", "augmentation__stack": ("rot", "jit")},
        r"'rot,jit': jit \(color jitter.*\) has no structure of its own; write bri",
    ),
    "a part beside jit": (
        {"learned": "rot,hue", "augmentation__stack": ("rot", "jit")},
        "hue is not in .*; write bri con sat hue in place of jit",
    ),
    "jit beside its part": (
        {"learned": "rot,hue", "augmentation__stack": ("rot", "jit", "hue")},
        "lists jit and hue, which jit contains; leave out",
    ),
    "not in the stack": ({"learned": "rot,blu"}, "'rot,blu': blu is not in .*add it"),
    "unknown": ({"learned": "rot,spin"}, "config.learned='spin' is not known"),
    "bins": (
        {"learned": "rot,hue", "duet__num_bins": 3},
        "num_bins=3 must divide each of the 2 groups of 16 of .* 32 .*; use 2 or 4",
    ),
    "bins of one": (
        {"learned": "rot,hue", "duet__num_bins": (8, 5)},
        "num_bins=5 must divide each of the 2 groups of 16 .*; use 2 or 4",
    ),
    "too many values": (
        {"learned": "rot,hue", "duet__num_bins": (2, 4, 8)},
        "num_bins=2,4,8 has 3 values for the 2 of config.learned='rot,hue'; give one",
    ),
    "too many widths": (
        {"learned": "rot,hue", "duet__sigma": (0.1, 0.2, 0.3)},
        "sigma=0.1,0.2,0.3 has 3 values for the 2",
    ),
    "too many targets": (
        {"learned": "rot,hue", "duet__target": "auto,auto,auto"},
        "target=auto,auto,auto has 3 values for the 2",
    ),
    "no target of a code": (
        {"learned": "rot,gra", "duet__target": "auto,von_mises"},
        "target='von_mises' cannot learn 'gra'",
    ),
    "features": (
        {"learned": "rot,hue,gra"},
        "makes 3 groups, which do not divide .* 32 features; .* for 24 features",
    ),
    "an odd number": (
        {"learned": "rot,hue", "duet__num_bins": (4, 2.5)},
        r"num_bins=\(4, 2.5\) must be a whole number, or one for each of config",
    ),
    "below zero": (
        {"learned": "rot,hue", "duet__sigma": (0.2, -1.0)},
        r"sigma=\(0.2, -1.0\) must be above 0",
    ),
}


def checked(changes):
    config = tiny.smoke.get_config()
    config.augmentation.stack = ("sca", "rot", "hue", "gra")
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return checks.check(config, tiny.smoke.get_config())


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_combinations_are_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        checked(changes)
    assert "\n" not in str(error.value)


def test_a_value_for_each_code():
    config = checked(
        {
            "learned": "hue rot, gra,sca",
            "duet__num_bins": (2, 4, 8, 2),
            "duet__sigma": (0.1, 9, 0.3, 0.4),
            "duet__target": "auto,von_mises,gaussian,auto",
        }
    )
    assert config.learned == "hue,rot,gra,sca"
    images = DATA[3]
    hue, rot, gra, sca = build.make_method(config, images).groups
    assert hue == Group("hue", 2, "gaussian", 0.1, place=0, of=4)
    assert rot == Group("rot", 4, "von_mises", 3.0, place=1, of=4)
    assert gra == Group("gra", 8, "gaussian", 0.3, place=2, of=4)
    assert sca == Group("sca", 2, "gaussian", 0.4, place=3, of=4)


def test_a_width_that_no_code_reads_is_left_out():
    config = checked({"learned": "hue,gra"})
    assert "concentration" not in config.duet
    assert config.duet.sigma == 0.2
    config = checked({"learned": "hue,rot"})
    assert {"concentration", "sigma"} <= {*config.duet}
    config = checked({"learned": "rot", "duet__num_bins": (4,)})
    assert config.duet.num_bins == 4
    assert "sigma" not in config.duet
