"""NT-Xent, the contrastive loss, for batches of any size on one device or several."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from duet_jax.losses.precision import at_least_float32, masked_mean
from duet_jax.types import BATCH_AXIS, Array

# Floor of the squared norm in the cosine similarity; the reference's value.
_SQUARED_NORM_FLOOR = 1e-12

# NT-Xent compares with all candidates at once up to this many, which takes the fewest
# products; above it with this many at a time, since its memory would be quadratic.
_MOST_AT_ONCE = 4096
_BLOCK = 1024


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


def _unit_rows(x: Array) -> Array:
    x = at_least_float32(x)
    squared_norm = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared_norm, _SQUARED_NORM_FLOOR))


class _Candidates(NamedTuple):
    """Embeddings that the anchors are compared with; the same on every device.

    All of them in blocks, [blocks, block, ...], or one block of them, [block, ...].

    Attributes:
      features: of length temperature ** -0.5, [..., dimensions].
      index: place among all embeddings, view by view. What fills up the last block
        has places behind them, where no anchor is.
      present: whether it is a candidate, bool; padding is none.
    """

    features: Array
    index: Array
    present: Array


class _Pairs(NamedTuple):
    """The anchors against one block of candidates.

    Attributes:
      logits: cosines over the temperature, [2, batch, block].
      positive: whether the candidate is the other view of the anchor, likewise.
      other: whether it is not the anchor itself, likewise.
      place: of the positive, counted from the start of the block, [2, batch, 1].
    """

    logits: Array
    positive: Array
    other: Array
    place: Array

    def masked(self, present: Array) -> Array:
        """Returns the logits, -inf for the anchor itself and for what is not present.

        A padded row keeps its own positive, so that its unused loss stays finite.
        """
        counts = self.positive | (self.other & present)
        return jnp.where(counts, self.logits, -jnp.inf)


def _lay_out(x: Array, *axes: str | None) -> Array:
    """`x`, its first axes split over the mesh in context as named; None is whole."""
    if BATCH_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*axes))


def _in_blocks(x: Array, block: int) -> Array:
    """[2, batch, ...] as [blocks, block, ...] filled up with zeros, on every device."""
    # Gathered before the reshape joins the views with the axis that is split.
    rows = _lay_out(x).reshape(-1, *x.shape[2:])
    blocks = -(-len(rows) // block)
    widths = [(0, blocks * block - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(rows, widths).reshape(blocks, block, *rows.shape[1:])


def _candidates(anchors: Array, mask: Array, block: int) -> _Candidates:
    """All anchors [2, batch, dimensions] as candidates, [blocks, block, ...]."""
    features = _in_blocks(anchors, block)
    present = _in_blocks(jnp.stack([mask, mask]), block)
    index = jnp.arange(present.size, dtype=jnp.int32).reshape(present.shape)
    return _Candidates(features, index, present)


def _compare(anchors: Array, candidates: _Candidates) -> _Pairs:
    """The anchors [2, batch, dimensions] against one block of candidates."""
    logits = jnp.einsum(
        "vbd,cd->vbc",
        anchors,
        candidates.features,
        precision=jax.lax.Precision.HIGHEST,  # cosines over .1: tf32 would be visible
    )
    views, batch, _ = anchors.shape
    own = jnp.arange(views * batch, dtype=jnp.int32).reshape(views, batch, 1)
    index = candidates.index[None, None, :]
    place = own[::-1] - candidates.index[0]
    return _Pairs(logits, index == own[::-1], index != own, place)


def _positive_logit(pairs: _Pairs) -> Array:
    """The logit of the positive, [2, batch]; 0 where it is not in this block.

    It comes from the product that the other candidates come from: a product of its own
    would be rounded in another way, and collapsed features could look perfect.
    """
    last = pairs.logits.shape[2] - 1
    place = jnp.clip(pairs.place, 0, last)
    found = jnp.take_along_axis(pairs.logits, place, axis=2)
    return jnp.where(place == pairs.place, found, 0)[..., 0]


def _rivals(pairs: _Pairs, present: Array, chosen: Array) -> Array:
    """How many of the others are not below the chosen logit, [2, batch]; see `_rank`.

    The positive is left out by its place, and not by its value, which a compiler may
    have rounded in another way where it was first computed.
    """
    not_below = ~(pairs.masked(present) < chosen[..., None])  # so is a NaN
    return jnp.sum(not_below & ~pairs.positive, axis=2)


def _fold(add: Callable, start: Any, blocks: Any) -> Any:
    """Adds one block after the other, [blocks, block, ...]; without a loop if one."""
    if len(jax.tree.leaves(blocks)[0]) == 1:
        return add(start, jax.tree.map(lambda x: x[0], blocks))
    return jax.lax.scan(lambda sums, x: (add(sums, x), None), start, blocks)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _contrast(anchors: Array, mask: Array, block: int) -> tuple[Array, Array]:
    """Loss and rank of the positive for every anchor, each [2, batch].

    Args:
      anchors: embeddings of both views, of length temperature ** -0.5, so that their
        products are logits, [2, batch, dimensions].
      mask: the examples that count, bool [batch].
      block: candidates that are compared at once.

    Forward there are two passes over the candidates: one for the sum and the positive,
    one for the rank. Backward the logits are computed again, because differentiation of
    the loop would keep something for each of them.
    """
    return _contrast_forward(anchors, mask, block)[0]


def _contrast_forward(anchors: Array, mask: Array, block: int):
    def add(sums, candidates):
        largest, mass, positive = sums
        pairs = _compare(anchors, candidates)
        logits = pairs.masked(candidates.present[None, None, :])
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=2))
        more = jnp.sum(jnp.exp(logits - new_largest[..., None]), axis=2)
        mass = mass * jnp.exp(largest - new_largest) + more
        return new_largest, mass, positive + _positive_logit(pairs)

    def count(rank, candidates):
        pairs = _compare(anchors, candidates)
        present = candidates.present[None, None, :]
        return rank + _rivals(pairs, present, positive)

    blocks = _candidates(anchors, mask, block)
    zeros = jnp.zeros_like(anchors[..., 0])
    # Not -inf: a first block may hold no candidate, and inf - inf is no number.
    lowest = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min)
    largest, mass, positive = _fold(add, (lowest, zeros, zeros), blocks)
    rank = _fold(count, zeros.astype(int), blocks)
    # The difference of two large logits is exact, which that from their log-sum is not.
    loss = jnp.log(mass) + (largest - positive)
    return (loss, rank), (anchors, mask, largest, mass)


def _contrast_backward(block: int, saved, cotangents):
    """Gradient for the anchors, which are the candidates too.

    The logit of i and j is that of j and i. So the probability that j has among the
    candidates of i, and that of i among the candidates of j, come from one product, and
    beside the embeddings only two numbers an anchor come from other devices.
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
    # The positive apart: in the product, a one among thousands of small probabilities
    # would cost them a digit.
    return gradient - (weight + weight[::-1])[..., None] * anchors[::-1], None


