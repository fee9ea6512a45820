"""Whole runs: what they leave, how they go on, and what happens inside a step."""

import contextlib
import functools
import json
import logging

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from duet_jax import loggers
from duet_jax.errors import TrainingError, UsageError
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runtime.signals import Interruption
from duet_jax.training import batches, loop, plan, summary, train, train_step
from duet_jax.training import compiled as steps

ROW = {
    "step",
    "epoch",
    "split",
    "loss",
    "nt_xent",
    "structure_loss",
    "online_top1",
    "online_top5",
}
# What is of one split only.
OF_TRAINING = {"learning_rate", "images_per_second", "grad_norm", "skipped"}
LIKE_TRAINING = {
    f"augmented_{name}"
    for name in ("loss", "nt_xent", "retrieval_top1", "retrieval_top5", "online_top1")
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three epochs of two steps."""
    return functools.partial(
        tiny.config,
        epochs=3,
        dataset__cache_dir=str(tmp_path_factory.mktemp("data")),
    )


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """The directory of a run that nobody interrupted."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    train.train(settings(), directory)
    return directory


def final_state(directory, config):
    """The newest checkpoint, as it comes without knowing any shapes."""
    run = plan.make_plan(config, tiny.digits(config).facts)
    with Checkpoints(directory / "checkpoints") as saved:
        return saved.restore(steps.initial_shapes(run), saved.latest_step())


def comparable(row):
    return {k: v for k, v in row.items() if k != "images_per_second"}


def test_a_run_leaves_its_records(finished, settings):
    rows = loggers.read_rows(finished / "metrics.jsonl")
    seen = [(row["step"], row["epoch"], row["split"]) for row in rows]
    assert seen == [
        (2 * epoch, epoch, split) for epoch in (1, 2, 3) for split in ("train", "test")
    ]
    for row in rows:
        assert set(row) >= ROW
        own = OF_TRAINING if row["split"] == "train" else LIKE_TRAINING
        assert set(row) & (OF_TRAINING | LIKE_TRAINING) == own
        numbers = [value for name, value in row.items() if name != "split"]
        assert np.isfinite(numbers).all()
        assert 0 <= row["online_top1"] <= row["online_top5"] <= 1
        assert 0 <= row["structure_loss"] <= np.log(2)
        parts = row["nt_xent"] + 1000 * row["structure_loss"] + row["online_loss"]
        np.testing.assert_allclose(row["loss"], parts, rtol=1e-5)
    assert [row["examples"] for row in rows if row["split"] == "test"] == [355] * 3
    rates = [row["learning_rate"] for row in rows if row["split"] == "train"]
    np.testing.assert_allclose(rates, [4e-7, 4e-4, 2e-4], rtol=1e-5)
    assert json.loads((finished / "config.json").read_text()) == json.loads(
        settings().to_json()
    )
    with Image.open(finished / "figures" / "views.png") as views:
        assert views.width > 800
    with Image.open(finished / "figures" / "curves.png") as curves:
        assert curves.width > 800
    events = list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1


def test_newest_and_best_checkpoints_are_kept(finished):
    rows = loggers.read_rows(finished / "metrics.jsonl")
    accuracy = {r["step"]: r["online_top1"] for r in rows if r["split"] == "test"}
    with Checkpoints(finished / "checkpoints") as saved:
        kept, best = saved.all_steps(), saved.best().step
    assert accuracy[best] == max(accuracy.values())
    assert set(kept) == {4, 6, best}


def test_the_last_epoch_is_saved_whatever_the_interval(settings, tmp_path):
    train.train(settings(checkpoint__every=2, tensorboard=False), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.all_steps() == [4, 6]


def test_a_stopped_run_goes_on_to_the_same_bits(
    finished, settings, tmp_path, monkeypatch
):
    save = Checkpoints.save

    def save_and_die(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train.train(settings(), tmp_path)
    # What was measured after the checkpoint is measured again, not recorded twice.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 2.0, "split": "train", "loss": 1.0}\n{"ste')
    train.train(settings(), tmp_path)

    whole = loggers.read_rows(finished / "metrics.jsonl")
    parts = loggers.read_rows(tmp_path / "metrics.jsonl")
    assert [comparable(row) for row in parts] == [comparable(row) for row in whole]
    expected = final_state(finished, settings())
    actual = final_state(tmp_path, settings())
    assert int(actual.step) == 6
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_finished_run_is_left_alone(finished, settings, caplog):
    before = (finished / "metrics.jsonl").read_bytes()
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.train(settings(), finished)
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert "finished at step 6 already" in caplog.text


def test_another_configuration_is_refused(finished, settings):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(
        UsageError, match=r"seed: 0 -> 1.*another, such as --workdir=\S+-seed1, or"
    ):
        train.train(settings(seed=1), finished)
    assert (finished / "config.json").read_bytes() == before


def test_a_broken_loss_stops_the_run(settings, tmp_path):
    """Two epochs of sound updates lie behind it."""
    config = settings(optimizer__learning_rate=1e30, warmup_epochs=3)
    with pytest.raises(TrainingError) as stopped:
        train.train(config, tmp_path)
    assert "the update of step" in str(stopped.value)
    assert "is not finite" in str(stopped.value)
    (path,) = tmp_path.glob("nonfinite_step_*.json")
    broken = json.loads(path.read_text())
    with Checkpoints(tmp_path / "checkpoints") as saved:
        steps_ = saved.all_steps()
        assert saved.newest_intact() == (steps_[-1] if steps_ else None)
        assert all(step <= broken["step"] for step in steps_)
    last = steps_[-1] if steps_ else None
    said = f"that of step {last}" if steps_ else "there is no checkpoint yet"
    assert said in str(stopped.value)
    assert len(broken["rows"]) == 32


def nan_from(step, update):
    """An update whose loss and gradient are NaN at `step` of the run."""

    def make(*arguments):
        plain = update(*arguments)

        def broken(state, key, images, labels):
            images = jnp.where(state.step == step, jnp.nan, images.astype(jnp.float32))
            return plain(state, key, images, labels)

        return broken

    return make


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_single_broken_update(finished, settings, tmp_path, monkeypatch, policy):
    """The fourth of six."""
    update = nan_from(3, train_step.make_train_step)
    monkeypatch.setattr(train_step, "make_train_step", update)
    config = settings(on_nonfinite=policy)
    if policy == "stop":
        with pytest.raises(TrainingError, match=r"step 3 .*good checkpoint .* step 2;"):
            train.train(config, tmp_path)
        assert (tmp_path / "nonfinite_step_3.json").exists()
        rows = loggers.read_rows(tmp_path / "metrics.jsonl")
        assert [row["step"] for row in rows] == [2, 2]
        return
    train.train(config, tmp_path)
    rows = loggers.read_rows(tmp_path / "metrics.jsonl")
    skipped = [row["skipped"] for row in rows if row["split"] == "train"]
    assert skipped == [0, 1, 0]
    assert all(np.isfinite(row["loss"]) for row in rows)
    state = final_state(tmp_path, config)
    assert int(state.step) == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_row_of_skipped_updates_ends_the_run(settings, tmp_path, monkeypatch):
    def make(*arguments, plain=train_step.make_train_step):
        update = plain(*arguments)
        return lambda state, key, images, labels: update(
            state, key, images * jnp.nan, labels
        )

    monkeypatch.setattr(train_step, "make_train_step", make)
    with pytest.raises(TrainingError, match="none of the 2 updates up to step 2 was"):
        train.train(settings(on_nonfinite="skip"), tmp_path)


# --- inside a run ---------------------------------------------------------------------


class Recorder:
    """Stands in for `Record` where nothing is to be written."""

    def __init__(self):
        self.calls = []
        self.newest_test = {"online_top1": 0.0}

    def train_call(self, step, scores, waited):
        assert waited is None
        self.calls.append((step, scores))

    def test(self, step, measures):
        (evaluate,) = measures
        self.newest_test = evaluate()

    def restart_clock(self):
        pass

    def flush(self):
        pass

    def row(self):
        return {}


class NoCheckpoints:
    def save(self, state, scores, row):
        self.state = state

    def wait(self):
        pass


def prepared(config, data):
    """Plan, state, data on the device and compiled functions."""
    run = plan.make_plan(config, data.facts)
    feed = batches.ResidentFeed(run, data)
    return run, steps.initial_state(run), feed, steps.compile_functions(run, feed)


def copied(state):
    """A state to be donated."""
    return jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)


@pytest.fixture(scope="module")
def small():
    """A run on 20 images in batches of 4, evaluated on 7."""
    config = tiny.config(epochs=3, batch_size=4, steps_per_epoch=5)
    return prepared(config, tiny.dataset(20, 7))


def test_nothing_is_compiled_or_copied_during_training(small, tmp_path):
    run, state, feed, compiled = small
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compilations.append(event)
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    jax.jit(lambda x: x + 1)(jnp.ones(3))
    assert compilations  # the listener does hear
    compilations.clear()
    recorder, saved = Recorder(), NoCheckpoints()
    training = loop.Loop(
        plan=run,
        directory=tmp_path,
        compiled=compiled,
        feed=feed,
        checkpoints=saved,
        record=recorder,
        interruption=Interruption(),
    )
    training.run(copied(state), 0)
    assert compilations == []
    assert [step for step, _ in recorder.calls] == list(range(1, 16))
    assert int(saved.state.step) == 15


def first_arguments(feed):
    """The arguments of the run's first training call."""
    with contextlib.closing(feed.training(0)) as calls:
        return next(calls)


def test_a_hidden_copy_in_the_step_would_be_refused(small):
    *_, state, feed, compiled = small
    *data, order = first_arguments(feed)
    with (
        jax.transfer_guard("disallow"),
        pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"),
    ):
        compiled.train(state, compiled.keys.training, *data, np.asarray(order))


def test_every_test_example_counts_once(small):
    run, state, feed, compiled = small
    assert run.test_batch_size == 4
    images, labels = next(feed.testing())
    assert len(labels) == 8
    result = steps.evaluate(run, compiled, state, feed)
    assert result["examples"] == 7

    @jax.jit
    def predict(images):
        networks = nnx.merge(run.graphdef, state.params, state.batch_stats)
        views = run.method.make_views(jax.random.key(0), images, train=False)
        features = networks.encoder(views.first.images, train=False)
        return networks.online_probe(features).argmax(1)

    right = float((predict(images[:7]) == labels[:7]).mean())
    np.testing.assert_allclose(result["online_top1"], right, rtol=1e-6)
    again = steps.evaluate(run, compiled, state, feed)
    assert again == result


def test_evaluation_does_not_see_the_padding(small, monkeypatch):
    run, state, feed, compiled = small
    result = steps.evaluate(run, compiled, state, feed)
    images, labels = next(feed.testing())
    noisy = images.at[7:].set(255), labels.at[7:].set(2)
    monkeypatch.setattr(feed, "testing", lambda: [noisy] * 2)
    other = steps.evaluate(run, compiled, state, feed)
    for name, value in result.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6, err_msg=name)


def test_a_step_is_what_its_parts_say(monkeypatch):
    """The first call, against the method by hand on the batch that the keys name.

    In float64: there are two programs, and in float32 which of them lets an input near
    zero through a ReLU depends on the processor.
    """
    wide = many_devices.in_float64(train_step.initial_state)
    monkeypatch.setattr(train_step, "initial_state", wide)
    config = tiny.config(epochs=3, batch_size=4, steps_per_epoch=5)
    data = tiny.dataset(20, 7)
    with jax.enable_x64(True):
        run = many_devices.wide_plan(config, data.facts, jax.devices()[:1])
        feed = batches.ResidentFeed(run, data)
        check_step(run, feed, steps.initial_state(run))


def check_step(run, feed, state):
    compiled = steps.compile_functions(run, feed)
    key = train_step.stream(run.seed, train_step.TRAINING)
    *data, order = first_arguments(feed)
    after, scores = compiled.train(copied(state), key, *data, order)
    images, labels = (x[order[0]] for x in data)
    views = run.method.make_views(jax.random.fold_in(key, 0), images, train=True)

    def loss(params):
        networks = nnx.merge(run.graphdef, params, state.batch_stats)
        return run.method.loss(networks, views, labels, None, train=True)

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, _), gradients = differentiate(state.params)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(scores["loss"][0], value, rtol=1e-9)
    moments = after.opt_state[0].mu
    for moment, gradient in zip(
        jax.tree.leaves(moments), jax.tree.leaves(gradients), strict=True
    ):
        # Biases in front of a normalisation have no gradient but rounding noise.
        limit = 1e-10 + 1e-8 * float(jnp.abs(gradient).max())
        np.testing.assert_allclose(moment / 0.1, gradient, atol=limit, rtol=0)
    changed = [
        bool((a != b).any())
        for a, b in zip(
            jax.tree.leaves(after.batch_stats),
            jax.tree.leaves(state.batch_stats),
            strict=True,
        )
    ]
    assert all(changed)


