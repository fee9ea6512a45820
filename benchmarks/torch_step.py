"""Compares the speed of the training step with the same step in plain PyTorch.

    pip install -r requirements-benchmark.txt
    python benchmarks/torch_step.py --config=configs/digits_duet_rot.py --steps=20

A step consists of two augmented views, encoder, projector, NT-Xent and DUET's structure
loss, online probe, backward pass, AdamW and the metrics of a training row. Network,
batch, size and method come from the configuration, with --config.<field>=<value> as in
`main.py`; the method is duet or simclr, the stack `sca rot` or `sca`. The images are
RGB noise, since the time does not depend on the pixels, and the learning rate is
constant. PyTorch runs eagerly and compiled, see `torch_peer`.

First, one float32 update of each program is compared, with the same weights, views and
structure values. Then rounds of --steps updates of all programs take turns. A round
ends when its last loss is on the host.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

# PyTorch needs memory on the same GPU, and a cache would hide the compilation time.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from duet_jax import cli as program
from duet_jax import optim
from duet_jax.augmentations import split_codes
from duet_jax.config import build
from duet_jax.data.decoding import preprocessed_side
from duet_jax.errors import TrainingError, UsageError
from duet_jax.methods import Method, Views
from duet_jax.models import torch_weights
from duet_jax.models.encoders import ENCODERS
from duet_jax.runtime import devices
from duet_jax.training import train_step
from duet_jax.types import Array, DatasetFacts, TrainState, View

_BATCHES = 8  # of different images, used in turn
_CLASSES = 10

# Largest differences between equal float32 updates. They allow for rounding only: an
# untrained network amplifies it layer by layer, and PyTorch's eager channels-last BN on
# a CPU has more of it than either compiler.
TOLERANCES = {"losses": 1e-4, "gradients": 5e-2, "statistics": 1e-4, "weights": 5e-2}
# The first step of AdamW is the sign of the gradient times the rate. Weights are
# compared where the gradient is at least this fraction of the typical one in its
# network: elsewhere, such as at biases before a BN, its sign is a rounding error.
_SIGNIFICANT = 0.1

OURS = "duet_jax"


class FixedViews:
    """A method that uses given views instead of making them."""

    def __init__(self, method: Method, views: Views):
        self.loss, self._views = method.loss, views

    def make_views(self, key: Array, images: Array, *, train: bool) -> Views:
        """Returns the given views."""
        del key, images, train
        return self._views


def load_peer() -> ModuleType:
    """Imports the PyTorch side.

    Raises:
      UsageError: PyTorch or kornia is missing.
    """
    try:
        import torch_peer
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; pip install -r requirements-benchmark.txt"
        ) from error
    return torch_peer


def check_comparable(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError for options that the PyTorch side does not support."""
    if config.method not in ("duet", "simclr"):
        raise UsageError(
            f"config.method={config.method!r} cannot be compared; use duet or simclr."
        )
    if len(split_codes(config.get("learned", ""))) > 1:
        raise UsageError(
            f"config.learned={config.learned!r} cannot be compared; learn one code."
        )
    if ENCODERS[config.encoder.name].lifted:
        raise UsageError(
            f"config.encoder.name={config.encoder.name!r} cannot be compared; use one "
            "without lifted_."
        )


def stored_side(config: ml_collections.ConfigDict) -> int:
    """Returns the side of the images before they become views."""
    return preprocessed_side(config.dataset.image_size, config.dataset.center_crop)


def make_method(config: ml_collections.ConfigDict) -> Method:
    """Returns the configured method, for images of three channels."""
    names = tuple(map(str, range(_CLASSES)))
    data = DatasetFacts("noise", stored_side(config), 3, names, 0, 0)
    return build.make_method(config, data)


def constant_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the rate after the warm-up: the first one would be too small."""
    return optax.constant_schedule(config.optimizer.learning_rate)


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns the configured optimizer, with a constant rate."""
    options = config.optimizer
    return optim.adamw(
        constant_rate(config),
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        weight_decay=options.weight_decay,
    )


