"""How good the scores of a classifier are."""

from typing import NamedTuple

import numpy as np

from duet_jax.errors import UsageError


class ClassificationScores(NamedTuple):
    """What `classification` returns; accuracies are fractions from 0 to 1.

    Attributes:
      top1: share of the examples whose label has the largest score.
      top5: share of the examples whose label is among the five largest scores.
      per_class: top-1 accuracy among the examples of each class, float64 [classes];
        NaN for a class without examples.
      confusion: int64 [true class, predicted class], counts. Its diagonal counts the
        examples right in top-1. An example with a NaN score has no prediction and is
        in no column, so a row sums to its class's examples less those.
      examples: how many were scored.
    """

    top1: float
    top5: float
    per_class: np.ndarray
    confusion: np.ndarray
    examples: int

    def as_dict(self) -> dict:
        """The same in plain JSON types; None for a class without examples."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "per_class": [None if np.isnan(a) else float(a) for a in self.per_class],
            "confusion": self.confusion.tolist(),
            "examples": self.examples,
        }


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes are not below the label, for every example.

    A tie counts against the label: features that are all alike must not look perfect.

    Args:
      scores: any order-preserving score, [n, classes].
      labels: int [n].

    Returns:
      int [n], 0 where the label alone leads; the number of classes, which is below no
      k, where a score is NaN.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    rank = np.sum(scores >= own, axis=1) - 1
    return np.where(np.any(np.isnan(scores), axis=1), scores.shape[1], rank)


def classification(scores, labels) -> ClassificationScores:
    """Accuracies and confusion of a classifier.

    Args:
      scores: logits, votes or probabilities, [n, classes]. A tie counts against the
        label, as in `duet_jax.losses.top_k`, and so does a NaN. With five classes or
        fewer every example without NaN is right in top-5.
      labels: int [n], from 0 to the number of classes - 1.

    Raises:
      UsageError: scores and labels do not fit, or there are none.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise UsageError(
            f"scores={scores.shape} and labels={labels.shape} do not fit; "
            "give [examples, classes] and [examples], one example at least."
        )
    num_classes = scores.shape[1]
    rank = ranks(scores, labels)
    correct = rank == 0
    confusion = _confusion(scores, labels, correct)
    members = np.bincount(labels, minlength=num_classes)
    per_class = np.full(num_classes, np.nan)
    np.divide(np.diagonal(confusion), members, out=per_class, where=members > 0)
    return ClassificationScores(
        top1=float(np.mean(correct)),
        # A NaN has rank `num_classes`, which may be below five.
        top5=float(np.mean(rank < min(5, num_classes))),
        per_class=per_class,
        confusion=confusion,
        examples=len(labels),
    )


def _confusion(
    scores: np.ndarray, labels: np.ndarray, correct: np.ndarray
) -> np.ndarray:
    """Counts [true, predicted]; of a tie with the label the rival is the prediction."""
    rivals = scores.astype(np.float64)
    np.put_along_axis(rivals, labels[:, None], -np.inf, axis=1)
    # A label that is the only class above -inf leads and needs no rival.
    predicted = np.where(correct, labels, np.argmax(rivals, axis=1))
    real = ~np.any(np.isnan(scores), axis=1)
    confusion = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(confusion, (labels[real], predicted[real]), 1)
    return confusion
