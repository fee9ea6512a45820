"""The optimizer and its learning rate."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax

from duet_jax.errors import lookup
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


def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """Returns AdamW that decays **all** parameters, biases and normalization included.

    Source: Loshchilov & Hutter 2019 with the reference's constants. Others often
    exclude biases and normalization; the reference does not.
    """
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
