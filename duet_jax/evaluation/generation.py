"""Controlled generation: the structure of a representation changed, and decoded.

Decoders of the frozen encoder are trained first; see `training.decoding`. Then

(a) Reconstruction: how well each representation is decoded, on augmented test images.
(b) Control: an image is encoded, its full features are changed so that they should be
    those of the transformed image, and decoded. The result is compared with the
    transformed image, and encoded again: is the parameter the one that was asked for?
    See `control.py`. The learned augmentations are also controlled together, if there
    are several.

The paper's decoder and protocol are not public; these are ours.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax import figures
from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.config import build
from duet_jax.evaluation import control, yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, joint_stack, make_codes, spaced
from duet_jax.evaluation.result import Result, Table
from duet_jax.figures import Drawing
from duet_jax.methods.base import group_of
from duet_jax.metrics import equivariance as measures
from duet_jax.metrics.images import compare
from duet_jax.metrics.knobs import KNOBS
from duet_jax.training.decoding import Decoders, train_decoders

_log = logging.getLogger(__name__)

_TRAINING_IMAGES, _TEST_IMAGES = 2000, 300
_SHOWN = 12  # images that can be turned on the page
# Of several codes together: number of codes -> steps of each, of which every
# combination is a frame; and with so many of them, fewer images.
_STEPS_TOGETHER, _FEWEST_STEPS = {2: 12, 3: 6}, 4
_TEST_TOGETHER, _SHOWN_TOGETHER = 60, 6
_MEAN = "mean image"


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Trains decoders, unless they are there, and measures what they make.

    Args:
      evaluation: of a run.
      codes: the augmentations to control, separated by commas; by default the learned
        ones, for SimCLR all of its stack that have a structure.

    Raises:
      UsageError: a code that these images cannot take, or the directory cannot be used.
    """
    chosen = make_codes(evaluation, codes)
    run = evaluation.run
    with evaluation.timed("decoders"):
        decoders = train_decoders(run, run.config, evaluation.dataset)
    reconstruction, table, picture = _reconstruct(evaluation, decoders)
    values: dict[str, Any] = {"reconstruction": reconstruction}
    tables, pictures = [table], {"reconstructions": picture}
    learned = getattr(run.method, "learned", ())
    together = [code for code in chosen if code.name in learned]
    together = together if len(together) > 1 else []
    for code in chosen:
        with evaluation.timed("control"):
            found = _control(evaluation, [code], decoders)
        values[code.name] = scores = _scores(code, found)
        tables += _tables_of(code, scores)
        pictures[f"{code.name}_control"] = _draw_control(code, scores)
        if code not in together:
            pictures[f"{code.name}_knob"] = _draw_knob(evaluation, [code], found)
    if together:
        with evaluation.timed("control"):
            found = _control(evaluation, together, decoders)
        scores = _scores_together(together, found)
        values["+".join(code.name for code in together)] = scores
        tables.append(_table_together(together, scores))
        pictures["knob"] = _draw_knob(evaluation, together, found)
    return Result(values, tuple(tables), pictures)


# (a)


def _reconstruct(
    evaluation: Evaluation, decoders: Decoders
) -> tuple[dict[str, Any], Table, Any]:
    """Scores the decoders on augmented views of the test images."""
    run = evaluation.run
    stack = build.two_views(run.config, run.facts).stack
    views = _augmented(stack, evaluation.split("test").images, 0)
    typical = _augmented(stack, spaced(evaluation.split("train").images, 2000), 1)
    with evaluation.timed("reconstruction"):
        given = run.encoder.of_views(views)
        decoded = {name: decoders(name, given[name]) for name in decoders.names}
    shown = {name: made[: figures.COLUMNS] for name, made in decoded.items()}
    decoded[_MEAN] = np.broadcast_to(typical.mean(axis=0), views.shape)
    found, rows = {}, []
    for name, made in decoded.items():
        found[name] = {
            score: {"mean": float(x.mean()), "interval": measures.bootstrap(x)}
            for score, x in compare(views, made).items()
        }
        mse, psnr, ssim = (each["mean"] for each in found[name].values())
        interval = _span(found[name]["mse"]["interval"], 4)
        rows.append((name, f"{mse:.4f}", interval, f"{psnr:.2f}", f"{ssim:.3f}"))
    _warn_if_untrained(found)
    header = ("representation", "MSE", "95 %", "PSNR [dB]", "SSIM")
    title = f"reconstruction of {len(views)} augmented test images"
    note = f"{_MEAN}: that of augmented training images, whatever is encoded."
    picture = figures.build_reconstructions(
        views[: figures.COLUMNS],
        shown,
        title="augmented test images and what is decoded from their representations",
    )
    return found, Table(title, header, tuple(rows), note), picture


