"""The compiled functions of a run.

The data set lies on the device as uint8. A call gathers its batches there, so that
nothing but the call itself passes between host and device.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duet_jax import train_state
from duet_jax.methods import Method, Metrics
from duet_jax.plan import Plan
from duet_jax.train_state import Update
from duet_jax.types import Array, Dataset, Split, TrainState


def epoch_order(
    key: Array, epoch: Array, *, num_examples: int, steps: int, batch_size: int
) -> Array:
    """Returns the examples of every batch of an epoch.

    Args:
      key: of the run's order.
      epoch: int32 scalar; each has a permutation of its own.
      num_examples: in the training split.
      steps: batches in the epoch; steps * batch_size <= num_examples.
      batch_size: examples in a batch.

    Returns:
      Indices, int32 [steps, batch_size], without repetition. What is left of the
      permutation is dropped.
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


TrainCall = Callable[[TrainState, Array, Array, Array, Array], tuple]


def make_train_call(update: Update, steps: int, *, unroll: bool) -> TrainCall:
    """Returns `call(state, key, images, labels, order) -> (state, metrics)`.

    Args:
      update: one update, from `make_update`.
      steps: updates in a call.
      unroll: write the updates out instead of looping. XLA for CPU runs convolutions
        inside a loop about 20 times slower than outside.

    Returns:
      A function to compile, best with its first argument donated. `images` [examples,
      side, side, channels] uint8 and `labels` [examples] are the training split,
      `order` [steps in the epoch, batch] comes from `epoch_order`. The metrics are
      [steps].
    """

    def one(state: TrainState, key: Array, images, labels, order):
        rows = order[state.step % len(order)]
        step_key = jax.random.fold_in(key, state.step)
        return update(state, step_key, images[rows], labels[rows])

    def call(state: TrainState, key: Array, images: Array, labels: Array, order: Array):
        def body(state, _):
            return one(state, key, images, labels, order)

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
    method: Method, graphdef: nnx.GraphDef, *, num_examples: int, batch_size: int
) -> Callable[[dict, dict, Array, Array, Array, Array], Metrics]:
    """Returns `call(params, batch_stats, key, images, labels, batch) -> sums`.

    Args:
      method: scores the networks, with running statistics.
      graphdef: structure of its networks.
      num_examples: real examples in the split; what follows them is padding.
      batch_size: examples in a batch; divides the padded split.

    Returns:
      A function to compile. It returns every metric of batch number `batch` multiplied
      by the real examples in it, and that number as "examples", so that sums over
      batches divided by the sum of "examples" count every example once.
    """

    def call(params, batch_stats, key, images, labels, batch):
        networks = nnx.merge(graphdef, params, batch_stats)
        rows = batch * batch_size + jnp.arange(batch_size)
        mask = rows < num_examples
        # A fixed key per batch: test losses can be compared between epochs and runs.
        views = method.make_views(
            jax.random.fold_in(key, batch), images[rows], train=False
        )
        _, metrics = method.loss(networks, views, labels[rows], mask, train=False)
        examples = jnp.sum(mask)
        return {k: v * examples for k, v in metrics.items()} | {"examples": examples}

    return call


class Compiled(NamedTuple):
    """The compiled functions of a run."""

    order: Callable
    train: Callable
    evaluate: Callable


def compile_functions(plan: Plan, state: TrainState, data: Dataset) -> Compiled:
    """Compiles what a run calls, once, for the shapes it will have.

    Args:
      plan: of the run.
      state: its arrays, or their shapes.
      data: on the device, the test split padded by `pad`.
    """
    key = train_state.stream(plan.seed, train_state.ORDER)
    number = jnp.zeros((), jnp.int32)

    def order(key, epoch):
        return epoch_order(
            key,
            epoch,
            num_examples=len(data.train.labels),
            steps=plan.steps_per_epoch,
            batch_size=plan.batch_size,
        )

    update = train_state.make_update(
        plan.method, plan.graphdef, plan.optimizer, plan.rate
    )
    call = make_train_call(update, plan.steps_per_call, unroll=plan.unroll)
    evaluate = make_evaluate_call(
        plan.method,
        plan.graphdef,
        num_examples=data.num_test,
        batch_size=plan.test_batch_size,
    )
    return Compiled(
        order=jax.jit(order).lower(key, number).compile(),
        train=jax.jit(call, donate_argnums=0)
        .lower(state, key, *data.train, jax.eval_shape(order, key, number))
        .compile(),
        evaluate=jax.jit(evaluate)
        .lower(state.params, state.batch_stats, key, *data.test, number)
        .compile(),
    )


class DeviceData(NamedTuple):
    """The data set on the device.

    Attributes:
      train: the training split.
      test: the test split, padded to whole batches.
      num_test: real examples in it.
    """

    train: Split
    test: Split
    num_test: int


def place(dataset: Dataset, test_batch_size: int) -> DeviceData:
    """Returns `dataset` on the default device."""
    padding = -len(dataset.test.labels) % test_batch_size
    test = Split(
        *(np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in dataset.test)
    )
    return DeviceData(
        jax.device_put(dataset.train), jax.device_put(test), len(dataset.test.labels)
    )


def evaluate(
    plan: Plan, compiled: Compiled, state: TrainState, data: DeviceData
) -> dict[str, float]:
    """Returns every metric's mean over the test split, and "examples", their number."""
    key = train_state.stream(plan.seed, train_state.EVALUATION)
    batches = len(data.test.labels) // plan.test_batch_size
    parts = jax.device_get(
        [
            compiled.evaluate(
                state.params, state.batch_stats, key, *data.test, scalar(batch)
            )
            for batch in range(batches)
        ]
    )
    sums = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
    examples = sums.pop("examples")
    means = {name: value / examples for name, value in sums.items()}
    return {**means, "examples": int(examples)}


def scalar(number: int) -> Array:
    """Returns `number` as an int32 scalar on the device."""
    return jax.device_put(np.int32(number))
