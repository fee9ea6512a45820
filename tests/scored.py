"""Methods that are scored on views, in few compilations; what refuses which code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from duet_jax.augmentations import Options, make_stack
from duet_jax.methods.base import Views
from duet_jax.methods.networks import split
from duet_jax.training import train_step
from duet_jax.types import DatasetFacts, View

BATCH = 12
SIDE = 16
DATA = {c: DatasetFacts("tiny", SIDE, c, ("0", "1", "2"), 0, 0) for c in (1, 3)}

# What each method does with each code: None where it trains, else what it says.
TRAINS = None
NO_STRUCTURE = "has no structure"
NO_PREDICTION = "cannot be predicted"
TABLE = {
    # code: (DUET learns it, ESSL predicts it); SimCLR takes them all
    "sca": (TRAINS, NO_PREDICTION),
    "rot": (TRAINS, TRAINS),
    "ron": (TRAINS, TRAINS),
    "fli": (TRAINS, TRAINS),
    "flv": (TRAINS, TRAINS),
    "gra": (TRAINS, TRAINS),
    "blu": (TRAINS, NO_PREDICTION),
    "sol": (TRAINS, NO_PREDICTION),
    "bri": (TRAINS, TRAINS),
    "con": (TRAINS, TRAINS),
    "sat": (TRAINS, TRAINS),
    "hue": (TRAINS, TRAINS),
    "jit": (NO_STRUCTURE, NO_PREDICTION),
    "res": (NO_STRUCTURE, NO_PREDICTION),
    "ccr": (NO_STRUCTURE, NO_PREDICTION),
}
NEEDS_COLOUR = ("gra", "jit", "sat", "hue")


def blank(method):
    """The method without its stack: scoring does not depend on how views were made."""
    own = method.two_views.stack
    stack = make_stack(
        (),
        input_side=own.image_size,
        image_size=own.image_size,
        channels=own.channels,
        options=Options(),
    )
    two_views = dataclasses.replace(method.two_views, stack=stack)
    return dataclasses.replace(method, two_views=two_views)


def canonical(method, views):
    """The same method for the compiler whatever the code, and its views likewise.

    One compilation serves all codes that are scored alike.
    """
    changes = {}
    learned = getattr(method, "learned", ())
    structure = [{}, {}]
    prediction = views.prediction
    if hasattr(method, "groups"):
        (group,) = method.groups
        changes["groups"] = (dataclasses.replace(group, code="any"),)
        structure = [{"any": view.structure[group.code]} for view in views[:2]]
    elif learned:
        alike = {4: "ron", 2: "fli", 1: "rot"}
        (outputs,) = (each.num_outputs for each in method.predictions.values())
        changes["learned"] = (alike[outputs],)
        targets = {alike[outputs]: prediction.targets[learned[0]]}
        prediction = prediction._replace(targets=targets)
    views = Views(
        View(views.first.images, structure[0]),
        View(views.second.images, structure[1]),
        prediction,
    )
    return dataclasses.replace(blank(method), **changes), views


@functools.partial(jax.jit, static_argnums=(0, 1))
def update(method, graphdef, params, batch_stats, views, labels):
    def loss(params):
        networks = nnx.merge(graphdef, params, batch_stats)
        value, metrics = method.loss(networks, views, labels, None, train=True)
        return value, (metrics, split(networks)[2])

    gradients, (metrics, stats) = jax.grad(loss, has_aux=True)(params)
    updates, _ = optax.adam(3e-3).update(gradients, optax.adam(3e-3).init(params))
    return optax.apply_updates(params, updates), stats, metrics


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(method, graphdef, params, batch_stats, views, labels):
    networks = nnx.merge(graphdef, params, batch_stats)
    mask = jnp.arange(len(labels)) < len(labels) - 2
    return method.loss(networks, views, labels, mask, train=False)[1]


@functools.cache
def initial(method):
    def begin(key):
        return split(method.init(nnx.Rngs(key)))[1:]

    key = train_step.initial_key(0)
    return train_step.graph_definition(method), *jax.jit(begin)(key)


def make_both(method):
    """Makes training and evaluation views; both at once take less to compile."""
    return lambda key, images: {
        train: method.make_views(key, images, train=train) for train in (True, False)
    }


def scores(method, views, train):
    """The shapes of the metrics of a method on views that are only shapes."""

    def loss(views, labels):
        networks = method.init(nnx.Rngs(0))
        return method.loss(networks, views, labels, None, train=train)[1]

    return jax.eval_shape(loss, views, jax.ShapeDtypeStruct((BATCH,), np.int32))
