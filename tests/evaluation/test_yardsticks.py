"""What results are compared with, on real images."""

import jax
import numpy as np
import pytest

from configs import smoke
from duet_jax.config import build, checks
from duet_jax.data import load_dataset
from duet_jax.evaluation import yardsticks
from duet_jax.evaluation.yardsticks import CHANCE, PIXELS, UNTRAINED
from duet_jax.metrics.classification import classification
from duet_jax.probes import knn
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.runs.trained_run import Run
from duet_jax.training.compiled import initial_state
from duet_jax.training.plan import make_plan


def make_run(tmp_path, *, side=16, **changes) -> Run:
    """A run of the smoke configuration, whose encoder has no weights."""
    config = smoke.get_config()
    config.dataset.cache_dir = str(tmp_path / "cache")
    config.dataset.image_size = side
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    config = checks.check(config, smoke.get_config())
    facts = load_dataset("digits", image_size=16).facts._replace(side=side)
    method = build.make_method(config, facts)
    encoder = FrozenEncoder(method, batch_size=config.batch_size)
    return Run(tmp_path, config, facts, 0, method, encoder)


def summed(encoder) -> dict[str, float]:
    """A measure that tells encoders apart."""
    images = load_dataset("digits", image_size=16).test.images[:50]
    return {"sum": float(encoder(images)["full"].sum())}


def test_each_is_measured_once(tmp_path):
    run, calls = make_run(tmp_path), []

    def measure(encoder):
        calls.append(encoder)
        return summed(encoder)

    first = yardsticks.yardsticks(run, ["a measure"], measure)
    assert list(first) == [UNTRAINED, PIXELS]
    assert len(calls) == 2
    assert yardsticks.yardsticks(run, ["a measure"], measure) == first
    assert len(calls) == 2
    yardsticks.yardsticks(run, ["another"], measure)
    assert len(calls) == 4
    # Pixels do not depend on the seed, an encoder does.
    other = yardsticks.yardsticks(make_run(tmp_path, seed=1), ["a measure"], measure)
    assert len(calls) == 5
    assert other[PIXELS] == first[PIXELS]
    assert other[UNTRAINED] != first[UNTRAINED]
    wider = make_run(tmp_path, encoder__widths=(8, 8, 8, 64))
    assert yardsticks.yardsticks(wider, ["a measure"], measure)[PIXELS] == first[PIXELS]
    assert len(calls) == 6


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_entry_is_measured_again(tmp_path, content):
    run = make_run(tmp_path)
    first = yardsticks.yardsticks(run, [], summed)
    for path in (tmp_path / "cache").glob("yardstick-*.json"):
        path.write_text(content)
    assert yardsticks.yardsticks(run, [], summed) == first


def test_pixels_are_those_of_the_views(tmp_path):
    """Every method is compared with the same pixels; kNN is that of the arrays."""
    run, found = make_run(tmp_path), {}
    dataset = load_dataset("digits", image_size=16)

    def measure(encoder):
        found["train"], found["test"] = (
            encoder(split.images)["full"] for split in (dataset.train, dataset.test)
        )
        return {}

    yardsticks.yardsticks(run, ["pixels"], measure)  # the last one is of the pixels
    for split in ("train", "test"):
        images = getattr(dataset, split).images
        expected = images.reshape(len(images), -1) / np.float32(255)
        np.testing.assert_allclose(found[split], expected, atol=1e-6)
    votes = knn.classify(
        found["train"],
        dataset.train.labels,
        found["test"],
        num_classes=10,
        k=200,
        temperature=0.1,
    )
    assert round(classification(votes, dataset.test.labels).top1, 3) == 0.921


def test_large_views_are_reduced(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), np.uint8)
    found = []

    def measure(encoder):
        found.append(encoder(images)["full"])
        return {}

    yardsticks.yardsticks(make_run(tmp_path, side=64), ["large"], measure)
    assert found[1].shape == (3, 32 * 32)
    means = images.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found[1].mean(axis=1), means, atol=0.01)


def test_the_untrained_encoder_is_the_run_before_its_first_update(tmp_path):
    run, found = make_run(tmp_path), []
    plan = make_plan(run.config, run.facts)
    state = jax.device_get(initial_state(plan))

    def measure(encoder):
        found.append(jax.device_get(encoder._state))
        return {}

    yardsticks.yardsticks(run, ["weights"], measure)
    params, stats = found[0]
    same = jax.tree.map(np.array_equal, params, state.params["encoder"])
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(np.array_equal, stats, state.batch_stats["encoder"])
    assert all(jax.tree.leaves(same))


def test_chance_names_the_frequent_classes():
    train = np.array([3] * 5 + [0] * 4 + [1] * 3 + [2] * 2 + [4] * 2 + [5])
    test = np.array([3, 3, 0, 5, 5, 5, 5, 1])
    found = yardsticks.chance(train, test)
    assert found == {"top1": 2 / 8, "top5": 4 / 8}
    assert CHANCE == "chance"