def make_train_step(
    config: ml_collections.ConfigDict, method: Method, views: Views | None = None
) -> train_step.Update:
    """Returns the project's update, with its own views or given ones."""
    return train_step.make_train_step(
        method if views is None else FixedViews(method, views),
        train_step.graph_definition(method),
        make_optimizer(config),
        constant_rate(config),
    )


def initial_state(config: ml_collections.ConfigDict, method: Method) -> TrainState:
    """Returns the state before the first update."""
    key = train_step.initial_key(config.seed)
    build = jax.jit(train_step.initial_state, static_argnums=(0, 1))
    return build(method, make_optimizer(config), key)


def exported(*trees: dict) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of each network by torch name.

    Args:
      *trees: with the structure of the parameters or the running statistics.
    """
    return {
        name: torch_weights.export_network(name, *(t[name] for t in trees if name in t))
        for name in trees[0]
    }


Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_data(config: ml_collections.ConfigDict) -> Data:
    """Returns uint8 noise, labels, and the examples of each batch."""
    rng = np.random.default_rng(config.seed)
    examples, side = _BATCHES * config.batch_size, stored_side(config)
    images = rng.integers(0, 256, (examples, side, side, 3), np.uint8)
    labels = rng.integers(0, _CLASSES, examples, np.int32)
    order = rng.permutation(examples).astype(np.int32)
    return images, labels, order.reshape(_BATCHES, config.batch_size)


def make_run(
    config: ml_collections.ConfigDict, method: Method, data: Data, state: TrainState
) -> Callable[[int], float]:
    """Returns the project's `run(steps) -> last loss`.

    On a GPU, all updates are one call; on a CPU, each is one, as in training.
    """
    update, key = make_train_step(config, method), jax.random.key(config.seed)
    images, labels, order = jax.device_put(data)
    on_cpu = jax.default_backend() == "cpu"

    def one(state: TrainState, _: None, images: Array, labels: Array, order: Array):
        rows = order[state.step % len(order)]
        step_key = jax.random.fold_in(key, state.step)
        return update(state, step_key, images[rows], labels[rows])

    def several(state: TrainState, steps: int, *arrays: Array):
        return jax.lax.scan(lambda s, x: one(s, x, *arrays), state, length=steps)

    single = jax.jit(one, donate_argnums=0)
    scanned = jax.jit(several, donate_argnums=0, static_argnums=1)

    def run(steps: int) -> float:
        nonlocal state
        if not on_cpu:
            state, metrics = scanned(state, steps, images, labels, order)
            return float(metrics["loss"][-1])
        for _ in range(steps):
            state, metrics = single(state, None, images, labels, order)
        return float(metrics["loss"])

    return run


def fixed_views(config: ml_collections.ConfigDict) -> list[View]:
    """Returns two views of noise with structure values, as numpy arrays."""
    rng = np.random.default_rng(config.seed + 1)
    batch, side = config.batch_size, config.dataset.image_size
    codes = split_codes(config.learned) if config.method == "duet" else ()
    return [
        View(
            rng.uniform(-0.5, 0.5, (batch, side, side, 3)).astype(np.float32),
            {code: rng.uniform(0, 1, batch).astype(np.float32) for code in codes},
        )
        for _ in range(2)
    ]


class Outcome(NamedTuple):
    """Result of an update on given views; arrays by network and torch name."""

    losses: dict[str, float]
    gradients: dict[str, dict[str, np.ndarray]]
    weights: dict[str, dict[str, np.ndarray]]


def our_outcome(
    config: ml_collections.ConfigDict, views: list[View], labels: np.ndarray
) -> tuple[dict, Outcome]:
    """Returns the initial weights, and the outcome of one update of this project."""
    method = make_method(config)
    state = initial_state(config, method)
    weights = exported(state.params, state.batch_stats)
    update = make_train_step(config, method, Views(*jax.tree.map(jnp.asarray, views)))
    with jax.default_matmul_precision("highest"):
        state, metrics = jax.jit(update)(state, jax.random.key(0), labels, labels)
    return weights, Outcome(
        {name: float(value) for name, value in metrics.items()},
        exported(optax.tree_utils.tree_get(state.opt_state, "mu")),
        exported(state.params, state.batch_stats),
    )


def peer_outcome(peer: Any, views: list[View], labels: np.ndarray) -> Outcome:
    """Returns the outcome of one update of `peer`."""
    inputs = [
        peer.as_view(view.images, next(iter(view.structure.values()), None))
        for view in views
    ]
    metrics = peer.update(*inputs, peer.as_labels(labels))
    losses = {name: value.item() for name, value in metrics.items()}
    return Outcome(losses, peer.gradients(), peer.weights())


def flat(arrays: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Returns the named arrays as one vector, float64."""
    return np.concatenate([np.ravel(arrays[k]).astype(np.float64) for k in names])


