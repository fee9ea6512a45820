"""What becomes of an update that is not finite, and what is said of it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from duet_jax import optim
from duet_jax.data import TrainingRows
from duet_jax.methods.base import Views
from duet_jax.models.batch_norm import BatchNorm
from duet_jax.training import batches as feeds
from duet_jax.training import compiled, nonfinite, plan, train_step
from duet_jax.types import Split, View

BATCH, SIDE = 6, 4
# What the label of a toy's whole batch asks for.
FINE, NAN_IMAGES, INF_GRADIENT, HUGE_GRADIENT = range(4)
BROKEN = (NAN_IMAGES, INF_GRADIENT, HUGE_GRADIENT)


class ToyNetworks(nnx.Module):
    def __init__(self, rngs):
        self.zoom = nnx.Linear(SIDE**2, 5, rngs=rngs)  # behind `middle` in the alphabet
        self.middle = BatchNorm(5)
        self.last = nnx.Linear(5, 1, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A method of a few parameters that breaks in the way its labels say."""

    def init(self, rngs):
        return ToyNetworks(rngs)

    def draws(self, key, n):
        draws = {"add": {"value": self._draw(key, n)}}
        return {"first": draws, "second": draws}

    def _draw(self, key, n):
        return jax.random.uniform(key, (n,))

    def make_views(self, key, images, *, train):
        value = self._draw(key, len(images))
        images = images / 255 + value[:, None, None, None]
        return Views(View(images, {"add": value}), View(images, {"add": value}))

    def loss(self, networks, views, labels, mask, *, train):
        inputs = views.first.images.reshape(len(labels), -1)
        inputs = jnp.where(labels[:, None] == NAN_IMAGES, jnp.nan, inputs)
        hidden = networks.middle(networks.zoom(inputs), train=train)
        part = jnp.mean((networks.last(hidden) - 1) ** 2)
        # Nothing as a number, which has a gradient of its own.
        kernel = networks.last.kernel[...]
        nothing = jnp.sum(kernel - jax.lax.stop_gradient(kernel))
        root = jnp.sqrt(jnp.where(labels[0] == INF_GRADIENT, nothing, 1.0))
        huge = jnp.where(labels[0] == HUGE_GRADIENT, 1e25, 0.0) * nothing
        loss = part + root + huge
        return loss, {"loss": loss, "toy_loss": part}


METHOD = Toy()
GRAPHDEF = train_step.graph_definition(METHOD)
OPTIMIZER = optax.adamw(lambda count: 0.1 / (1 + count))


def rate(step):
    return 0.1 / (1 + step)


def initial():
    return train_step.initial_state(METHOD, OPTIMIZER, jax.random.key(0))


def batches(kinds):
    """One batch of each kind: images [steps, batch, ...] and labels [steps, batch]."""
    rng = np.random.default_rng(len(kinds))
    images = rng.integers(0, 255, (len(kinds), BATCH, SIDE, SIDE, 1)).astype(np.uint8)
    return images, np.repeat(np.array(kinds, np.int32)[:, None], BATCH, axis=1)


def pick(step, images, labels):
    """As of a stream: a call is given its own batches."""
    index = step % len(labels)
    return Split(images[index], labels[index])


@functools.cache
def make_call(policy, count, unroll=False):
    update = train_step.make_train_step(METHOD, GRAPHDEF, OPTIMIZER, rate, policy)
    call = compiled.make_train_call(update, pick, count, unroll=unroll)
    return jax.jit(call)


KEY = jax.random.key(1)


