"""Measures of how equivariant a representation is, on arrays.

A structure value is the position of a drawn parameter in its range, in [0, 1]: on a
line, or on a circle, where 0 and 1 are the same. The structure marginal is the
distribution over the bins that a representation predicts for it. Here structure values
are read off marginals, readings are scored, and a representation is compared with the
shifted one of the untransformed image.

Everything is computed on the host in float64, whatever the input, and an example that
is not finite never counts as correct.
"""

import functools
from collections.abc import Callable

import numpy as np

# Quadrature points per bin of the targets; the first lies at 0, the last at 1.
_POINTS_PER_BIN = 100
# Structure values at which `calibrated` evaluates the targets.
_CALIBRATION_POINTS = 1001
# Digits of a reading that float32 marginals still determine.
_READING_DIGITS = 6
# Variation below this share of the sum of squares is rounding; and where it is the
# difference of two sums.
_ROUNDING, _CANCELLED = 1e-20, 1e-12
# Resamples of the bootstrap, and the share of them inside the interval; and how many
# are computed at a time.
_RESAMPLES, _LEVEL = 1000, 0.95
_BLOCK = 100

# Measure -> prediction -> value of every image, [n]; see `shift_errors`.
ShiftErrors = dict[str, dict[str, np.ndarray]]


def bin_centers(num_bins: int) -> np.ndarray:
    """Returns the structure values that the bins stand for, [G].

    Each is the mean of the bin's points in the grid over which targets are summed. As
    that grid holds both 0 and 1, the spacing is 100/(100 G - 1), not 1/G.
    """
    grid = np.linspace(0, 1, num_bins * _POINTS_PER_BIN)
    return grid.reshape(num_bins, _POINTS_PER_BIN).mean(axis=1)


def read_structure(marginals: np.ndarray, *, circular: bool) -> np.ndarray:
    """Returns the structure value that each marginal predicts: its mean.

    Args:
      marginals: probabilities, [n, G], rows summing to 1.
      circular: use the mean direction on the circle, not the mean on the line.

    Returns:
      Values in [0, 1], on a circle in [0, 1), [n]. On a circle, the value of a uniform
      marginal is meaningless.
    """
    marginals = np.asarray(marginals, np.float64)
    centers = bin_centers(marginals.shape[1])
    if not circular:
        return marginals @ centers
    return values_at(marginals @ points(centers, circular=True), circular=True)


def certainty(marginals: np.ndarray) -> np.ndarray:
    """Returns how concentrated marginals on the circle are.

    Args:
      marginals: probabilities, [n, G], rows summing to 1.

    Returns:
      The length of the mean point on the unit circle, in [0, 1], [n]; about 0 for a
      uniform marginal.
    """
    marginals = np.asarray(marginals, np.float64)
    centers = bin_centers(marginals.shape[1])
    return np.linalg.norm(marginals @ points(centers, circular=True), axis=1)


def points(values: np.ndarray, *, circular: bool) -> np.ndarray:
    """Returns structure values as points that can be averaged and regressed.

    Args:
      values: structure values, [n].
      circular: return points of the unit circle, [n, 2]; else the values, [n, 1].
    """
    values = np.asarray(values, np.float64)
    if not circular:
        return values[:, None]
    angles = 2 * np.pi * values
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def values_at(points: np.ndarray, *, circular: bool) -> np.ndarray:
    """Returns the structure values of any points: the inverse of `points`.

    Args:
      points: [n, 2] for a circle, where their length does not matter; else [n, 1].
      circular: as in `points`.

    Returns:
      [n], on a circle in [0, 1), on a line the nearest value in [0, 1].
    """
    if not circular:
        return np.clip(points[:, 0], 0, 1)
    return _wrapped(np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi))


def _wrapped(turns: np.ndarray) -> np.ndarray:
    """Returns turns modulo 1, in [0, 1)."""
    turns = turns % 1
    return np.where(turns == 1, 0.0, turns)  # -1e-18 % 1 is 1


def calibrated(
    values: np.ndarray,
    targets: Callable[[np.ndarray], np.ndarray],
    *,
    num_bins: int,
    circular: bool,
) -> np.ndarray:
    """Returns readings corrected for the bias of perfect marginals.

    A Gaussian target is cut off at 0 and 1, so that its mean near the ends lies further
    inside than the drawn value; few bins distort a circle in a similar way. The reading
    of the target grows with the drawn value, and this relation is inverted here.

    Args:
      values: from `read_structure`, [n].
      targets: structure values, float32 [m] -> the prescribed marginals, [m, G].
      num_bins: number of bins G.
      circular: as in `read_structure`.

    Returns:
      The structure values whose targets have these readings, [n]; the nearest end of a
      line for readings that no target has. With targets much narrower than a bin, the
      middle of the values that are possible. Two bins cannot tell the halves of a
      circle apart; the values are then returned unchanged.
    """
    values = np.asarray(values, np.float64)
    if circular and num_bins < 3:
        return values
    true = np.linspace(0, 1, _CALIBRATION_POINTS)
    marginals = np.asarray(targets(true.astype(np.float32)))
    read = read_structure(marginals, circular=circular)
    if circular:
        # Unwrapped, and continued by one turn to either side.
        read = true + errors(true, read, circular=True)
        read = np.concatenate([read[:-1] - 1, read[:-1], read + 1])
        true = np.concatenate([true[:-1] - 1, true[:-1], true + 1])
    read = np.maximum.accumulate(np.round(read, _READING_DIGITS))
    values = np.round(values, _READING_DIGITS)
    # Where several values have the same reading, `interp` takes the last; mirrored,
    # the first.
    last = np.interp(values, read, true)
    first = np.interp(-values, -read[::-1], true[::-1])
    middle = (first + last) / 2
    return _wrapped(middle) if circular else middle


