"""Weighted nearest neighbours by cosine similarity.

Each query takes a vote among its k most similar features of a bank; a neighbour's
vote weighs exp(similarity / temperature).

Source: Wu et al. 2018, with k = 200 and temperature 0.1 as in the code of ESSL
(Dangovski et al. 2022) and in solo-learn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.errors import UsageError
from duet_jax.probes import inputs
from duet_jax.types import Array

NEIGHBOURS = 200
TEMPERATURE = 0.1

# Neighbours found so far: similarities and labels, each [queries, k], best first and
# of equals the one that comes first in the bank.
_Nearest = tuple[Array, Array]


def _unit_rows(x: Array) -> Array:
    """Rows of length 1; a zero row stays zero and is equally far from everything."""
    # Divided by the largest entry first, so that no square over- or underflows.
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def _none_yet(queries: int, k: int) -> _Nearest:
    # Typed: from a weak -inf the first block would be compiled apart from the others.
    similarity = jnp.full((queries, k), -jnp.inf, jnp.float32)
    return similarity, jnp.full((queries, k), -1, jnp.int32)


def _merge(
    nearest: _Nearest, queries: Array, bank: Array, labels: Array, size: Array
) -> _Nearest:
    """The nearest of those found so far and of one more block of the bank.

    Args:
      nearest: of the blocks before this one.
      queries: unit rows, [queries, d].
      bank: any rows, [block, d].
      labels: int [block].
      size: how many rows of the block are real.
    """
    similarity = jnp.matmul(
        queries, _unit_rows(bank).T, precision=jax.lax.Precision.HIGHEST
    )
    is_real = jnp.arange(len(bank)) < size
    similarity = jnp.where(is_real[None, :], similarity, -jnp.inf)
    # `top_k` prefers the earlier of equals, and what was found before stands in front.
    similarity = jnp.concatenate([nearest[0], similarity], axis=1)
    labels = jnp.broadcast_to(labels[None, :], (len(queries), len(labels)))
    labels = jnp.concatenate([nearest[1], labels], axis=1)
    best, where = jax.lax.top_k(similarity, nearest[0].shape[1])
    return best, jnp.take_along_axis(labels, where, axis=1)


def _vote(nearest: _Nearest, num_classes: int, temperature: Array) -> Array:
    """Votes per class relative to that of the nearest neighbour, [queries, classes]."""
    similarity, labels = nearest
    # Relative to the largest, since exp(1 / temperature) may overflow.
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)

    # One neighbour at a time: all at once would be [queries, k, classes].
    def add(votes, neighbour):
        weight, label = neighbour
        return votes + weight[:, None] * jax.nn.one_hot(label, num_classes), None

    zero = jnp.zeros((len(labels), num_classes))
    return jax.lax.scan(add, zero, (weights.T, labels.T))[0]


_units_jit = jax.jit(_unit_rows)
_merge_jit = jax.jit(_merge, donate_argnums=0)
_vote_jit = jax.jit(_vote, static_argnames="num_classes")


def classify(
    bank,
    bank_labels,
    queries,
    *,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    query_block: int = 1024,
    bank_block: int = 8192,
) -> np.ndarray:
    """Votes for every class, for a bank on the host that is streamed in blocks.

    Args:
      bank: [m, d], any lengths; its rows need not fit on the device.
      bank_labels: int [m], from 0 to `num_classes` - 1.
      queries: [q, d], any lengths. A row of zeros, here or in the bank, has similarity
        0 with everything; of equally similar rows the first in the bank are taken.
      num_classes: of the labels.
      k: neighbours that vote, positive; the whole bank where it is smaller.
      temperature: positive.
      query_block: queries that go through the bank together.
      bank_block: rows of the bank that are compared at a time.

    Returns:
      Weights of the votes for each class relative to that of the nearest neighbour,
      float32 [q, classes], not negative.

    Raises:
      UsageError: k or temperature is not positive, or arrays do not fit.
    """
    if k < 1 or not temperature > 0:
        raise UsageError(
            f"k={k} and temperature={temperature} must be positive; "
            f"use {NEIGHBOURS} and {TEMPERATURE}."
        )
    bank, bank_labels = inputs.examples(bank, bank_labels, num_classes)
    queries = inputs.matrix(queries)
    if queries.shape[1] != bank.shape[1]:
        raise UsageError(
            f"queries={queries.shape} do not fit bank={bank.shape}; "
            "encode both with the same encoder."
        )
    query_block, bank_block = min(query_block, len(queries)), min(bank_block, len(bank))
    votes = []
    for first in range(0, len(queries), query_block):
        rows = _units_jit(_padded(queries, first, query_block))
        nearest = _none_yet(query_block, min(k, len(bank)))
        for start in range(0, len(bank), bank_block):
            nearest = _merge_jit(
                nearest,
                rows,
                _padded(bank, start, bank_block),
                _padded(bank_labels, start, bank_block),
                len(bank) - start,
            )
        votes.append(np.asarray(_vote_jit(nearest, num_classes, temperature)))
    return np.concatenate(votes)[: len(queries)]


def _padded(rows: np.ndarray, first: int, size: int) -> np.ndarray:
    """`size` rows from `first` on, with zeros where there are none left."""
    block = rows[first : first + size]
    missing = size - len(block)
    return np.pad(block, ((0, missing),) + ((0, 0),) * (rows.ndim - 1))
