"""Compares what a device computes with what the CPU computes in float64.

    python benchmarks/device_checks.py --out=checks.json

The device is the one that JAX takes by default, a GPU if there is one; it computes in
float32 with products at the highest precision. On a CPU it is the CPU itself. Compared
are, from the same keys and weights:

- every augmentation: what is drawn, the views and their structure values;
- the views of each method, of a crop and a rotation;
- one update of each method on given views: losses, gradients, running statistics and
  new weights;
- a training that is saved, restored and continued, with one that was not.

Each has a limit, and exceeding one makes the exit status 1. `on_a_gpu.py` runs this.
"""

import argparse
import contextlib
import functools
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import ml_collections
import numpy as np
import optax

from benchmarks import torch_step
from configs import base
from duet_jax import profiling
from duet_jax.augmentations import AUGMENTATIONS, Options, make_stack, to_float
from duet_jax.config import checks
from duet_jax.methods import Views
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.training import compiled
from duet_jax.training.batches import make_feed
from duet_jax.training.plan import make_plan
from duet_jax.types import Array, TrainState

# Method -> what it learns.
LEARNED = {"duet": "rot", "simclr": "rot", "essl": "ron"}
STACK = ("sca", "rot")
# Compute type of the device.
TYPE = "float32"
# Updates before and after the stop of a training.
_UPDATES = 2

# Largest differences, as in `distance`; those of an update as `torch_step.differences`
# has them. About ten times what a CPU has in float32; bfloat16 is far above all.
LIMITS = {
    "views": 1e-4,
    "losses": 1e-5,
    "gradients": 5e-3,
    "statistics": 1e-5,
    "weights": 5e-3,
}


class Size(NamedTuple):
    """How large the networks and images are; `side` in pixels."""

    batch: int
    side: int
    widths: tuple[int, int, int, int]
    hidden: int


# The real widths, so that a GPU takes the kernels of a training; and for tests.
WHOLE = Size(64, 32, (64, 128, 256, 512), 2048)
TINY = Size(16, 16, (8, 8, 16, 32), 32)


class Found(NamedTuple):
    """The outcome of one comparison.

    Attributes:
      what: is compared.
      difference: that was found; None if it failed.
      limit: that it must not exceed.
      note: why it failed, or what else there is to know.
    """

    what: str
    difference: float | None
    limit: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the limit; not for NaN."""
        return self.difference is not None and self.difference <= self.limit


def configuration(method: str, size: Size) -> ml_collections.ConfigDict:
    """Returns the configuration of a method, resolved."""
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "method": method,
            "learned": LEARNED[method],
            "batch_size": size.batch,
            "epochs": 1,
            "warmup_epochs": 0,
            "steps_per_epoch": 2 * _UPDATES,
            "steps_per_call": 1,
            "dataset.image_size": size.side,
            "augmentation.stack": STACK,
            "encoder.name": "Cifar10_ResNet",
            "encoder.blocks": (1, 1, 1),
            "encoder.widths": size.widths,
            "projector.hidden": size.hidden,
            "essl.hidden": size.hidden,
        }
    )
    return checks.check(config, base.get_config())


def distance(actual: Any, expected: Any) -> float:
    """Returns the length of the difference over that of `expected`, of all leaves.

    Raises:
      ValueError: the trees or their shapes differ.
    """
    if shapes(actual) != shapes(expected):
        raise ValueError(f"{shapes(actual)} is not {shapes(expected)}")
    ours, theirs = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(each)])
        for each in jax.device_get((actual, expected))
    )
    length = float(np.linalg.norm(theirs))
    return float(np.linalg.norm(ours - theirs)) / (length or 1.0)


def shapes(tree: Any) -> Any:
    """Returns the shapes of the leaves."""
    return jax.tree.map(np.shape, tree)


def as_type(tree: Any, dtype: str) -> Any:
    """Returns host copies of the arrays, those of floating point in `dtype`."""

    def convert(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x

    return jax.tree.map(convert, jax.tree.map(np.asarray, jax.device_get(tree)))


def cpu() -> jax.Device:
    """Returns the CPU, which JAX has beside any other device."""
    return jax.local_devices(backend="cpu")[0]


def put(tree: Any, device: jax.Device) -> Any:
    """Returns the arrays on `device`, where what is done with them is computed."""
    return jax.device_put(tree, device)


def noise(size: Size, side: int) -> np.ndarray:
    """Returns a batch of uint8 images of color."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (size.batch, side, side, 3), np.uint8)


def of_augmentation(code: str, device: jax.Device, size: Size) -> Iterator[Found]:
    """Compares draws, views and structure values of a single augmentation."""
    side = size.side * 8 // 7  # larger than the views, as with dataset.center_crop
    stack = make_stack(
        (code,), input_side=side, image_size=size.side, channels=3, options=Options()
    )
    draw = jax.jit(stack.draw, static_argnums=1)
    key, images = jax.random.key(7), noise(size, side)
    drawn, expected = (draw(put(key, at), size.batch) for at in (device, cpu()))

    @jax.jit
    def views(images: Array, params: dict) -> tuple:
        return stack.apply(images, params), stack.structure(params)

    actual = drawn, views(put(np.asarray(to_float(images)), device), drawn)
    exact = images.astype(np.float64) / 255
    params = as_type(expected, "float64")
    with jax.enable_x64(True):
        true = jax.device_get(views(*put((exact, params), cpu())))
    found = distance(actual, (expected, true))
    yield Found(f"views, {code}", found, LIMITS["views"])