def _warn_if_untrained(reconstruction: dict[str, Any]) -> None:
    """Warns if the decoder knows no more than the images have in common."""
    full, mean = (reconstruction[name]["mse"] for name in ("full", _MEAN))
    if full["interval"][1] >= mean["interval"][0]:
        _log.warning(
            "what is decoded from the full features is hardly nearer to the images "
            "than their mean (MSE %.4f, %.4f): control says little; train the decoders "
            "longer, with more config.generation.epochs",
            full["mean"],
            mean["mean"],
        )


def _augmented(stack: Stack, images: np.ndarray, number: int) -> np.ndarray:
    """Returns normalized views of images, the same for all methods and seeds."""
    draws = stack.draw(jax.random.key(number), len(images))
    return np.asarray(normalize(stack.apply(to_float(jnp.asarray(images)), draws)))


# (b)


def _control(
    evaluation: Evaluation, codes: Sequence[Code], decoders: Decoders
) -> control.Control:
    groups = {code.name: group_of(evaluation.run.method, code.name) for code in codes}
    subject = control.Subject(
        evaluation.run.encoder.of_views,
        lambda features: decoders("full", features),
        {name: group for name, group in groups.items() if group is not None},
    )
    train = spaced(evaluation.split("train").images, _TRAINING_IMAGES)
    test = evaluation.split("test").images[_tested(evaluation, codes)]
    return control.measure(
        codes,
        codes[0].stack if len(codes) == 1 else joint_stack(evaluation, codes),
        subject,
        train,
        test,
        shown=_shown(codes, len(test)),
        steps=control.STEPS
        if len(codes) == 1
        else _STEPS_TOGETHER.get(len(codes), _FEWEST_STEPS),
    )


def _tested(evaluation: Evaluation, codes: Sequence[Code]) -> np.ndarray:
    """Returns the numbers of the test images that are transformed."""
    most = _TEST_IMAGES if len(codes) == 1 else _TEST_TOGETHER
    return spaced(np.arange(len(evaluation.split("test").images)), most)


def _shown(codes: Sequence[Code], count: int) -> list[int]:
    """Returns which of them are shown."""
    most = _SHOWN if len(codes) == 1 else _SHOWN_TOGETHER
    return spaced(np.arange(count), most).tolist()


def _scores(code: Code, found: control.Control) -> dict[str, Any]:
    values = found.values[code.name]
    predictions = {
        name: _scores_of(code, values, outcome)
        for name, outcome in found.outcomes.items()
    }
    return {
        "unit": code.record.scale.unit,
        "topology": code.record.topology,
        "levels": code.levels,
        "parameters": code.parameter(values).tolist(),
        "images": found.outcomes[control.REAL].mse.shape[1],
        "steerable": found.steerable,
        yardsticks.CHANCE: {"error": code.chance(values)},
        "predictions": predictions,
    }


def _scores_of(
    code: Code, values: np.ndarray, outcome: control.Outcome
) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_squared(outcome),
        "mse_by_parameter": _by_parameter(outcome.mse),
    }
    for name, read in outcome.read[code.name].items():
        errors = code.distance(values[:, None], read)
        found[name] = {
            **_error(errors),
            "error_by_parameter": _by_parameter(errors),
        }
    return found


def _squared(outcome: control.Outcome) -> dict[str, Any]:
    return {
        "mse": float(outcome.mse.mean()),
        "mse_interval": measures.bootstrap(outcome.mse.mean(axis=0)),
    }


def _error(errors: np.ndarray) -> dict[str, Any]:
    """Returns the mean of errors, [F, n], with its interval over the images."""
    return {
        "error": float(errors.mean()),
        "error_interval": measures.bootstrap(errors.mean(axis=0)),
    }