def differ(one, other):
    """Names of the arrays that are not the same, bit for bit."""
    pairs = zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True)
    return {
        jax.tree_util.keystr(path)
        for (path, a), b in pairs
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    }


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_breaks_as_it_says(kind):
    state, (images, labels) = initial(), batches([kind])
    views = METHOD.make_views(KEY, images[0], train=True)
    (loss, _), gradients = train_step.differentiate(
        METHOD, GRAPHDEF, state, views, labels[0]
    )
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert np.isfinite(loss) == (kind != NAN_IMAGES)
    assert finite == (kind == HUGE_GRADIENT)


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_stop_leaves_the_state_before_the_broken_step(kind, unroll):
    images, labels = batches([FINE, FINE, kind, FINE])
    call = make_call("stop", 4, unroll)
    state, scores = call(initial(), KEY, images, labels)
    fine, _ = call(initial(), KEY, images, np.zeros_like(labels))
    assert int(state.step) == 2
    assert not state.sound
    assert int(fine.step) == 4
    assert fine.sound
    np.testing.assert_array_equal(scores["skipped"], [0, 0, 1, 1])
    assert np.isfinite(scores["grad_norm"][:2]).all()
    assert not np.isfinite(scores["grad_norm"][2])
    # The same as after two updates, counts of the optimiser included.
    expected, _ = make_call("stop", 2, unroll)(initial(), KEY, images[:2], labels[:2])
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if a.dtype != bool:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert optax.tree_utils.tree_get(state.opt_state[0], "count") == 2
    # A call that had been sent off already changes nothing, though its batches are
    # finite.
    after, scores = call(state, KEY, *batches([FINE] * 4))
    assert not differ(after, state)
    np.testing.assert_array_equal(scores["skipped"], [1, 1, 1, 1])


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_skip_leaves_out_the_broken_step_alone(kind, unroll):
    images, labels = batches([FINE, FINE, kind, FINE])
    state, scores = make_call("skip", 4, unroll)(initial(), KEY, images, labels)
    np.testing.assert_array_equal(scores["skipped"], [0, 0, 1, 0])
    np.testing.assert_allclose(scores["learning_rate"], rate(np.arange(4)), rtol=1e-6)
    assert state.sound
    assert int(state.step) == 4
    one = make_call("skip", 1, unroll)
    expected = initial()
    for index in (0, 1):
        expected, _ = one(expected, KEY, images[index][None], labels[index][None])
    expected = jax.tree.map(  # what counts goes on: the schedule does not lag behind
        lambda x: x + 1 if x.dtype == jnp.int32 else x, expected
    )
    assert int(expected.step) == 3
    expected, _ = one(expected, KEY, images[3][None], labels[3][None])
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert len(counts) == 2
    assert all(count == 4 for count in counts)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_update_leaves_no_trace_in_a_momentum(name, policy):
    optimizer = optim.make(rate, {"name": name, "trust_coefficient": 0.1})
    update = train_step.make_train_step(METHOD, GRAPHDEF, optimizer, rate, policy)
    call = jax.jit(compiled.make_train_call(update, pick, 1, unroll=True))
    state = train_step.initial_state(METHOD, optimizer, jax.random.key(0))
    states = []
    for kind in (FINE, INF_GRADIENT, FINE):
        state, _ = call(state, KEY, *batches([kind]))
        states.append(state)
    before, broken, after = states
    counters = {".step", ".opt_state[1][1].count", ".opt_state[2].count"}
    assert differ(before, broken) <= (counters if policy == "skip" else {".sound"})
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(before.opt_state))
    assert bool(differ(broken, after)) == (policy == "skip")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_the_norm_is_that_of_the_whole_gradient():
    images, labels = batches([FINE])
    state = initial()
    _, scores = make_call("skip", 1)(state, KEY, images, labels)
    views = METHOD.make_views(jax.random.fold_in(KEY, 0), images[0], train=True)
    gradients = train_step.differentiate(METHOD, GRAPHDEF, state, views, labels[0])[1]
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradients)])
    expected = np.linalg.norm(flat.astype(np.float64))
    np.testing.assert_allclose(scores["grad_norm"], [expected], rtol=1e-5)


def test_a_learning_rate_that_breaks_the_parameters():
    """The update is finite and its result is not: the one after it is left out."""
    optimizer = optax.sgd(3e38)
    update = train_step.make_train_step(METHOD, GRAPHDEF, optimizer, lambda step: 3e38)
    call = jax.jit(compiled.make_train_call(update, pick, 3, unroll=False))
    begin = train_step.initial_state(METHOD, optimizer, jax.random.key(0))
    state, scores = call(begin, KEY, *batches([FINE] * 3))
    first = int(np.argmax(scores["skipped"]))
    assert int(state.step) == first >= 1
    assert not state.sound
    assert scores["skipped"][first:].all()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_donated_memory_is_used_again(policy):
    update = train_step.make_train_step(METHOD, GRAPHDEF, OPTIMIZER, rate, policy)
    call = compiled.make_train_call(update, pick, 2, unroll=False)
    state = initial()
    lowered = jax.jit(call, donate_argnums=0).lower(state, KEY, *batches([FINE] * 2))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= size


