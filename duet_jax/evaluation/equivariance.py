"""How well features tell how an image was transformed, and how they move with it.

One augmentation at a time, alone, on images that are otherwise unchanged.

(a) Jensen-Shannon divergence of the structure from its target.
(b) The parameter, read off the structure marginal.
(c) The parameter, read off frozen features by a regression: for every method.
(d) On a circle: whether shifting the bins predicts the transformed representation.
    Features without bins are read as if they had some, as a control.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures, losses
from duet_jax.augmentations import (
    LEARNABLE,
    Augmentation,
    Stack,
    measuring_stack,
    normalize,
    to_float,
)
from duet_jax.augmentations.record import Frame
from duet_jax.errors import UsageError
from duet_jax.evaluation import yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.options import split_codes
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.figures import Drawing
from duet_jax.methods import Method
from duet_jax.methods.base import Structured
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.probes import logistic, ridge
from duet_jax.runs.frozen_encoder import FrozenEncoder, Representations
from duet_jax.types import Array

# Images whose representations are shifted: each is encoded once per bin.
_SHIFTED_IMAGES = 2000
_TURNED_STEPS = 12
# A structure value counts as drawn if one of so many draws comes so near to it.
_DRAWS, _REACHED = 4096, 0.01
# Features without bins are read as if they had as many bins as the greatest common
# divisor of their number and this one, the default of `duet.num_bins`.
_CONTROL_BINS = 8
# Predictions of the transformed representation; see `measures.shift_errors`.
_COMPARED = ("shifted", "unshifted", "random")


class Views(NamedTuple):
    """Transformed images: drawn structure values, [n], and their representations."""

    values: np.ndarray
    representations: Representations


class Code(NamedTuple):
    """The augmentation that is measured.

    Attributes:
      name: its code.
      stack: applies it alone.
      record: its description.
      frame: the sizes its parameters refer to.
    """

    name: str
    stack: Stack
    record: Augmentation
    frame: Frame

    @property
    def circular(self) -> bool:
        """True if the structure values 0 and 1 are the same."""
        return self.record.topology == "circle"

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The structure values that occur, if they are few."""
        return self.record.scale.levels

    @property
    def limits(self) -> tuple[float, float]:
        """The parameters at the structure values 0 and 1, the smaller one first."""
        return tuple(sorted(self.parameter((0.0, 1.0)).tolist()))

    @property
    def axis(self) -> dict[str, Any]:
        """The axis of the parameter, as figures take it."""
        return {
            "unit": self.record.scale.unit,
            "topology": self.record.topology,
            "limits": self.limits,
        }

    def parameter(self, values: np.ndarray | tuple[float, ...]) -> np.ndarray:
        """Returns the parameters for structure values, in the augmentation's unit."""
        values = jnp.asarray(values, jnp.float32)
        return np.asarray(self.record.scale.parameter(values, self.frame))

    def values(self, draws: dict) -> Array:
        """Returns the structure values of drawn parameters, [n]."""
        return self.stack.structure(draws)[self.name]

    def draws_at(self, values: np.ndarray) -> dict:
        """Returns the stack's parameters with given structure values."""
        values = jnp.asarray(values, jnp.float32)
        return {self.record.stage: self.record.scale.params(values, self.frame)}

    def identity(self) -> float:
        """Returns the structure value of an image as it is."""
        return float(self.values(self.stack.identity(1))[0])

    def points(self, values: np.ndarray) -> np.ndarray:
        """Returns structure values as regression targets; see `measures.points`."""
        return measures.points(values, circular=self.circular)

    def level(self, values: np.ndarray) -> np.ndarray:
        """Returns the index of the nearest level of each structure value."""
        return measures.nearest_level(values, self.levels, circular=self.circular)


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Measures one or several augmentations.

    Args:
      evaluation: of a run.
      codes: separated by commas; by default the learned one, for SimCLR all of its
        stack that have a structure.

    Raises:
      UsageError: no code to measure, or one that these images cannot take.
    """
    chosen = make_codes(evaluation, codes)
    values, tables, pictures = {}, [], {}
    for code in chosen:
        train, test = _both_views(evaluation, code, evaluation.run.encoder)
        values[code.name], drawn = _measure_one(evaluation, code, train, test)
        values[code.name]["yardsticks"] = _compare(evaluation, code, train, test)
        tables += _tables(code, values[code.name])
        pictures |= {f"{code.name}_{name}": each for name, each in drawn.items()}
    return Result(values, tuple(tables), pictures)


def default_codes(method: Method) -> list[str]:
    """Returns the codes that are measured by default, the most interesting first."""
    learned = getattr(method, "learned", None)
    names = [learned] if learned else method.two_views.stack.codes
    return [name for name in names if name in LEARNABLE]


def make_codes(evaluation: Evaluation, codes: str | None) -> list[Code]:
    """Returns the augmentations that an evaluation of the run is about; see `measure`.

    Raises:
      UsageError: there is none, or the images of the run cannot take one of them.
    """
    names = (
        default_codes(evaluation.run.method) if codes is None else split_codes(codes)
    )
    if not names:
        raise UsageError(
            "--codes is missing: this run has no augmentation with a parameter of its "
            f"own; name some of {' '.join(LEARNABLE)}."
        )
    return [make_code(evaluation, name) for name in dict.fromkeys(names)]


def make_code(evaluation: Evaluation, name: str) -> Code:
    """Returns the augmentation `name` for images of the run; see `measure`."""
    stack = measuring_stack(name, evaluation.run.method.two_views.stack)
    return Code(name, stack, *stack.stages[0])


def _both_views(
    evaluation: Evaluation, code: Code, encoder: FrozenEncoder
) -> tuple[Views, Views]:
    """Encodes every image of the training and of the test split once."""
    return tuple(
        _views(evaluation, code, split, encoder) for split in ("train", "test")
    )


def _views(
    evaluation: Evaluation, code: Code, split: str, encoder: FrozenEncoder
) -> Views:
    """Encodes every image of a split once, each with its own parameter."""
    images = evaluation.split(split).images
    key = jax.random.key(evaluation.run.config.seed)
    key = jax.random.fold_in(key, ("train", "test").index(split))
    draws = code.stack.draw(key, len(images))
    values = np.asarray(code.values(draws))
    with evaluation.timed("encoding"):
        return Views(values, encoder(images, code.stack, draws))


def _measure_one(
    evaluation: Evaluation, code: Code, train: Views, test: Views
) -> tuple[dict[str, Any], dict[str, Figure | Drawing]]:
    found: dict[str, Any] = {
        "unit": code.record.scale.unit,
        "topology": code.record.topology,
        "levels": code.levels,
        "images": len(test.values),
    }
    pictures: dict[str, Figure | Drawing] = {}
    method = evaluation.run.method
    if is_learned(method, code):
        scores, pictures = _measure_marginal(evaluation, code, test)
        found |= scores
    bins = math.gcd(test.representations["full"].shape[1], _CONTROL_BINS)
    if isinstance(method, Structured):
        bins = method.num_bins
    if code.circular and bins > 1 and len(test.values) > 1:
        with evaluation.timed("shifts"):
            found["shift"] = _shifts(evaluation, code, bins)
        if found["shift"]["mean"]:
            pictures["shift"] = _draw_shifts(code, found["shift"])
    with evaluation.timed("regression"):
        found["regression"], read = _regress(code, train, test)
    if read is not None:
        pictures["readout"] = Drawing(
            "readout",
            f"{code.record.summary}, read off the full features",
            figures.summarize_readout(
                code.parameter(test.values), code.parameter(read), **code.axis
            ),
        )
    return found, pictures


def is_learned(method: Method, code: Code) -> bool:
    """Returns True if the features hold the structure of this very augmentation."""
    return isinstance(method, Structured) and method.learned == code.name


# (a) and (b): the structure marginal.


def _measure_marginal(
    evaluation: Evaluation, code: Code, views: Views
) -> tuple[dict[str, Any], dict[str, Figure | Drawing]]:
    method, marginals = evaluation.run.method, views.representations["structure"]
    targets_of = jax.jit(method.targets)
    targets = targets_of(jnp.asarray(views.values))
    divergence = _divergence(marginals, targets)
    targets = np.asarray(targets)
    read = measures.read_structure(marginals, circular=method.circular)
    calibrated = measures.calibrated(
        read, targets_of, num_bins=method.num_bins, circular=method.circular
    )
    certainty = np.ones(len(read))
    if code.circular and method.circular:
        # For R², a reading counts by how sharp its marginal is; a target's counts as 1.
        certainty = measures.certainty(marginals) / measures.certainty(targets).mean()
    found = {"divergence": divergence, "marginal": {}}
    for name, values in (("mean", read), ("calibrated", calibrated)):
        points = certainty[:, None] * code.points(values)
        found["marginal"][name] = _score(code, views.values, values, points)
    pictures: dict[str, Figure | Drawing] = {
        "marginals": _draw_marginals(code, views, targets)
    }
    if code.circular:
        pictures["turned"] = _draw_turned(evaluation, code)
    if code.circular and not code.record.two_point:
        angles = (2 * np.pi * (x - code.identity()) for x in (views.values, read))
        title = f"{code.record.summary}, read off the structure"
        pictures["polar"] = Drawing("polar", title, figures.summarize_polar(*angles))
    return found, pictures


def _divergence(marginals: np.ndarray, targets: Array) -> dict[str, Any]:
    logits = jnp.log(jnp.maximum(marginals, np.finfo(np.float32).tiny))
    each = np.asarray(jax.jit(losses.jensen_shannon)(logits, targets))
    return {
        "mean": float(each.mean()),
        "interval": measures.bootstrap(np.mean, each),
        "of_a_constant": measures.constant_divergence(np.asarray(targets)),
    }


def _score(
    code: Code, true: np.ndarray, read: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    """Scores predicted structure values, each score with a 95 % interval.

    Args:
      code: the augmentation.
      true: structure values that were drawn, [n].
      read: predicted structure values, [n].
      points: predicted points for R²; on a circle, an uncertain one is inside it.
    """
    if code.levels is not None:
        return _accuracy(code.level(read), code.level(true))
    low, high = code.limits
    error = np.abs(measures.errors(true, read, circular=code.circular)) * (high - low)
    drawn = code.points(true)
    return {
        "error": float(error.mean()),
        "error_interval": measures.bootstrap(np.mean, error),
        "r_squared": measures.r_squared(drawn, points),
        "r_squared_interval": measures.bootstrap(measures.r_squared, drawn, points),
    }


def _accuracy(chosen: np.ndarray, levels: np.ndarray) -> dict[str, Any]:
    hits = (chosen == levels).astype(float)
    return {
        "accuracy": float(hits.mean()),
        "accuracy_interval": measures.bootstrap(np.mean, hits),
    }


# (c): regressions.


def _regress(
    code: Code, train: Views, test: Views
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Fits on the training split; returns scores by representation.

    Also returns the structure values predicted from "full"; None if the parameter has
    few levels, which are classified.
    """
    found, reads = {}, {}
    for name, features in train.representations.items():
        queries = test.representations[name]
        if code.levels is not None:
            fit = logistic.fit_with_selection(
                features, code.level(train.values), num_classes=len(code.levels)
            )
            chosen = np.argmax(fit.logits(queries), axis=1)
            found[name] = _accuracy(chosen, code.level(test.values))
        else:
            fit = ridge.fit_with_selection(features, code.points(train.values))
            outputs = fit.predict(queries)
            reads[name] = measures.values_at(outputs, circular=code.circular)
            scores = _score(code, test.values, reads[name], outputs)
            found[name] = scores | {"l2": fit.l2}
    return found, reads.get("full")