def _scores_together(codes: Sequence[Code], found: control.Control) -> dict[str, Any]:
    """Returns the scores over all combinations of the parameters of several codes."""
    predictions = {}
    for name, outcome in found.outcomes.items():
        predictions[name] = _squared(outcome)
        for code in codes:
            values = found.values[code.name][:, None]
            predictions[name][code.name] = {
                how: _error(code.distance(values, read))
                for how, read in outcome.read[code.name].items()
            }
    return {
        "parameters": {
            code.name: code.parameter(found.steps[code.name]).tolist() for code in codes
        },
        "images": found.outcomes[control.REAL].mse.shape[1],
        "steerable": found.steerable,
        yardsticks.CHANCE: {
            code.name: {"error": code.chance(found.values[code.name])} for code in codes
        },
        "predictions": predictions,
    }


def _by_parameter(each: np.ndarray) -> list[list[float]]:
    """Returns mean, low and high end of the interval by parameter, of [K, n]."""
    ends = [measures.bootstrap(row) for row in each]
    return [each.mean(axis=1).tolist(), *map(list, zip(*ends, strict=True))]


def _span(interval: tuple[float, float], digits: int) -> str:
    return " to ".join(f"{end:.{digits}f}" for end in interval)


_NOTE = (
    "Squared error of the decoded image to the transformed one, pixels from 0 to 1"
    "{disc}. {knobs}linear map: of the features, fitted on pairs of training images "
    "for each parameter. oracle: the transformed image, encoded and decoded. "
    "unchanged: the image as it is, decoded. another image: transformed likewise."
)
_DISC = ", in the disc that stays inside"
_STEER = (
    "steer: the structure moved to the mean structure of training images with this "
    "parameter, the content kept; to target: moved to its target; to true: to that of "
    "the transformed image. "
)
_SHIFT = "shift: the bins shifted cyclically. "
_NO_STEER = "No steer: these features have no structure of it. "
_READ_NOTE = (
    "The decoded image is encoded again: how far is the parameter that is read from "
    "the one that was asked for? By a regression fitted on transformed training images"
    "{structure}. real image: transformed, not decoded. chance: a constant answer."
)
_STRUCTURE = ", and by the structure"


def _tables_of(code: Code, scores: dict[str, Any]) -> list[Table]:
    """Returns the squared errors, and the errors of the parameters."""
    predictions = scores["predictions"]
    about = f"{code.name} ({code.record.summary}), {scores['images']} test images"
    errors = Table(
        f"control of {about}",
        ("features", "MSE", "95 %"),
        tuple(
            (name, f"{each['mse']:.4f}", _span(each["mse_interval"], 4))
            for name, each in predictions.items()
            if name != control.REAL
        ),
        _NOTE.format(
            disc=_DISC if code.record.stage in ("rot", "ron") else "",
            knobs=(_STEER if control.STEERED in predictions else _NO_STEER)
            + (_SHIFT if control.SHIFTED in predictions else ""),
        ),
        code.name,
    )
    return [errors, _table_of_readings(code, scores, about)]


def _table_of_readings(code: Code, scores: dict[str, Any], about: str) -> Table:
    unit, digits = _unit(code), _digits(code)
    predictions = scores["predictions"]
    readings = [
        name
        for name in ("regression", "structure")
        if name in predictions[control.REAL]
    ]
    rows = []
    for name, each in predictions.items():
        row = [name]
        for reading in readings:
            found = each[reading]
            row += [
                f"{found['error']:.{digits}f}",
                _span(found["error_interval"], digits),
            ]
        rows.append(tuple(row))
    constant = f"{scores[yardsticks.CHANCE]['error']:.{digits}f}"
    rows.append((yardsticks.CHANCE, *[constant, "-"] * len(readings)))
    return Table(
        f"parameter read off the decoded images of {about}, error [{unit}]",
        ("features", *(cell for name in readings for cell in (name, "95 %"))),
        tuple(rows),
        _READ_NOTE.format(structure=_STRUCTURE if len(readings) > 1 else ""),
        code.name,
    )