def unguarded(state, key, images, labels):
    """An update as it would be if everything were always finite."""
    views = METHOD.make_views(key, images, train=True)
    (_, (_, batch_stats)), gradients = train_step.differentiate(
        METHOD, GRAPHDEF, state, views, labels
    )
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_finite_update_is_the_same_bit_for_bit(policy):
    guarded = train_step.make_train_step(METHOD, GRAPHDEF, OPTIMIZER, rate, policy)
    # Optimised, XLA contracts products and sums to other ends of the last bit.
    exact = functools.partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 0}
    )
    one, other = exact(guarded), exact(unguarded)
    images, labels = batches([FINE] * 4)
    a = b = initial()
    for step, batch in enumerate(zip(images, labels, strict=True)):
        key = jax.random.fold_in(KEY, step)
        (a, scores), b = one(a, key, *batch), other(b, key, *batch)
        assert not differ(a, b)
        assert scores["skipped"] == 0
    assert differ(a.params, initial().params)


# --- the diagnosis --------------------------------------------------------------------

NUM_TRAIN = 48


def tiny_plan(method, batch_size=12):
    config = tiny.config(method=method, batch_size=batch_size, steps_per_epoch=4)
    return plan.make_plan(config, tiny.dataset(NUM_TRAIN, 4).facts)


def breaking(method):
    """The same method with a number that makes one part of its loss infinite."""
    if hasattr(method, "structure_weight"):
        return dataclasses.replace(method, structure_weight=float("inf"))
    if hasattr(method, "prediction_weight"):
        return dataclasses.replace(method, prediction_weight=float("inf"))
    cold = dataclasses.replace(method.two_views, temperature=0.0)
    return dataclasses.replace(method, two_views=cold)


