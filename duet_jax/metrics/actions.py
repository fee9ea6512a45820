"""Measures of what a known transformation, an action, does to representations.

F holds the representations of images, [n, d], and F_a those of the same images under
one action a, row by row. Each function returns values of single examples or sums of
them, so that a caller can form means and their intervals; the docstrings say which.

Everything is computed on the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from duet_jax.metrics.equivariance import derangement

# Cosines that differ by less are equal: float32 does not tell them apart.
_TIE = 1e-6
# Squared norms of differences of unit vectors below this are rounding.
_NOTHING = 1e-10
# Rows of queries that are compared with all others at a time.
_BLOCK = 1024


class Ranks(NamedTuple):
    """Where the right candidate stands among all, for each query.

    Attributes:
      better: number of candidates that are nearer to the prediction, int [...].
      tied: number that are as near, itself included, int [...].
    """

    better: np.ndarray
    tied: np.ndarray

    def reciprocal(self) -> np.ndarray:
        """Returns 1 / rank, in (0, 1], its mean over the orders of ties, [...].

        Their mean is the MRR: higher is better, 1 at best.

        Source: SIE (Garrido et al. 2023); the ties are ours. A representation that is
        the same for all candidates has the MRR of chance.
        """
        harmonic = _harmonic(int((self.better + self.tied).max(initial=0)))
        return (harmonic[self.better + self.tied] - harmonic[self.better]) / self.tied

    def hits(self, most: int) -> np.ndarray:
        """Returns whether the rank is at most `most`: H@k, 0 or 1, higher is better.

        Of ties, the share of their orders, [...].
        """
        return np.clip(most - self.better, 0, self.tied) / self.tied


def ranks(predicted: np.ndarray, candidates: np.ndarray) -> Ranks:
    """Ranks the views of an image by their cosine with the prediction of each of them.

    Args:
      predicted: representation that is predicted for view j, [n, views, d].
      candidates: representations of the views, [n, views, d].

    Returns:
      The ranks of view j for its own prediction, [n, views].
    """
    cosines = np.einsum("njd,nkd->njk", unit(predicted), unit(candidates))
    right = np.einsum("njj->nj", cosines)[:, :, None]
    better = (cosines > right + _TIE).sum(axis=2)
    tied = (np.abs(cosines - right) <= _TIE).sum(axis=2)
    # What is not finite is never found.
    finite = np.isfinite(predicted).all(axis=2)
    last = predicted.shape[1] - 1
    return Ranks(np.where(finite, better, last), np.where(finite, tied, 1))


def chance(candidates: int) -> tuple[float, Callable[[int], float]]:
    """Returns the MRR and, as a function of k, H@k of a random order.

    Args:
      candidates: number of those that are ranked, the right one among them.
    """
    return (
        float(_harmonic(candidates)[-1] / candidates),
        lambda most: min(most, candidates) / candidates,
    )


def _harmonic(count: int) -> np.ndarray:
    """Returns the sums 1 + 1/2 + ... + 1/i for i from 0 to count."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])