def differences(ours: Outcome, theirs: Outcome, rate: float) -> dict[str, float]:
    """Returns the difference of each kind in `TOLERANCES`, of the worst network.

    Losses: relative. Gradients: length of the difference over their length. Running
    statistics: largest difference over the largest. Weights: root mean square of the
    difference over the learning rate, where the gradient is significant.
    """
    losses = [k for k in ours.losses if k == "nt_xent" or k.endswith("loss")]
    worst = dict.fromkeys(TOLERANCES, 0.0)
    worst["losses"] = np.max(
        [abs(theirs.losses[k] / ours.losses[k] - 1) for k in losses]
    )
    for network in ours.gradients:
        for kind, value in network_differences(ours, theirs, network, rate).items():
            worst[kind] = np.maximum(worst[kind], value)  # keeps NaN
    return {kind: float(value) for kind, value in worst.items()}


def network_differences(
    ours: Outcome, theirs: Outcome, network: str, rate: float
) -> dict[str, float]:
    """Returns the differences of one network; see `differences`."""
    names = list(ours.gradients[network])
    gradient, other = (flat(each.gradients[network], names) for each in (ours, theirs))
    found = {"gradients": np.linalg.norm(other - gradient) / np.linalg.norm(gradient)}
    significant = np.abs(gradient) > _SIGNIFICANT * np.sqrt(np.mean(gradient**2))
    mine, other = ours.weights[network], theirs.weights[network]
    moved = (flat(other, names) - flat(mine, names)) / rate
    found["weights"] = np.sqrt(np.mean(moved[significant] ** 2))
    if running := [name for name in mine if name not in names]:
        expected, actual = flat(mine, running), flat(other, running)
        found["statistics"] = np.abs(actual - expected).max() / np.abs(expected).max()
    return found


Build = Callable[..., Any]


def check_equal(config: ml_collections.ConfigDict, modes: dict, build: Build) -> dict:
    """Compares one float32 update of each peer with ours.

    Args:
      config: resolved.
      modes: name of the peer -> mode of torch.compile.
      build: (method, config, weights, compile_mode=) -> peer.

    Returns:
      The differences by the name of the peer.

    Raises:
      TrainingError: they exceed TOLERANCES.
    """
    config = config.copy_and_resolve_references()
    config.compute_dtype = "float32"
    method, views = make_method(config), fixed_views(config)
    labels = make_data(config)[1][: config.batch_size]
    weights, ours = our_outcome(config, views, labels)
    found = {}
    for name, mode in modes.items():
        peer = build(method, config, weights, compile_mode=mode)
        outcome = peer_outcome(peer, views, labels)
        found[name] = differences(ours, outcome, config.optimizer.learning_rate)
        print(f"{name}: {in_words(ours, outcome, found[name])}", flush=True)
    for name, values in found.items():
        # NaN exceeds any limit.
        bad = [k for k, limit in TOLERANCES.items() if not values[k] <= limit]
        if bad:
            limits = ", ".join(f"{k} at most {TOLERANCES[k]:g}" for k in bad)
            raise TrainingError(f"{name} does not compute what {OURS} does: {limits}")
    return found


def in_words(ours: Outcome, theirs: Outcome, found: dict[str, float]) -> str:
    """Returns the losses of both and the differences as text."""
    names = [k for k in ("loss", "nt_xent", "structure_loss") if k in ours.losses]
    losses = [f"{k} {theirs.losses[k]:.6g} (ours {ours.losses[k]:.6g})" for k in names]
    return ", ".join(losses + [f"{k} {v:.1e}" for k, v in found.items()])


