"""Accuracies and confusion matrix of a classifier."""

from typing import NamedTuple

import numpy as np

from duet_jax.errors import UsageError


class ClassificationScores(NamedTuple):
    """What `classification` returns; accuracies are fractions from 0 to 1.

    Attributes:
      top1: share of the examples whose label has the largest score.
      top5: share of the examples whose label is among the five largest scores.
      per_class: top-1 accuracy of each class, float64 [classes]; NaN for a class
        without examples.
      confusion: counts, int64 [true class, predicted class]. Examples with a NaN score
        have no prediction and are left out.
      examples: number of examples.
    """

    top1: float
    top5: float
    per_class: np.ndarray
    confusion: np.ndarray
    examples: int


def classification(scores, labels) -> ClassificationScores:
    """Returns the accuracies and the confusion matrix of a classifier.

    Args:
      scores: logits, votes or probabilities, [n, classes]. A tie counts against the
        label, as in `duet_jax.losses.top_k`: features that are all alike must not look
        perfect. So does a NaN. With five classes or fewer every example without NaN is
        correct in top-5.
      labels: int [n], from 0 to the number of classes - 1.

    Raises:
      UsageError: scores and labels do not match, or there are none.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise UsageError(
            f"scores={scores.shape} and labels={labels.shape} do not fit; "
            "give [examples, classes] and [examples], one example at least."
        )
    num_classes = scores.shape[1]
    has_nan = np.any(np.isnan(scores), axis=1)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    # Classes that are not below the label; with a NaN, more than any k.
    rank = np.where(has_nan, max(num_classes, 5), np.sum(scores >= own, axis=1) - 1)
    correct = rank == 0
    confusion = _confusion(scores, labels, correct, ~has_nan)
    members = np.bincount(labels, minlength=num_classes)
    per_class = np.full(num_classes, np.nan)
    np.divide(np.diagonal(confusion), members, out=per_class, where=members > 0)
    return ClassificationScores(
        top1=float(np.mean(correct)),
        top5=float(np.mean(rank < 5)),
        per_class=per_class,
        confusion=confusion,
        examples=len(labels),
    )


def _confusion(
    scores: np.ndarray, labels: np.ndarray, correct: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Counts [true, predicted]; of a tie with the label the other class counts."""
    others = scores.astype(np.float64)
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    # The label itself if all other classes are -inf.
    predicted = np.where(correct, labels, np.argmax(others, axis=1))
    confusion = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(confusion, (labels[counted], predicted[counted]), 1)
    return confusion
