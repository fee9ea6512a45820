"""How well features tell how an image was transformed, and how they move with it.

One augmentation at a time, alone, on images that are otherwise unchanged.

(a) Jensen-Shannon divergence of the structure from its target.
(b) The parameter, read off the structure marginal.
(c) The parameter, read off frozen features by a regression: for every method.
(d) On a circle: whether shifting the bins predicts the transformed representation.
    Features without bins are read as if they had some, as a control.
(e) Of several augmentations: whether the reading of one is moved by another; see
    `crosstalk.py`.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures, losses
from duet_jax.augmentations import normalize, to_float
from duet_jax.evaluation import crosstalk, yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, make_codes, spaced
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.figures import Drawing
from duet_jax.methods import Method
from duet_jax.methods.base import group_of, groups_of
from duet_jax.methods.groups import Group
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


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Measures one or several augmentations.

    Args:
      evaluation: of a run.
      codes: separated by commas; by default the learned ones, for SimCLR all of its
        stack that have a structure.

    Raises:
      UsageError: no code to measure, or one that these images cannot take.
    """
    chosen = make_codes(evaluation, codes)
    values, tables, pictures, readers = {}, [], {}, {}
    for code in chosen:
        train, test = _both_views(evaluation, code, evaluation.run.encoder)
        with evaluation.timed("regression"):
            fits = _fits(code, train)
        values[code.name], drawn = _measure_one(evaluation, code, fits, test)
        values[code.name]["yardsticks"] = _compare(evaluation, code, train, test)
        readers[code.name] = _readers(evaluation.run.method, code, fits)
        tables += _tables(code, values[code.name])
        pictures |= {f"{code.name}_{name}": each for name, each in drawn.items()}
    if len(chosen) > 1:
        with evaluation.timed("crosstalk"):
            found = crosstalk.measure(evaluation, chosen, readers)
        for code in chosen:
            values[code.name]["crosstalk"] = found[code.name]
        tables += crosstalk.tables(chosen, found)
        pictures["crosstalk"] = crosstalk.draw(chosen, found)
    return Result(values, tuple(tables), pictures)


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
        found = encoder(images, code.stack, draws)
    return Views(values, found | _blocks(evaluation.run.method, found["full"]))


def _blocks(method: Method, full: np.ndarray) -> Representations:
    """Returns the features of each group, "block_<code>", if there are several."""
    groups = groups_of(method)
    if len(groups) < 2:
        return {}
    return {f"block{group.suffix}": np.asarray(group.block(full)) for group in groups}


def _measure_one(
    evaluation: Evaluation, code: Code, fits: "dict[str, Fit]", test: Views
) -> tuple[dict[str, Any], dict[str, Figure | Drawing]]:
    found: dict[str, Any] = {
        "unit": code.record.scale.unit,
        "topology": code.record.topology,
        "levels": code.levels,
        "images": len(test.values),
    }
    pictures: dict[str, Figure | Drawing] = {}
    method = evaluation.run.method
    group = group_of(method, code.name)
    if group is not None:
        scores, pictures = _measure_marginal(evaluation, code, group, test)
        found |= scores
    if code.circular and len(test.values) > 1:
        with evaluation.timed("shifts"):
            shifts = _shifts(evaluation, code, test)
        if shifts:
            found["shift"] = shifts
        if shifts and shifts["mean"]:
            pictures["shift"] = _draw_shifts(code, shifts)
    with evaluation.timed("regression"):
        found["regression"] = {name: fit.scores(test) for name, fit in fits.items()}
    if code.levels is None:
        read = fits["full"].values(test.representations)
        pictures["readout"] = Drawing(
            "readout",
            f"{code.record.summary}, read off the full features",
            figures.summarize_readout(
                code.parameter(test.values), code.parameter(read), **code.axis
            ),
        )
    return found, pictures


# (a) and (b): the structure marginal.


def _measure_marginal(
    evaluation: Evaluation, code: Code, group: Group, views: Views
) -> tuple[dict[str, Any], dict[str, Figure | Drawing]]:
    marginals = views.representations[group.name]
    targets_of = jax.jit(group.targets)
    targets = targets_of(jnp.asarray(views.values))
    divergence = _divergence(marginals, targets)
    targets = np.asarray(targets)
    read = measures.read_structure(marginals, circular=group.circular)
    calibrated = measures.calibrated(
        read, targets_of, num_bins=group.num_bins, circular=group.circular
    )
    certainty = np.ones(len(read))
    if code.circular and group.circular:
        # For R², a reading counts by how sharp its marginal is; a target's counts as 1.
        certainty = measures.certainty(marginals) / measures.certainty(targets).mean()
    found = {"divergence": divergence, "marginal": {}}
    for name, values in (("mean", read), ("calibrated", calibrated)):
        points = certainty[:, None] * code.points(values)
        found["marginal"][name] = _score(code, views.values, values, points)
    pictures: dict[str, Figure | Drawing] = {
        "marginals": _draw_marginals(code, views.values, marginals, targets)
    }
    if code.circular:
        pictures["turned"] = _draw_turned(evaluation, code, group)
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
    error, drawn = code.distance(true, read), code.points(true)
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


