"""Controlled generation: the structure of a representation changed, and decoded.

Decoders of the frozen encoder are trained first; see `training.decoding`. Then

(a) Reconstruction: how well each representation is decoded, on augmented test images.
(b) Control: an image is encoded, its full features are changed so that they should be
    those of the transformed image, and decoded. The result is compared with the
    transformed image, and encoded again: is the parameter the one that was asked for?
    See `control.py`.

The paper's decoder and protocol are not public; these are ours.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax import figures
from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.config import build
from duet_jax.evaluation import control, equivariance, yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.equivariance import Code, spaced
from duet_jax.evaluation.result import Result, Table
from duet_jax.figures import Drawing
from duet_jax.metrics import equivariance as measures
from duet_jax.metrics.images import compare
from duet_jax.metrics.knobs import KNOBS
from duet_jax.training.decoding import Decoders, train_decoders

_log = logging.getLogger(__name__)

_TRAINING_IMAGES, _TEST_IMAGES = 2000, 300
_SHOWN = 12  # images that can be turned on the page
_MEAN = "mean image"


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Trains decoders, unless they are there, and measures what they make.

    Args:
      evaluation: of a run.
      codes: the augmentations to control, separated by commas; by default the learned
        one, for SimCLR all of its stack that have a structure.

    Raises:
      UsageError: a code that these images cannot take, or the directory cannot be used.
    """
    chosen = equivariance.make_codes(evaluation, codes)
    run = evaluation.run
    with evaluation.timed("decoders"):
        decoders = train_decoders(run, run.config, evaluation.dataset)
    reconstruction, table, picture = _reconstruct(evaluation, decoders)
    values: dict[str, Any] = {"reconstruction": reconstruction}
    tables, pictures = [table], {"reconstructions": picture}
    for code in chosen:
        with evaluation.timed("control"):
            found = _control(evaluation, code, decoders)
        values[code.name] = scores = _scores(code, found)
        tables += _tables_of(code, scores)
        pictures[f"{code.name}_control"] = _draw_control(code, scores)
        pictures[f"{code.name}_knob"] = _draw_knob(evaluation, code, found)
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
            score: {"mean": float(x.mean()), "interval": measures.bootstrap(np.mean, x)}
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


def _control(evaluation: Evaluation, code: Code, decoders: Decoders) -> control.Control:
    method = evaluation.run.method
    subject = control.Subject(
        evaluation.run.encoder.of_views,
        lambda features: decoders("full", features),
        method if equivariance.is_learned(method, code) else None,
    )
    train = spaced(evaluation.split("train").images, _TRAINING_IMAGES)
    test = spaced(evaluation.split("test").images, _TEST_IMAGES)
    return control.measure(code, subject, train, test, shown=_shown(len(test)))


def _shown(count: int) -> list[int]:
    return spaced(np.arange(count), _SHOWN).tolist()


def _scores(code: Code, found: control.Control) -> dict[str, Any]:
    parameters = code.parameter(found.values)
    constant = code.points(found.values).mean(axis=0, keepdims=True)
    constant = measures.values_at(constant, circular=code.circular)
    predictions = {
        name: _scores_of(code, found.values, outcome)
        for name, outcome in found.outcomes.items()
    }
    chance = _errors(code, found.values[:, None], constant[None, :]).mean()
    return {
        "unit": code.record.scale.unit,
        "topology": code.record.topology,
        "levels": code.levels,
        "parameters": parameters.tolist(),
        "images": found.outcomes[control.REAL].mse.shape[1],
        "steerable": found.steerable,
        yardsticks.CHANCE: {"error": float(chance)},
        "predictions": predictions,
    }


def _errors(code: Code, asked: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Returns errors of structure values in the unit, or 0 and 1 for levels."""
    asked, read = np.broadcast_arrays(asked, read)
    if code.levels is not None:
        wrong = code.level(asked.ravel()) != code.level(read.ravel())
        return wrong.reshape(asked.shape).astype(float)
    low, high = code.limits
    error = measures.errors(asked, read, circular=code.circular)
    return np.abs(error) * (high - low)


def _scores_of(
    code: Code, values: np.ndarray, outcome: control.Outcome
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mse": float(outcome.mse.mean()),
        "mse_interval": measures.bootstrap(np.mean, outcome.mse.mean(axis=0)),
        "mse_by_parameter": _by_parameter(outcome.mse),
    }
    for name, read in outcome.read.items():
        errors = _errors(code, values[:, None], read)
        found[name] = {
            "error": float(errors.mean()),
            "error_interval": measures.bootstrap(np.mean, errors.mean(axis=0)),
            "error_by_parameter": _by_parameter(errors),
        }
    return found


def _by_parameter(each: np.ndarray) -> list[list[float]]:
    """Returns mean, low and high end of the interval by parameter, of [K, n]."""
    ends = [measures.bootstrap(np.mean, row) for row in each]
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
    )
    return [errors, _table_of_readings(code, scores, about)]


def _table_of_readings(code: Code, scores: dict[str, Any], about: str) -> Table:
    unit, digits = code.record.scale.unit, 1 if _in_degrees(code) else 3
    if code.levels is not None:
        unit = "share of wrong levels"
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
    )


def _in_degrees(code: Code) -> bool:
    return code.record.scale.unit == "degrees"


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


def _draw_knob(evaluation: Evaluation, code: Code, found: control.Control) -> Drawing:
    test, method = evaluation.split("test"), evaluation.run.method
    images = spaced(np.arange(len(test.images)), _TEST_IMAGES)
    shown = _shown(len(images))
    names = evaluation.dataset.class_names
    captions = [names[test.labels[images[k]]] if names else "" for k in shown]
    turned = (*KNOBS, control.TARGET, control.ORACLE)
    knobs = {k: each for k, each in found.outcomes.items() if k in turned}
    structured = equivariance.is_learned(method, code)
    # By image, then by parameter.
    asked = found.values[None, :]
    dial = figures.Dial(
        code=code.name,
        summary=code.record.summary,
        unit=code.record.scale.unit,
        topology=code.record.topology,
        parameters=code.parameter(found.values),
        plain=int(np.argmin(np.abs(found.values - code.identity()))),
        read={
            k: code.parameter(o.read["regression"][:, shown].T.ravel()).reshape(
                len(shown), asked.size
            )
            for k, o in knobs.items()
        },
        marginals={
            k: o.marginals.swapaxes(0, 1) for k, o in knobs.items() if structured
        },
        targets=np.asarray(method.targets(jnp.float32(found.values)))
        if structured
        else np.array([]),
    )
    summary = figures.Knob(
        dials=(dial,),
        captions=captions,
        side=found.shown.shape[2],
        true=figures.make_sheet(found.shown.swapaxes(0, 1)),
        made={k: figures.make_sheet(o.shown.swapaxes(0, 1)) for k, o in knobs.items()},
        error={k: o.mse[:, shown].T for k, o in knobs.items()},
    )
    return Drawing("knob", f"{code.record.summary}, asked for and decoded", summary)