def of_method(name: str, device: jax.Device, size: Size) -> Iterator[Found]:
    """Compares the views of a method, and one update on the same views."""
    config = configuration(name, size)
    method = torch_step.make_method(config)
    make_views = jax.jit(functools.partial(method.make_views, train=True))
    images = noise(size, size.side)
    labels = (np.arange(size.batch) % 10).astype(np.int32)
    arguments = jax.random.key(8), images
    actual, views = (make_views(*put(arguments, at)) for at in (device, cpu()))
    yield Found(f"views, {name}", distance(actual, views), LIMITS["views"])
    # The generator of the weights draws others on another device.
    with jax.default_device(cpu()):
        state = jax.device_get(torch_step.initial_state(config, method))
    ours = outcome(config, (state, views, labels), device, TYPE)
    with jax.enable_x64(True):
        exact = outcome(config, (state, views, labels), cpu(), "float64")
    found = torch_step.differences(exact, ours, config.optimizer.learning_rate)
    for kind, value in found.items():
        yield Found(f"{kind} of an update, {name}", value, LIMITS[kind])


def outcome(
    config: ml_collections.ConfigDict,
    arguments: tuple[TrainState, Views, np.ndarray],
    device: jax.Device,
    dtype: str,
) -> torch_step.Outcome:
    """Returns what one update on `device` makes of state, views and labels."""
    config = config.copy_and_resolve_references()
    config.compute_dtype = dtype
    method = torch_step.make_method(config)
    # Parameters are never kept in 16 bits.
    arguments = as_type(arguments, "float64" if dtype == "float64" else "float32")

    @jax.jit
    def update(state: TrainState, views: Views, labels: Array) -> tuple:
        make = torch_step.make_train_step(config, method, views)
        return make(state, jax.random.key(0), labels, labels)

    state, metrics = jax.device_get(update(*put(arguments, device)))
    return torch_step.Outcome(
        {name: float(value) for name, value in metrics.items()},
        named(optax.tree_utils.tree_get(state.opt_state, "mu")),
        named(state.params, state.batch_stats),
    )


def named(*trees: dict) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of each network by their paths."""
    return {
        network: {
            jax.tree_util.keystr(path): leaf
            for tree in trees
            for path, leaf in jax.tree.leaves_with_path(tree.get(network, {}))
        }
        for network in trees[0]
    }


def of_resuming(size: Size) -> Iterator[Found]:
    """Compares a training that was saved and restored halfway with one that was not.

    If a device gives the same bits twice, both must be equal. Otherwise the difference
    of two trainings without a stop, ten times, is the limit.
    """
    config = configuration("duet", size)
    dataset = profiling.noise(config)
    plan = make_plan(config, dataset.facts)
    feed = make_feed(plan, dataset)
    keys = compiled.make_keys(plan)
    train = compiled.lower_train(plan, feed).compile()

    def go(state: TrainState, start: int, stop: int) -> TrainState:
        with contextlib.closing(feed.training(start)) as calls:
            for arguments in itertools.islice(calls, stop - start):
                state, _ = train(state, keys.training, *arguments)
        return state

    once, again = (go(compiled.initial_state(plan), 0, 2 * _UPDATES) for _ in range(2))
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.closing(Checkpoints(pathlib.Path(place))) as saved,
    ):
        saved.save(go(compiled.initial_state(plan), 0, _UPDATES), None)
        saved.wait()
        state = saved.restore(compiled.initial_shapes(plan), _UPDATES)
    resumed = go(state, _UPDATES, 2 * _UPDATES)
    repeated = distance(again, once)
    note = "bit for bit" if repeated == 0 else f"two without a stop: {repeated:.1e}"
    yield Found("stopped and resumed", distance(resumed, once), 10 * repeated, note)


def groups(size: Size) -> dict[str, Callable[[], Iterator[Found]]]:
    """Returns all comparisons by name."""
    device = jax.local_devices()[0]
    found = {
        f"views, {code}": functools.partial(of_augmentation, code, device, size)
        for code in AUGMENTATIONS
    }
    for name in LEARNED:
        found[name] = functools.partial(of_method, name, device, size)
    return {**found, "stopped and resumed": functools.partial(of_resuming, size)}


def measure(size: Size) -> Iterator[Found]:
    """Yields the outcome of every comparison; one that fails does not end the rest."""
    with jax.default_matmul_precision("highest"):
        for name, compare in groups(size).items():
            try:
                yield from compare()
            except Exception as error:  # a device that cannot compute it, say
                text = " ".join(str(error).split())[:200]
                yield Found(name, None, 0.0, f"{type(error).__name__}: {text}")


def main(argv: Sequence[str]) -> int:
    """Prints and writes the outcomes; the status is 1 if one exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
    parser.add_argument("--tiny", action="store_true", help="small networks, for tests")
    options = parser.parse_args(argv[1:])
    outcomes = []
    for each in measure(TINY if options.tiny else WHOLE):
        outcomes.append({**each._asdict(), "holds": each.holds})
        verdict = "" if each.holds else "  ABOVE THE LIMIT"
        print(*each, verdict, flush=True)
    if options.out:
        options.out.write_text(json.dumps(outcomes, indent=1) + "\n")
    return 0 if all(each["holds"] for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