class Fit(NamedTuple):
    """A regression of the parameter on one representation.

    Attributes:
      code: whose parameter it predicts.
      name: of the representation.
      solution: its weights.
    """

    code: Code
    name: str
    solution: logistic.LogisticFit | ridge.RidgeFit

    def values(self, found: Representations) -> np.ndarray:
        """Returns the structure values that are predicted, [n]."""
        return self._read(self._outputs(found))

    def scores(self, test: Views) -> dict[str, Any]:
        """Returns the scores on other images."""
        outputs = self._outputs(test.representations)
        scores = _score(self.code, test.values, self._read(outputs), outputs)
        if self.code.levels is None:
            scores["l2"] = self.solution.l2
        return scores

    def _outputs(self, found: Representations) -> np.ndarray:
        """Returns logits of the levels, or points; see `Code.points`."""
        features = found[self.name]
        if self.code.levels is not None:
            return self.solution.logits(features)
        return self.solution.predict(features)

    def _read(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the structure values of outputs, [n]."""
        if self.code.levels is not None:
            return np.asarray(self.code.levels)[np.argmax(outputs, axis=1)]
        return measures.values_at(outputs, circular=self.code.circular)


def _fits(code: Code, train: Views, names: Iterable[str] = ()) -> dict[str, Fit]:
    """Fits a regression to each representation of the training split, or to some."""
    fits = {}
    for name in names or train.representations:
        features = train.representations[name]
        if code.levels is not None:
            solution = logistic.fit_with_selection(
                features, code.level(train.values), num_classes=len(code.levels)
            )
        else:
            solution = ridge.fit_with_selection(features, code.points(train.values))
        fits[name] = Fit(code, name, solution)
    return fits


def _readers(method: Method, code: Code, fits: dict[str, Fit]) -> crosstalk.Readers:
    """Returns what reads the parameter: the structure, and a regression.

    The regression is that on the features of the code's own group, if there are
    several; else on all features.
    """
    group = group_of(method, code.name)
    own = fits.get(f"block{group.suffix}", fits["full"]) if group else fits["full"]

    def regression(found: Representations) -> np.ndarray:
        return own.values(found | _blocks(method, found["full"]))

    if group is None:
        return {"regression": regression}

    def structure(found: Representations) -> np.ndarray:
        return measures.read_structure(found[group.name], circular=group.circular)

    return {"structure": structure, "regression": regression}


def _compare(
    evaluation: Evaluation, code: Code, train: Views, test: Views
) -> dict[str, dict[str, Any]]:
    """Returns the scores of the yardsticks' regressions, and of a constant answer."""

    def measure(encoder: FrozenEncoder) -> dict[str, Any]:
        train, test = _both_views(evaluation, code, encoder)
        return _fits(code, train, ["full"])["full"].scores(test)

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


def _shifts(evaluation: Evaluation, code: Code, views: Views) -> dict[str, Any]:
    """Compares shifted representations with those of the transformed images.

    A shift by s bins goes with s/G of the circle. Shifts to parameters that are never
    drawn are left out: the parameter may have few levels, or cover a part of the circle
    only. "mean" is over all shifts but 0. Empty if there are no bins.
    """
    method = evaluation.run.method
    learned = group_of(method, code.name)
    group = learned or _only_group(method)
    features = views.representations["full"].shape[1]
    bins = group.num_bins if group else math.gcd(features, _CONTROL_BINS)
    if bins < 2:
        return {}
    drawn = code.values(code.stack.draw(jax.random.key(0), _DRAWS))
    images = spaced(evaluation.split("test").images, _SHIFTED_IMAGES)
    start = code.identity()
    read = _Matrices(evaluation, code, group, bins)
    original = read(images, start)
    by_shift: dict[str, Any] = {}
    for shift in range(bins):
        value = (start + shift / bins) % 1
        distance = np.abs(measures.errors(value, drawn, circular=True)).min()
        if distance > _REACHED:
            continue
        moved = read(images, value)
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
        "learned": learned is not None,
        "by_shift": by_shift,
        "mean": mean,
    }


def _means(errors: measures.ShiftErrors) -> dict[str, dict[str, float]]:
    return {
        measure: {name: float(each.mean()) for name, each in predictions.items()}
        for measure, predictions in errors.items()
    }


def _only_group(method: Method) -> Group | None:
    """Returns the group of a method that has one, whose bins serve as a control."""
    groups = groups_of(method)
    return groups[0] if len(groups) == 1 else None


class _Matrices(NamedTuple):
    """Reads representations as matrices, [n, bins, channels].

    Attributes:
      evaluation: of the run.
      code: the augmentation that is applied.
      group: of the features that is read; None to read all of them as a matrix.
      bins: of the matrix.
    """

    evaluation: Evaluation
    code: Code
    group: Group | None
    bins: int

    def __call__(self, images: np.ndarray, value: float) -> dict[str, np.ndarray]:
        """Returns them at one structure value; a marginal has one channel.

        The features are "full", of one of several groups too: then they are its own.
        """
        draws = self.code.draws_at(np.full(len(images), value))
        found = self.evaluation.run.encoder(images, self.code.stack, draws)
        full = found["full"]
        if self.group is None:
            return {"full": np.asarray(representation.as_matrix(full, self.bins))}
        return {
            "full": np.asarray(self.group.matrix(full)),
            "structure": found[self.group.name][:, :, None],
        }


# Figures.


def _draw_marginals(
    code: Code, values: np.ndarray, marginals: np.ndarray, targets: np.ndarray
) -> Drawing:
    summary = figures.summarize_marginals(
        code.parameter(values),
        marginals,
        targets,
        levels=None if code.levels is None else code.parameter(code.levels),
        **code.axis,
    )
    title = f"{code.record.summary}: structure by parameter"
    return Drawing("marginals", title, summary)


def _draw_turned(evaluation: Evaluation, code: Code, group: Group) -> Figure:
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
        found[group.name],
        np.asarray(group.targets(jnp.asarray(levels))),
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
    tables = [Table(title, header, rows, note, code.name)]
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
        header = ("shift of bins", *_COMPARED)
        tables.append(Table(title, header, tuple(rows), about=code.name))
    tables[-1] = tables[-1]._replace(note=note)
    return tables