def _compare(
    evaluation: Evaluation, code: Code, train: Views, test: Views
) -> dict[str, dict[str, Any]]:
    """Returns the scores of the yardsticks' regressions, and of a constant answer."""

    def measure(encoder: FrozenEncoder) -> dict[str, Any]:
        return _regress(code, *_both_views(evaluation, code, encoder))[0]["full"]

    run = evaluation.run
    options = {k: v for k, v in run.config.augmentation.items() if k != "stack"}
    about = ["regression", code.name, options, run.config.seed]
    with evaluation.timed("yardsticks"):
        about.append(evaluation.dataset.facts)
        found = yardsticks.yardsticks(run, about, measure)
    if code.levels is not None:
        counts = np.bincount(code.level(train.values), minlength=len(code.levels))
        chosen = np.full(len(test.values), np.argmax(counts))
        constant = _accuracy(chosen, code.level(test.values))
    else:
        outputs = np.tile(code.points(train.values).mean(axis=0), (len(test.values), 1))
        read = measures.values_at(outputs, circular=code.circular)
        constant = _score(code, test.values, read, outputs)
    return {**found, yardsticks.CHANCE: constant}


# (d): shifts of the bins.


def _shifts(evaluation: Evaluation, code: Code, bins: int) -> dict[str, Any]:
    """Compares shifted representations with those of the transformed images.

    A shift by s bins goes with s/G of the circle. Shifts to parameters that are never
    drawn are left out: the parameter may have few levels, or cover a part of the circle
    only. "mean" is over all shifts but 0.
    """
    drawn = code.values(code.stack.draw(jax.random.key(0), _DRAWS))
    images = spaced(evaluation.split("test").images, _SHIFTED_IMAGES)
    start = code.identity()
    original = _matrices(evaluation, code, bins, images, start)
    by_shift: dict[str, Any] = {}
    for shift in range(bins):
        value = (start + shift / bins) % 1
        distance = np.abs(measures.errors(value, drawn, circular=True)).min()
        if distance > _REACHED:
            continue
        moved = _matrices(evaluation, code, bins, images, value)
        by_shift[str(shift)] = {
            name: _means(measures.shift_errors(original[name], moved[name], shift))
            for name in original
        }
    mean = {}
    others = [errors for shift, errors in by_shift.items() if shift != "0"]
    if others:
        mean = jax.tree.map(lambda *each: float(np.mean(each)), *others)
    return {
        "images": len(images),
        "bins": bins,
        "learned": is_learned(evaluation.run.method, code),
        "by_shift": by_shift,
        "mean": mean,
    }