def errors(true: np.ndarray, read: np.ndarray, *, circular: bool) -> np.ndarray:
    """Returns signed differences `read - true` of structure values.

    Args:
      true: drawn values, [n].
      read: predicted values, [n].
      circular: go the short way round.

    Returns:
      [n]; on a circle in [-1/2, 1/2).
    """
    difference = np.asarray(read, np.float64) - np.asarray(true, np.float64)
    return (difference + 0.5) % 1 - 0.5 if circular else difference


def r_squared(true: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the coefficient of determination, pooled over all outputs.

    Args:
      true: `points` of the drawn values, [n, k].
      predicted: any points, [n, k].

    Returns:
      1 - (sum of squared errors) / (sum of squared distances of `true` from its mean):
      at most 1, higher is better; 0 if every prediction is the mean of `true`; -1 for
      random points of a circle; nan if `true` is constant.

    Source: SIE (Garrido et al. 2023) pools the outputs like this.
    """
    true = np.asarray(true, np.float64)
    # Sums by einsum: a mean over long columns is slow, and the threads of a matrix
    # product wait for each other on a busy machine.
    mean = np.einsum("nk->k", true) / len(true)
    total = _square(true - mean[None, :])
    if total <= _ROUNDING * _square(true):
        return float("nan")
    return float(1 - _square(true - np.asarray(predicted, np.float64)) / total)


def mean_r_squared(true: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the mean over outputs of their coefficients of determination.

    Args:
      true: [n, k].
      predicted: [n, k].

    Returns:
      Mean of `r_squared` of each output that varies: at most 1, higher is better; nan
      if none does. On an evenly covered circle it is close to the pooled one; where
      outputs vary to different degrees the two differ.

    Source: scikit-learn's `r2_score`, which seq-JEPA (Ghaemi et al. 2025) reports.
    """
    true = np.asarray(true, np.float64)
    errors = np.sum(np.square(true - predicted), axis=0)
    spread = np.sum(np.square(true - true.mean(axis=0)[None, :]), axis=0)
    varies = spread > _ROUNDING * np.sum(np.square(true), axis=0)
    if not varies.any():
        return float("nan")
    return float(np.mean(1 - errors[varies] / spread[varies]))


def r_squared_intervals(
    true: np.ndarray, predicted: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the `bootstrap` intervals of `r_squared` and of `mean_r_squared`.

    Args:
      true: [n, k].
      predicted: [n, k].
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    # About their mean, so that little is lost when its square is subtracted.
    centered = true - true.mean(axis=0, keepdims=True)
    summands = [np.square(true - predicted), centered, np.square(centered)]
    columns = np.concatenate(summands, axis=1)

    def parts(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        error, mean, square = np.split(means, 3, axis=1)
        total = square - np.square(mean)
        return error, np.where(total > _CANCELLED * square, total, 0)

    def pooled(means: np.ndarray) -> np.ndarray:
        error, total = parts(means)
        return 1 - error.sum(axis=1) / total.sum(axis=1)

    def averaged(means: np.ndarray) -> np.ndarray:
        error, total = parts(means)
        each = np.where(total > 0, 1 - error / total, np.nan)
        known = np.isfinite(each)
        return np.where(known, each, 0).sum(axis=1) / known.sum(axis=1)

    return bootstrap(columns, pooled), bootstrap(columns, averaged)


def _square(x: np.ndarray) -> float:
    """Returns the sum of the squares of all entries."""
    return np.einsum("nk,nk->", x, x)


def nearest_level(
    values: np.ndarray, levels: tuple[float, ...], *, circular: bool
) -> np.ndarray:
    """Returns the index of the nearest level of each structure value.

    Args:
      values: structure values, [n].
      levels: the values that occur.
      circular: measure distances around the circle.

    Returns:
      int [n]; the first of two levels at the same distance; -1 for a value that is not
      finite.
    """
    values = np.asarray(values, np.float64)
    places = np.asarray(levels, np.float64)
    distances = np.abs(errors(places[None, :], values[:, None], circular=circular))
    return np.where(np.isfinite(values), np.argmin(distances, axis=1), -1)


def constant_divergence(targets: np.ndarray) -> float:
    """Returns the divergence that a constant structure reaches, as a baseline.

    Args:
      targets: the prescribed marginals, [n, G], rows summing to 1.

    Returns:
      Mean Jensen-Shannon divergence in nats, in [0, log 2], of the mean target from the
      targets. The best constant is not quite the mean, but nearly as good.
    """
    targets = np.asarray(targets, np.float64)
    mean = targets.mean(axis=0, keepdims=True)
    middle = (mean + targets) / 2
    divergence = _relative_entropy(mean, middle) + _relative_entropy(targets, middle)
    return float(divergence.mean() / 2)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Returns the KL divergence of rows; `q` is positive wherever `p` is."""
    p, q = np.broadcast_arrays(p, q)
    ratio = np.divide(p, q, out=np.ones_like(q), where=p > 0)
    return np.sum(p * np.log(ratio), axis=1)


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    resamples: int = _RESAMPLES,
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a statistic over examples.

    The resamples depend on the number of examples only, so that intervals over the same
    examples can be compared in pairs.

    Args:
      values: of the examples, [n], or [n, k], whose rows stay together.
      statistic: means of the columns, [resamples, k] -> numbers, [resamples]. By
        default the number is the mean of `values` [n] itself.
      resamples: how often n examples are drawn with replacement.

    Returns:
      The ends of the interval; nan if a value is not finite, or if the statistic has no
      finite value. Resamples without a finite value, such as the R² of equal values, do
      not count.

    Source: Efron and Tibshirani 1993, chapter 13. Only the examples vary; the encoder
    and what was fitted to the training split stay the same.
    """
    values = np.asarray(values, np.float64)
    means = _resampled(len(values), resamples, values.reshape(len(values), -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = means[:, 0] if statistic is None else statistic(means)
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _resampled(count: int, resamples: int, columns: np.ndarray) -> np.ndarray:
    """Returns the means of columns [n, k] over every resample, [resamples, k]."""
    drawn = _draw_counts(count, resamples)
    means = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, _BLOCK):
        rows = slice(start, start + _BLOCK)
        means[rows] = drawn[rows].astype(np.float64) @ columns / count
    return means


@functools.lru_cache(maxsize=4)
def _draw_counts(count: int, resamples: int) -> np.ndarray:
    """Returns how often each resample draws each example, [resamples, count]."""
    generator = np.random.default_rng(0)
    found = np.empty((resamples, count), np.uint8)  # 255 times one of n: never
    for row in found:
        drawn = generator.integers(count, size=count, dtype=np.int32)
        row[:] = np.bincount(drawn, minlength=count)
    return found


def shift_errors(
    original: np.ndarray, transformed: np.ndarray, shift: int
) -> ShiftErrors:
    """Returns how well shifting the bins predicts the transformed representation.

    On a circle, equivariance means: if the structure value grows by shift / G, every
    bin's content moves up by `shift` bins, Z(transformed)[b] = Z(original)[b - shift],
    and the last bins come in at the start.

    Args:
      original: representations of images, [n, G, C]; a marginal has C = 1.
      transformed: of the same images, whose structure values are larger by shift / G.
      shift: bins, of either sign.

    Returns:
      Measure -> prediction -> [n]. The measures compare a prediction Z' with the
      representation Z of the transformed image: "relative_error" ||Z - Z'|| / ||Z|| and
      "cosine", nan where a norm in the denominator is 0. The predictions: "shifted",
      the original with its bins shifted; "unshifted", the original, as invariance has
      it; "random", another image transformed in the same way, for what all images have
      in common.

    Raises:
      ValueError: the shapes differ, or there are fewer than two images.
    """
    original, transformed = _floating(original), _floating(transformed)
    if original.shape != transformed.shape or len(original) < 2:
        raise ValueError(
            f"{original.shape=} and {transformed.shape=} must be equal, with two "
            "images or more."
        )
    predictions = {
        "shifted": np.roll(original, shift, axis=1),
        "unshifted": original,
        "random": transformed[derangement(len(transformed))],
    }
    found: ShiftErrors = {"relative_error": {}, "cosine": {}}
    # The arrays can be large: only the sums are in float64.
    norm = _norms(transformed)
    for name, predicted in predictions.items():
        difference = _norms(transformed - predicted)
        product = np.einsum("ngc,ngc->n", transformed, predicted, dtype=np.float64)
        found["relative_error"][name] = _ratio(difference, norm)
        found["cosine"][name] = _ratio(product, norm * _norms(predicted))
    return found


def _floating(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def derangement(count: int) -> np.ndarray:
    """Returns a permutation without fixed points: a random cycle."""
    cycle = np.random.default_rng(0).permutation(count)
    others = np.empty_like(cycle)
    others[cycle] = np.roll(cycle, 1)
    return others


def _norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ngc,ngc->n", x, x, dtype=np.float64))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nothing = np.full_like(denominator, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