def _table_together(codes: Sequence[Code], scores: Mapping[str, Any]) -> Table:
    """Returns squared errors and errors of every parameter, over all combinations."""
    predictions = scores["predictions"]
    header, rows = ["features", "MSE", "95 %"], []
    for code in codes:
        header.append(f"{code.name} read [{_unit(code)}]")
        header.append("95 %")
    for name, each in predictions.items():
        real = name == control.REAL
        row = [name, "-" if real else f"{each['mse']:.4f}"]
        row.append("-" if real else _span(each["mse_interval"], 4))
        for code in codes:
            digits, found = _digits(code), each[code.name]["regression"]
            row.append(f"{found['error']:.{digits}f}")
            row.append(_span(found["error_interval"], digits))
        rows.append(tuple(row))
    constant = [yardsticks.CHANCE, "-", "-"]
    for code in codes:
        error = scores[yardsticks.CHANCE][code.name]["error"]
        constant += [f"{error:.{_digits(code)}f}", "-"]
    names = " and ".join(code.name for code in codes)
    return Table(
        f"control of {names} together, {scores['images']} test images",
        tuple(header),
        (*rows, tuple(constant)),
        "Over all combinations of the parameters. Each code is steered or shifted in "
        "its own group; linear maps of single codes are applied one after the other. "
        "Maps and regressions are fitted on training images with random parameters of "
        "the other codes.",
    )


def _unit(code: Code) -> str:
    """Returns the unit of errors."""
    return code.record.scale.unit if code.levels is None else "share of wrong levels"


def _digits(code: Code) -> int:
    """Returns how many digits of errors are shown after the point."""
    return 1 if code.record.scale.unit == "degrees" else 3


# Pictures.


def _draw_control(code: Code, scores: dict[str, Any]) -> Drawing:
    hidden = (control.TARGET, control.TRUE)  # two more would hide the others
    predictions = {k: p for k, p in scores["predictions"].items() if k not in hidden}
    summary = figures.Control(
        unit=code.record.scale.unit,
        topology=code.record.topology,
        parameters=np.asarray(scores["parameters"]),
        mse={k: np.asarray(p["mse_by_parameter"]) for k, p in predictions.items()},
        error={
            k: np.asarray(p["regression"]["error_by_parameter"])
            for k, p in predictions.items()
        },
        chance=scores[yardsticks.CHANCE]["error"],
        levels=code.levels is not None,
    )
    return Drawing("control", f"control of {code.record.summary}", summary)


def _draw_knob(
    evaluation: Evaluation, codes: Sequence[Code], found: control.Control
) -> Drawing:
    """Returns the knob of one code, or of several that are turned together."""
    test = evaluation.split("test")
    images = _tested(evaluation, codes)
    shown = _shown(codes, len(images))
    names = evaluation.dataset.class_names
    turned = (*KNOBS, control.TARGET, control.ORACLE)
    knobs = {k: each for k, each in found.outcomes.items() if k in turned}
    # By image, then by frame.
    summary = figures.Knob(
        dials=[_dial(evaluation, code, found, knobs, shown) for code in codes],
        captions=[names[test.labels[images[k]]] if names else "" for k in shown],
        side=found.shown.shape[2],
        true=figures.make_sheet(found.shown.swapaxes(0, 1)),
        made={k: figures.make_sheet(o.shown.swapaxes(0, 1)) for k, o in knobs.items()},
        error={k: o.mse[:, shown].T for k, o in knobs.items()},
    )
    about = " and ".join(code.record.summary for code in codes)
    return Drawing("knob", f"{about}, asked for and decoded", summary)


def _dial(
    evaluation: Evaluation,
    code: Code,
    found: control.Control,
    knobs: Mapping[str, control.Outcome],
    shown: Sequence[int],
) -> figures.Dial:
    """Returns what turns one of the codes, with what is read of it in every frame."""
    values, group = found.steps[code.name], group_of(evaluation.run.method, code.name)
    read = {k: o.read[code.name]["regression"][:, shown].T for k, o in knobs.items()}
    return figures.Dial(
        code=code.name,
        summary=code.record.summary,
        unit=code.record.scale.unit,
        topology=code.record.topology,
        parameters=code.parameter(values),
        plain=int(np.argmin(np.abs(values - code.identity()))),
        read={k: code.parameter(x.ravel()).reshape(x.shape) for k, x in read.items()},
        marginals={
            k: o.marginals[code.name].swapaxes(0, 1) for k, o in knobs.items() if group
        },
        targets=np.asarray(group.targets(jnp.float32(values)))
        if group
        else np.array([]),
    )
