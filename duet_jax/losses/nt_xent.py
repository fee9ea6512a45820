"""NT-Xent, the contrastive loss, for batches of any size on one or several devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from duet_jax.errors import lookup
from duet_jax.lazy import jax, jnp
from duet_jax.losses.precision import at_least_float32, masked_mean
from duet_jax.types import BATCH_AXIS, Array

# Floor of the squared norm in the cosine similarity; the reference's value.
_SQUARED_NORM_FLOOR = 1e-12

# Up to this many candidates are compared at once, which takes the fewest products; more
# are compared in blocks, because the memory would be quadratic.
_MOST_AT_ONCE = 4096
_BLOCK = 1024


# What is made of the losses of both directions: name -> factor of their sum.
REDUCTIONS = {"sum": 1.0, "mean": 0.5}


class Contrast(NamedTuple):
    """The result of `nt_xent`; scalars.

    Attributes:
      loss: NT-Xent, the sum or the mean of both directions.
      top1: share of examples whose positive is the most similar candidate, in [0, 1].
      top5: share of examples whose positive is among the five most similar.
    """

    loss: Array
    top1: Array
    top5: Array


def _unit_rows(x: Array) -> Array:
    x = at_least_float32(x)
    squared_norm = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, _SQUARED_NORM_FLOOR))


class _Candidates(NamedTuple):
    """Embeddings to compare the anchors with, replicated on all devices.

    Either all of them in blocks, [blocks, block, ...], or one block, [block, ...].

    Attributes:
      features: of length temperature ** -0.5, [..., dimensions].
      position: among the embeddings of view 1, then view 2. The rows that fill up
        the last block have positions beyond, where there are no anchors.
      present: False for padding, which is no candidate.
    """

    features: Array
    position: Array
    present: Array


class _Pairs(NamedTuple):
    """All pairs of an anchor and a candidate of one block.

    Attributes:
      logits: cosines over the temperature, [2, batch, block].
      positive: True if the candidate is the other view of the anchor, same shape.
      other: True unless the candidate is the anchor itself, same shape.
      place: position of the positive relative to the block's start, [2, batch, 1].
    """

    logits: Array
    positive: Array
    other: Array
    place: Array

    def masked(self, present: Array) -> Array:
        """Returns the logits, with -inf for the anchor itself and for padding.

        Padded anchors keep their own positive, so that their unused loss is finite.
        """
        counts = self.positive | (self.other & present)
        return jnp.where(counts, self.logits, -jnp.inf)

    def positive_logit(self) -> Array:
        """Returns the positive's logit, [2, batch], or 0 if it is in another block.

        It is taken from the same product as its rivals: a separate product could be
        rounded differently, and collapsed features could look perfect.
        """
        last = self.logits.shape[2] - 1
        place = jnp.clip(self.place, 0, last)
        found = jnp.take_along_axis(self.logits, place, axis=2)
        return jnp.where(place == self.place, found, 0)[..., 0]


def _constrain(x: Array, *axes: str | None) -> Array:
    """Shards the leading axes of `x` over the current mesh; None replicates."""
    if BATCH_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*axes))


def _in_blocks(x: Array, block: int) -> Array:
    """Replicates and reshapes [2, batch, ...] to [blocks, block, ...], zero-padded."""
    # Gathered before the reshape merges the views with the sharded axis.
    rows = _constrain(x).reshape(-1, *x.shape[2:])
    blocks = -(-len(rows) // block)
    widths = [(0, blocks * block - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(rows, widths).reshape(blocks, block, *rows.shape[1:])


def _candidates(anchors: Array, mask: Array, block: int) -> _Candidates:
    """Returns all anchors [2, batch, dimensions] as candidates in blocks."""
    features = _in_blocks(anchors, block)
    present = _in_blocks(jnp.stack([mask, mask]), block)
    position = jnp.arange(present.size, dtype=jnp.int32).reshape(present.shape)
    return _Candidates(features, position, present)


def _compare(anchors: Array, candidates: _Candidates) -> _Pairs:
    """Compares the anchors [2, batch, dimensions] with one block of candidates."""
    logits = jnp.einsum(
        "vbd,cd->vbc",
        anchors,
        candidates.features,
        precision=jax.lax.Precision.HIGHEST,  # TF32 would be visible at temperature 0.1
    )
    views, batch, _ = anchors.shape
    own = jnp.arange(views * batch, dtype=jnp.int32).reshape(views, batch, 1)
    position = candidates.position[None, None, :]
    place = own[::-1] - candidates.position[0]
    return _Pairs(logits, position == own[::-1], position != own, place)


def _fold(add: Callable, start: Any, blocks: Any) -> Any:
    """Accumulates over the blocks [blocks, block, ...]; without a loop if only one."""
    if len(jax.tree.leaves(blocks)[0]) == 1:
        return add(start, jax.tree.map(lambda x: x[0], blocks))
    return jax.lax.scan(lambda sums, x: (add(sums, x), None), start, blocks)[0]


def _contrast(anchors: Array, mask: Array, block: int) -> tuple[Array, Array]:
    """Returns the loss and the rank of the positive for each anchor, both [2, batch].

    Args:
      anchors: embeddings of both views, of length temperature ** -0.5, so that their
        products are logits, [2, batch, dimensions].
      mask: the examples that count, bool [batch].
      block: number of candidates to compare at once.

    The forward pass goes twice over the candidates: first for the sum and the positive,
    then for the rank. The backward pass recomputes the logits, because differentiating
    the loop would store them.
    """
    return _differentiable()(anchors, mask, block)


@functools.cache
def _differentiable() -> Callable:
    contrast = jax.custom_vjp(
        lambda *arguments: _contrast_forward(*arguments)[0], nondiff_argnums=(2,)
    )
    contrast.defvjp(_contrast_forward, _contrast_backward)
    return contrast


def _contrast_forward(anchors: Array, mask: Array, block: int):
    def add(sums, candidates):
        largest, mass, positive = sums
        pairs = _compare(anchors, candidates)
        logits = pairs.masked(candidates.present[None, None, :])
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=2))
        more = jnp.sum(jnp.exp(logits - new_largest[..., None]), axis=2)
        mass = mass * jnp.exp(largest - new_largest) + more
        return new_largest, mass, positive + pairs.positive_logit()

    def count(rank, candidates):
        pairs = _compare(anchors, candidates)
        logits = pairs.masked(candidates.present[None, None, :])
        # Ties and NaN count against the positive, as in `top_k`. It is excluded by its
        # position, not by its value, which may be rounded differently in this pass.
        not_below = ~(logits < positive[..., None])
        return rank + jnp.sum(not_below & ~pairs.positive, axis=2)

    blocks = _candidates(anchors, mask, block)
    zeros = jnp.zeros_like(anchors[..., 0])
    # Not -inf: a first block without candidates would give inf - inf.
    lowest = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min)
    largest, mass, positive = _fold(add, (lowest, zeros, zeros), blocks)
    rank = _fold(count, zeros.astype(int), blocks)
    # The difference of two large logits is exact; the log-sum minus a logit is not.
    loss = jnp.log(mass) + (largest - positive)
    return (loss, rank), (anchors, mask, largest, mass)


def _contrast_backward(block: int, saved, cotangents):
    """Returns the gradient for the anchors, which are also the candidates.

    The logits are symmetric: one product gives both the probability of candidate j for
    anchor i and that of candidate i for anchor j. So, besides the embeddings, devices
    exchange only two numbers per anchor.
    """
    anchors, mask, largest, mass = saved
    weight, _ = cotangents
    share = weight / mass

    def add(gradient, inputs):
        candidates, sums = inputs
        their_largest, their_share = sums.T[:, None, None, :]
        pairs = _compare(anchors, candidates)
        ours = pairs.masked(candidates.present[None, None, :])
        theirs = pairs.masked(mask[None, :, None])
        slope = share[..., None] * jnp.exp(ours - largest[..., None])
        slope += their_share * jnp.exp(theirs - their_largest)
        precision = jax.lax.Precision.HIGHEST
        return gradient + jnp.einsum(
            "vbc,cd->vbd", slope, candidates.features, precision=precision
        )

    sums = _in_blocks(jnp.stack([largest, share], axis=2), block)
    blocks = (_candidates(anchors, mask, block), sums)
    gradient = _fold(add, jnp.zeros_like(anchors), blocks)
    # The positive separately: within the product, a one among thousands of small
    # probabilities would cost them a digit.
    return gradient - (weight + weight[::-1])[..., None] * anchors[::-1], None


def nt_xent(
    embeddings1: Array,
    embeddings2: Array,
    temperature: float,
    mask: Array | None = None,
    *,
    reduction: str = "sum",
    block: int | None = None,
) -> Contrast:
    """Normalized temperature-scaled cross-entropy between two views.

    Above 4096 candidates (2048 examples), memory grows linearly with the batch: the
    candidates are compared in blocks of 1024, and the gradient recomputes the logits.
    Only reverse-mode differentiation is supported.

    If a mesh with the axis "data" is set (`jax.set_mesh`), the anchors are sharded
    along it and the candidates are replicated.

    Args:
      embeddings1: of view 1, any scale, [batch, dimensions].
      embeddings2: of view 2 of the same examples, [batch, dimensions].
      temperature: divides the cosine similarities; positive.
      mask: the examples that count, bool [batch]; None for all.
      reduction: "sum" **adds** the two directions; "mean" averages them: the mean over
        all 2 * batch anchors, half as much.
      block: number of candidates, of 2 * batch, to compare at once; None as above.

    Returns:
      The loss, of both directions, averaged over examples, and the retrieval
      accuracies, averaged over the two directions.

    Raises:
      UsageError: there is no such reduction.

    Source: Chen et al. 2020, equation 1, by default with the sum over directions of the
    reference (the paper and `optax.losses.ntxent` average them) and its floor of 1e-12
    on the squared norm. The reference's accuracy is a sum for five examples or fewer;
    here it is always the mean.
    """
    factor = lookup(REDUCTIONS, reduction, "reduction")
    anchors = jnp.stack([_unit_rows(embeddings1), _unit_rows(embeddings2)])
    # Dividing both sides by sqrt(temperature) keeps the product symmetric.
    anchors = _constrain(anchors / jnp.sqrt(temperature), None, BATCH_AXIS)
    _, batch, _ = anchors.shape
    if block is None:
        block = _BLOCK if 2 * batch > _MOST_AT_ONCE else 2 * batch
    present = jnp.ones(batch, bool) if mask is None else mask
    loss, rank = _contrast(anchors, present, min(block, 2 * batch))

    def accuracy(k: int) -> Array:
        return masked_mean(jnp.mean((rank < k).astype(loss.dtype), axis=0), mask)

    total = factor * masked_mean(jnp.sum(loss, axis=0), mask)
    return Contrast(total, accuracy(1), accuracy(5))
