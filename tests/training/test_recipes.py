"""The recipes: what they are made of, and that each trains."""

import contextlib

import jax
import numpy as np
import pytest
import tiny

from duet_jax import optim
from duet_jax.config import checks, loading
from duet_jax.training import batches, compiled, plan

RECIPES = [name for name in loading._names() if name.startswith("recipes/")]
# Narrow networks on small images.
SMALL = {
    "dataset.image_size": 16,
    "encoder.width_multiplier": 0.125,
    "projector.hidden": 16,
    "projector.output": 8,
    "batch_size": 8,
    "epochs": 2,
    "warmup_epochs": 0,
    "steps_per_epoch": 1,
}


def flat(name, **fields):
    return dict(checks.fields(loading.load_config(name, fields)))


def test_the_recipe_is_that_of_others():
    """As docs/recipes.md quotes it."""
    found = flat("recipes/cifar10_simclr_resnet18")
    expected = {
        "dataset.name": "cifar10",
        "dataset.image_size": 32,
        "encoder.name": "resnet18",
        "augmentation.stack": ("sca", "fli", "jit", "gra"),
        "augmentation.crop_area": (0.2, 1.0),
        "augmentation.flip_probability": 0.5,
        "augmentation.jitter_strength": (0.4, 0.4, 0.4, 0.1),
        "augmentation.jitter_probability": 0.8,
        "augmentation.grey_probability": 0.1,
        "projector.layers": 2,
        "projector.hidden": 1024,
        "projector.output": 128,
        "projector.norm": False,
        "temperature": 0.5,
        "nt_xent.reduction": "mean",
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": False,
        "optimizer.learning_rate": 0.03,
        "optimizer.scale": "linear",
        "optimizer.weight_decay": 5e-4,
        "optimizer.decay": "all",
        "warmup_epochs": 0,
        "batch_size": 512,
        "epochs": 500,
        "compute_dtype": "float32",
        "knn.k": 10,
        "knn.weights": "uniform",
    }
    assert {name: found[name] for name in expected} == expected


def test_the_others_differ_in_what_they_are_about():
    ours = flat("recipes/cifar10_simclr_resnet18")
    about = {
        "duet": {"method", "augmentation.stack", "learned"},
        "essl": {"method", "learned"},
    }
    for method, names in about.items():
        found = flat(f"recipes/cifar10_{method}_resnet18")
        differing = {k for k, v in found.items() if ours.get(k) != v}
        assert {k for k in differing if not k.startswith(f"{method}.")} == names
        assert found["learned"] == "rot"
    race = flat("recipes/cifar10_race")
    assert (race["compute_dtype"], race["encoder.name"]) == ("bfloat16", "resnet18")
    assert race["knn.every"] > 0
    # Every row of the race has an evaluation by kNN, and so has the last.
    assert race["epochs"] % race["knn.every"] == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name):
    """Two updates of a narrow network; every array moves."""
    config = loading.load_config(name, SMALL)
    data = tiny.dataset(8, 8, channels=3)
    run = plan.make_plan(config, data.facts)
    feed = batches.ResidentFeed(run, data)
    lowered = compiled.lower_train(run, feed)
    call = lowered.compile({"xla_backend_optimization_level": 0})  # sooner than it runs
    state, keys = compiled.initial_state(run), compiled.make_keys(run)
    before = jax.device_get(state.params)
    with contextlib.closing(feed.training(0)) as calls:
        for arguments in calls:
            state, scores = call(state, keys.training, *arguments)
            assert np.isfinite(scores["loss"]).all()
            assert not scores["skipped"].any()
    assert int(state.step) == 2
    rate = optim.scaled(config.optimizer.learning_rate, "linear", 8)
    assert run.rate(0) == pytest.approx(rate)
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(state.params),
            strict=True,
        )
        if np.array_equal(a, b)
    ]
    assert not still
