"""Images on the device or streamed to it: the same batches, the same training."""

import contextlib
import functools

import jax
import many_devices
import numpy as np
import pytest
import tiny
from PIL import Image

from duet_jax import loggers
from duet_jax.data import StreamedDataset, load_dataset, stream_dataset
from duet_jax.data.order import evaluation_order
from duet_jax.errors import UsageError
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runtime import devices
from duet_jax.training import batches, plan, train, train_step
from duet_jax.training import compiled as steps
from duet_jax.types import Dataset, Split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 training and 21 test images in colour, some of odd sizes."""
    root = tmp_path_factory.mktemp("images")
    for split, part in zip(
        ("train", "test"), tiny.dataset(48, 21, channels=3)[1:3], strict=True
    ):
        for index, (image, label) in enumerate(zip(*part, strict=True)):
            place = root / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image)
            if index % 3 == 0:
                picture = picture.resize((16 + index % 7, 20))
            picture.save(place / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def settings(folder, tmp_path_factory):
    """Two epochs of three steps on the folder."""
    return functools.partial(
        tiny.config,
        epochs=2,
        batch_size=16,
        steps_per_epoch=3,
        dataset__name="folder",
        dataset__path=str(folder),
        dataset__cache_dir=str(tmp_path_factory.mktemp("data")),
        dataset__workers=1,
    )


def both(config):
    """The folder, decoded and streamed."""
    options = {
        "path": config.dataset.path,
        "image_size": 16,
        "cache_dir": config.dataset.cache_dir,
    }
    return load_dataset("folder", **options), stream_dataset("folder", **options)


def batches_of(feed, start):
    """All training batches from a step on, as arrays."""
    found = []
    with contextlib.closing(feed.training(start)) as calls:
        for number, arguments in enumerate(calls):
            found.append(feed.pick_train(np.int32(start + number), *arguments))
    return found


@pytest.mark.parametrize("start", [0, 2, 3, 5])
def test_both_make_the_same_batches(settings, start):
    config = settings()
    resident, streamed = both(config)
    assert streamed.facts == resident.facts
    run = plan.make_plan(config, resident.facts)
    ours = batches_of(batches.ResidentFeed(run, resident), start)
    theirs = batches_of(batches.StreamedFeed(run, streamed, workers=0), start)
    assert len(ours) == len(theirs) == 6 - start
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    if start == 0:  # an epoch shows every image once; the epochs differ
        whole = np.concatenate([batch.images for batch in ours[:3]])
        assert len(np.unique(whole.reshape(48, -1), axis=0)) == 48
        assert (np.asarray(ours[0].images) != np.asarray(ours[3].images)).any()


def test_both_evaluate_the_same_batches(settings):
    resident, streamed = both(settings())
    run = plan.make_plan(settings(), resident.facts)
    ours, theirs = (
        batches.ResidentFeed(run, resident),
        batches.StreamedFeed(run, streamed, workers=0),
    )
    assert run.facts.num_test == 21
    pairs = zip(ours.testing(), theirs.testing(), strict=True)
    for batch, (one, other) in enumerate(pairs):
        first = ours.pick_test(np.int32(batch), *one)
        second = theirs.pick_test(np.int32(batch), *other)
        for left, right in zip(first, second, strict=True):
            np.testing.assert_array_equal(left, right)


def test_both_start_with_the_same_picture(settings):
    resident, streamed = both(settings())
    run = plan.make_plan(settings(), resident.facts)
    np.testing.assert_array_equal(
        batches.ResidentFeed(run, resident).first_images(),
        batches.StreamedFeed(run, streamed, workers=0).first_images(),
    )


def test_both_train_to_the_same_parameters(folder, monkeypatch):
    """In float64, where the rounding of two programs is no matter."""
    monkeypatch.setattr(
        train_step,
        "initial_state",
        many_devices.in_float64(train_step.initial_state),
    )
    config = many_devices.configuration("duet")
    config.augmentation.stack = ("sca", "rot")
    config.dataset.path, config.dataset.cache_dir = str(folder), str(folder / ".cache")
    resident, streamed = both(config)
    with jax.enable_x64(True):
        run = many_devices.wide_plan(config, resident.facts, jax.devices())
        one = many_devices.trained(run, batches.ResidentFeed(run, resident))
        other = many_devices.trained(
            run, batches.StreamedFeed(run, streamed, workers=2)
        )
    for name in set(one) - {"program"}:
        limit = 1e-9 * np.abs(one[name]).max() + 1e-12
        np.testing.assert_allclose(other[name], one[name], atol=limit, err_msg=name)


# --- whole runs -----------------------------------------------------------------------


def final_state(config, directory):
    run = plan.make_plan(config, both(config)[0].facts)
    with Checkpoints(directory / "checkpoints") as saved:
        return saved.restore(steps.initial_shapes(run), saved.latest_step())


def rows_of(directory):
    timed = {"images_per_second", "data_wait"}
    return [
        {k: v for k, v in row.items() if k not in timed}
        for row in loggers.read_rows(directory / "metrics.jsonl")
    ]


def test_a_streamed_run_goes_on_in_the_middle_of_an_epoch(
    settings, tmp_path, monkeypatch
):
    config = settings(dataset__placement="host", checkpoint__within_epoch=1)
    alone = settings(
        dataset__placement="host", dataset__workers=0, checkpoint__within_epoch=1
    )
    train.train(alone, tmp_path / "whole")
    whole = rows_of(tmp_path / "whole")
    assert [(row["step"], row["split"]) for row in whole] == [
        (step, split) for step in (2, 3, 5, 6) for split in ("train", "test")
    ]
    waits = loggers.read_rows(tmp_path / "whole" / "metrics.jsonl")[0]["data_wait"]
    assert 0 < waits < 1

    save = Checkpoints.save

    def save_and_die(self, state, *others):
        save(self, state, *others)
        if int(state.step) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "parts")
    train.train(config, tmp_path / "parts")
    assert rows_of(tmp_path / "parts") == whole
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, tmp_path / "parts"),
        final_state(config, tmp_path / "whole"),
    )


def test_a_start_between_two_calls_is_refused(settings):
    config = settings(steps_per_call=3)
    run = plan.make_plan(config, both(config)[0].facts)
    assert run.steps_per_call == 3
    plan.check_start(run, 3)
    with pytest.raises(UsageError, match=r"step 2 .* calls of 3 .*steps_per_call=1\."):
        plan.check_start(run, 2)


@pytest.mark.parametrize(
    ("rows", "calls", "ends"),
    [
        (1, 3, {3}),
        (2, 3, {2, 3}),
        (3, 3, {1, 2, 3}),
        (9, 3, {1, 2, 3}),
        (4, 8, {2, 4, 6, 8}),
    ],
)
def test_rows_are_evenly_spaced(settings, rows, calls, ends):
    config = settings(checkpoint__within_epoch=rows - 1)
    run = plan.make_plan(config, both(config)[0].facts)
    run = run._replace(steps_per_epoch=5 * calls, steps_per_call=5)
    found = {step for step in range(5, 5 * calls + 1, 5) if run.ends_row(step)}
    assert found == {5 * end for end in ends}
    assert run.ends_row(5 * (calls + max(ends)))


# --- placement ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "memory", "kind"),
    [
        ("auto", 10**9, Dataset),
        ("auto", 4 * (48 + 21) * 16 * 16 * 3, Dataset),
        ("auto", 4 * (48 + 21) * 16 * 16 * 3 - 4, StreamedDataset),
        ("device", 10, Dataset),
        ("host", 10**9, StreamedDataset),
    ],
)
def test_placement(settings, placement, memory, kind, monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda: memory)
    config = settings(dataset__placement=placement)
    assert isinstance(batches.open_dataset(config), kind)


def test_neighbours_need_the_images_in_memory(settings):
    config = settings(dataset__placement="host", knn__every=1)
    with pytest.raises(UsageError, match=r"config.knn.every=1 needs all images"):
        batches.open_dataset(config)


def test_a_call_gets_no_more_images_than_fit(settings, monkeypatch):
    """On a GPU, where a call makes many updates."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    facts = both(settings())[0].facts._replace(num_train=16 * 100, side=224)
    config = settings(steps_per_epoch=100)
    assert plan.make_plan(config, facts).steps_per_call == 50
    monkeypatch.setattr(plan, "_BYTES_PER_CALL", 16 * 224 * 224 * 3 * 7)
    assert plan.make_plan(config, facts, streamed=True).steps_per_call == 5
    config = settings(steps_per_epoch=100, steps_per_call=20)
    assert plan.make_plan(config, facts, streamed=True).steps_per_call == 20


