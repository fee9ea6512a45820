"""Trains some steps on one and on eight simulated devices, and stores what came out.

    python tests/many_devices.py <method> <out.npz>

In float64: rounding that depends on the number of devices then stays far below what
AdamW makes of a gradient that is nothing but rounding.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from duet_jax.training import batches, plan, train_step
from duet_jax.training import compiled as steps

UPDATES = 4  # two epochs
BATCH = 16
EMBEDDING = 24  # a size that nothing else has


# With ESSL, a transformer, and rates that are made of whole arrays; not of biases: that
# of the keys of attention has a gradient of zero, which is rounded.
OTHERS = {
    "encoder__name": "vit_tiny",
    "encoder__width_multiplier": 0.01,
    "optimizer__name": "lars",
    "optimizer__decay": "weights",
}


def configuration(method):
    """A test split that ends within a batch; with DUET, everything random there is."""
    every = ("sca", "rot", "fli", "jit", "gra", "blu", "sol")
    return tiny.config(
        method=method,
        learned="ron" if method == "essl" else "rot",
        batch_size=BATCH,
        epochs=2,
        steps_per_epoch=2,
        monitor__images=8 if method == "duet" else 0,
        projector__output=EMBEDDING,
        augmentation__stack=("sca",) if method == "essl" else every,
        **OTHERS if method == "essl" else {},
    )


def wide_plan(config, facts, devices):
    """The plan of a run on some devices whose networks compute in float64."""
    run = plan.make_plan(config, facts)
    two_views = run.method.two_views
    encoder = dataclasses.replace(two_views.encoder, dtype=jnp.dtype("float64"))
    two_views = dataclasses.replace(two_views, encoder=encoder)
    method = dataclasses.replace(run.method, two_views=two_views)
    return run._replace(
        method=method,
        graphdef=train_step.graph_definition(method),
        mesh=jax.sharding.Mesh(np.array(devices), run.mesh.axis_names),
    )


def in_float64(initial_state):
    def wide(*args):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
            initial_state(*args),
        )

    return wide


def trained(run, feed):
    """Names and arrays of all that a run of UPDATES steps leaves."""
    compiled = steps.compile_functions(run, feed)
    state, found = steps.initial_state(run), {}
    with contextlib.closing(feed.training(0)) as calls:
        for number, arguments in enumerate(calls):
            state, scores = compiled.train(state, compiled.keys.training, *arguments)
            found |= {f"step {number} {k}": np.asarray(v) for k, v in scores.items()}
    test = steps.evaluate(run, compiled, state, feed)
    found |= {f"test {name}": value for name, value in test.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found[f"state{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found | {"program": compiled.train.as_text()}


def main(method, out):
    jax.config.update("jax_enable_x64", True)
    train_step.initial_state = in_float64(train_step.initial_state)
    config = configuration(method)
    data = tiny.dataset(48, 21, channels=3)
    results = {}
    for name, devices in {"one": jax.devices()[:1], "eight": jax.devices()}.items():
        run = wide_plan(config, data.facts, devices)
        results[name] = trained(run, batches.ResidentFeed(run, data))
    np.savez(
        out,
        **{f"{run}/{k}": v for run, found in results.items() for k, v in found.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