def alternate(
    runs: dict[str, Callable[[int], float]], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Times rounds of `steps` updates, of all programs in turn.

    Returns:
      The seconds of each round by program; the first one includes compilation.

    Raises:
      TrainingError: a loss is not finite, so that the time is not representative.
    """
    seconds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            loss = run(steps)
            seconds[name].append(time.perf_counter() - start)
            if not math.isfinite(loss):
                raise TrainingError(f"{name}: the loss is {loss} in round {number}")
    return seconds


def summary(
    trials: dict[str, list[float]], steps: int, batch_size: int
) -> dict[str, dict]:
    """Returns the values of the table by program: milliseconds, images/s, seconds."""
    ours = trials[OURS][1:]
    rows = {}
    for name, (first, *seconds) in trials.items():
        median = statistics.median(seconds)
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
        rows[name] = {
            "ms_per_step": [1e3 * s / steps for s in seconds],
            "median_ms_per_step": 1e3 * median / steps,
            "images_per_second": batch_size * steps / median,
            "compile_seconds": max(0.0, first - median),
            "ratio": median / statistics.median(ours),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    """Returns the rows as a markdown table."""
    lines = [
        "| | ms per step: median (min to max) | images/s | its time / ours: medians "
        "(min to max by round) | compiling and warming up [s] |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        times = row["ms_per_step"]
        lines.append(
            f"| {name} | {row['median_ms_per_step']:.1f} ({min(times):.1f} to "
            f"{max(times):.1f}) | {row['images_per_second']:.4g} | {row['ratio']:.2f} "
            f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}) | "
            f"{row['compile_seconds']:.1f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Returns the name of the CPU and the number of its cores."""
    name = platform.processor() or platform.machine()
    file = pathlib.Path("/proc/cpuinfo")
    if file.exists() and (found := re.search(r"model name\s*: (.*)", file.read_text())):
        name = found[1]
    return f"{name}, {os.cpu_count()} cores"


def circumstances(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the step, the versions and the device of this benchmark."""
    packages = ("jax", "jaxlib", "torch", "kornia")
    side = config.dataset.image_size
    return {
        "step": f"{config.method}, {config.encoder.name}, {side} px, batch "
        f"{config.batch_size}, {config.compute_dtype}",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": processor(),
    }


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments of this script, and those of the configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=_count, default=20, help="updates in a round")
    parser.add_argument("--rounds", type=_count, default=5, help="after the first one")
    parser.add_argument(
        "--compile_mode", default="default", help="of torch.compile, for the networks"
    )
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
    return parser.parse_known_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def compare(own: argparse.Namespace, config: ml_collections.ConfigDict) -> dict:
    """Checks and times the programs; prints and returns the results."""
    torch_peer = load_peer()
    check_comparable(config)
    devices.select(config.device)
    on_gpu = jax.default_backend() == "gpu"
    torch_peer.set_up(gpu=on_gpu, threads=os.cpu_count())
    build = functools.partial(torch_peer.Peer, device="cuda" if on_gpu else "cpu")
    modes = {"torch, eager": None, "torch.compile": own.compile_mode}
    torch_peer.allow_tf32(False)
    found = check_equal(config, modes, build)
    torch_peer.allow_tf32(True)
    method, data = make_method(config), make_data(config)
    state = initial_state(config, method)
    weights = exported(state.params, state.batch_stats)
    runs = {OURS: make_run(config, method, data, state)}
    for name, mode in modes.items():
        peer = build(method, config, weights, compile_mode=mode)
        peer.place(*data)
        runs[name] = peer.run
    rows = summary(alternate(runs, own.steps, own.rounds), own.steps, config.batch_size)
    about = circumstances(config)
    print(table(rows), ". ".join(about.values()), sep="\n\n")
    return {**about, "config": config.to_dict(), "differences": found, "rows": rows}


def main(argv: Sequence[str]) -> int:
    """Runs the comparison and returns the exit status."""
    try:
        own, rest = arguments(argv[1:])
        results = compare(own, program.parse([argv[0], *rest]).config)
        if own.out is not None:
            own.out.write_text(json.dumps(results, indent=1) + "\n")
    except (UsageError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
