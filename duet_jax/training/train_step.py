"""Initializes the train state and defines the train step.

Modules exist only while a function is traced. Outside, their state is plain nested
dicts, which cost `jax.jit` much less and have clean names in Orbax's files.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from duet_jax.errors import lookup
from duet_jax.methods import Method, Metrics, Views
from duet_jax.methods.networks import split
from duet_jax.types import Array, TrainState

# Independent streams of random numbers, each derived from the seed alone. The order of
# the images is drawn on the host instead (`data.order`).
TRAINING, EVALUATION = 1, 2


def stream(seed: int | Array, which: int) -> Array:
    """Returns the key of one of the streams above."""
    return jax.random.fold_in(jax.random.key(seed), which)


def initial_key(seed: int | Array) -> Array:
    """Returns the key of the initial parameters.

    It uses another generator than the streams: XLA takes minutes to compile JAX's
    default one for all the different shapes of a network.
    """
    return jax.random.key(seed, impl="rbg")


def graph_definition(method: Method) -> nnx.GraphDef:
    """Returns the structure of the method's networks without computing anything."""
    return split(nnx.eval_shape(lambda: method.init(nnx.Rngs(0))))[0]


def initial_state(
    method: Method, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """Returns the state before the first update; to be compiled."""
    _, params, batch_stats = split(method.init(nnx.Rngs(key)))
    step, sound = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return TrainState(step, params, batch_stats, optimizer.init(params), sound)


Update = Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]


def make_train_step(
    method: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    on_nonfinite: str = "stop",
) -> Update:
    """Returns `update(state, key, images, labels) -> (state, metrics)`.

    Args:
      method: makes the views, outside the differentiated function, and scores them.
      graphdef: structure of its networks.
      optimizer: updates all parameters.
      rate: the optimizer's learning rate, reported among the metrics.
      on_nonfinite: key of ON_NONFINITE: the state after an update whose loss or
        gradient norm is not finite.

    Returns:
      A function to compile. Among its metrics are "grad_norm", the norm of the gradient
      of all parameters, and "skipped", 1.0 where the update was not applied, else 0.0.
    """
    leave_out = lookup(ON_NONFINITE, on_nonfinite, "config.on_nonfinite")

    def update(state: TrainState, key: Array, images: Array, labels: Array):
        views = method.make_views(key, images, train=True)
        result, grads = differentiate(method, graphdef, state, views, labels)
        loss, (metrics, batch_stats) = result
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Overflows earlier than the optimizer's squares of the gradient.
        norm = optax.tree.norm(grads)
        applied = jnp.isfinite(loss) & jnp.isfinite(norm) & state.sound
        after = TrainState(state.step + 1, params, batch_stats, opt_state, state.sound)
        metrics = {
            **metrics,
            "learning_rate": jnp.asarray(rate(state.step)),
            "grad_norm": norm,
            "skipped": 1 - applied.astype(norm.dtype),
        }
        # Chosen leaf by leaf, without a branch: XLA fuses it with the update, and
        # nothing waits for the host.
        choose = functools.partial(jnp.where, applied)
        return jax.tree.map(choose, after, leave_out(state, after)), metrics

    return update


def differentiate(
    method: Method,
    graphdef: nnx.GraphDef,
    state: TrainState,
    views: Views,
    labels: Array,
) -> tuple[tuple[Array, tuple[Metrics, dict]], dict]:
    """Returns ((loss, (metrics, new running statistics)), gradients).

    Args:
      method: scores the networks.
      graphdef: their structure.
      state: their parameters and running statistics.
      views: of a batch, from `method.make_views`.
      labels: int32, [batch].
    """

    def loss(params):
        networks = nnx.merge(graphdef, params, state.batch_stats)
        value, metrics = method.loss(networks, views, labels, None, train=True)
        return value, (metrics, split(networks)[2])

    return jax.value_and_grad(loss, has_aux=True)(state.params)


def _stand_still(before: TrainState, after: TrainState) -> TrainState:
    """Keeps the state before the broken update, which can then be recomputed."""
    del after
    return before._replace(sound=jnp.zeros_like(before.sound))


def _skip(before: TrainState, after: TrainState) -> TrainState:
    """Advances data and schedule, and keeps the networks.

    The counters are the integers: the step and the optimizer's own counts.
    """
    return jax.tree.map(
        lambda old, new: old if jnp.issubdtype(old.dtype, jnp.inexact) else new,
        before,
        after,
    )


# The state after an update that is not finite: name -> f(state before, state after).
ON_NONFINITE: dict[str, Callable[[TrainState, TrainState], TrainState]] = {
    "stop": _stand_still,
    "skip": _skip,
}
