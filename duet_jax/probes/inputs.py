"""Checks, standardizes and splits the examples of a probe."""

from typing import NamedTuple

import numpy as np

from duet_jax.errors import UsageError

# A feature whose standard deviation is below this share of its mean varies only by the
# rounding of float32, and counts as constant.
_RELATIVE_STD_FLOOR = 1e-6

# Rows that are converted to float64 at a time.
BLOCK = 4096


class Standardization(NamedTuple):
    """An affine map of every feature to mean 0 and standard deviation 1.

    Attributes:
      mean: float32 [d].
      scale: one over the standard deviation, float32 [d]; 0 for a constant feature.
    """

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, features):
        """Returns standardized `features` [n, d]; constant features become 0."""
        return (features - self.mean[None, :]) * self.scale[None, :]


def standardization(features: np.ndarray) -> Standardization:
    """Returns the standardization of `features` [n, d], summed in float64.

    Raises:
      UsageError: a feature is not finite.
    """
    exact = np.mean(features, axis=0, dtype=np.float64)
    if not np.all(np.isfinite(exact)):
        raise UsageError(
            f"features={tuple(features.shape)} hold NaN or infinite values in "
            f"{int(np.sum(~np.isfinite(exact)))} of {features.shape[1]} columns; "
            "use finite features, such as those of an earlier checkpoint."
        )
    # Deviations from the mean in float32, which `apply` subtracts: so its rounding does
    # not make a constant feature vary.
    mean = np.asarray(exact, np.float32)
    squares = np.zeros(features.shape[1])
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK].astype(np.float64) - mean[None, :]
        squares += np.sum(block * block, axis=0)
    std = np.sqrt(squares / len(features))
    varies = std > np.maximum(_RELATIVE_STD_FLOOR * np.abs(mean), 1e-30)
    scale = np.where(varies, 1 / np.where(varies, std, 1), 0).astype(np.float32)
    return Standardization(mean, scale)


def examples(features, labels, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features as float32 [n, d] and labels as int32 [n] on the host.

    Raises:
      UsageError: the shapes do not match, or a label is not a class.
    """
    features, labels = matrix(features), np.asarray(labels)
    if labels.shape != features.shape[:1]:
        raise UsageError(
            f"labels={labels.shape} do not fit features={features.shape}; "
            "give one label per row."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UsageError(
            f"labels go from {labels.min()} to {labels.max()}, outside of the "
            f"num_classes={num_classes} classes; use 0 to {num_classes - 1}."
        )
    return features, labels.astype(np.int32)


def matrix(features) -> np.ndarray:
    """Returns `features` as float32 [n, d] on the host.

    Raises:
      UsageError: they are not a matrix with rows and columns.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or 0 in features.shape:
        raise UsageError(
            f"features={features.shape} is not a filled matrix; "
            "give [examples, dimensions]."
        )
    return features


def held_out_tenth(labels: np.ndarray) -> np.ndarray:
    """Returns which examples to hold out: a stratified, deterministic tenth.

    Every tenth example of each class in the order given, or the last one of a class
    with two to nine; a class with one example keeps it for fitting.

    Args:
      labels: int [n].

    Returns:
      bool [n].

    Raises:
      UsageError: no class has two examples.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            held_out[members[min(len(members), 10) - 1 :: 10]] = True
    if not held_out.any():
        raise UsageError(
            f"labels={labels.shape} have no class with two examples, so none can be "
            "held out to choose the penalty; use more training examples."
        )
    return held_out
