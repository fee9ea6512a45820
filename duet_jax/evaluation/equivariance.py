"""How well features say how an image was transformed, and how they move when it is.

One augmentation at a time, alone, on images that are otherwise left as they are.

(a) Jensen-Shannon divergence of the structure from its target.
(b) The parameter read off the structure marginal.
(c) The parameter read off frozen features by a regression: for every method.
(d) On a circle: whether shifting the bins predicts the transformed representation.
    Features without bins are read as if they had some: what nobody asked for is the
    control of what the structure loss asks for.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from duet_jax import figures, losses
from duet_jax.augmentations import (
    AUGMENTATIONS,
    LEARNABLE,
    Augmentation,
    Stack,
    measuring_stack,
    normalize,
    to_float,
)
from duet_jax.errors import UsageError, lookup
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.methods import Method
from duet_jax.methods.base import Structured
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.probes import logistic, ridge
from duet_jax.runs.frozen_encoder import Representations
from duet_jax.types import Array

# Images whose representations are shifted: each is encoded once for every bin.
_SHIFTED_IMAGES = 2000
_TURNED_STEPS = 12
# Parameters that are drawn to see which there are, and how near one must come to one
# that is asked for, in structure values.
_DRAWS, _REACHED = 4096, 0.01
# As which features without bins are read, if that divides them: the default of
# `duet.num_bins`.
_CONTROL_BINS = 8


class Views(NamedTuple):
    """Transformed images of a split.

    Attributes:
      values: structure values of what was drawn, [n].
      representations: of the views, each [n, dimensions].
    """

    values: np.ndarray
    representations: Representations


class Code(NamedTuple):
    """The augmentation that is measured.

    Attributes:
      name: its code.
      record: what it is.
      stack: carries out nothing else.
    """

    name: str
    record: Augmentation
    stack: Stack

    @property
    def circular(self) -> bool:
        """Whether its parameter comes round again."""
        return self.record.topology == "circle"

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The structure values that occur, if they are few."""
        return self.record.scale.levels

    def parameter(self, values: np.ndarray | tuple[float, ...]) -> np.ndarray:
        """Returns structure values in the augmentation's own units."""
        frame = self.stack.stages[0][1]
        values = jnp.asarray(values, jnp.float32)
        return np.asarray(self.record.scale.parameter(values, frame))

    @property
    def limits(self) -> tuple[float, float]:
        """The parameters at the ends of the structure, the smaller first."""
        low, high = sorted(self.parameter(np.array([0.0, 1.0], np.float32)).tolist())
        return low, high

    @property
    def span(self) -> float:
        """Own units per unit of structure; the two are linear in each other."""
        return self.limits[1] - self.limits[0]

    def draws_at(self, values: np.ndarray) -> dict:
        """Returns the stack's parameters with given structure values; circles only."""
        record, frame = self.stack.stages[0]
        params = self.record.scale.params(jnp.asarray(values, jnp.float32), frame)
        return {record.stage: params}

    def identity(self) -> float:
        """Returns the structure value of an image as it is."""
        return float(self.stack.structure(self.stack.identity(1))[self.name][0])


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Measures one or several augmentations.

    Args:
      evaluation: of a run.
      codes: separated by commas; by default the learned one, for SimCLR all of its
        stack that have a structure.

    Raises:
      UsageError: a code without structure, or one that these images cannot take.
    """
    chosen = [make_code(evaluation, name) for name in _names(evaluation, codes)]
    values, tables, pictures = {}, [], {}
    for code in chosen:
        train, test = (_views(evaluation, code, split) for split in ("train", "test"))
        found, drawn = _measure_one(evaluation, code, train, test)
        values[code.name] = found
        tables += _tables(code, found)
        pictures |= {f"{code.name}_{name}": figure for name, figure in drawn.items()}
    return Result(values, tuple(tables), pictures)


def check(codes: str | None = None) -> None:
    """Raises a UsageError where something else than augmentations is named."""
    if codes is None:
        return
    names = _split(codes)
    if not names:
        raise UsageError(
            f"--codes={codes!r} names no augmentation; choose some of "
            f"{' '.join(LEARNABLE)}."
        )
    for name in names:
        lookup(dict.fromkeys(LEARNABLE), name, "--codes")


def _split(codes: str) -> list[str]:
    return [name for name in re.split(r"[,\s]+", codes) if name]


def _names(evaluation: Evaluation, codes: str | None) -> list[str]:
    check(codes)
    names = default_codes(evaluation.run.method) if codes is None else _split(codes)
    if not names:
        raise UsageError(
            "--mode=equivariance finds no augmentation with a parameter in this run; "
            f"name some with --codes, of {' '.join(LEARNABLE)}."
        )
    return list(dict.fromkeys(names))


def default_codes(method: Method) -> list[str]:
    """Returns what is measured if nothing is named, the most interesting first."""
    learned = getattr(method, "learned", None)
    names = [learned] if learned else method.two_views.stack.codes
    return [name for name in names if name in LEARNABLE]


def make_code(evaluation: Evaluation, name: str) -> Code:
    """Returns the augmentation `name` for images of the run; see `measure`."""
    stack = measuring_stack(name, evaluation.run.method.two_views.stack)
    return Code(name, AUGMENTATIONS[name], stack)


def _key(evaluation: Evaluation, split: str) -> Array:
    key = jax.random.key(evaluation.run.config.seed)
    return jax.random.fold_in(key, ("train", "test").index(split))


def _views(evaluation: Evaluation, code: Code, split: str) -> Views:
    """Encodes every image of a split once, with a parameter of its own."""
    images = evaluation.split(split).images
    draws = code.stack.draw(_key(evaluation, split), len(images))
    values = np.asarray(code.stack.structure(draws)[code.name])
    with evaluation.timed("encoding"):
        return Views(values, evaluation.run.encoder(images, code.stack, draws))


def _measure_one(
    evaluation: Evaluation, code: Code, train: Views, test: Views
) -> tuple[dict[str, Any], dict[str, Figure]]:
    found: dict[str, Any] = {
        "unit": code.record.scale.unit,
        "topology": code.record.topology,
        "levels": code.levels,
        "images": len(test.values),
    }
    pictures: dict[str, Figure] = {}
    method = evaluation.run.method
    if _is_learned(method, code):
        found["divergence"] = _divergence(method, test)
        found["marginal"] = _read_marginal(method, code, test)
        pictures |= _draw_marginal(evaluation, method, code, test)
    bins = _bins(method, test.representations["full"].shape[1])
    if code.circular and bins > 1 and len(test.values) > 1:
        with evaluation.timed("shifts"):
            found["shift"] = _shifts(evaluation, code, bins)
        pictures["shift"] = _draw_shifts(code, found["shift"])
    with evaluation.timed("regression"):
        found["regression"], read = _regress(code, train, test)
    if read is not None:
        pictures["readout"] = figures.build_readout(
            code.parameter(test.values),
            code.parameter(read),
            unit=code.record.scale.unit,
            topology=code.record.topology,
            limits=code.limits,
            title=f"{code.record.summary}, read off the full features",
        )
    return found, pictures


def _is_learned(method: Method, code: Code) -> bool:
    """Whether the features hold the structure of this very augmentation."""
    return isinstance(method, Structured) and method.learned == code.name


def _bins(method: Method, num_features: int) -> int:
    if isinstance(method, Structured):
        return method.num_bins
    return math.gcd(num_features, _CONTROL_BINS)


# (a) and (b): the structure marginal.


def _divergence(method: Structured, views: Views) -> dict[str, float]:
    marginals = views.representations["structure"]
    targets = method.targets(jnp.asarray(views.values))
    logits = jnp.log(jnp.maximum(marginals, np.finfo(np.float32).tiny))
    each = np.asarray(losses.jensen_shannon(logits, targets))
    return {
        "mean": float(each.mean()),
        "interval": measures.bootstrap(np.mean, each),
        "of_a_constant": measures.constant_divergence(np.asarray(targets)),
    }


def _read_marginal(method: Structured, code: Code, views: Views) -> dict[str, Any]:
    marginals = views.representations["structure"]
    read = measures.read_structure(marginals, circular=method.circular)
    calibrated = measures.calibrated(
        read, method.targets, num_bins=method.num_bins, circular=method.circular
    )
    certainty = np.ones(len(read))
    if code.circular and method.circular:
        # A reading is worth as much as its marginal is sharp; a target's is worth 1.
        targets = np.asarray(method.targets(jnp.asarray(views.values)))
        certainty = measures.certainty(marginals) / measures.certainty(targets).mean()

    def score(read: np.ndarray) -> dict[str, Any]:
        points = measures.points(read, circular=code.circular)
        return _score(code, views.values, read, certainty[:, None] * points)

    return {"mean": score(read), "calibrated": score(calibrated)}


def _score(
    code: Code, true: np.ndarray, read: np.ndarray, points: np.ndarray
) -> dict[str, Any]:
    """Scores of a reading, each with a 95 % interval.

    Args:
      code: the augmentation.
      true: structure values of what was drawn, [n].
      read: the values that were read, [n].
      points: as which R² takes them: on a circle, inside it where they are vague.
    """
    if code.levels is not None:
        right = measures.nearest_level(true, code.levels, circular=code.circular)
        chosen = measures.nearest_level(read, code.levels, circular=code.circular)
        return _accuracy(chosen == right, right)
    error = np.abs(measures.errors(true, read, circular=code.circular)) * code.span
    drawn = measures.points(true, circular=code.circular)
    return {
        "error": float(error.mean()),
        "error_interval": measures.bootstrap(np.mean, error),
        "r_squared": measures.r_squared(drawn, points),
        "r_squared_interval": measures.bootstrap(measures.r_squared, drawn, points),
    }


def _accuracy(hits: np.ndarray, levels: np.ndarray) -> dict[str, Any]:
    hits = hits.astype(float)
    return {
        "accuracy": float(hits.mean()),
        "accuracy_interval": measures.bootstrap(np.mean, hits),
        "chance": float(np.bincount(levels).max() / len(levels)),
    }


# (c): regressions.


def _regress(
    code: Code, train: Views, test: Views
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Fits on the training split; scores by representation, and what "full" reads.

    That is None where the parameter has few levels, which are classified.
    """
    found, reads = {}, {}
    for name, features in train.representations.items():
        queries = test.representations[name]
        if code.levels is not None:
            found[name] = _classify(code, (features, train.values), queries, test)
            continue
        drawn = measures.points(train.values, circular=code.circular)
        fit = ridge.fit_with_selection(features, drawn)
        outputs = fit.predict(queries)
        reads[name] = measures.values_at(outputs, circular=code.circular)
        scores = _score(code, test.values, reads[name], outputs)
        found[name] = scores | {"l2": fit.l2}
    return found, reads.get("full")


