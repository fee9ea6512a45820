"""The parts of an update, each as a program of its own that can be timed."""

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

# One turn of a part: (state, key, batch, views) -> a number that needs all of it.
Body = Callable[[TrainState, Array, Split, Views], Array]


def _augmentation(plan: Plan) -> Body:
    """Making the views of a batch."""

    def body(state, key, batch, views):
        return _sum(plan.method.make_views(key, batch.images, train=True))

    return body


def _loss(plan: Plan, state: TrainState, batch: Split, views: Views) -> Callable:
    def loss(params):
        networks = nnx.merge(plan.graphdef, params, state.batch_stats)
        value, metrics = plan.method.loss(
            networks, views, batch.labels, None, train=True
        )
        return value, (metrics, split(networks)[2])

    return loss


def _forward(plan: Plan) -> Body:
    """The loss of given views, the networks in training mode."""

    def body(state, key, batch, views):
        return _sum(_loss(plan, state, batch, views)(state.params))

    return body


def _forward_and_backward(plan: Plan) -> Body:
    """The same and its gradient."""

    def body(state, key, batch, views):
        loss = _loss(plan, state, batch, views)
        return _sum(jax.value_and_grad(loss, has_aux=True)(state.params))

    return body


def _update(plan: Plan) -> Body:
    """What the optimiser does with a gradient."""

    def body(state, key, batch, views):
        # Any numbers do for a gradient if they are not the same in every turn.
        shift = jax.random.uniform(key)
        gradient = jax.tree.map(lambda x: x + shift, state.params)
        changes, opt_state = plan.optimizer.update(
            gradient, state.opt_state, state.params
        )
        return _sum((optax.apply_updates(state.params, changes), opt_state))

    return body


PARTS: dict[str, Callable[[Plan], Body]] = {
    "augmentation": _augmentation,
    "forward": _forward,
    "forward_and_backward": _forward_and_backward,
    "update": _update,
}


def compile_part(plan: Plan, name: str, arguments: tuple[Any, ...]) -> Callable:
    """Returns a part that is carried out as often as an update in a training call.

    Args:
      plan: of the run.
      name: key of PARTS.
      arguments: state, key, a batch and its views, on the devices.

    Returns:
      A function of such arguments.
    """
    body = PARTS[name](plan)

    def part(state: TrainState, key: Array, batch: Split, views: Views) -> Array:
        def turn(total, number):
            # Everything depends on the turn before, or the compiler would do once what
            # is to be done in each.
            state_, batch_, views_ = _moved((state, batch, views), 0 * total)
            turn_key = jax.random.fold_in(key, number)
            return total + body(state_, turn_key, batch_, views_), None

        total, numbers = jnp.zeros(()), jnp.arange(plan.steps_per_call)
        if not plan.unroll:
            return jax.lax.scan(turn, total, numbers)[0]
        for number in numbers:
            total, _ = turn(total, number)
        return total

    with jax.set_mesh(plan.mesh):
        return jax.jit(part).lower(*arguments).compile()


def _moved(tree: Any, nothing: Array) -> Any:
    """Returns the same arrays, which seem to depend on `nothing`."""
    return jax.lax.optimization_barrier((tree, nothing))[0]


def _sum(tree: Any) -> Array:
    """One number that needs every array of `tree`."""
    return sum(jnp.sum(x).astype(jnp.float32) for x in jax.tree.leaves(tree))
