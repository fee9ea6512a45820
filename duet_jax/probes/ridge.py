"""Multi-output ridge regression on frozen features, in float64 on the host.

Minimizes, on standardized features, the squared error summed over outputs and averaged
over examples, plus l2 times the squared norm of the weights; the intercept is not
penalized. This is scikit-learn's `Ridge` with alpha = l2 n on the same features.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from duet_jax.errors import UsageError
from duet_jax.metrics.equivariance import mean_r_squared
from duet_jax.probes import inputs

__all__ = ["RidgeFit", "fit", "fit_with_selection"]

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
        for rows, block in _standardized(self.standardization, features):
            predictions[rows] = block @ self.kernel + self.intercept[None, :]
        return predictions


def fit(features, targets, *, l2: Sequence[float]) -> tuple[RidgeFit, ...]:
    """Fits ridge regression at every strength in `l2`.

    Args:
      features: raw, [n, d], finite.
      targets: [n, k], finite.
      l2: strengths of the penalty, positive. One eigendecomposition serves all.

    Returns:
      One fit per strength, in their order.

    Raises:
      UsageError: shapes, values or strengths are out of range.
    """
    return tuple(_fits(features, targets, l2))


def _fits(features, targets, l2: Sequence[float]) -> Iterator[RidgeFit]:
    """Yields what `fit` returns: with many outputs, all kernels together are large."""
    if not l2 or min(l2) <= 0:
        raise UsageError(f"l2={tuple(l2)} must be positive; use 0.001, say.")
    features, targets = _examples(features, targets)
    n, d = features.shape
    standard = inputs.standardization(features)
    # Not quite 0, because the mean that was subtracted is rounded to float32.
    shift = np.zeros(d)
    mean = np.mean(targets, axis=0)
    second_moment = np.zeros((d, d))
    moments = np.zeros((d, targets.shape[1]))
    for rows, block in _standardized(standard, features):
        shift += np.sum(block, axis=0) / n
        second_moment += block.T @ block / n
        moments += block.T @ (targets[rows] - mean[None, :]) / n
    second_moment -= shift[:, None] * shift[None, :]
    eigenvalues, basis = np.linalg.eigh(second_moment)
    eigenvalues, moments = np.maximum(eigenvalues, 0), basis.T @ moments
    for strength in l2:
        kernel = basis @ (moments / (eigenvalues + strength)[:, None])
        intercept = mean - shift @ kernel
        yield RidgeFit(standard, kernel, intercept, strength, {})


def _standardized(
    standard: inputs.Standardization, features: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of rows and their standardized features in float64."""
    for first in range(0, len(features), inputs.BLOCK):
        rows = slice(first, first + inputs.BLOCK)
        yield rows, standard.apply(features[rows].astype(np.float64))


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


def fit_with_selection(
    features, targets, *, strengths: Sequence[float] = STRENGTHS
) -> RidgeFit:
    """Fits ridge regression with a strength chosen on a tenth of the examples.

    All strengths are fitted on nine tenths. The one with the best R^2 on every tenth
    example, averaged over the outputs that vary there, among equals the strongest, is
    selected and fitted on everything. Deterministic.

    Args:
      features: raw, [n, d], finite. Each fit standardizes by the examples it is fitted
        on; constant features are ignored.
      targets: [n, k], finite.
      strengths: candidates for `l2`, positive.

    Raises:
      UsageError: shapes, values or strengths are out of range, or one example only.
    """
    features, targets = _examples(features, targets)
    held_out = inputs.held_out_tenth(np.zeros(len(targets), int))
    ordered = sorted(strengths, reverse=True)
    queries, scores = features[held_out], {}
    for candidate in _fits(features[~held_out], targets[~held_out], ordered):
        predictions = candidate.predict(queries)
        score = mean_r_squared(targets[held_out], predictions)
        scores[candidate.l2] = 0.0 if np.isnan(score) else score  # none varies
    best = max(scores, key=lambda l2: (scores[l2], l2))
    (chosen,) = fit(features, targets, l2=[best])
    return chosen._replace(held_out=scores)
