"""Readouts: how well the parameter of a transformation is read off representations.

*Individual*: off the representation of one transformed image. *Relative*: off those of
two views of an image, how much more of the transformation the second one has. By a
linear map (ridge regression, or logistic regression where the parameter has few levels)
or by a small network (`probes.mlp`). A linear map cannot read the angle between two
views, which is a product of their features: what it reads there is a check.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, Difference, spaced
from duet_jax.evaluation.result import Table, percent
from duet_jax.metrics import equivariance as measures
from duet_jax.probes import logistic, mlp, ridge
from duet_jax.runs.frozen_encoder import FrozenEncoder, Representations

PLUS_MINUS = "±: half the width of the 95 % interval."
"""Explains `plus_minus` below a table."""

# Training images of the networks, and of relative readouts.
_MOST_IMAGES = 10_000


class Views(NamedTuple):
    """Transformed images: drawn structure values, [n], and their representations."""

    values: np.ndarray
    representations: Representations


class Target(Protocol):
    """What is read: the parameter of a `Code`, or the `Difference` of two views."""

    @property
    def circular(self) -> bool:
        """True if the values 0 and 1 are the same."""

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The values that occur, if they are few."""

    def points(self, values: np.ndarray) -> np.ndarray:
        """Returns values as regression targets, [n, k]."""

    def level(self, values: np.ndarray) -> np.ndarray:
        """Returns the index of the nearest level of each value."""

    def distance(self, true: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Returns how far values are apart, in own units, without a sign."""


class Fit(NamedTuple):
    """What reads a parameter off one representation.

    Attributes:
      target: what it reads.
      name: of the representation.
      solution: its weights.
    """

    target: Target
    name: str
    solution: logistic.LogisticFit | ridge.RidgeFit | mlp.MlpFit

    def values(self, found: Representations) -> np.ndarray:
        """Returns the values that are read, [n]."""
        return self._read(self._outputs(found))

    def scores(self, test: Views) -> dict[str, Any]:
        """Returns the scores on other images."""
        outputs = self._outputs(test.representations)
        scores = score(self.target, test.values, self._read(outputs), outputs)
        if isinstance(self.solution, ridge.RidgeFit):
            scores["l2"] = self.solution.l2
        if isinstance(self.solution, mlp.MlpFit):
            scores["epoch"] = self.solution.epoch
        return scores

    def _outputs(self, found: Representations) -> np.ndarray:
        """Returns logits of the levels, or points; see `Code.points`."""
        features = found[self.name]
        if isinstance(self.solution, logistic.LogisticFit):
            return self.solution.logits(features)
        return self.solution.predict(features)

    def _read(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the values of outputs, [n]."""
        if self.target.levels is not None:
            return np.asarray(self.target.levels)[np.argmax(outputs, axis=1)]
        return measures.values_at(outputs, circular=self.target.circular)


def fits(target: Target, train: Views, names: Iterable[str] = ()) -> dict[str, Fit]:
    """Fits a linear map to each representation of the training split, or to some."""
    found = {}
    for name in names or train.representations:
        features = train.representations[name]
        if target.levels is not None:
            solution = logistic.fit_with_selection(
                features, target.level(train.values), num_classes=len(target.levels)
            )
        else:
            solution = ridge.fit_with_selection(features, target.points(train.values))
        found[name] = Fit(target, name, solution)
    return found


def fit_network(target: Target, train: Views, name: str = "full") -> Fit:
    """Trains a network on a representation of the training split."""
    features = train.representations[name]
    if target.levels is not None:
        levels = target.level(train.values)
        solution = mlp.fit(features, levels, num_classes=len(target.levels))
    else:
        solution = mlp.fit(features, target.points(train.values))
    return Fit(target, name, solution)


def score(
    target: Target, true: np.ndarray, read: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    """Scores the values that are read, each score with a 95 % interval.

    Args:
      target: what is read.
      true: values that were drawn, [n].
      read: values that are read, [n].
      points: predicted points for R²; on a circle, an uncertain one is inside it.

    Returns:
      "accuracy" where there are levels. Else "error" in own units, "r_squared", pooled
      over outputs, and "mean_r_squared", their average. And "<score>_interval" of each.
    """
    if target.levels is not None:
        return accuracy(target.level(read), target.level(true))
    error, drawn = target.distance(true, read), target.points(true)
    pooled, averaged = measures.r_squared_intervals(drawn, points)
    return {
        "error": float(error.mean()),
        "error_interval": measures.bootstrap(error),
        "r_squared": measures.r_squared(drawn, points),
        "r_squared_interval": pooled,
        "mean_r_squared": measures.mean_r_squared(drawn, points),
        "mean_r_squared_interval": averaged,
    }


def accuracy(chosen: np.ndarray, levels: np.ndarray) -> dict[str, Any]:
    """Returns the share of right levels, with a 95 % interval."""
    hits = (chosen == levels).astype(float)
    return {
        "accuracy": float(hits.mean()),
        "accuracy_interval": measures.bootstrap(hits),
    }


def constant(target: Target, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Returns the scores of the best constant of the training values, [n]."""
    if target.levels is not None:
        counts = np.bincount(target.level(train), minlength=len(target.levels))
        return accuracy(np.full(len(test), np.argmax(counts)), target.level(test))
    outputs = np.tile(target.points(train).mean(axis=0), (len(test), 1))
    read = measures.values_at(outputs, circular=target.circular)
    return score(target, test, read, outputs)


def encode(
    evaluation: Evaluation,
    code: Code,
    split: str,
    encoder: FrozenEncoder,
    *,
    most: int = 0,
    again: int = 0,
) -> Views:
    """Encodes images of a split once, each with its own parameter.

    Args:
      evaluation: of a run.
      code: that is applied, alone.
      split: "train" or "test".
      encoder: that of the run, or a yardstick.
      most: images, evenly spaced; 0 for all.
      again: another number draws other parameters.
    """
    images = evaluation.split(split).images
    images = spaced(images, most) if most else images
    key = jax.random.fold_in(
        jax.random.key(evaluation.run.config.seed),
        ("train", "test").index(split) + 3 * again,
    )
    draws = code.stack.draw(key, len(images))
    with evaluation.timed("encoding"):
        found = encoder(images, code.stack, draws)
    return Views(np.asarray(code.values(draws)), found)


def measure(evaluation: Evaluation, code: Code) -> dict[str, Any]:
    """Returns what is read off the full features beyond the linear individual readout.

    Args:
      evaluation: of a run.
      code: the augmentation.

    Returns:
      "mlp", the scores of the individual readout by a network; "relative", those of the
      relative ones by "ridge" (a linear map) and "mlp", with "chance".
    """
    encoder = evaluation.run.encoder
    pairs, singles = {}, {}
    for split in ("train", "test"):
        first, second = (
            encode(evaluation, code, split, encoder, most=_MOST_IMAGES, again=again)
            for again in (1, 2)
        )
        features = [each.representations["full"] for each in (first, second)]
        singles[split] = second
        pairs[split] = Views(
            Difference(code).between(first.values, second.values),
            {"full": np.concatenate(features, axis=1)},
        )
    with evaluation.timed("networks"):
        single = fit_network(code, singles["train"]).scores(singles["test"])
        network = fit_network(Difference(code), pairs["train"]).scores(pairs["test"])
    with evaluation.timed("regression"):
        linear = fits(Difference(code), pairs["train"])["full"].scores(pairs["test"])
    values = (pairs["train"].values, pairs["test"].values)
    relative = {"ridge": linear, "mlp": network}
    return {
        "mlp": {"full": single},
        "relative": {**relative, "chance": constant(Difference(code), *values)},
    }


def table(code: Code, found: dict[str, Any]) -> Table:
    """Returns the table of what `measure` has found, and the linear readout beside."""
    rows = {
        "individual, linear": found["regression"]["full"],
        "individual, network": found["mlp"]["full"],
        "relative, linear": found["relative"]["ridge"],
        "relative, network": found["relative"]["mlp"],
        "relative, chance": found["relative"]["chance"],
    }
    header, names = ("readout", "accuracy"), {"accuracy": ".3f"}
    if code.levels is None:
        unit = code.record.scale.unit
        header = ("readout", f"error [{unit}]", "R² pooled", "R² averaged")
        names = {"error": ".3g", "r_squared": ".3f", "mean_r_squared": ".3f"}
    return Table(
        f"{code.name}: individual and relative readouts of full features",
        header,
        tuple(
            (row, *(plus_minus(scores, name, form) for name, form in names.items()))
            for row, scores in rows.items()
        ),
        "individual: of one view; relative: how much more of it the second of two "
        "views of an image has. R² over all outputs together, and the mean of those of "
        f"each output (circles: cosine and sine). {PLUS_MINUS}",
        code.name,
    )


def cells(scores: dict[str, Any]) -> tuple[str, ...]:
    """Returns scores as texts with their intervals: accuracy; or error and R²."""
    if "accuracy" in scores:
        low, high = map(percent, scores["accuracy_interval"])
        return (f"{percent(scores['accuracy'])} ({low} to {high})",)
    return tuple(
        f"{scores[name]:{form}} ({span(scores[f'{name}_interval'], form)})"
        for name, form in (("error", ".3g"), ("r_squared", ".3f"))
    )


def plus_minus(scores: Mapping[str, Any], name: str, form: str) -> str:
    """Returns a score and half the width of its interval as text; "-" for none."""
    if scores[name] is None or not np.isfinite(scores[name]):
        return "-"
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:{form}} ± {(high - low) / 2:{form.replace('3g', '2g')}}"


def span(interval: Sequence[float], form: str) -> str:
    """Returns an interval as text."""
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