def _means(errors: measures.ShiftErrors) -> dict[str, dict[str, float]]:
    return {
        measure: {name: float(each.mean()) for name, each in predictions.items()}
        for measure, predictions in errors.items()
    }


def _matrices(
    evaluation: Evaluation, code: Code, bins: int, images: np.ndarray, value: float
) -> dict[str, np.ndarray]:
    """Returns representations at one structure value, [n, bins, channels].

    The structure marginal has one channel.
    """
    draws = code.draws_at(np.full(len(images), value))
    found = evaluation.run.encoder(images, code.stack, draws)
    matrices = {"full": np.asarray(representation.as_matrix(found["full"], bins))}
    if "structure" in found:
        matrices["structure"] = found["structure"][:, :, None]
    return matrices


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """Returns up to `most` rows, evenly spaced, as a split may be sorted by class."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]


# Figures.


def _draw_marginals(code: Code, views: Views, targets: np.ndarray) -> Drawing:
    summary = figures.summarize_marginals(
        code.parameter(views.values),
        views.representations["structure"],
        targets,
        levels=None if code.levels is None else code.parameter(code.levels),
        **code.axis,
    )
    title = f"{code.record.summary}: structure by parameter"
    return Drawing("marginals", title, summary)


def _draw_turned(evaluation: Evaluation, code: Code) -> Figure:
    """Draws one test image along the circle, with its marginals."""
    levels = code.levels
    if levels is None:
        levels = (code.identity() + np.arange(_TURNED_STEPS) / _TURNED_STEPS) % 1
    levels = np.sort(np.asarray(levels, np.float32))
    images = np.repeat(evaluation.split("test").images[:1], len(levels), axis=0)
    draws = code.draws_at(levels)
    views = normalize(jax.jit(code.stack.apply)(to_float(images), draws))
    found = evaluation.run.encoder(images, code.stack, draws)
    unit = code.record.scale.unit
    return figures.build_turned(
        np.asarray(views),
        found["structure"],
        np.asarray(evaluation.run.method.targets(jnp.asarray(levels))),
        [f"{value:g}" for value in np.round(code.parameter(levels), 2)],
        title=f"one test image by {unit}: structure (bars) and target (outline)",
    )


def _draw_shifts(code: Code, found: dict[str, Any]) -> Drawing:
    """Draws all shifts but 0, where the unshifted representation is the same one."""
    errors = {
        int(shift): each["full"]["relative_error"]
        for shift, each in found["by_shift"].items()
        if shift != "0"
    }
    curves = {
        name: np.array([each[name] for each in errors.values()]) for name in _COMPARED
    }
    summary = figures.Shift(found["bins"], np.array([*errors]), curves)
    title = f"{code.record.summary}: bins shifted as it is applied"
    return Drawing("shift", title, summary)


# Tables.


def _tables(code: Code, found: dict[str, Any]) -> list[Table]:
    header = ("read off", "accuracy [%]")
    if code.levels is None:
        header = ("read off", f"error [{found['unit']}]", "R²")
    sources = {
        **{f"structure, {how}": s for how, s in found.get("marginal", {}).items()},
        **{f"regression on {name}": s for name, s in found["regression"].items()},
        **{
            name if name == yardsticks.CHANCE else f"regression on {name}": s
            for name, s in found["yardsticks"].items()
        },
    }
    rows = tuple((name, *_cells(scores)) for name, scores in sources.items())
    title = f"equivariance to {code.name} ({code.record.summary})"
    note = "In parentheses: 95 % intervals."
    if "divergence" in found:
        divergence = found["divergence"]
        note += (
            f" Jensen-Shannon divergence to the target {divergence['mean']:.4f} nats "
            f"(95 %: {_range(divergence['interval'], '.4f')}); "
            f"of the best constant {divergence['of_a_constant']:.4f}."
        )
    tables = [Table(title, header, rows, note)]
    if "shift" in found:
        tables += _shift_tables(code, found["shift"])
    return tables


def _cells(scores: dict[str, Any]) -> tuple[str, ...]:
    if "accuracy" in scores:
        low, high = map(percent, scores["accuracy_interval"])
        return (f"{percent(scores['accuracy'])} ({low} to {high})",)
    error, r_squared = (
        f"{scores[name]:{form}} ({_range(scores[f'{name}_interval'], form)})"
        for name, form in (("error", ".3g"), ("r_squared", ".3f"))
    )
    return error, r_squared


def _range(interval: tuple[float, float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def _shift_tables(code: Code, shifts: dict[str, Any]) -> list[Table]:
    """Returns a table of the relative errors and one of the cosines."""
    by_shift = {f"by {s}": errors for s, errors in shifts["by_shift"].items()}
    if shifts["mean"]:
        by_shift["mean"] = shifts["mean"]
    note = (
        f"Over {shifts['images']} test images. shifted, unshifted: the representation "
        "of the image as it is; random: of another image, transformed. The mean leaves "
        "out shift 0."
    )
    if not shifts["learned"]:
        note += (
            f" Control: nothing prescribes bins for {code.name}; the features are read "
            f"as a matrix of {shifts['bins']}."
        )
    tables = []
    for measure, title in (("relative_error", "relative error"), ("cosine", "cosine")):
        rows = [
            (
                f"{name}, {shift}",
                *(f"{errors[name][measure][each]:.3f}" for each in _COMPARED),
            )
            for name in by_shift["by 0"]
            for shift, errors in by_shift.items()
        ]
        title = f"{code.name}: transformed from original representation, {title}"
        tables.append(Table(title, ("shift of bins", *_COMPARED), tuple(rows)))
    tables[-1] = tables[-1]._replace(note=note)
    return tables