@pytest.mark.parametrize("unroll", [True, False])
def test_two_updates_in_a_call_are_two_calls(unroll):
    """Without networks: how a call walks through its updates."""

    def update(state, key, images, labels):
        params = state.params + images.sum() + jax.random.uniform(key)
        return state._replace(step=state.step + 1, params=params), {"loss": params}

    begin = train_step.TrainState(
        jnp.zeros((), jnp.int32), jnp.zeros(()), {}, (), jnp.ones((), bool)
    )
    images, labels = jnp.arange(6.0), jnp.zeros(6, jnp.int32)
    order = jnp.array([[0, 1], [2, 3], [4, 5]])
    key = jax.random.key(0)

    def pick(step, images, labels, order):
        rows = order[step % len(order)]
        return images[rows], labels[rows]

    one = steps.make_train_call(update, pick, 1, unroll=unroll)
    three = steps.make_train_call(update, pick, 3, unroll=unroll)
    state, scores = begin, []
    for _ in range(6):  # two epochs
        state, metrics_of_step = one(state, key, images, labels, order)
        scores.append(float(metrics_of_step["loss"][0]))
    walked, first = three(begin, key, images, labels, order)
    walked, second = three(walked, key, images, labels, order)
    np.testing.assert_allclose([*first["loss"], *second["loss"]], scores, rtol=1e-6)
    assert int(walked.step) == int(state.step) == 6


