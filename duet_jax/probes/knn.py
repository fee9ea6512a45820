"""Nearest neighbors by cosine similarity.

The k bank features most similar to a query vote for its class, each with weight
exp(similarity / temperature), or all alike.

Source: Wu et al. 2018, with k = 200 and temperature 0.1 as in the code of ESSL
(Dangovski et al. 2022) and in solo-learn; votes that are all alike as in scikit-learn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.errors import UsageError, lookup
from duet_jax.probes import inputs
from duet_jax.types import Array

__all__ = ["NEIGHBORS", "TEMPERATURE", "WEIGHTS", "classify"]

NEIGHBORS = 200
WEIGHTS = ("similarity", "uniform")
TEMPERATURE = 0.1

# Neighbors found so far: similarities and labels, each [queries, k], best first; among
# equals the first in the bank.
_Nearest = tuple[Array, Array]


def _unit_rows(x: Array) -> Array:
    """Returns rows scaled to length 1; a zero row stays zero."""
    # Divided by the largest entry first, so that no square over- or underflows.
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def _none_yet(queries: int, k: int) -> _Nearest:
    # With types, so that the first block shares the compilation of the others.
    similarity = jnp.full((queries, k), -jnp.inf, jnp.float32)
    return similarity, jnp.full((queries, k), -1, jnp.int32)


def _merge(
    nearest: _Nearest, queries: Array, bank: Array, labels: Array, size: Array
) -> _Nearest:
    """Returns the nearest neighbors including one more block of the bank.

    Args:
      nearest: of the blocks before this one.
      queries: unit rows, [queries, d].
      bank: any rows, [block, d].
      labels: int [block].
      size: number of rows of the block that are not padding.
    """
    similarity = jnp.matmul(
        queries, _unit_rows(bank).T, precision=jax.lax.Precision.HIGHEST
    )
    is_real = jnp.arange(len(bank)) < size
    similarity = jnp.where(is_real[None, :], similarity, -jnp.inf)
    # `top_k` prefers the earlier of equals, so what was found before goes first.
    similarity = jnp.concatenate([nearest[0], similarity], axis=1)
    labels = jnp.broadcast_to(labels[None, :], (len(queries), len(labels)))
    labels = jnp.concatenate([nearest[1], labels], axis=1)
    best, where = jax.lax.top_k(similarity, nearest[0].shape[1])
    return best, jnp.take_along_axis(labels, where, axis=1)


def _vote(nearest: _Nearest, num_classes: int, temperature: Array) -> Array:
    """Returns votes relative to that of the nearest neighbor, [queries, classes]."""
    similarity, labels = nearest
    # Relative to the largest, since exp(1 / temperature) may overflow.
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)

    # One neighbor at a time: all at once would be [queries, k, classes].
    def add(votes, neighbor):
        weight, label = neighbor
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
    k: int = NEIGHBORS,
    weights: str = WEIGHTS[0],
    temperature: float = TEMPERATURE,
    query_block: int = 1024,
    bank_block: int = 8192,
) -> np.ndarray:
    """Returns the votes for every class; the bank is streamed to the device in blocks.

    Args:
      bank: [m, d], rows of any length; it need not fit on the device.
      bank_labels: int [m], from 0 to `num_classes` - 1.
      queries: [q, d], rows of any length. A row of zeros, here or in the bank, has
        similarity 0 with everything; among equals the first in the bank count.
      num_classes: of the labels.
      k: neighbors that vote, positive; at most the whole bank.
      weights: "similarity": exp(similarity / temperature); "uniform": 1.
      temperature: positive; of "similarity" only.
      query_block: queries that are compared with the bank at a time.
      bank_block: rows of the bank that are compared at a time.

    Returns:
      Summed weights of the votes for each class, relative to the nearest neighbor's
      weight; float32 [q, classes], not negative. With "uniform", float64: their number
      plus less than 1/2, so that the first of equal classes wins, as in scikit-learn.

    Raises:
      UsageError: k or temperature is not positive, the arrays do not match, or there
        are no such weights.
    """
    _check(k, weights, temperature)
    bank, bank_labels = inputs.examples(bank, bank_labels, num_classes)
    queries = _fitting(inputs.matrix(queries), bank)
    query_block, bank_block = min(query_block, len(queries)), min(bank_block, len(bank))
    # An infinite temperature makes all votes alike.
    softness = temperature if weights == "similarity" else np.inf
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
        votes.append(np.asarray(_vote_jit(nearest, num_classes, softness)))
    found = np.concatenate(votes)[: len(queries)]
    return found if weights == "similarity" else _first_ahead(found)


def _check(k: int, weights: str, temperature: float) -> None:
    """Raises a UsageError for settings of the vote that are out of range."""
    lookup(dict.fromkeys(WEIGHTS), weights, "weights")
    if k < 1 or not temperature > 0:
        raise UsageError(
            f"k={k} and temperature={temperature} must be positive; "
            f"use {NEIGHBORS} and {TEMPERATURE}."
        )


def _fitting(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Returns the queries; a UsageError if they are not as wide as the bank."""
    if queries.shape[1] != bank.shape[1]:
        raise UsageError(
            f"queries={queries.shape} do not fit bank={bank.shape}; "
            "encode both with the same encoder."
        )
    return queries


def _first_ahead(counts: np.ndarray) -> np.ndarray:
    """Returns counts, [q, classes], of which no two are equal in a row."""
    classes = counts.shape[1]
    ahead = np.arange(classes)[::-1] / (2 * classes)
    return counts.astype(np.float64) + ahead[None, :]


def _padded(rows: np.ndarray, first: int, size: int) -> np.ndarray:
    """Returns `size` rows from `first` on, padded with zeros."""
    block = rows[first : first + size]
    missing = size - len(block)
    return np.pad(block, ((0, missing),) + ((0, 0),) * (rows.ndim - 1))
