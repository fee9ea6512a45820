"""The losses of DUET, SimCLR and ESSL, and the accuracies reported beside them.

Everything here is computed in at least float32, whatever the networks compute in. A
`mask` marks the examples that count: the last batch of an evaluation is padded, and
padding must neither be averaged nor serve as a negative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from duet_jax.types import Array

# Floor of the squared norm in the cosine similarity; the reference's value.
_SQUARED_NORM_FLOOR = 1e-12


class Contrast(NamedTuple):
    """What `nt_xent` returns; scalars.

    Attributes:
      loss: NT-Xent, both directions added.
      top1: share of examples whose positive is the most similar candidate, in [0, 1].
      top5: share of examples whose positive is among the five most similar.
    """

    loss: Array
    top1: Array
    top5: Array


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of `values` [batch] over the examples where `mask` [batch] is true."""
    if mask is None:
        return jnp.mean(values)
    # A batch always holds one real example at least; the floor keeps 0/0 out.
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _unit_rows(x: Array) -> Array:
    x = _at_least_float32(x)
    squared_norm = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, _SQUARED_NORM_FLOOR))


def _one_direction(
    anchors: Array, positives: Array, temperature: float, mask: Array | None
) -> tuple[Array, Array]:
    """Loss and rank of the positive for every anchor, each [batch].

    The candidates are all positives and all anchors but the anchor itself.
    """
    precision = jax.lax.Precision.HIGHEST  # cosines over .1: tf32 would be visible
    across = jnp.matmul(anchors, positives.T, precision=precision) / temperature
    within = jnp.matmul(anchors, anchors.T, precision=precision) / temperature
    within = jnp.where(jnp.eye(len(anchors), dtype=bool), -jnp.inf, within)
    if mask is not None:
        # A padded row keeps its own positive, so that its unused loss stays finite.
        absent = ~mask[None, :] & ~jnp.eye(len(anchors), dtype=bool)
        across = jnp.where(absent, -jnp.inf, across)
        within = jnp.where(~mask[None, :], -jnp.inf, within)
    candidates = jnp.concatenate([across, within], axis=1)
    positive = jnp.diagonal(across)
    loss = jax.nn.logsumexp(candidates, axis=1) - positive
    return loss, _rank(candidates, positive)


def _rank(candidates: Array, chosen: Array) -> Array:
    """How many of the others [batch, candidates] are not below the chosen [batch].

    A tie counts against the chosen one: collapsed features, which are all alike, must
    not look like perfect ones.
    """
    return jnp.sum(~(candidates < chosen[:, None]), axis=1) - 1  # so does a NaN


def nt_xent(
    embeddings1: Array,
    embeddings2: Array,
    temperature: float,
    mask: Array | None = None,
) -> Contrast:
    """Normalised temperature-scaled cross-entropy between two views.

    Args:
      embeddings1: of view 1, any scale, [batch, dimensions].
      embeddings2: of view 2 of the same examples, [batch, dimensions].
      temperature: divides the cosine similarities; positive.
      mask: the examples that count, bool [batch]; all of them when None.

    Returns:
      The loss, in which the two directions are **added**, averaged over examples, and
      the retrieval accuracies, which are the mean of the two directions.

    Source: Chen et al. 2020, equation 1, with the sum over directions of the reference
    (the paper and `optax.losses.ntxent` average them). The floor of 1e-12 on the
    squared norm is the reference's. Its accuracy is a sum for five examples or fewer;
    here it is always the mean.
    """
    embeddings1, embeddings2 = _unit_rows(embeddings1), _unit_rows(embeddings2)
    loss1, rank1 = _one_direction(embeddings1, embeddings2, temperature, mask)
    loss2, rank2 = _one_direction(embeddings2, embeddings1, temperature, mask)

    def accuracy(k: int) -> Array:
        hits = (rank1 < k).astype(loss1.dtype) + (rank2 < k).astype(loss1.dtype)
        return masked_mean(hits / 2, mask)

    return Contrast(masked_mean(loss1 + loss2, mask), accuracy(1), accuracy(5))


def jensen_shannon(logits: Array, targets: Array) -> Array:
    """Jensen-Shannon divergence between predicted and true bin distributions.

    Args:
      logits: unnormalised, [batch, bins]; any finite values.
      targets: probabilities, [batch, bins], rows summing to 1.

    Returns:
      One divergence per example in nats, [batch], between 0 and log 2.

    Source: structure term of the DUET paper; natural logarithm as in the reference.
    Computed from log-probabilities, so it is finite where the reference returns NaN
    (one logit leading by about 104).
    """
    logits, targets = _at_least_float32(logits), _at_least_float32(targets)
    log_p = jax.nn.log_softmax(logits, axis=1)
    log_q = jnp.log(jnp.maximum(targets, jnp.finfo(targets.dtype).tiny))
    log_mixture = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(log_p.dtype)
    terms = jnp.exp(log_p) * (log_p - log_mixture) + targets * (log_q - log_mixture)
    return jnp.sum(terms, axis=1) / 2


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy in nats of `logits` [batch, classes] at int `labels` [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(
        _at_least_float32(logits), labels
    )


def squared_error(predictions: Array, targets: Array) -> Array:
    """Squared error of `predictions` [batch] against `targets` [batch]."""
    return jnp.square(_at_least_float32(predictions) - targets)


def top_k(logits: Array, labels: Array, k: int) -> Array:
    """Whether the label is among the k largest logits.

    Args:
      logits: [batch, classes].
      labels: int, [batch].
      k: a k above the number of classes counts every example as right.

    Returns:
      0. or 1. per example, float32 [batch]. A tie counts against the label.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (_rank(logits, own) < k).astype(jnp.float32)
