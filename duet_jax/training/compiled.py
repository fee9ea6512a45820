"""The compiled functions of a run.

Batches are taken from what lies on the devices, or was put there for the call, so that
nothing but the call itself passes between host and device.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duet_jax.methods import Method, Metrics
from duet_jax.runtime import mesh
from duet_jax.training import train_step
from duet_jax.training.batches import Feed
from duet_jax.training.plan import Plan
from duet_jax.training.train_step import Update
from duet_jax.types import Array, Split, TrainState

TrainCall = Callable[..., tuple[TrainState, Metrics]]


def make_train_call(
    update: Update, pick: Callable[..., Split], steps: int, *, unroll: bool
) -> TrainCall:
    """Returns `call(state, key, *arguments) -> (state, metrics)`.

    Args:
      update: one update, from `make_train_step`.
      pick: finds the batch of a step in the arguments, `Feed.pick_train`.
      steps: updates in a call.
      unroll: write the updates out instead of looping. XLA for CPU runs convolutions
        inside a loop about 20 times slower than outside.

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


def make_evaluate_call(
    method: Method,
    graphdef: nnx.GraphDef,
    pick: Callable[..., Split],
    *,
    num_examples: int,
    batch_size: int,
) -> Callable[..., Metrics]:
    """Returns `call(params, batch_stats, key, batch, *arguments) -> sums`.

    Args:
      method: scores the networks, with running statistics.
      graphdef: structure of its networks.
      pick: finds batch number `batch` in the arguments, `Feed.pick_test`.
      num_examples: real examples in the split; what follows them is padding.
      batch_size: examples in a batch.

    Returns:
      A function to compile. It returns every metric of batch number `batch` multiplied
      by the real examples in it, and that number as "examples", so that sums over
      batches divided by the sum of "examples" count every example once.
    """

    def call(params, batch_stats, key, batch, *arguments):
        networks = nnx.merge(graphdef, params, batch_stats)
        mask = batch * batch_size + jnp.arange(batch_size) < num_examples
        images, labels = pick(batch, *arguments)
        # A fixed key per batch: test losses can be compared between epochs and runs.
        views = method.make_views(jax.random.fold_in(key, batch), images, train=False)
        _, metrics = method.loss(networks, views, labels, mask, train=False)
        examples = jnp.sum(mask)
        return {k: v * examples for k, v in metrics.items()} | {"examples": examples}

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

    # Made by a compiled function: typed keys cannot be put on devices of others.
    seed = np.uint32(plan.seed)
    return jax.jit(keys, out_shardings=mesh.replicated(plan.mesh))(seed)


def initial_shapes(plan: Plan) -> TrainState:
    """Returns the shapes of the state, with where its arrays lie."""
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
    """What a run calls.

    Attributes:
      train: from `make_train_call`.
      evaluate: from `make_evaluate_call`.
      keys: that they are called with.
    """

    train: Callable
    evaluate: Callable
    keys: Keys


def compile_functions(plan: Plan, feed: Feed) -> Compiled:
    """Compiles what a run calls, once, for the shapes it will have.

    From shapes alone: a restored state finds the same program in the cache.
    """
    return Compiled(
        train=lower_train(plan, feed).compile(),
        evaluate=_lower_test(plan, feed).compile(),
        keys=make_keys(plan),
    )


def lower_train(plan: Plan, feed: Feed) -> jax.stages.Lowered:
    """Returns the training call, traced for the devices of the plan."""
    update = train_step.make_train_step(
        plan.method, plan.graphdef, plan.optimizer, plan.rate, plan.on_nonfinite
    )
    call = make_train_call(
        update, feed.pick_train, plan.steps_per_call, unroll=plan.unroll
    )
    compiled = jax.jit(call, donate_argnums=0, out_shardings=mesh.replicated(plan.mesh))
    with jax.set_mesh(plan.mesh):  # the losses ask what the batch is split over
        return compiled.lower(initial_shapes(plan), key_shape(plan), *feed.train_shapes)


def _lower_test(plan: Plan, feed: Feed) -> jax.stages.Lowered:
    call = make_evaluate_call(
        plan.method,
        plan.graphdef,
        feed.pick_test,
        num_examples=feed.num_test,
        batch_size=plan.test_batch_size,
    )
    state = initial_shapes(plan)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=mesh.replicated(plan.mesh))
    with jax.set_mesh(plan.mesh):
        return jax.jit(call, out_shardings=mesh.replicated(plan.mesh)).lower(
            state.params, state.batch_stats, key_shape(plan), number, *feed.test_shapes
        )


def key_shape(plan: Plan) -> jax.ShapeDtypeStruct:
    """Returns the shape of a random key, on every device."""
    return mesh.shapes(
        jax.eval_shape(lambda: jax.random.key(0)), mesh.replicated(plan.mesh)
    )


def evaluate(
    plan: Plan, compiled: Compiled, state: TrainState, feed: Feed
) -> dict[str, float]:
    """Returns every metric's mean over the test split, and "examples", their number."""
    parts = jax.device_get(
        [
            compiled.evaluate(
                state.params,
                state.batch_stats,
                compiled.keys.evaluation,
                mesh.replicate(np.int32(batch), plan.mesh),
                *arguments,
            )
            for batch, arguments in enumerate(feed.testing())
        ]
    )
    sums = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
    examples = sums.pop("examples")
    means = {name: value / examples for name, value in sums.items()}
    return {**means, "examples": int(examples)}
