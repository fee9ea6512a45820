"""Multi-output ridge regression on frozen features, in float64 on the host.

Minimizes, on standardized features, the squared error summed over outputs and averaged
over examples, plus l2 times the squared norm of the weights; the intercept is not
penalized. This is scikit-learn's `Ridge` with alpha = l2 n on the same features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from duet_jax.errors import UsageError
from duet_jax.probes import inputs

STRENGTHS = tuple(float(10.0**-exponent) for exponent in np.arange(-2, 6.5, 0.5))
"""L2 strengths to choose from, from the strongest to the weakest."""


class RidgeFit(NamedTuple):
    """A fitted regression of raw features.

    Attributes:
      standardization: of the examples it was fitted on.
      kernel: on standardized features, float64 [d, k].
      intercept: float64 [k].
      l2: strength of the penalty.
      held_out: mean R^2 on the held-out tenth by strength, 1 at best; empty without a
        selection.
    """

    standardization: inputs.Standardization
    kernel: np.ndarray
    intercept: np.ndarray
    l2: float
    held_out: dict[float, float]

    def predict(self, features) -> np.ndarray:
        """Returns predictions, float64 [n, k], for raw `features` [n, d]."""
        features = inputs.matrix(features)
        predictions = np.empty((len(features), len(self.intercept)))
        for rows in _blocks(len(features)):
            block = _standardized(self.standardization, features[rows])
            predictions[rows] = block @ self.kernel + self.intercept[None, :]
        return predictions


class _Normal(NamedTuple):
    """The normal equations in the eigenvectors of the second moment.

    Attributes:
      standardization: of the features.
      shift: mean of the standardized features, [d]. It is not quite 0, because the
        mean that was subtracted is rounded to float32.
      mean: of the targets, [k].
      basis: eigenvectors, [d, d].
      eigenvalues: [d], not negative.
      moments: mean products of features, in that basis, and centered targets, [d, k].
    """

    standardization: inputs.Standardization
    shift: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    eigenvalues: np.ndarray
    moments: np.ndarray

    def solution(self, l2: float) -> RidgeFit:
        kernel = self.basis @ (self.moments / (self.eigenvalues + l2)[:, None])
        intercept = self.mean - self.shift @ kernel
        return RidgeFit(self.standardization, kernel, intercept, l2, {})


def _blocks(n: int) -> list[slice]:
    return [slice(first, first + inputs.BLOCK) for first in range(0, n, inputs.BLOCK)]


def _standardized(standard: inputs.Standardization, block: np.ndarray) -> np.ndarray:
    return standard.apply(block.astype(np.float64))


def _normal_equations(features: np.ndarray, targets: np.ndarray) -> _Normal:
    n, d = features.shape
    standard = inputs.standardization(features)
    mean = np.mean(targets, axis=0)
    shift = np.zeros(d)
    second_moment = np.zeros((d, d))
    moments = np.zeros((d, targets.shape[1]))
    for rows in _blocks(n):
        block = _standardized(standard, features[rows])
        shift += np.sum(block, axis=0) / n
        second_moment += block.T @ block / n
        moments += block.T @ (targets[rows] - mean[None, :]) / n
    second_moment -= shift[:, None] * shift[None, :]
    eigenvalues, basis = np.linalg.eigh(second_moment)
    return _Normal(
        standard, shift, mean, basis, np.maximum(eigenvalues, 0), basis.T @ moments
    )


def _examples(features, targets) -> tuple[np.ndarray, np.ndarray]:
    features, targets = inputs.matrix(features), np.asarray(targets, np.float64)
    if targets.ndim != 2 or len(targets) != len(features):
        raise UsageError(
            f"targets={targets.shape} do not fit features={features.shape}; "
            "give [examples, outputs]."
        )
    if not np.all(np.isfinite(targets)):
        raise UsageError(
            f"targets={targets.shape} hold NaN or infinite values; use finite targets."
        )
    return features, targets


def _check(strengths: Sequence[float]) -> None:
    if not strengths or min(strengths) <= 0:
        raise UsageError(f"l2={tuple(strengths)} must be positive; use 0.001, say.")


def fit(features, targets, *, l2: float) -> RidgeFit:
    """Fits ridge regression at a given strength.

    Args:
      features: raw, [n, d], finite.
      targets: [n, k], finite.
      l2: strength of the penalty, positive.

    Raises:
      UsageError: shapes, values or the strength are out of range.
    """
    _check([l2])
    return _normal_equations(*_examples(features, targets)).solution(l2)


def fit_with_selection(
    features, targets, *, strengths: Sequence[float] = STRENGTHS
) -> RidgeFit:
    """Fits ridge regression with a strength chosen on a tenth of the examples.

    One eigendecomposition of nine tenths serves all strengths. The one with the best
    R^2 on every tenth example, averaged over the outputs that vary there, among equals
    the strongest, is selected and fitted on everything. Deterministic.

    Args:
      features: raw, [n, d], finite. Each fit standardizes by the examples it is fitted
        on; constant features are ignored.
      targets: [n, k], finite.
      strengths: candidates for `l2`, positive.

    Raises:
      UsageError: shapes, values or strengths are out of range, or one example only.
    """
    _check(strengths)
    features, targets = _examples(features, targets)
    held_out = inputs.held_out_tenth(np.zeros(len(targets), int))
    normal = _normal_equations(features[~held_out], targets[~held_out])
    scores = {}
    for l2 in sorted(strengths, reverse=True):
        predictions = normal.solution(l2).predict(features[held_out])
        scores[l2] = r_squared(predictions, targets[held_out])
    best = max(scores, key=lambda l2: (scores[l2], l2))
    return fit(features, targets, l2=best)._replace(held_out=scores)


def r_squared(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Returns the explained share of the variance, averaged over outputs.

    Args:
      predictions: [n, k].
      targets: [n, k].

    Returns:
      1 at best, 0 for the mean of the targets. Outputs that do not vary are left out;
      0 if none varies.
    """
    errors = np.sum((predictions - targets) ** 2, axis=0)
    spread = np.sum((targets - np.mean(targets, axis=0)[None, :]) ** 2, axis=0)
    varies = spread > 0
    return float(np.mean(1 - errors[varies] / spread[varies])) if varies.any() else 0.0
