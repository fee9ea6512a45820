"""Signs that a run learns nothing, said in words while it can still be stopped."""

import collections
import logging
from collections.abc import Mapping, Sequence

import numpy as np

_log = logging.getLogger(__name__)

# `feature_spread`. With configs/smoke.py it is 0.99 or more in training, and on the
# test split 0.06 before the first update, 0.12 after it and 0.5 later; where all
# features are equal it is rounding, 1e-4 at most.
COLLAPSED = 0.01
# Evaluations whose accuracy is the same to the last bit.
UNCHANGED = 5
# Test images that were classified wrongly, from which on that is a sign: any of them
# could have come out otherwise. Were the answers of five evaluations independent, their
# accuracies would agree once in 3 with 2 images and a tenth of them right, and once in
# 2,000 with 56. Near 1, a trained probe may rest.
FEWEST_WRONG = 50
# Values of a structure, from which on it is a sign that all are the same. Of these,
# with a probability of .2, one batch in 1,300 leaves all images as they are.
FEWEST_VALUES = 32


class Symptoms:
    """Looks at the rows of a run and warns once of each sign."""

    def __init__(self):
        self._said: set[str] = set()
        self._accuracies: collections.deque = collections.deque(maxlen=UNCHANGED)

    def train(self, means: Mapping[str, float]) -> None:
        """Takes a row of training metrics, "skipped" being a number of updates."""
        if means.get("skipped", 0) > 0:
            self._warn(
                "skipped",
                "%d updates were not finite and left out (config.on_nonfinite=skip); "
                "if there are more, lower config.optimizer.learning_rate",
                means["skipped"],
            )
        self._check_spread("training", means)

    def test(self, step: int, means: Mapping[str, float]) -> None:
        """Takes the means over the test split, of so many "examples", at `step`."""
        examples, accuracy = means["examples"], means["online_top1"]
        # One image lies nowhere apart from others. Batches hold two or more, so that
        # one that is left for the last batch takes a third of the mean at most.
        if examples > 1:
            self._check_spread("test", means)
        self._accuracies.append(accuracy)
        constant = list(self._accuracies) == [accuracy] * UNCHANGED
        if constant and round((1 - accuracy) * examples) >= FEWEST_WRONG:
            self._warn(
                "constant",
                "online_top1 of the test split is exactly %g in the last %d "
                "evaluations, up to step %d: the online probe gives the same answers "
                "whatever is trained; it may predict a single class, or the features "
                "have collapsed (feature_spread=%.2g)",
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

    def _warn(self, sign: str, message: str, *values: object) -> None:
        if sign not in self._said:
            self._said.add(sign)
            _log.warning(message, *values)


def check_structure(
    code: str, first: np.ndarray, second: np.ndarray, fields: Sequence[str]
) -> None:
    """Warns where the structure values of a batch hold nothing to be learnt.

    Args:
      code: of the augmentation.
      first: its structure values in the first views of a batch, [batch].
      second: in the second views.
      fields: of the configuration that decide which values are drawn.
    """
    values = np.concatenate([np.asarray(first), np.asarray(second)])
    remedy = f"see {' and '.join(fields)}"
    if not fields:
        remedy = (
            "no field of the configuration decides what is drawn of it: look at draw "
            "and structure of its record, or set config.learned to another code"
        )
    bad = np.sum(~np.isfinite(values))
    if bad:
        _log.warning(
            "%d of %d structure values for %r in the first batch are not finite: "
            "nothing can be learnt from them; %s",
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
