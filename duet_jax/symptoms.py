"""Signs that a run learns nothing, said in words while it can still be stopped."""

import collections
import logging
from collections.abc import Mapping

import numpy as np

_log = logging.getLogger(__name__)

# `feature_spread`. With configs/smoke.py it is 0.99 or more in training, and on the
# test split 0.06 before the first update, 0.12 after it and 0.5 later; where all
# features are equal it is rounding, 1e-4 at most.
COLLAPSED = 0.01
# Evaluations whose accuracy is the same to the last bit.
UNCHANGED = 5

# Code -> fields of the configuration that decide what is drawn of its structure.
FIELDS: dict[str, tuple[str, ...]] = {
    "sca": ("augmentation.crop_area",),
    "rot": ("augmentation.rotation_degrees",),
    "ron": ("augmentation.stack",),
    "fli": ("augmentation.flip_probability",),
    "flv": ("augmentation.flip_probability",),
    "gra": ("augmentation.grey_probability",),
    "blu": ("augmentation.blur_probability", "augmentation.blur_sigma"),
    "sol": ("augmentation.solarize_probability", "augmentation.solarize_threshold"),
    "bri": ("augmentation.jitter_probability", "augmentation.jitter_strength"),
    "con": ("augmentation.jitter_probability", "augmentation.jitter_strength"),
    "sat": ("augmentation.jitter_probability", "augmentation.jitter_strength"),
    "hue": ("augmentation.jitter_probability", "augmentation.jitter_strength"),
}


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
        """Takes the means over the test split after `step` updates."""
        self._check_spread("test", means)
        accuracy = means["online_top1"]
        self._accuracies.append(accuracy)
        constant = list(self._accuracies) == [accuracy] * UNCHANGED
        if constant and accuracy < 1:
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


def check_structure(code: str, first: np.ndarray, second: np.ndarray) -> None:
    """Warns where the structure values of a batch hold nothing to be learnt.

    Args:
      code: of the augmentation.
      first: its structure values in the first views of a batch, [batch].
      second: in the second views.
    """
    values = np.concatenate([np.asarray(first), np.asarray(second)])
    fields = " and ".join(f"config.{field}" for field in FIELDS[code])
    bad = np.sum(~np.isfinite(values))
    if bad:
        _log.warning(
            "%d of %d structure values for %r in the first batch are not finite: "
            "nothing can be learnt from them; see %s",
            bad,
            len(values),
            code,
            fields,
        )
    elif (values == values[0]).all():
        _log.warning(
            "every image of the first batch has structure %g for %r: there is nothing "
            "to learn; see %s",
            values[0],
            code,
            fields,
        )