def _classify(
    code: Code, train: tuple[np.ndarray, np.ndarray], queries: np.ndarray, test: Views
) -> dict[str, Any]:
    features, values = train

    def level(values: np.ndarray) -> np.ndarray:
        return measures.nearest_level(values, code.levels, circular=code.circular)

    fit = logistic.fit_with_selection(
        features, level(values), num_classes=len(code.levels)
    )
    chosen = np.argmax(fit.logits(queries), axis=1)
    return _accuracy(chosen == level(test.values), level(test.values))


# (d): shifts of the bins.


def _shifts(evaluation: Evaluation, code: Code, bins: int) -> dict[str, Any]:
    """Compares shifted representations with those of the transformed images.

    For every shift s, the parameter s/G of the circle further on, if that is ever
    drawn: where the parameter has few levels or covers a part of the circle, not all
    are. "mean" is over all but shift 0.
    """
    drawn = code.stack.structure(code.stack.draw(jax.random.key(0), _DRAWS))[code.name]
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
            name: measures.shift_errors(original[name], moved[name], shift).means()
            for name in original
        }
    transforming = [each for shift, each in by_shift.items() if shift != "0"]
    return {
        "images": len(images),
        "bins": bins,
        "learned": _is_learned(evaluation.run.method, code),
        "by_shift": by_shift,
        "mean": jax.tree.map(lambda *each: float(np.mean(each)), *transforming)
        if transforming
        else {},
    }