@pytest.mark.parametrize(
    ("number", "wanted", "most", "divisor"),
    [
        (48, 50, 48, 48),
        (97, 50, 97, 97),
        (97, 50, 50, 1),
        (97, 1, 97, 1),
        (12, 5, 12, 6),
        (12, 5, 5, 4),
        (1251, 50, 1251, 139),
        (1, 50, 1, 1),
    ],
)
def test_steps_per_call_divides_the_epoch(number, wanted, most, divisor):
    assert plan.nearest_divisor(number, wanted, most) == divisor


@pytest.mark.parametrize("method", ["duet", "simclr", "essl"])
def test_bfloat16_computes_in_16_bits_and_keeps_32(method):
    common = {"method": method, "batch_size": 12, "steps_per_epoch": 1}
    wide = tiny.config(**common)
    narrow = tiny.config(**common, compute_dtype="bfloat16")
    data = tiny.dataset(12, 4)
    jaxprs = {}
    for config in (wide, narrow):
        run = plan.make_plan(config, data.facts)
        state = steps.initial_shapes(run)
        update = train_step.make_train_step(
            run.method, run.graphdef, run.optimizer, run.rate
        )
        batch = (
            jax.ShapeDtypeStruct((12, 16, 16, 1), jnp.uint8),
            jax.ShapeDtypeStruct((12,), jnp.int32),
        )
        after, scores = jax.eval_shape(update, state, jax.random.key(0), *batch)
        # As a loop, which is how a GPU runs it: types and shapes must not change.
        call = steps.make_train_call(
            update, lambda step, *batch: batch, 2, unroll=False
        )
        looped, _ = jax.eval_shape(call, state, jax.random.key(0), *batch)
        assert looped == jax.eval_shape(lambda state: state, state)
        for leaf in jax.tree.leaves((after.params, after.batch_stats)):
            assert leaf.dtype == jnp.float32
        for leaf in jax.tree.leaves(scores):
            assert leaf.dtype == jnp.float32
        jaxprs[config.compute_dtype] = str(
            jax.make_jaxpr(update)(state, jax.random.key(0), *batch)
        )
    # The convolutions of the one are float32, those of the other are not.
    convolutions = {
        name: [line for line in text.splitlines() if "conv_general_dilated[" in line]
        for name, text in jaxprs.items()
    }
    assert not any("bf16" in line for line in convolutions["float32"])
    assert convolutions["bfloat16"]
    assert all("bf16[" in line.split("=")[0] for line in convolutions["bfloat16"])


