"""Warns of a run that learns nothing, while it can still be stopped."""

import collections
import logging
from collections.abc import Mapping, Sequence

import numpy as np

_log = logging.getLogger(__name__)

# A `feature_spread` below this is a collapse. With configs/smoke.py it is 0.99 or more
# in training, and on the test split 0.06 before the first update, 0.12 after it and 0.5
# later. If all features are equal, rounding leaves 1e-4 at most.
COLLAPSED = 0.01
# Shares of the largest possible `rank_me` below which features differ, but along a few
# directions: a dimensional collapse. Sound runs have .2 or more, and fall to .3 of the
# highest value at most (docs/watching.md); with a rate of 1 it is .04 of 128 or .07 of
# 32, after a fall to less than a fifth. Untrained networks have .05 to .16, which a
# first evaluation may still be near: so without a fall it has to last.
FALLEN_RANK, FALL = 0.1, 0.25
LASTING_RANK, LASTING = 0.05, 3
# Evaluations in a row with exactly the same accuracy.
UNCHANGED = 5
# Wrongly classified test images needed for that warning. With few, a constant accuracy
# is likely by chance: if the answers of five evaluations were independent and a tenth
# were right, once in 3 for 2 images, and once in 2,000 for 56. Near an accuracy of 1, a
# trained probe may stay constant.
FEWEST_WRONG = 50
# Structure values needed to warn that all are the same. An augmentation of probability
# 0.2 leaves 32 views unchanged in one batch of 1,300.
FEWEST_VALUES = 32


class Symptoms:
    """Checks the rows of a run and warns once of each sign."""

    def __init__(self, directions: int = 0):
        """Has seen nothing yet.

        Args:
          directions: the largest `rank_me` that the test features can have: the smaller
            of their number and their dimensions.
        """
        self._directions = directions
        self._highest_rank, self._low = 0.0, 0
        self._said: set[str] = set()
        self._accuracies: collections.deque = collections.deque(maxlen=UNCHANGED)

    def train(self, means: Mapping[str, float]) -> None:
        """Checks a row of training metrics; "skipped" is a number of updates."""
        if means.get("skipped", 0) > 0:
            self._warn(
                "skipped",
                "%d updates were not finite and skipped (config.on_nonfinite=skip); if "
                "there are more, lower config.optimizer.learning_rate",
                means["skipped"],
            )
        self._check_spread("training", means)

    def test(self, step: int, means: Mapping[str, float]) -> None:
        """Checks the means over the test split, of "examples" images, at `step`."""
        examples, accuracy = means["examples"], means.get("online_top1")
        # A single image has no spread. Batches hold two or more, so a single image in
        # the last batch lowers the mean by a third at most.
        if examples > 1:
            self._check_spread("test", means)
        if "rank_me" in means:
            self._check_rank(step, means["rank_me"])
        if accuracy is None:  # without labels
            return
        self._accuracies.append(accuracy)
        constant = list(self._accuracies) == [accuracy] * UNCHANGED
        if constant and round((1 - accuracy) * examples) >= FEWEST_WRONG:
            self._warn(
                "constant",
                "online_top1 of the test split is exactly %g in the last %d "
                "evaluations, up to step %d: training does not change the answers of "
                "the online probe; it may predict a single class, or the features have "
                "collapsed (feature_spread=%.2g)",
                accuracy,
                UNCHANGED,
                step,
                means["feature_spread"],
            )

    def _check_spread(self, split: str, means: Mapping[str, float]) -> None:
        if means["feature_spread"] < COLLAPSED:
            self._warn(
                "collapsed",
                "the features of all %s images are almost equal (feature_spread=%.2g; "
                "1 when they differ in all directions): they have collapsed, and no "
                "evaluation will tell images apart; lower "
                "config.optimizer.learning_rate, or look at the augmentations",
                split,
                means["feature_spread"],
            )

    def _check_rank(self, step: int, rank: float) -> None:
        """Warns of few directions; not of none, which the spread tells."""
        share = rank / self._directions
        self._low = self._low + 1 if share < LASTING_RANK else 0
        self._highest_rank = max(self._highest_rank, rank)
        fallen = share < FALLEN_RANK and rank < FALL * self._highest_rank
        few = fallen or self._low >= LASTING
        if few and "collapsed" not in self._said:
            self._warn(
                "few directions",
                "the test features of step %d are spread over %.3g directions of %d "
                "(rank_me): most of their dimensions are of no use (dimensional "
                "collapse); lower config.optimizer.learning_rate or config.optimizer."
                "weight_decay, or look at the augmentations",
                step,
                rank,
                self._directions,
            )

    def _warn(self, sign: str, message: str, *values: object) -> None:
        if sign not in self._said:
            self._said.add(sign)
            _log.warning(message, *values)


def check_structure(
    code: str, first: np.ndarray, second: np.ndarray, fields: Sequence[str]
) -> None:
    """Warns if nothing can be learned from the structure values of a batch.

    Args:
      code: of the augmentation.
      first: its structure values in the first views, [batch].
      second: in the second views.
      fields: of the configuration that determine the values.
    """
    values = np.concatenate([np.asarray(first), np.asarray(second)])
    remedy = f"see {' and '.join(fields)}"
    if not fields:
        remedy = (
            "no field of the configuration determines them: check draw and structure "
            "of its record, or set config.learned to another code"
        )
    bad = np.sum(~np.isfinite(values))
    if bad:
        _log.warning(
            "%d of %d structure values for %r in the first batch are not finite: "
            "nothing can be learned from them; %s",
            bad,
            len(values),
            code,
            remedy,
        )
    elif len(values) >= FEWEST_VALUES and (values == values[0]).all():
        _log.warning(
            "every image of the first batch has structure %g for %r: there is nothing "
            "to learn; %s",
            values[0],
            code,
            remedy,
        )
