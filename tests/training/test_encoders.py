"""Two updates of each method with encoders that are not the reference's."""

import math

import jax
import numpy as np
import pytest
import tiny

from duet_jax.training import compiled, plan, train_step
from duet_jax.types import TrainState

# Those of one family differ in depth and width: one of each has all methods.
CASES = [
    *(
        (name, m)
        for name in ("resnet18", "vit_tiny")
        for m in ("duet", "simclr", "essl")
    ),
    ("resnet34", "duet"),
    ("resnet50", "essl"),
    ("vit_small", "simclr"),
]
STEMS = {"resnet18": "cifar", "resnet34": "imagenet", "resnet50": "cifar"}


def first_state(run):
    """A state before the first update; compiling its own would take longer."""
    rng, shapes = np.random.default_rng(0), compiled.initial_shapes(run)

    def leaf(path, x):
        if path[-1].key in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        spread = math.prod(x.shape[:-1]) ** -0.5
        return (spread * rng.normal(size=x.shape)).astype(x.dtype)

    params, stats = (
        jax.tree_util.tree_map_with_path(leaf, tree)
        for tree in (shapes.params, shapes.batch_stats)
    )
    moments = run.optimizer.init(params)
    return TrainState(np.zeros((), np.int32), params, stats, moments, np.array(True))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_method_trains_other_encoders(name, method):
    settings = {"encoder__stem": STEMS[name]} if name in STEMS else {}
    config = tiny.config(
        method=method,
        learned="rot" if method == "duet" else "ron",
        batch_size=4,
        steps_per_epoch=1,
        warmup_epochs=0,
        augmentation__stack=("sca", "rot") if method == "duet" else ("sca",),
        encoder__name=name,
        encoder__width_multiplier=0.01,
        **settings,
    )
    data = tiny.dataset(4, 4, channels=3)
    run = plan.make_plan(config, data.facts)
    update = train_step.make_train_step(
        run.method, run.graphdef, run.optimizer, run.rate
    )
    state = first_state(run)
    arguments = (jax.random.key(0), *data.train)
    # It is compiled quickly, and runs twice.
    options = {"xla_backend_optimization_level": 0}
    step = jax.jit(update).lower(state, *arguments).compile(options)
    after = state
    for number in range(2):
        after, metrics = step(after, *arguments)
        assert np.isfinite(metrics["loss"]), number
        assert metrics["skipped"] == 0
    assert int(after.step) == 2
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)),
        after.params["encoder"],
        state.params["encoder"],
    )
    still = [p for p, each in jax.tree_util.tree_leaves_with_path(moved) if not each]
    assert not still