@pytest.mark.parametrize("method", ["simclr", "essl"])
def test_other_methods_train_on_a_folder(method, tmp_path):
    images, labels = tiny.dataset(16, 4, channels=3).train
    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = tmp_path / "images" / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
    config = tiny.config(
        method=method,
        learned="ron",
        epochs=1,
        batch_size=8,
        dataset__name="folder",
        dataset__path=str(tmp_path / "images"),
        dataset__cache_dir=str(tmp_path / "cache"),
        augmentation__stack=("sca", "fli", "jit", "gra", "blu"),
    )
    train.train(config, tmp_path / "run")
    row = loggers.read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["split"] == "test"
    assert row["examples"] == 16
    part = {"essl": 0.4 * row.get("prediction_loss", 0), "simclr": 0}[method]
    assert ("prediction_loss" in row) == (method == "essl")
    total = row["nt_xent"] + part + row["online_loss"]
    np.testing.assert_allclose(row["loss"], total, rtol=1e-5)


@pytest.mark.parametrize(("epochs", "highest"), [(1, "4e-07"), (3, "0.00027")])
def test_a_warm_up_that_is_the_whole_run_is_told(epochs, highest, caplog, tmp_path):
    config = tiny.config(epochs=epochs, warmup_epochs=epochs)
    facts = tiny.dataset(64, 32).facts
    with caplog.at_level(logging.INFO, "duet_jax"):
        summary.start_lines(plan.make_plan(config, facts), tmp_path, 0)
    (told,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert f"the learning rate is at most {highest}, not" in told
    caplog.clear()
    config = tiny.config(epochs=epochs, warmup_epochs=epochs - 1)
    summary.start_lines(plan.make_plan(config, facts), tmp_path, 0)
    assert not any(r.levelname == "WARNING" for r in caplog.records)