def _matrices(
    evaluation: Evaluation, code: Code, bins: int, images: np.ndarray, value: float
) -> dict[str, np.ndarray]:
    """Representations at one structure value, [n, bins, channels]; the marginal's has
    one channel.
    """
    draws = code.draws_at(np.full(len(images), value))
    found = evaluation.run.encoder(images, code.stack, draws)
    matrices = {"full": np.asarray(representation.as_matrix(found["full"], bins))}
    if "structure" in found:
        matrices["structure"] = found["structure"][:, :, None]
    return matrices


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """Returns up to `most` rows, evenly spaced: a split may be sorted by class."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]


# Pictures.


def _draw_marginal(
    evaluation: Evaluation, method: Structured, code: Code, views: Views
) -> dict[str, Figure]:
    marginals = views.representations["structure"]
    title = f"{code.record.summary}: structure by parameter"
    drawn = {
        "marginals": figures.build_marginals(
            code.parameter(views.values),
            marginals,
            np.asarray(method.targets(jnp.asarray(views.values))),
            unit=code.record.scale.unit,
            topology=code.record.topology,
            limits=code.limits,
            levels=None if code.levels is None else code.parameter(code.levels),
            title=title,
        )
    }
    if code.circular:
        drawn["turned"] = _draw_turned(evaluation, method, code)
    if code.circular and not code.record.two_point:
        read = measures.read_structure(marginals, circular=method.circular)
        drawn["polar"] = figures.build_polar(
            2 * np.pi * (views.values - code.identity()),
            2 * np.pi * (read - code.identity()),
            title=f"{code.record.summary}, read off the structure",
        )
    return drawn


def _draw_turned(evaluation: Evaluation, method: Structured, code: Code) -> Figure:
    """One test image through the circle, with its marginal."""
    levels = code.levels
    if levels is None:
        levels = (code.identity() + np.arange(_TURNED_STEPS) / _TURNED_STEPS) % 1
    levels = np.sort(np.asarray(levels, np.float32))
    images = np.repeat(evaluation.split("test").images[:1], len(levels), axis=0)
    draws = code.draws_at(levels)
    views = normalize(code.stack.apply(to_float(images), draws))
    found = evaluation.run.encoder(images, code.stack, draws)
    unit = code.record.scale.unit
    return figures.build_turned(
        np.asarray(views),
        found["structure"],
        np.asarray(method.targets(jnp.asarray(levels))),
        [f"{value:g}" for value in np.round(code.parameter(levels), 2)],
        title=f"one test image by {unit}: structure (bars) and target (outline)",
    )


def _draw_shifts(code: Code, found: dict[str, Any]) -> Figure:
    shifts = list(found["by_shift"])
    errors = [found["by_shift"][s]["full"]["relative_error"] for s in shifts]
    return figures.build_shift(
        np.array(list(map(int, shifts))),
        {name: np.array([each[name] for each in errors]) for name in errors[0]},
        ylabel="relative error of the predicted representation",
        title=f"{code.record.summary}: bins shifted as the image is transformed",
    )


# Tables.


def _tables(code: Code, found: dict[str, Any]) -> list[Table]:
    unit = found["unit"]
    discrete = code.levels is not None
    header = ("read off", "accuracy [%]", "95 %", "chance [%]")
    if not discrete:
        header = ("read off", f"error [{unit}]", "95 %", "R²", "95 %")
    sources = {
        **{f"structure, {how}": s for how, s in found.get("marginal", {}).items()},
        **{f"regression on {name}": s for name, s in found["regression"].items()},
    }
    rows = tuple((name, *_cells(scores, discrete)) for name, scores in sources.items())
    title = f"equivariance to {code.name} ({code.record.summary})"
    note = ""
    if "divergence" in found:
        each = found["divergence"]
        note = (
            f"Jensen-Shannon divergence to the target {each['mean']:.4f} nats "
            f"(95 %: {_range(each['interval'], '.4f')}); "
            f"of the best constant {each['of_a_constant']:.4f}"
        )
    tables = [Table(title, header, rows, note)]
    return tables + ([_shift_table(code, found)] if "shift" in found else [])


def _cells(scores: dict[str, Any], discrete: bool) -> tuple[str, ...]:
    if discrete:
        low, high = scores["accuracy_interval"]
        return (
            percent(scores["accuracy"]),
            f"{percent(low)} to {percent(high)}",
            percent(scores["chance"]),
        )
    return (
        f"{scores['error']:.3g}",
        _range(scores["error_interval"], ".3g"),
        f"{scores['r_squared']:.3f}",
        _range(scores["r_squared_interval"], ".3f"),
    )


def _range(interval: tuple[float, float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def _shift_table(code: Code, found: dict[str, Any]) -> Table:
    rows = []
    shifts = found["shift"]
    by_shift = {f"by {s}": each for s, each in shifts["by_shift"].items()}
    for name in shifts["by_shift"]["0"]:
        for shift, each in (by_shift | {"mean": shifts["mean"]}).items():
            if not each:
                continue  # there is no mean where no shift leads to a parameter
            error, cosine = each[name]["relative_error"], each[name]["cosine"]
            cells = [f"{x[k]:.3f}" for x in (error, cosine) for k in _COMPARED]
            rows.append((f"{name}, {shift}", *cells))
    header = (
        "shift of bins",
        *(f"error, {name}" for name in _COMPARED),
        *(f"cosine, {name}" for name in _COMPARED),
    )
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
    title = f"{code.name}: the transformed representation predicted by the original's"
    return Table(title, header, tuple(rows), note)


_COMPARED = ("shifted", "unshifted", "random")
