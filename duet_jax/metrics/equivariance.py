"""How equivariant a representation is: measures on arrays.

A structure value is the place of a drawn parameter in its range, in [0, 1]: on a line,
whose ends are its extremes, or on a circle, where 0 and 1 are one point. The structure
marginal is the distribution over the bins that a representation predicts for it. Here
values are read off marginals, readings are scored, and a representation is compared
with the shifted one of the untransformed image.

Everything is computed on the host in float64, whatever comes in, and an example that
is not finite is never counted as right.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# The targets' quadrature points per bin, of which the first is at 0, the last at 1.
_POINTS_PER_BIN = 100
# Structure values at which `calibrated` asks for targets.
_CALIBRATION_POINTS = 1001
# Digits of a reading that float32 marginals still determine.
_READING_DIGITS = 6
# A sum of squares this small, of that of the values themselves, is rounding.
_ROUNDING = 1e-20


def bin_centres(num_bins: int) -> np.ndarray:
    """Structure values that the bins stand for.

    Args:
      num_bins: number of bins G that share [0, 1].

    Returns:
      The mean of each bin's points in the grid over which targets are summed, [G]. As
      that grid holds both 0 and 1, the spacing is 100/(100 G - 1), not 1/G.
    """
    grid = np.linspace(0, 1, num_bins * _POINTS_PER_BIN)
    return grid.reshape(num_bins, _POINTS_PER_BIN).mean(axis=1)


def read_structure(marginals: np.ndarray, *, circular: bool) -> np.ndarray:
    """Structure value that each marginal predicts: its mean.

    Args:
      marginals: probabilities, [n, G], rows summing to 1.
      circular: take the mean direction on the circle, not the mean on the line.

    Returns:
      Values in [0, 1], on a circle in [0, 1), [n]. On a circle a uniform marginal has
      no direction and its value no meaning.
    """
    marginals = np.asarray(marginals, np.float64)
    centres = bin_centres(marginals.shape[1])
    if not circular:
        return marginals @ centres
    return values_at(marginals @ points(centres, circular=True), circular=True)


def certainty(marginals: np.ndarray) -> np.ndarray:
    """How far a marginal on the circle is from having no direction.

    Args:
      marginals: probabilities, [n, G], rows summing to 1.

    Returns:
      Length of the mean of the points of the unit circle, in [0, 1], [n]: 0 for a
      uniform marginal.
    """
    marginals = np.asarray(marginals, np.float64)
    centres = bin_centres(marginals.shape[1])
    return np.linalg.norm(marginals @ points(centres, circular=True), axis=1)


def points(values: np.ndarray, *, circular: bool) -> np.ndarray:
    """Structure values where they can be averaged and regressed.

    Args:
      values: structure values, [n].
      circular: as points of the unit circle, [n, 2]; else as they are, [n, 1].
    """
    values = np.asarray(values, np.float64)
    if not circular:
        return values[:, None]
    angles = 2 * np.pi * values
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def values_at(points: np.ndarray, *, circular: bool) -> np.ndarray:
    """Structure values of points anywhere: the inverse of `points`.

    Args:
      points: [n, 2] on a circle, where the length does not matter; else [n, 1].
      circular: as in `points`.

    Returns:
      [n], on a circle in [0, 1), on a line the nearest value in [0, 1].
    """
    if not circular:
        return np.clip(points[:, 0], 0, 1)
    return _wrapped(np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi))


def _wrapped(turns: np.ndarray) -> np.ndarray:
    """Turns round the circle without the whole ones, in [0, 1)."""
    turns = turns % 1
    return np.where(turns == 1, 0.0, turns)  # -1e-18 % 1 is 1


def calibrated(
    values: np.ndarray,
    targets: Callable[[np.ndarray], np.ndarray],
    *,
    num_bins: int,
    circular: bool,
) -> np.ndarray:
    """Readings, corrected for where the mean of a perfect marginal lies.

    A Gaussian target is cut off at 0 and 1, so that near the ends its mean lies further
    inside than the drawn value; few bins bend the circle in the same way. The reading
    of the target grows with the drawn value and is inverted here.

    Args:
      values: from `read_structure`, [n].
      targets: structure values, float32 [m] -> the prescribed marginals, [m, G].
      num_bins: number of bins G.
      circular: as in `read_structure`.

    Returns:
      The structure values whose targets have these readings, [n]; the nearest end of a
      line for readings that no target has. Targets much narrower than a bin leave the
      value open within a bin; then it is the middle. Two bins cannot tell the halves
      of a circle apart: there the values are returned as they are.
    """
    values = np.asarray(values, np.float64)
    if circular and num_bins < 3:
        return values
    true = np.linspace(0, 1, _CALIBRATION_POINTS)
    marginals = np.asarray(targets(true.astype(np.float32)))
    read = read_structure(marginals, circular=circular)
    if circular:
        # Made continuous, and continued by a turn to either side.
        read = true + errors(true, read, circular=True)
        read = np.concatenate([read[:-1] - 1, read[:-1], read + 1])
        true = np.concatenate([true[:-1] - 1, true[:-1], true + 1])
    read = np.maximum.accumulate(np.round(read, _READING_DIGITS))
    values = np.round(values, _READING_DIGITS)
    # On a step `interp` takes one end of it: the last, or mirrored the first.
    last = np.interp(values, read, true)
    first = np.interp(-values, -read[::-1], true[::-1])
    middle = (first + last) / 2
    return _wrapped(middle) if circular else middle


def errors(true: np.ndarray, read: np.ndarray, *, circular: bool) -> np.ndarray:
    """Signed differences `read - true` of structure values.

    Args:
      true: of what was drawn, [n].
      read: what a representation says, [n].
      circular: go the short way round.

    Returns:
      [n]; on a circle in [-1/2, 1/2).
    """
    difference = np.asarray(read, np.float64) - np.asarray(true, np.float64)
    return (difference + 0.5) % 1 - 0.5 if circular else difference


def r_squared(true: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination, all coordinates together.

    Args:
      true: `points` of what was drawn, [n, k].
      predicted: [n, k], anywhere. On a circle whoever knows nothing does best to stay
        in the middle; a guess on the circle itself has -1.

    Returns:
      1 - (sum of squared errors) / (sum of squared distances of `true` from its mean):
      at most 1; 0 if every prediction is the mean of `true`; nan where `true` is the
      same for all.
    """
    true = np.asarray(true, np.float64)
    # Sums by einsum: a mean over long columns is slow, and a product of matrices, small
    # as it is, goes to threads that wait for each other on a busy machine.
    mean = np.einsum("nk->k", true) / len(true)
    total = _square(true - mean[None, :])
    if total <= _ROUNDING * _square(true):
        return float("nan")
    return float(1 - _square(true - np.asarray(predicted, np.float64)) / total)