# --- the order of the test images -----------------------------------------------------


def test_test_batches_do_not_depend_on_the_order_of_the_set():
    """What is measured in batches would, where a batch held one class alone."""
    count, size = 96, 16
    config = tiny.config(batch_size=size, dataset__train_fraction=1.0)
    data = tiny.dataset(32, count, channels=3)
    by_class = np.argsort(data.test.labels, kind="stable")
    orders = [by_class, *map(np.random.default_rng(0).permutation, [count] * 6)]
    found = []
    for order in orders:
        shuffled = data._replace(test=Split(*(part[order] for part in data.test)))
        run = plan.make_plan(config, data.facts)
        feed = batches.ResidentFeed(run, shuffled)
        if not found:
            compiled = steps.compile_functions(run, feed)
            state = steps.initial_state(run)
            for batch, arguments in enumerate(feed.testing()):
                labels = feed.pick_test(np.int32(batch), *arguments).labels
                assert len(np.unique(labels)) == 3
        found.append(steps.evaluate(run, compiled, state, feed))
    for name in ("nt_xent", "retrieval_top1", "feature_spread"):
        first, *others = [means[name] for means in found]
        noise = np.std(others, ddof=1)
        assert noise > 0, name
        assert abs(first - np.mean(others)) < 4 * noise, name
    # What counts image by image is the same to rounding.
    top1 = [means["online_top1"] for means in found]
    np.testing.assert_allclose(top1, top1[0], rtol=1e-6)


def test_the_order_of_evaluation_is_fixed():
    order = evaluation_order(10)
    assert sorted(order) == [*range(10)]
    np.testing.assert_array_equal(order, [7, 5, 3, 4, 0, 2, 9, 6, 1, 8])