_contrast.defvjp(_contrast_forward, _contrast_backward)


def nt_xent(
    embeddings1: Array,
    embeddings2: Array,
    temperature: float,
    mask: Array | None = None,
    *,
    block: int | None = None,
) -> Contrast:
    """Normalized temperature-scaled cross-entropy between two views.

    Above 4096 candidates, that is 2048 examples, memory grows with the batch and not
    with its square: the candidates come in blocks of 1024, and the gradient computes
    the logits again. It has a reverse mode only.

    Where a mesh with the axis "data" is in context (`jax.set_mesh`), the anchors are
    split along it, and every device has all candidates.

    Args:
      embeddings1: of view 1, any scale, [batch, dimensions].
      embeddings2: of view 2 of the same examples, [batch, dimensions].
      temperature: divides the cosine similarities; positive.
      mask: the examples that count, bool [batch]; all of them when None.
      block: candidates that are compared at once, of 2 * batch; None for the above.

    Returns:
      The loss, in which the two directions are **added**, averaged over examples, and
      the retrieval accuracies, which are the mean of the two directions.

    Source: Chen et al. 2020, equation 1, with the sum over directions of the reference
    (the paper and `optax.losses.ntxent` average them). The floor of 1e-12 on the
    squared norm is the reference's. Its accuracy is a sum for five examples or fewer;
    here it is always the mean.
    """
    anchors = jnp.stack([_unit_rows(embeddings1), _unit_rows(embeddings2)])
    # Half of the temperature on either side keeps the product symmetric.
    anchors = _lay_out(anchors / jnp.sqrt(temperature), None, BATCH_AXIS)
    _, batch, _ = anchors.shape
    if block is None:
        block = _BLOCK if 2 * batch > _MOST_AT_ONCE else 2 * batch
    present = jnp.ones(batch, bool) if mask is None else mask
    loss, rank = _contrast(anchors, present, min(block, 2 * batch))

    def accuracy(k: int) -> Array:
        return masked_mean(jnp.mean((rank < k).astype(loss.dtype), axis=0), mask)

    return Contrast(masked_mean(jnp.sum(loss, axis=0), mask), accuracy(1), accuracy(5))