def _square(x: np.ndarray) -> float:
    """The sum of the squares of all entries."""
    return np.einsum("nk,nk->", x, x)


def nearest_level(
    values: np.ndarray, levels: tuple[float, ...], *, circular: bool
) -> np.ndarray:
    """Which of a few structure values is the nearest.

    Args:
      values: structure values, [n].
      levels: the values that occur.
      circular: measure distances round the circle.

    Returns:
      Places in `levels`, int [n]; the first of two at the same distance, and -1, which
      no level has, for a value that is not finite.
    """
    values = np.asarray(values, np.float64)
    levels = np.asarray(levels, np.float64)
    distances = np.abs(errors(levels[None, :], values[:, None], circular=circular))
    return np.where(np.isfinite(values), np.argmin(distances, axis=1), -1)


def constant_divergence(targets: np.ndarray) -> float:
    """Divergence of a structure that is the same for all images: what to be below.

    Args:
      targets: the prescribed marginals, [n, G], rows summing to 1.

    Returns:
      Mean Jensen-Shannon divergence in nats, in [0, log 2], of the mean target from
      the targets: as good as a representation can be that sees nothing of the
      transformation, up to the small difference that the best constant is not quite
      the mean.
    """
    targets = np.asarray(targets, np.float64)
    mean = targets.mean(axis=0, keepdims=True)
    middle = (mean + targets) / 2
    divergence = _relative_entropy(mean, middle) + _relative_entropy(targets, middle)
    return float(divergence.mean() / 2)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of rows; `q` is positive wherever `p` is."""
    p, q = np.broadcast_arrays(p, q)
    ratio = np.divide(p, q, out=np.ones_like(q), where=p > 0)
    return np.sum(p * np.log(ratio), axis=1)


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic over examples.

    Args:
      statistic: arrays of examples -> a number.
      *arrays: each with one row per example, [n, ...]; rows stay together.
      seed: of the draws. Statistics of as many examples are computed on the same
        resamples with the same seed, and can be compared in pairs.
      resamples: how often n examples are drawn with replacement.
      level: share of the resamples inside.

    Returns:
      The ends of the interval; nan where the statistic has no finite value. Resamples
      where it has none, such as the R² of equal values, do not count.

    Source: Efron and Tibshirani 1993, chapter 13. What varies is the examples; the
    encoder and what was fitted to the training split stay as they are.
    """
    arrays = [np.asarray(array) for array in arrays]
    count = len(arrays[0])
    generator = np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(count, size=count, dtype=np.int32)
        found[i] = statistic(*(np.take(array, rows, axis=0) for array in arrays))
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Agreement(NamedTuple):
    """How well representations Z' predict the representations Z of transformed images.

    Attributes:
      relative_error: ||Z - Z'|| / ||Z||, [n]; 0 for a perfect prediction.
      cosine: of Z and Z', in [-1, 1], [n].

    Both are nan where a norm they divide by is 0.
    """

    relative_error: np.ndarray
    cosine: np.ndarray


