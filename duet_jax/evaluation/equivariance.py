"""How well features tell how an image was transformed, and how they move with it.

One augmentation at a time, alone, on images that are otherwise unchanged.

(a) Jensen-Shannon divergence of the structure from its target.
(b) The parameter, read off the structure marginal.
(c) The parameter, read off frozen features by a regression: for every method.
(d) On a circle: whether shifting the bins predicts the transformed representation.
    Features without bins are read as if they had some, as a control.
(e) Of several augmentations: whether the reading of one is moved by another; see
    `crosstalk.py`.

And, unless `--measures` leaves them out:

readouts  (c) by a network, and from pairs of views; see `readouts.py`
actions   whether representations can be moved like the images; see `actions.py`
local     how fast they change as a transformation sets in; see `local.py`
matrix    what each representation knows of every augmentation; see `matrix.py`
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures, losses
from duet_jax.augmentations import normalize, to_float
from duet_jax.errors import UsageError
from duet_jax.evaluation import (
    actions,
    crosstalk,
    local,
    matrix,
    options,
    readouts,
    yardsticks,
)
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, make_codes, spaced
from duet_jax.evaluation.readouts import Fit, Views
from duet_jax.evaluation.result import Result, Table
from duet_jax.figures import Drawing
from duet_jax.methods import Method
from duet_jax.methods.base import group_of, groups_of
from duet_jax.methods.groups import Group
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.runs.frozen_encoder import FrozenEncoder, Representations
from duet_jax.types import Array

# Images whose representations are shifted: each is encoded once per bin.
_SHIFTED_IMAGES = 2000
_TURNED_STEPS = 12
# Features without bins are read as if they had as many bins as the greatest common
# divisor of their number and this one, the default of `duet.num_bins`.
_CONTROL_BINS = 8
# Predictions of the transformed representation; see `measures.shift_errors`.
_COMPARED = ("shifted", "unshifted", "random")


def measure(
    evaluation: Evaluation, codes: str | None = None, measures: str | None = None
) -> Result:
    """Measures one or several augmentations.

    Args:
      evaluation: of a run.
      codes: separated by commas; by default the learned ones, for SimCLR all of its
        stack that have a structure.
      measures: what is measured beside (a) to (e): names in `options.MEASURES`,
        separated by commas, or "basic" for none; by default all.

    Returns:
      Values by code; with "local" and "matrix", those of the run, by these names.

    Raises:
      UsageError: no code to measure, one that these images cannot take, or a measure
        that the encoder cannot.
    """
    chosen = make_codes(evaluation, codes)
    wanted = options.chosen_measures(measures)
    if measures and "local" in wanted and not local.possible(evaluation):
        raise UsageError(
            f"--measures={measures}: local takes derivatives, which an encoder from "
            "elsewhere does not have; leave it out."
        )
    values, tables, pictures, readers = {}, [], {}, {}
    for code in chosen:
        found, drawn, readers[code.name] = _measure_one(evaluation, code)
        tables += _tables(code, found)
        if "readouts" in wanted:
            with evaluation.timed("readouts"):
                found |= readouts.measure(evaluation, code)
            tables.append(readouts.table(code, found))
        if "actions" in wanted:
            with evaluation.timed("actions"):
                found |= actions.measure(evaluation, code)
            tables += actions.tables(code, found)
        values[code.name] = found
        pictures |= {f"{code.name}_{name}": each for name, each in drawn.items()}
    if len(chosen) > 1:
        with evaluation.timed("crosstalk"):
            found = crosstalk.measure(evaluation, chosen, readers)
        for code in chosen:
            values[code.name]["crosstalk"] = found[code.name]
        tables += crosstalk.tables(chosen, found)
        pictures["crosstalk"] = crosstalk.draw(chosen, found)
    if "local" in wanted:
        with evaluation.timed("local"):
            found = local.measure(evaluation)
        values |= {"local": found} if found else {}
        tables += local.tables(found)
    if "matrix" in wanted:
        with evaluation.timed("matrix"):
            found = matrix.measure(evaluation)
        if found:
            values["matrix"] = found
            tables.append(matrix.table(found))
            pictures["matrix"] = matrix.draw(found)
    return Result(values, tuple(tables), pictures)


def _both_views(
    evaluation: Evaluation, code: Code, encoder: FrozenEncoder
) -> tuple[Views, Views]:
    """Encodes every image of the training and of the test split once."""
    found = (
        readouts.encode(evaluation, code, split, encoder) for split in ("train", "test")
    )
    method = evaluation.run.method
    return tuple(
        Views(values, each | _blocks(method, each["full"])) for values, each in found
    )


def _blocks(method: Method, full: np.ndarray) -> Representations:
    """Returns the features of each group, "block_<code>", if there are several."""
    groups = groups_of(method)
    if len(groups) < 2:
        return {}
    return {f"block{group.suffix}": np.asarray(group.block(full)) for group in groups}


def _measure_one(
    evaluation: Evaluation, code: Code
) -> tuple[dict[str, Any], dict[str, Figure | Drawing], crosstalk.Readers]:
    """Returns (a) to (d), their pictures, and what reads the parameter."""
    train, test = _both_views(evaluation, code, evaluation.run.encoder)
    with evaluation.timed("regression"):
        fits = readouts.fits(code, train)
    found, pictures = _of_views(evaluation, code, fits, test)
    found["yardsticks"] = _compare(evaluation, code, train, test)
    return found, pictures, _readers(evaluation.run.method, code, fits)


def _of_views(
    evaluation: Evaluation, code: Code, fits: dict[str, Fit], test: Views
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
        found["marginal"][name] = readouts.score(code, views.values, values, points)
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
        "interval": measures.bootstrap(each),
        "of_a_constant": measures.constant_divergence(np.asarray(targets)),
    }


# (c): regressions.


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
        return readouts.fits(code, train, ["full"])["full"].scores(test)

    run = evaluation.run
    options = {k: v for k, v in run.config.augmentation.items() if k != "stack"}
    about = ["regression", code.name, options, run.config.seed]
    with evaluation.timed("yardsticks"):
        about.append(evaluation.dataset.facts)
        found = yardsticks.yardsticks(run, about, measure)
    constant = readouts.constant(code, train.values, test.values)
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
    images = spaced(evaluation.split("test").images, _SHIFTED_IMAGES)
    start = code.identity()
    read = _Matrices(evaluation, code, group, bins)
    original = read(images, start)
    by_shift: dict[str, Any] = {}
    values = (start + np.arange(bins) / bins) % 1
    for shift in np.flatnonzero(code.reached(values)).tolist():
        value = values[shift]
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
    rows = tuple((name, *readouts.cells(scores)) for name, scores in sources.items())
    title = f"equivariance to {code.name} ({code.record.summary})"
    note = "In parentheses: 95 % intervals."
    if "divergence" in found:
        divergence = found["divergence"]
        note += (
            f" Jensen-Shannon divergence to the target {divergence['mean']:.4f} nats "
            f"(95 %: {readouts.span(divergence['interval'], '.4f')}); "
            f"of the best constant {divergence['of_a_constant']:.4f}."
        )
    tables = [Table(title, header, rows, note, code.name)]
    if "shift" in found:
        tables += _shift_tables(code, found["shift"])
    return tables


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
