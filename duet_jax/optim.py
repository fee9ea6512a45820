"""The optimizers, their decay and their learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duet_jax.errors import lookup
from duet_jax.lazy import jax, jnp, optax
from duet_jax.types import Array

# Rate of the first epoch, as a fraction of the base rate; the reference's minimum.
_WARMUP_FLOOR = 1e-3


def warmup_cosine(epoch: Array, epochs: int, warmup_epochs: int) -> Array:
    """Returns the fraction of the base learning rate at `epoch`.

    Args:
      epoch: epochs done, from 0; may be fractional.
      epochs: epochs of the whole run.
      warmup_epochs: epochs of linear warm-up; 0 starts at the full rate.

    Returns:
      `max(epoch / warmup, 0.001)` up to the end of the warm-up, then half a cosine from
      1 to 0 at the end of the run.

    Source: the reference's schedule, which divides by zero without a warm-up.
    """
    rising = jnp.maximum(epoch / max(warmup_epochs, 1), _WARMUP_FLOOR)
    # Without epochs after the warm-up the cosine is never reached.
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1)
    falling = (1 + jnp.cos(jnp.pi * progress)) / 2
    in_warmup = (epoch <= warmup_epochs) & (warmup_epochs > 0)
    return jnp.where(in_warmup, rising, falling)


# When the rate changes: name -> epoch at a step.
SCHEDULES: dict[str, Callable[[Array, int], Array]] = {
    "epoch": lambda step, steps_per_epoch: step // steps_per_epoch,
    "step": lambda step, steps_per_epoch: step / steps_per_epoch,
}


def learning_rate(
    base: float,
    *,
    epochs: int,
    warmup_epochs: int,
    steps_per_epoch: int,
    schedule: str = "epoch",
    extensions: Sequence[tuple[int, int]] = (),
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    A run that is extended has no second warm-up: a new cosine falls from the rate of
    the last update before, to 0 at the new end. A run that is extended in its warm-up,
    which does not depend on the epochs, has the schedule of the longer run.

    Args:
      base: the rate at the end of the warm-up.
      epochs: epochs of the whole run; of one that is extended, those it was begun with.
      warmup_epochs: epochs of linear warm-up.
      steps_per_epoch: updates in an epoch.
      schedule: "epoch" keeps the rate constant within an epoch, as the reference does;
        "step" follows the same curve at every step.
      extensions: the steps at which a run was extended, above 0, and the epochs of the
        whole run since then; in the order in which that was done.
    """
    epoch_at = lookup(SCHEDULES, schedule, "config.optimizer.schedule")

    def plain(epochs: int) -> optax.Schedule:
        return lambda step: (
            base * warmup_cosine(epoch_at(step, steps_per_epoch), epochs, warmup_epochs)
        )

    def extended(before: optax.Schedule, begin: int, epochs: int) -> optax.Schedule:
        # As a number: nested, the functions of many extensions would multiply.
        highest = float(before(jnp.asarray(begin - 1, jnp.int32)))
        first = epoch_at(begin, steps_per_epoch)

        def rate(step: Array) -> Array:
            epoch = epoch_at(step, steps_per_epoch) - first
            falling = highest * warmup_cosine(epoch, epochs - first, 0)
            return jnp.where(step < begin, before(step), falling)

        return rate

    rate = plain(epochs)
    for begin, longer in extensions:
        if in_warmup(begin, warmup_epochs, steps_per_epoch, schedule):
            rate = plain(longer)
        else:
            rate = extended(rate, begin, longer)
    return rate


def in_warmup(
    step: int, warmup_epochs: int, steps_per_epoch: int, schedule: str
) -> bool:
    """Returns whether the rates of all updates before `step` are of the warm-up."""
    return SCHEDULES[schedule](step, steps_per_epoch) <= warmup_epochs


# What a learning rate is multiplied by: name -> factor of a batch size.
SCALES: dict[str, Callable[[int], float]] = {
    "none": lambda batch_size: 1.0,
    "linear": lambda batch_size: batch_size / 256,
    "sqrt": lambda batch_size: (batch_size / 256) ** 0.5,
}


