"""The compiled functions of a run.

They take batches from arrays that are already on the devices, so that a call copies
nothing from the host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duet_jax.augmentations import normalize, to_float
from duet_jax.methods import Metrics
from duet_jax.runtime import mesh
from duet_jax.training import monitors, train_step
from duet_jax.training.batches import Feed
from duet_jax.training.plan import Plan
from duet_jax.training.train_step import Update
from duet_jax.types import Array, Split, TrainState

# Metrics of the test split that are also measured with both views augmented, like those
# of the training. Otherwise the first view is plain.
_LIKE_TRAINING = ("loss", "nt_xent", "retrieval_top1", "retrieval_top5", "online_top1")

# The views that monitors are measured on, by number; -1: the images as they are.
_VIEWS = [np.int32(view) for view in range(-1, monitors.VIEWS)]

TrainCall = Callable[..., tuple[TrainState, Metrics]]


def make_train_call(
    update: Update, pick: Callable[..., Split], steps: int, *, unroll: bool
) -> TrainCall:
    """Returns `call(state, key, *arguments) -> (state, metrics)`.

    Args:
      update: one update, from `make_train_step`.
      pick: returns the batch of a step from the arguments, as `Feed.pick_train` does.
      steps: updates in a call.
      unroll: write the updates out instead of looping. On the CPU, XLA runs
        convolutions inside a loop about 20 times slower.

    Returns:
      A function to compile, best with its first argument donated. The metrics are
      [steps].
    """

    def call(state: TrainState, key: Array, *arguments: Array):
        def body(state, _):
            step_key = jax.random.fold_in(key, state.step)
            return update(state, step_key, *pick(state.step, *arguments))

        if not unroll:
            return jax.lax.scan(body, state, length=steps)
        # Not `unroll=steps`: a scan of a single step would still be a loop.
        metrics = []
        for _ in range(steps):
            state, scores = body(state, None)
            metrics.append(scores)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    return call


class Keys(NamedTuple):
    """Random keys of a run, on every device."""

    training: Array
    evaluation: Array


def make_keys(plan: Plan) -> Keys:
    """Returns the keys that the compiled functions are called with."""

    def keys(seed):
        return Keys(
            train_step.stream(seed, train_step.TRAINING),
            train_step.stream(seed, train_step.EVALUATION),
        )

    # Compiled: typed keys cannot be put on devices of other processes.
    seed = np.uint32(plan.seed)
    return jax.jit(keys, out_shardings=mesh.replicated(plan.mesh))(seed)


def initial_shapes(plan: Plan) -> TrainState:
    """Returns the shapes of the state, with their sharding."""
    return mesh.shapes(
        jax.eval_shape(_initial_state(plan), np.uint32(0)), mesh.replicated(plan.mesh)
    )


def initial_state(plan: Plan) -> TrainState:
    """Returns the state before the first update, on every device."""
    begin = jax.jit(_initial_state(plan), out_shardings=mesh.replicated(plan.mesh))
    return begin(np.uint32(plan.seed))


def _initial_state(plan: Plan) -> Callable[[Array], TrainState]:
    def begin(seed):
        key = train_step.initial_key(seed)
        return train_step.initial_state(plan.method, plan.optimizer, key)

    return begin


class Compiled(NamedTuple):
    """The functions that a run calls.

    Attributes:
      train: `call(state, key, *arguments) -> (state, metrics)`; see `make_train_call`.
      evaluate: `call(params, batch_stats, key, batch, *arguments) -> sums` for test
        batch number `batch`: every metric's sum over its examples, without padding, and
        their number as "examples". Sums over all batches divided by all "examples"
        count every example once. The first view is plain; metrics in _LIKE_TRAINING are
        there twice, the second time as "augmented_<name>", with both views augmented.
      keys: the random keys they are called with.
      encode: `call(params, batch_stats, batch, view, *arguments) -> features` of a
        view of the images of test batch number `batch` that monitors are measured on,
        as `monitors.draw` numbers them; of the images as they are for view -1. None if
        the run has no monitors.
    """

    train: Callable
    evaluate: Callable
    keys: Keys
    encode: Callable | None = None


def compile_functions(plan: Plan, feed: Feed) -> Compiled:
    """Compiles what a run calls, for the shapes it will have.

    From shapes alone, so that a resumed run finds the same programs in the cache.
    """
    return Compiled(
        train=lower_train(plan, feed).compile(),
        evaluate=_lower_evaluate(plan, feed).compile(),
        keys=make_keys(plan),
        encode=_lower_encode(plan, feed).compile() if plan.monitored else None,
    )


def lower_train(plan: Plan, feed: Feed) -> jax.stages.Lowered:
    """Returns the training call, traced for the devices of the plan."""
    update = train_step.make_train_step(
        plan.method, plan.graphdef, plan.optimizer, plan.rate, plan.config.on_nonfinite
    )
    call = make_train_call(
        update, feed.pick_train, plan.steps_per_call, unroll=plan.unroll
    )
    shapes = initial_shapes(plan), key_shape(plan), *feed.train_shapes
    return _lower(plan, call, shapes, donate_argnums=0)


def _lower_evaluate(plan: Plan, feed: Feed) -> jax.stages.Lowered:
    size, method = plan.test_batch_size, plan.method

    def call(params, batch_stats, key, batch, *arguments):
        networks = nnx.merge(plan.graphdef, params, batch_stats)
        mask = batch * size + jnp.arange(size) < plan.facts.num_test
        images, labels = feed.pick_test(batch, *arguments)
        # A fixed key per batch: test losses can be compared between epochs and runs.
        key = jax.random.fold_in(key, batch)
        # The second views are the same, and XLA encodes them once.
        plain, augmented = (
            method.loss(
                networks,
                method.make_views(key, images, train=train),
                labels,
                mask,
                train=False,
            )[1]
            for train in (False, True)
        )
        metrics = {
            **plain,
            **{
                f"augmented_{k}": augmented[k] for k in _LIKE_TRAINING if k in augmented
            },
        }
        examples = jnp.sum(mask)
        return {k: v * examples for k, v in metrics.items()} | {"examples": examples}

    state = initial_shapes(plan)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=mesh.replicated(plan.mesh))
    shapes = state.params, state.batch_stats, key_shape(plan), number, *feed.test_shapes
    return _lower(plan, call, shapes)


def _lower_encode(plan: Plan, feed: Feed) -> jax.stages.Lowered:
    """Returns the call that encodes one view of a batch for the monitors."""
    size, rows = plan.test_batch_size, plan.monitored_rows
    stack = plan.method.two_views.stack

    def call(params, batch_stats, batch, view, *arguments):
        networks = nnx.merge(plan.graphdef, params, batch_stats)
        images = feed.pick_test(batch, *arguments).images[:rows]
        images = to_float(jax.lax.with_sharding_constraint(images, by_rows))
        # Drawn for the whole sample: the size of a batch makes no difference.
        drawn = monitors.draw(stack, plan.monitored, view)
        places = batch * size + jnp.arange(rows)
        drawn = jax.tree.map(lambda x: x[places] if x.ndim else x, drawn)
        plain, augmented = (stack.apply(images, each) for each in (None, drawn))
        views = normalize(jnp.where(view < 0, plain, augmented))
        return networks.encoder(views, train=False).astype(jnp.float32)

    by_rows = mesh.sharded(plan.mesh)
    state = initial_shapes(plan)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=mesh.replicated(plan.mesh))
    shapes = state.params, state.batch_stats, number, number, *feed.test_shapes
    return _lower(plan, call, shapes)


def _lower(
    plan: Plan, call: Callable, shapes: tuple, **options: Any
) -> jax.stages.Lowered:
    """Traces `call` for arguments of these shapes; its results are replicated."""
    compiled = jax.jit(call, out_shardings=mesh.replicated(plan.mesh), **options)
    with jax.set_mesh(plan.mesh):  # the losses ask over what the batch is split
        return compiled.lower(*shapes)


def key_shape(plan: Plan) -> jax.ShapeDtypeStruct:
    """Returns the shape of a random key, on every device."""
    return mesh.shapes(
        jax.eval_shape(lambda: jax.random.key(0)), mesh.replicated(plan.mesh)
    )


def evaluate(
    plan: Plan, compiled: Compiled, state: TrainState, feed: Feed
) -> dict[str, float]:
    """Returns every metric's mean over the test split, and "examples", their number.

    With them come the monitors of the first images, if the run has any.
    """
    networks, parts, features = (state.params, state.batch_stats), [], []
    for batch, arguments in enumerate(feed.testing()):
        number = mesh.replicate(np.int32(batch), plan.mesh)
        key = compiled.keys.evaluation
        parts.append(compiled.evaluate(*networks, key, number, *arguments))
        if batch * plan.test_batch_size < plan.monitored:
            features.append(
                [
                    compiled.encode(*networks, number, view, *arguments)
                    for view in mesh.replicate(_VIEWS, plan.mesh)
                ]
            )
    parts, features = jax.device_get((parts, features))
    sums = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
    examples = sums.pop("examples")
    means = {name: value / examples for name, value in sums.items()}
    if features:
        found = np.concatenate(features, axis=1)[:, : plan.monitored]
        means |= monitors.measure(found[0], found[1:].swapaxes(0, 1))
    return {**means, "examples": int(examples)}