def nearest(queries: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the index of the row of largest cosine for each query, int [q].

    Args:
      queries: [q, d].
      others: [m, d].
    """
    others = unit(others)
    blocks = [
        np.argmax(unit(queries[start : start + _BLOCK]) @ others.T, axis=1)
        for start in range(0, len(queries), _BLOCK)
    ]
    return np.concatenate(blocks)


def parameter_distance(
    wanted: np.ndarray, found: np.ndarray, *, circular: bool
) -> np.ndarray:
    """Returns how far the parameter of a retrieved image is from the wanted one.

    Its mean is the PRE (prediction retrieval error), if `found` are the parameters of
    the nearest neighbors of predictions: lower is better, from 0 to 1; on a circle 1/2
    for a parameter at random.

    Args:
      wanted: structure values, in [0, 1], [n].
      found: likewise.
      circular: on a circle sin²(half the angle between them); on a line the square of
        their distance, whose whole range is 1.

    Source: SIE (Garrido et al. 2023): 1 - <q, q'>² of unit quaternions, which for
    rotations in the plane is sin²(half the angle). On a line ours.
    """
    apart = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return np.square(np.sin(np.pi * apart)) if circular else np.square(apart)


def rotation(base: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Returns the rotation R that takes F to F_a best: least ||F Rᵀ - F_a||.

    Args:
      base: F, [n, d].
      moved: F_a, [n, d].

    Returns:
      [d, d], orthogonal, of determinant 1. On rows it acts as `base @ R.T`.

    Source: Kabsch 1976; Wahba's problem, as CARE (Gupta et al. 2023) has it.
    """
    left, _, right = np.linalg.svd(_moment(moved, base))
    sign = np.ones(len(left))
    sign[-1] = np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0
    return (left * sign[None, :]) @ right


def linear_map(base: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Returns the matrix M of least ||F Mᵀ - F_a||; the smallest of several, [d, d].

    Directions in which F has less than 1e-6 of its largest singular value are left out.

    Args:
      base: F, [n, d].
      moved: F_a, [n, d].
    """
    second = _moment(base, base)
    values, vectors = np.linalg.eigh(second)
    kept = values > 1e-12 * values[-1]
    inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    return _moment(moved, base) @ (vectors * inverse[None, :]) @ vectors.T


def _moment(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns leftᵀ right in float64, [d, d]."""
    return np.asarray(left, np.float64).T @ np.asarray(right, np.float64)


def residuals(
    base: np.ndarray, moved: np.ndarray, matrix: np.ndarray | None = None
) -> np.ndarray:
    """Returns ||M f - f_a||² and ||f_a||² of every image, [n, 2].

    `relative_error` of their means is the Procrustes error if M is `rotation`.

    Args:
      base: F, [n, d].
      moved: F_a, [n, d].
      matrix: M, [d, d]; None for the identity, as invariance has it.
    """
    base, moved = (np.asarray(x, np.float64) for x in (base, moved))
    predicted = base if matrix is None else base @ matrix.T
    return np.stack([_squares(predicted - moved), _squares(moved)], axis=1)


def composition_residuals(
    base: np.ndarray, both: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Returns ||(M_ab - M_a M_b) f||² and ||M_ab f||² of every image, [n, 2].

    `relative_error` of their means is the composition error: ||M_ab - M_a M_b|| over
    ||M_ab||, weighted by the directions that features have. With the identity for
    `base` these are Frobenius norms. 0 if the maps form a group, lower is better.

    Args:
      base: F, [n, d].
      both: M_ab, the map of the action a after b, [d, d].
      first: M_a.
      second: M_b.

    Source: the maps of a group's actions compose; the weighting is ours.
    """
    base = np.asarray(base, np.float64)
    difference = base @ (both - first @ second).T
    return np.stack([_squares(difference), _squares(base @ both.T)], axis=1)


def relative_error(means: np.ndarray) -> np.ndarray:
    """Returns sqrt(error / size), lower is better: 0 if exact, 1 for predicting 0.

    Args:
      means: of `residuals` over images, [..., 2].

    Returns:
      [...]; nan where the size is 0.
    """
    error, size = means[..., 0], means[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, np.sqrt(error / size), np.nan)


def gamma(base: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Returns how much an action changes the distances of pairs of images, [n].

    The mean is CARE's gamma: 0 if the action is an orthogonal map, lower is better, not
    bounded. Every image has one other one for its pair. Representations that are as far
    apart as random ones, before and after, have a gamma near 0 as well: read it
    beside `residuals`.

    Args:
      base: F, [n, d]; made unit vectors here.
      moved: F_a, [n, d].

    Returns:
      (||f(ax') - f(ax)||² - ||f(x') - f(x)||²)² / (||f(ax') - f(x')||² +
      ||f(ax) - f(x)||²)²; nan where the action moves neither image of the pair, as for
      an invariant representation: there is nothing to measure then. Also of one image.

    Source: Gupta et al. 2023 (CARE), section 5.
    """
    if len(base) < 2:
        return np.full(len(base), np.nan)
    base, moved = unit(base), unit(moved)
    other = derangement(len(base))
    before = _squares(base[other] - base)
    after = _squares(moved[other] - moved)
    way = _squares(moved - base)
    way = way + way[other]
    nothing = np.full(len(base), np.nan)
    return np.divide(
        np.square(after - before), np.square(way), out=nothing, where=way > _NOTHING
    )


def unit(x: np.ndarray) -> np.ndarray:
    """Returns vectors of length 1 in float32, or 0 for those that are 0, [..., d]."""
    x = np.asarray(x, np.float32)
    length = np.sqrt(np.einsum("...d,...d->...", x, x, dtype=np.float64))[..., None]
    return np.divide(
        x, length, out=np.zeros_like(x), where=length > 0, casting="unsafe"
    )


def _squares(x: np.ndarray) -> np.ndarray:
    """Returns the squared length of rows in float64, [n]."""
    return np.einsum("nd,nd->n", x, x, dtype=np.float64)
