"""Every augmentation with every method, and what a method must keep to."""

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
    SIDE,
    TABLE,
    TRAINS,
    canonical,
    initial,
    make_both,
    score,
    scores,
    update,
)

from duet_jax import losses
from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.config import build
from duet_jax.errors import UsageError
from duet_jax.methods import METHODS
from duet_jax.methods.base import Views

# Its views are those of DUET: these are what that refuses.
CASES = [("simclr", code, TRAINS) for code in ("jit", "res", "ccr")] + [
    case
    for code, (duet, essl) in TABLE.items()
    for case in (("duet", code, duet), ("essl", code, essl))
]


def built(method, code, channels=3):
    stack = (code,) if code in ("sca", "res", "ccr") else ("sca", code)
    config = tiny.smoke.get_config()
    config.update(method=method, learned=code)
    config.augmentation.stack = stack
    return build.make_method(config, DATA[channels])


@pytest.mark.parametrize("name", METHODS)
def test_the_views_of_an_image_are_drawn_apart(name):
    # Many images: those of a chunk of CARE have one draw.
    draws = built(name, "rot").draws(jax.random.key(0), 8 * BATCH)
    first, second = (draws[view]["sca"]["height"] for view in ("first", "second"))
    assert np.mean(np.asarray(first) != np.asarray(second)) > 0.5


def test_the_table_holds_every_augmentation():
    assert set(TABLE) == set(AUGMENTATIONS)


# Those that are compiled and trained: one for each way to draw, score and predict.
TRAINED = [
    ("simclr", "jit"),
    ("duet", "sca"),
    ("duet", "rot"),
    ("duet", "gra"),
    ("duet", "hue"),
    ("essl", "rot"),
    ("essl", "ron"),
    ("essl", "bri"),
]


@pytest.mark.parametrize(("name", "code", "refusal"), CASES)
def test_fits_or_refuses(name, code, refusal):
    if refusal is not TRAINS:
        message = rf"^config\.learned='{code}' .*{refusal}.* one of .*rot .*hue"
        with pytest.raises(UsageError, match=message) as error:
            built(name, code)
        assert "\n" not in str(error.value)
        return
    method = built(name, code)
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), np.uint8)
    views = jax.eval_shape(make_both(method), jax.random.key(1), images)
    for view in (*views[True][:2], *views[False][:2]):
        assert view.images.shape == images.shape
        assert {each.shape for each in view.structure.values()} <= {(BATCH,)}
    if name == "essl":
        half = views[True].prediction.images.shape
        assert half[1:] == (SIDE // 2, SIDE // 2, 3)
        assert half[0] % BATCH == 0
        assert views[False].prediction.images.shape == half
    scored = {train: scores(method, views[train], train) for train in (True, False)}
    part = {"duet": "structure_loss", "essl": "prediction_loss"}.get(name, "nt_xent")
    assert part in scored[True]
    assert scored[True] == scored[False]


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_all_contrast_in_the_configured_way(name, reduction, monkeypatch):
    config = tiny.smoke.get_config()
    config.update(method=name, temperature=0.37)
    config.care.chunk = 2
    config.nt_xent.reduction = reduction
    method, nt_xent, seen = build.make_method(config, DATA[3]), losses.nt_xent, []

    def spy(one, other, temperature, mask=None, **options):
        seen.append((temperature, options.get("reduction")))
        return nt_xent(one, other, temperature, mask, **options)

    monkeypatch.setattr(losses, "nt_xent", spy)
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), np.uint8)
    views = jax.eval_shape(make_both(method), jax.random.key(1), images)
    scores(method, views[True], True)
    assert {*seen} == {(0.37, reduction)}
    assert len(seen) == (3 if name == "equimod" else 1)


@pytest.mark.parametrize(("name", "code"), TRAINED)
def test_trains(name, code):
    method = built(name, code)
    data = tiny.dataset(BATCH, BATCH, side=SIDE, channels=3)
    views = jax.jit(make_both(method))(jax.random.key(1), data.train.images)
    for view in (*views[True][:2], *views[False][:2]):
        assert (np.abs(view.images) <= 0.5 + 1e-6).all()
        for values in view.structure.values():
            assert ((values >= 0) & (values <= 1)).all()
    if name == "duet":
        drawn = np.concatenate([v.structure[code] for v in views[True][:2]])
        assert len(np.unique(drawn)) >= 2  # there is something to learn

    labels = jnp.asarray(data.train.labels)
    shared, train_views = canonical(method, views[True])
    _, evaluation_views = canonical(method, views[False])
    graphdef, params, stats = initial(shared)
    losses = []
    for _ in range(6):
        params, stats, metrics = update(
            shared, graphdef, params, stats, train_views, labels
        )
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    evaluated = score(shared, graphdef, params, stats, evaluation_views, labels)
    assert set(evaluated) == set(metrics)
    assert np.isfinite(list(evaluated.values())).all()


@pytest.mark.parametrize("code", TABLE)
@pytest.mark.parametrize("name", METHODS)
def test_grey_images(name, code):
    learns, predicts = TABLE[code]
    refusals = {"simclr": TRAINS, "care": TRAINS, "essl": predicts}
    refusal = refusals.get(name, learns)
    if code in NEEDS_COLOUR:
        with pytest.raises(UsageError, match=code) as error:
            built(name, code, channels=1)
        if refusal is TRAINS:
            assert "tiny" in str(error.value)  # the data set is named
        return
    if refusal is not TRAINS:
        with pytest.raises(UsageError, match=refusal):
            built(name, code, channels=1)
        return
    method = built(name, code, channels=1)
    images = tiny.dataset(BATCH, 1, side=SIDE).train.images
    views = jax.eval_shape(
        lambda key: method.make_views(key, images, train=True), jax.random.key(0)
    )
    assert views.first.images.shape == (BATCH, SIDE, SIDE, 1)


