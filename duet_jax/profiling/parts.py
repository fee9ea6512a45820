"""The parts of an update as separate programs, for timing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from duet_jax.methods.base import Views
from duet_jax.methods.networks import split
from duet_jax.training.plan import Plan
from duet_jax.types import Array, Split, TrainState


def _augmentation(plan: Plan, state, key, batch, views) -> Array:
    """Makes the views of a batch."""
    return _sum(plan.method.make_views(key, batch.images, train=True))


def _loss(plan: Plan, params, state: TrainState, batch: Split, views: Views) -> tuple:
    networks = nnx.merge(plan.graphdef, params, state.batch_stats)
    value, metrics = plan.method.loss(networks, views, batch.labels, None, train=True)
    return value, (metrics, split(networks)[2])


def _forward(plan: Plan, state, key, batch, views) -> Array:
    """Computes the loss of given views, with the networks in training mode."""
    return _sum(_loss(plan, state.params, state, batch, views))


def _forward_and_backward(plan: Plan, state, key, batch, views) -> Array:
    """Computes the same loss and its gradient."""

    def loss(params):
        return _loss(plan, params, state, batch, views)

    return _sum(jax.value_and_grad(loss, has_aux=True)(state.params))


def _update(plan: Plan, state, key, batch, views) -> Array:
    """Applies the optimizer to a gradient."""
    # Any numbers will do for a gradient if they are not the same in every turn.
    shift = jax.random.uniform(key)
    gradient = jax.tree.map(lambda x: x + shift, state.params)
    changes, opt_state = plan.optimizer.update(gradient, state.opt_state, state.params)
    return _sum((optax.apply_updates(state.params, changes), opt_state))


# (plan, state, key, batch, views) -> a number that depends on every result.
PARTS: dict[str, Callable[..., Array]] = {
    "augmentation": _augmentation,
    "forward": _forward,
    "forward_and_backward": _forward_and_backward,
    "update": _update,
}


def compile_part(plan: Plan, name: str, arguments: tuple[Any, ...]) -> Callable:
    """Compiles a part, repeated as often as the update in a training call.

    Args:
      plan: of the run.
      name: key of PARTS.
      arguments: state, key, a batch and its views, on the devices.

    Returns:
      A function of such arguments.
    """

    def part(state: TrainState, key: Array, batch: Split, views: Views) -> Array:
        def turn(total, number):
            # Everything depends on the previous turn, or the compiler would compute it
            # only once.
            state_, batch_, views_, _ = jax.lax.optimization_barrier(
                (state, batch, views, 0 * total)
            )
            turn_key = jax.random.fold_in(key, number)
            result = PARTS[name](plan, state_, turn_key, batch_, views_)
            return total + result, None

        total, numbers = jnp.zeros(()), jnp.arange(plan.steps_per_call)
        if not plan.unroll:
            return jax.lax.scan(turn, total, numbers)[0]
        for number in numbers:
            total, _ = turn(total, number)
        return total

    with jax.set_mesh(plan.mesh):
        return jax.jit(part).lower(*arguments).compile()


def _sum(tree: Any) -> Array:
    """Returns a number that depends on every array of `tree`."""
    return sum(jnp.sum(x).astype(jnp.float32) for x in jax.tree.leaves(tree))
