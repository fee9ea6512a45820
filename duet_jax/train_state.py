"""How the arrays of a run begin, and how one update changes them.

Modules exist only while a function is traced: outside, their state is plain nested
dicts, which `jax.jit` handles at a fraction of the cost and Orbax stores under clean
names.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from duet_jax.methods import Method, Metrics, Networks
from duet_jax.types import Array, TrainState

# Independent streams of random numbers, each derived from the seed alone. The order of
# the images is not among them: it is drawn on the host (`data.order`).
TRAINING, EVALUATION = 1, 2


def stream(seed: int | Array, which: int) -> Array:
    """Returns the key of one of the streams above."""
    return jax.random.fold_in(jax.random.key(seed), which)


def initial_key(seed: int | Array) -> Array:
    """Returns the key of the initial parameters.

    Of another generator than the streams: XLA takes minutes to compile JAX's default
    one for as many differently shaped arrays as a network has.
    """
    return jax.random.key(seed, impl="rbg")


def split(networks: Networks) -> tuple[nnx.GraphDef, dict, dict]:
    """Returns the structure, the parameters and the running statistics, as dicts."""
    graphdef, params, batch_stats = nnx.split(networks, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def graph_definition(method: Method) -> nnx.GraphDef:
    """Returns the structure of the method's networks without computing anything."""
    return split(nnx.eval_shape(lambda: method.init(nnx.Rngs(0))))[0]


def initial_state(
    method: Method, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """Returns the state before the first update; to be compiled."""
    _, params, batch_stats = split(method.init(nnx.Rngs(key)))
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, batch_stats, optimizer.init(params))


Update = Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]


def make_update(
    method: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
) -> Update:
    """Returns `update(state, key, images, labels) -> (state, metrics)`.

    Args:
      method: makes the views, outside the differentiated function, and scores them.
      graphdef: structure of its networks.
      optimizer: updates all parameters.
      rate: the optimiser's learning rate, reported among the metrics.
    """

    def update(state: TrainState, key: Array, images: Array, labels: Array):
        views = method.make_views(key, images, train=True)

        def loss(params):
            networks = nnx.merge(graphdef, params, state.batch_stats)
            value, metrics = method.loss(networks, views, labels, None, train=True)
            return value, (metrics, split(networks)[2])

        grads, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "learning_rate": jnp.asarray(rate(state.step))}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return update
