"""The structure loss of DUET."""

from duet_jax.lazy import jax, jnp
from duet_jax.losses.precision import at_least_float32, masked_mean
from duet_jax.types import Array


def jensen_shannon(logits: Array, targets: Array) -> Array:
    """Jensen-Shannon divergence between predicted and target distributions.

    Args:
      logits: unnormalized log-probabilities, [batch, bins]; any finite values.
      targets: probabilities, [batch, bins], rows summing to 1.

    Returns:
      The divergence of each example in nats, [batch], from 0 to log 2.

    Source: structure term of the DUET paper; natural logarithm as in the reference.
    Computed from log-probabilities, so it is finite where the reference returns NaN (a
    logit that exceeds the others by about 104).
    """
    logits, targets = at_least_float32(logits), at_least_float32(targets)
    log_p = jax.nn.log_softmax(logits, axis=1)
    log_q = jnp.log(jnp.maximum(targets, jnp.finfo(targets.dtype).tiny))
    log_mixture = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(log_p.dtype)
    terms = jnp.exp(log_p) * (log_p - log_mixture) + targets * (log_q - log_mixture)
    return jnp.sum(terms, axis=1) / 2


def structure_loss(logits: Array, targets: Array, mask: Array | None = None) -> Array:
    """The structure loss of one view: the mean of `jensen_shannon`.

    Args:
      logits: of the structure, from `models.structure_logits`, [batch, bins].
      targets: around the drawn parameters, from `von_mises` or `gaussian`, [batch,
        bins].
      mask: the examples that count, bool [batch]; None for all.

    Returns:
      A scalar in nats, from 0 to log 2.

    Source: DUET paper, section 3, without its weight lambda.
    """
    return masked_mean(jensen_shannon(logits, targets), mask)