def read(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("method", ["duet", "simclr", "essl"])
def test_diagnosis_of_every_method(method, tmp_path):
    run = tiny_plan(method)
    run = run._replace(method=breaking(run.method))
    data = tiny.dataset(NUM_TRAIN, 4)
    feed = feeds.ResidentFeed(run, data)
    step = 6  # the third of the second epoch
    state = compiled.initial_state(run)
    state = state._replace(step=jnp.full_like(state.step, step))
    error = nonfinite.stop(run, feed, state, tmp_path, last_good=4)
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_6.json"]
    found = read(tmp_path / "nonfinite_step_6.json")
    assert (found["step"], found["epoch"]) == (6, 1)
    part = {"simclr": "nt_xent=nan, loss=nan", "duet": "loss=inf", "essl": "loss=inf"}
    assert part[method] in found["causes"][0]
    assert found["metrics"]["loss"] == part[method].rpartition("=")[2]
    text = str(error)
    assert text.startswith(f"the update of step 6 is not finite: {part[method]}")
    for said in ("of step 4", "nonfinite_step_6.json", "on_nonfinite=skip"):
        assert said in text
    assert "\n" not in text
    # The batch: the images are known by their rows.
    np.testing.assert_array_equal(found["labels"], data.train.labels[found["rows"]])
    assert len(set(found["rows"])) == 12
    # What was drawn, and the structure that was read out of it.
    key = jax.random.fold_in(compiled.make_keys(run).training, step)
    images = data.train.images[np.array(found["rows"])]
    views = jax.jit(functools.partial(run.method.make_views, train=True))(key, images)
    for name in ("first", "second"):
        seen, view = found["views"][name], getattr(views, name)
        assert seen["finite"] == [True] * 12
        assert set(seen["structure"]) == set(view.structure)
        for code, values in view.structure.items():
            np.testing.assert_allclose(seen["structure"][code], values, atol=1e-6)
        height = np.array(seen["drawn"]["sca"]["height"])
        np.testing.assert_allclose(view.structure["sca"], (16 - height) / 15, atol=1e-6)
    if method == "essl":
        targets = found["views"]["prediction"]["targets"]
        assert targets.keys() == views.prediction.targets.keys()
        for code, values in views.prediction.targets.items():
            np.testing.assert_allclose(targets[code], values, atol=1e-6)
    check_layers(found["layers"], state)


def check_layers(layers, state):
    names = [layer["layer"] for layer in layers]
    assert names[:3] == ["encoder.stem", "encoder.stem_norm", "encoder.stage1.0.conv1"]
    assert names.index("encoder.final_norm") < names.index("projector.hidden1")
    flat = [np.ravel(x) for x in jax.tree.leaves(state.params)]
    whole = np.linalg.norm(np.concatenate(flat).astype(np.float64))
    np.testing.assert_allclose(
        np.linalg.norm([layer["parameters"] for layer in layers]), whole, rtol=1e-6
    )
    stem = np.linalg.norm(np.ravel(state.params["encoder"]["stem"]["kernel"]))
    np.testing.assert_allclose(layers[0]["parameters"], stem, rtol=1e-6)
    assert "statistics" not in layers[0]
    # Means of 0 and variances of 1.
    size = state.batch_stats["encoder"]["stem_norm"]["var"].size
    np.testing.assert_allclose(layers[1]["statistics"], size**0.5, rtol=1e-6)
    assert "nan" in {layer["gradient"] for layer in layers}


class ToyFeed:
    """Batches of one call at a time, as of a stream."""

    def __init__(self, kinds, steps_per_call):
        self._kinds, self._size = kinds, steps_per_call
        self.rows = TrainingRows(0, 16 * BATCH, 16, BATCH, (0, BATCH))

    pick_train = staticmethod(pick)

    def training(self, start):
        images, labels = batches(self._kinds)
        for first in range(start, len(self._kinds), self._size):
            chosen = slice(first, first + self._size)
            yield images[chosen], labels[chosen]


def toy_plan(steps_per_call):
    return tiny_plan("simclr", batch_size=BATCH)._replace(
        method=METHOD,
        graphdef=GRAPHDEF,
        optimizer=OPTIMIZER,
        rate=rate,
        steps_per_call=steps_per_call,
    )


@pytest.mark.parametrize(
    ("kind", "causes"),
    [
        (NAN_IMAGES, r"toy_loss=nan, loss=nan; the gradient of last and 2 more .*nan"),
        (INF_GRADIENT, r"the gradient of last is inf while the loss is [\d.]+"),
        (HUGE_GRADIENT, r"the norm of the gradient, .*e\+25, overflows when squared"),
        (FINE, r"computed again it is finite, so .*"),
    ],
)
def test_causes_from_the_state_that_was_left(kind, causes, tmp_path):
    run, feed = toy_plan(2), ToyFeed([FINE] * 5 + [kind] + [FINE] * 2, 2)
    call, state = make_call("stop", 2), initial()
    key = compiled.make_keys(run).training
    for arguments in feed.training(0):
        state, _ = call(state, key, *arguments)
    assert int(state.step) == (5 if kind in BROKEN else 8)
    state = state._replace(step=jnp.full_like(state.step, 5))
    message = (
        rf"of step 5 is not finite: {causes}\. It .*; there is no checkpoint yet; "
    )
    with pytest.raises(RuntimeError, match=message):
        raise nonfinite.stop(run, feed, state, tmp_path, last_good=None)
    found = read(tmp_path / "nonfinite_step_5.json")
    # The draws are those of the update: its key and its batch were found again.
    drawn = jax.random.uniform(jax.random.fold_in(key, 5), (BATCH,))
    np.testing.assert_allclose(
        found["views"]["first"]["drawn"]["add"]["value"], drawn, rtol=1e-6
    )
    assert [layer["layer"] for layer in found["layers"]] == ["zoom", "middle", "last"]
    assert found["labels"] == [kind] * BATCH


def test_parameters_that_were_broken_before():
    run, feed = toy_plan(1), ToyFeed([FINE], 1)
    state = initial()
    broken = state.params["middle"]["scale"].at[0].set(jnp.inf)
    state.params["middle"]["scale"] = broken
    found = nonfinite.diagnose(run, feed, state)
    first, *later = found["causes"]
    assert first == "the parameters of middle were not finite before it"
    assert later


def test_a_full_disk_does_not_hide_the_cause(tmp_path):
    run, feed = toy_plan(1), ToyFeed([NAN_IMAGES], 1)
    missing = tmp_path / "missing"
    error = nonfinite.stop(run, feed, initial(), missing, 3)
    assert "toy_loss=nan" in str(error)
    assert "could not be written (No such file or directory)" in str(error)


def test_a_diagnosis_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "diagnosis.json"
    values = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    numbers = {"one": np.float32("nan"), "n": np.int32(3)}
    nonfinite.write(path, {"values": values, **numbers})
    before = path.read_text()
    assert read(path) == {"values": ["nan", "inf", "-inf", 1.5], "one": "nan", "n": 3}
    with pytest.raises(TypeError):
        nonfinite.write(path, {"values": object()})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