def scaled(base: float, scale: str, batch_size: int) -> float:
    """Returns the learning rate of a batch size.

    Args:
      base: the rate of a batch of 256 images; of any batch if `scale` is "none".
      scale: "linear" multiplies it by `batch_size / 256`, "sqrt" by the root of that.
      batch_size: images in a batch, over all devices.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD" (linear); Krizhevsky
    2014, "One weird trick for parallelizing convolutional neural networks" (root).
    """
    return base * lookup(SCALES, scale, "config.optimizer.scale")(batch_size)


def _weights(params: Mapping) -> Any:
    """Returns True for the leaves that are called `kernel`, and False for others.

    That leaves out biases, the scales of normalization, and tokens and positions.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


# What decay, and LARS, are about: name -> mask of the parameters, None for all.
DECAYS: dict[str, Callable | None] = {"all": None, "weights": _weights}


def _mask(decay: str) -> Callable | None:
    return lookup(DECAYS, decay, "config.optimizer.decay")


def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    decay: str = "all",
) -> optax.GradientTransformation:
    """Returns AdamW, by default with decay of **all** parameters.

    Source: Loshchilov & Hutter 2019 with the reference's constants. Others often
    exclude biases and normalization, as `decay="weights"` does; the reference does not.
    """
    return optax.adamw(
        rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_mask(decay)
    )


def sgd(
    rate: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay: str = "all",
) -> optax.GradientTransformation:
    """Returns SGD with momentum, whose decay is a part of the gradient.

        g = gradient + weight_decay * parameter
        v = momentum * v + g
        parameter -= rate * (g + momentum * v if nesterov else v)

    Source: Sutskever et al. 2013, in the form of `torch.optim.SGD`: the rate is not in
    the momentum.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _mask(decay)),
        optax.sgd(rate, momentum=momentum, nesterov=nesterov),
    )


def lars(
    rate: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    weight_decay: float = 1e-4,
    decay: str = "all",
) -> optax.GradientTransformation:
    """Returns LARS, SGD whose rate is another for each array.

        g = gradient + weight_decay * parameter
        g = trust_coefficient * |parameter| / |g| * g, if neither norm is 0
        v = momentum * v + rate * g
        parameter -= rate * g + momentum * v if nesterov else v

    With `decay="weights"` all other arrays are updated like those of norm 0: by SGD
    without decay.

    Source: You et al. 2017, "Large Batch Training of Convolutional Networks", as in
    the code of SimCLR: the norm is that of gradient and decay together, and the rate
    is in the momentum.
    """
    mask = _mask(decay)
    return optax.lars(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=True if mask is None else mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=True if mask is None else mask,
        momentum=momentum,
        nesterov=nesterov,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
    "lars": lars,
}


def fields_read(name: str) -> tuple[str, ...]:
    """Returns the fields of `config.optimizer` that an optimizer alone decides on.

    They are the keywords of its function. `learning_rate`, `schedule` and `scale` are
    read whatever it is.
    """
    parameters = inspect.signature(OPTIMIZERS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def unread(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields of `config.optimizer` without effect, each with the reason.

    Args:
      settings: the section, with all of its fields.

    Raises:
      UsageError: there is no such optimizer.
    """
    name = settings["name"]
    lookup(OPTIMIZERS, name, "config.optimizer.name")
    every = {field for each in OPTIMIZERS for field in fields_read(each)}
    idle = every - set(fields_read(name))
    reasons = dict.fromkeys(sorted(idle), f"config.optimizer.name={name!r}")
    if settings.get("momentum") == 0:
        reasons.setdefault("nesterov", "config.optimizer.momentum=0")
    return reasons


def make(
    rate: optax.Schedule, settings: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Returns the optimizer that the section `config.optimizer` describes.

    Args:
      rate: learning rate by step.
      settings: the section; fields that it lacks have the defaults of the function.

    Raises:
      UsageError: there is no such optimizer.
    """
    name = settings["name"]
    build = lookup(OPTIMIZERS, name, "config.optimizer.name")
    given = {x: settings[x] for x in fields_read(name) if x in settings}
    return build(rate, **given)