@pytest.mark.parametrize("name", METHODS)
def test_views_are_made_without_asking_the_host(name):
    """On a GPU the host would have to read the predicate of a branch, and wait."""
    config = tiny.smoke.get_config()
    config.update(method=name, learned="ron")
    config.augmentation.stack = ("sca", "ron", "fli", "jit", "gra", "blu", "sol")
    method = build.make_method(config, DATA[3])
    images = tiny.dataset(BATCH, 1, side=SIDE, channels=3).train.images
    text = str(
        jax.make_jaxpr(lambda key: method.make_views(key, images, train=True))(
            jax.random.key(0)
        )
    )
    assert "cond[" not in text
    assert "callback" not in text


def test_evaluation_shows_the_plain_image_and_reproduces():
    method = built("duet", "rot")
    images = tiny.dataset(4, 1, side=SIDE, channels=3).train.images
    views = method.make_views(jax.random.key(0), images, train=False)
    np.testing.assert_allclose(views.first.images, images / 255 - 0.5, atol=1e-6)
    np.testing.assert_array_equal(views.first.structure["rot"], 0.5)
    again = method.make_views(jax.random.key(0), images, train=False)
    np.testing.assert_array_equal(views.second.images, again.second.images)
    assert len(np.unique(views.second.structure["rot"])) == 4


def shown(name, code, *, train):
    """A method, the views it makes of a batch, and the labels."""
    method = built(name, code)
    data = tiny.dataset(BATCH, 1, side=SIDE, channels=3)
    views = method.make_views(jax.random.key(0), data.train.images, train=train)
    return method, views, jnp.asarray(data.train.labels)


def test_structure_weight_and_probe_in_the_total():
    method, views, labels = shown("duet", "rot", train=True)
    shared, views = canonical(method, views)
    _, _, metrics = update(shared, *initial(shared), views, labels)
    parts = (
        metrics["nt_xent"] + 1000 * metrics["structure_loss"] + metrics["online_loss"]
    )
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_prediction_weight_and_padding():
    """Rows of padding images have no part in the prediction loss."""
    method, views, labels = shown("essl", "ron", train=False)
    shared, views = canonical(method, views)
    metrics = score(shared, *initial(shared), views, labels)
    parts = metrics["nt_xent"] + metrics["online_loss"]
    weighted = method.prediction_weight * metrics["prediction_loss"]
    np.testing.assert_allclose(metrics["loss"], parts + weighted, rtol=1e-6)

    assert method.prediction_weight != 1
    (targets,) = views.prediction.targets.values()
    padding = 2 * len(targets) // BATCH  # `score` masks the last two images
    others = targets.at[-padding:].set((targets[-padding:] + 1) % 4)
    prediction = views.prediction._replace(targets={"ron": others})
    again = score(shared, *initial(shared), Views(*views[:2], prediction), labels)
    assert again["prediction_loss"] == metrics["prediction_loss"]


def test_swapped_views_have_the_same_losses():
    """Each view has its own target and its own content."""
    method, views, labels = shown("duet", "rot", train=True)
    shared, views = canonical(method, views)
    swapped = Views(views.second, views.first)
    _, _, one = update(shared, *initial(shared), views, labels)
    _, _, other = update(shared, *initial(shared), swapped, labels)
    for name in ("nt_xent", "structure_loss"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_probe_never_trains_the_encoder(name):
    method, views, labels = shown(name, "rot", train=True)
    graphdef, params, stats = initial(method)

    def loss(params, labels):
        networks = nnx.merge(graphdef, params, stats)
        return method.loss(networks, views, labels, None, train=True)[0]

    gradient = jax.jit(jax.grad(loss))
    one, other = gradient(params, labels), gradient(params, (labels + 1) % 3)
    for part in one:
        same = [
            bool((a == b).all())
            for a, b in zip(
                jax.tree.leaves(one[part]), jax.tree.leaves(other[part]), strict=True
            )
        ]
        assert all(same) == (part != "online_probe")


def test_essl_takes_the_predicted_code_out_of_the_stack():
    config = tiny.smoke.get_config()
    config.update(method="essl", learned="ron")
    config.augmentation.stack = ("sca", "ron", "fli")
    method = build.make_method(config, DATA[3])
    assert method.two_views.stack.codes == ("sca", "fli")


@pytest.mark.parametrize("code", ["blu", "gra"])
def test_von_mises_cannot_tell_the_ends_of_a_line_apart(code):
    config = tiny.smoke.get_config()
    config.learned = code
    config.augmentation.stack = (code,)
    config.duet.target = "von_mises"
    with pytest.raises(UsageError, match="use 'gaussian' or 'auto'"):
        build.make_method(config, DATA[3])


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("rot", "von_mises"),
        ("fli", "von_mises"),
        ("sca", "gaussian"),
        ("gra", "gaussian"),
    ],
)
def test_automatic_target(code, target):
    assert built("duet", code).groups[0].target == target


@pytest.mark.parametrize("bins", [1, 3, 64])
def test_bins_must_divide_the_features(bins):
    config = tiny.smoke.get_config()
    config.duet.num_bins = bins
    with pytest.raises(
        UsageError, match=rf"num_bins={bins} must .*32 features; use 2, 4"
    ):
        build.make_method(config, DATA[3])