class ShiftErrors(NamedTuple):
    """Three predictions of the representations of transformed images.

    Attributes:
      shifted: from the same image, untransformed, with the bins shifted.
      unshifted: from the same image, untransformed, as it is: what invariance gives.
      random: from another image, transformed in the same way: what is common to all
        images gives.
    """

    shifted: Agreement
    unshifted: Agreement
    random: Agreement

    def means(self) -> dict[str, dict[str, float]]:
        """Returns means over the images: measure -> prediction -> mean."""
        return {
            measure: {
                prediction: float(getattr(agreement, measure).mean())
                for prediction, agreement in self._asdict().items()
            }
            for measure in Agreement._fields
        }


def shift_errors(
    original: np.ndarray, transformed: np.ndarray, shift: int, *, seed: int = 0
) -> ShiftErrors:
    """How well shifting the bins predicts the transformed representation.

    On a circle, equivariance means: if the structure value grows by shift / G, every
    bin's content moves up by `shift` bins, Z(transformed)[b] = Z(original)[b - shift],
    and those at the end come in at the start.

    Args:
      original: representations of images, [n, G, C]; a marginal has C = 1.
      transformed: of the same images, whose structure values are larger by shift / G.
      shift: bins, of either sign.
      seed: of the pairs of images for comparison.

    Returns:
      The agreement of every example.

    Raises:
      ValueError: the shapes differ, or there are fewer than two images to compare.
    """
    original, transformed = _floating(original), _floating(transformed)
    if original.shape != transformed.shape or len(original) < 2:
        raise ValueError(
            f"{original.shape=} and {transformed.shape=} must be equal, with two "
            "images or more."
        )
    others = transformed[_derangement(len(transformed), seed)]
    return ShiftErrors(
        shifted=_agreement(transformed, np.roll(original, shift, axis=1)),
        unshifted=_agreement(transformed, original),
        random=_agreement(transformed, others),
    )


def _floating(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def _derangement(count: int, seed: int) -> np.ndarray:
    """A permutation without fixed points: each to the next in a random circle."""
    circle = np.random.default_rng(seed).permutation(count)
    others = np.empty_like(circle)
    others[circle] = np.roll(circle, 1)
    return others


def _agreement(true: np.ndarray, predicted: np.ndarray) -> Agreement:
    # The arrays can be large: only the sums are in float64.
    norm, difference = _norms(true), _norms(true - predicted)
    product = np.einsum("ngc,ngc->n", true, predicted, dtype=np.float64)
    return Agreement(
        _ratio(difference, norm), _ratio(product, norm * _norms(predicted))
    )


def _norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ngc,ngc->n", x, x, dtype=np.float64))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nothing = np.full_like(denominator, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
