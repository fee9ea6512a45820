"""Monitors in the rows of a training: of which images and views they are."""

import numpy as np
import pytest
import tiny

from duet_jax.data.order import evaluation_order
from duet_jax.metrics.monitors import MONITORS
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.training import batches, monitors, plan
from duet_jax.training import compiled as steps

IMAGES, BATCH, TESTED = 7, 4, 9


def prepared(data, **changes):
    """Plan, state, feed and functions, without the training call, which is not made."""
    options = {"epochs": 3, "batch_size": BATCH, "steps_per_epoch": 2} | changes
    run = plan.make_plan(tiny.config(**options), data.facts)
    feed = batches.ResidentFeed(run, data)
    return run, steps.initial_state(run), feed, functions(run, feed)


def functions(run, feed):
    return steps.Compiled(
        train=None,
        evaluate=lambda *arguments: {"loss": 1.0, "examples": 1},
        keys=steps.make_keys(run),
        encode=steps._lower_encode(run, feed).compile() if run.monitored else None,
    )


@pytest.fixture(scope="module")
def data():
    return tiny.dataset(20, TESTED, channels=3)


@pytest.fixture(scope="module")
def measured(data):
    """Seven of nine images, in batches of four: not all, and with a part of a batch."""
    parts = prepared(data, monitor__images=IMAGES)
    assert parts[0].monitored == IMAGES
    run, state, feed, compiled = parts
    return parts, steps.evaluate(run, compiled, state, feed)


def test_they_are_of_the_first_images_and_the_same_views(data, measured):
    """Encoded in another way, and all at once."""
    (run, state, *_), found = measured
    encoder = FrozenEncoder(run.method, batch_size=64)
    encoder.use(state.params["encoder"], state.batch_stats["encoder"])
    images = data.test.images[evaluation_order(TESTED)[:IMAGES]]
    stack, views = run.method.two_views.stack, []
    for view in range(monitors.VIEWS):
        draws = monitors.draw(stack, IMAGES, view)
        views.append(encoder(images, stack, draws)["full"])
    # No view is like another, nor like the image as it is.
    rows = np.stack([encoder(images)["full"], *views])
    assert len(np.unique(rows.round(4), axis=0)) == monitors.VIEWS + 1
    expected = monitors.measure(rows[0], rows[1:].swapaxes(0, 1))
    assert set(expected) == set(MONITORS)
    for name, value in expected.items():
        # Float32, in which other batches are summed up in another order.
        assert found[name] == pytest.approx(value, rel=1e-3), name


def test_neither_the_seed_nor_the_batch_changes_the_sample(data, measured):
    (run, state, *_), found = measured
    other, _, feed, compiled = prepared(
        data, monitor__images=IMAGES, seed=3, batch_size=8
    )
    assert other.test_batch_size != run.test_batch_size
    again = steps.evaluate(other, compiled, state, feed)
    for name in MONITORS:
        assert again[name] == pytest.approx(found[name], rel=1e-3), name


def test_a_large_batch_is_not_encoded_whole(data):
    run = plan.make_plan(tiny.config(batch_size=8, monitor__images=3), data.facts)
    assert run.test_batch_size == 8
    assert run.monitored_rows == 3
    lowered = steps._lower_encode(run, batches.ResidentFeed(run, data))
    assert lowered.out_info.shape == (3, 32)


@pytest.mark.parametrize("changes", [{"monitor__images": 0}, {"monitor__images": 1}])
def test_a_run_without_monitors(data, changes):
    run, state, feed, compiled = prepared(data, **changes)
    assert compiled.encode is None
    assert not set(steps.evaluate(run, compiled, state, feed)) & set(MONITORS)


def test_a_single_test_image_has_no_monitors():
    assert monitors.sample_size(1024, 1) == 0
    assert monitors.sample_size(1024, 2) == 2
    assert monitors.sample_size(1024, 10_000) == 1024


def test_streamed_images_have_the_same_monitors(tmp_path):
    place = tiny.folder(tmp_path / "images", train=24, test=12)
    found = []
    for placement in ("device", "host"):
        config = tiny.config(
            batch_size=8,
            monitor__images=10,
            dataset__name="folder",
            dataset__path=str(place),
            dataset__placement=placement,
            dataset__workers=0,
            dataset__cache_dir=str(tmp_path / "cache"),
        )
        dataset = batches.open_dataset(config)
        assert dataset.streamed == (placement == "host")
        run = plan.make_plan(config, dataset.facts, streamed=dataset.streamed)
        feed = batches.make_feed(run, dataset)
        state = steps.initial_state(run)
        found.append(steps.evaluate(run, functions(run, feed), state, feed))
    assert set(found[0]) >= set(MONITORS)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_features_that_are_not_finite_are_no_crash():
    rows = np.ones((4, 3))
    rows[1, 1] = np.inf
    found = monitors.measure(rows, np.ones((4, 2, 3)))
    assert set(found) == set(MONITORS)
    assert np.isnan([*found.values()]).all()
