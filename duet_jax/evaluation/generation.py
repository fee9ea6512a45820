"""Controlled generation: the structure of a representation changed, and decoded.

Decoders of the frozen encoder are trained first; see `training.decoding`. Then

(a) Reconstruction: how well each representation is decoded, on test images.
(b) Control: an image is encoded, its full features are changed so that they should be
    those of the transformed image, and decoded. Compared with the transformed image,
    and encoded again: is the parameter the one that was asked for?

The paper's decoder and protocol are not public; these are ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import dm_pix as pix
import jax.numpy as jnp
import numpy as np

from duet_jax.augmentations import normalize, to_float
from duet_jax.errors import UsageError
from duet_jax.evaluation import equivariance
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.equivariance import Code, spaced
from duet_jax.evaluation.result import Result, Table
from duet_jax.methods.base import Structured
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.probes import ridge
from duet_jax.training.decoding import Decoders, train_decoders

_TEST_IMAGES, _TRAINING_IMAGES = 500, 2000
_STEPS = 12  # parameters over the whole range, if they are not few
# Features without bins are shifted as if they had so many, for a control.
_CONTROL_BINS = 8
# Side of the window of SSIM, as its authors have it; less for smaller images.
_WINDOW = 11


class Sets(NamedTuple):
    """Images at every parameter.

    Attributes:
      views: normalized, by parameter, each [n, side, side, channels].
      features: their full features, by parameter, each [n, features].
      structure: their marginals likewise; empty without a structure.
    """

    views: list[np.ndarray]
    features: list[np.ndarray]
    structure: list[np.ndarray]


def measure(evaluation: Evaluation, codes: str | None = None) -> Result:
    """Trains decoders, unless they are there, and measures what they make.

    Args:
      evaluation: of a run.
      codes: the augmentations to control, separated by commas; by default the learned
        one, for SimCLR those of its stack that can be set to a value.

    Raises:
      UsageError: a code cannot be set to a value, or the directory cannot be used.
    """
    chosen = [
        equivariance.make_code(evaluation, name) for name in _names(evaluation, codes)
    ]
    run = evaluation.run
    with evaluation.timed("decoders"):
        decoders = train_decoders(run, run.config, evaluation.dataset)
    reconstruction, table = _reconstruct(evaluation, decoders)
    values: dict[str, Any] = {"reconstruction": reconstruction}
    tables = [table]
    for code in chosen:
        with evaluation.timed("control"):
            values[code.name] = _control(evaluation, code, decoders)
        tables.append(_table(code, values[code.name]))
    return Result(values, tuple(tables), {})


def check(codes: str | None = None) -> None:
    """Raises a UsageError for codes that no run can be controlled by."""
    equivariance.check(codes)


def _names(evaluation: Evaluation, codes: str | None) -> list[str]:
    from duet_jax.augmentations import AUGMENTATIONS

    if codes is None:
        names = equivariance.default_codes(evaluation.run.method)
        return [name for name in names if AUGMENTATIONS[name].scale.params]
    names = [name.strip() for name in codes.split(",")]
    for name in names:
        if not AUGMENTATIONS[name].scale.params:
            raise UsageError(
                f"--codes={codes}: {name} cannot be set to a value, and so not be "
                "controlled; leave it out."
            )
    return names


# (a)


def _reconstruct(
    evaluation: Evaluation, decoders: Decoders
) -> tuple[dict[str, Any], Table]:
    images = evaluation.split("test").images
    views = _views_of(evaluation, images)
    found, rows = {}, []
    for name, given in evaluation.features("test").items():
        scores = compare(views, decoders(name, given))
        found[name] = {
            measure: {
                "mean": float(each.mean()),
                "interval": measures.bootstrap(np.mean, each),
            }
            for measure, each in scores.items()
        }
        rows.append((name, *(f"{each.mean():.4g}" for each in scores.values())))
    title = "reconstruction of test images"
    return found, Table(title, ("representation", "MSE", "PSNR", "SSIM"), tuple(rows))


def compare(views: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Returns squared error, PSNR and SSIM of every image, each [n].

    PSNR is in decibels for pixels from 0 to 1. SSIM is that of Wang et al. 2004.

    Args:
      views: normalized, [n, side, side, channels].
      decoded: likewise.
    """
    true, made = (jnp.clip(jnp.asarray(x) + 0.5, 0, 1) for x in (views, decoded))
    window = min(_WINDOW, true.shape[1] - 1 + true.shape[1] % 2)
    return {
        "mse": np.asarray(pix.mse(true, made)),
        "psnr": np.asarray(pix.psnr(true, made)),
        "ssim": np.asarray(pix.ssim(true, made, filter_size=window)),
    }


# (b)


def _control(evaluation: Evaluation, code: Code, decoders: Decoders) -> dict[str, Any]:
    values = parameters(code)
    train, test = (
        _sets(evaluation, code, spaced(evaluation.split(split).images, most), values)
        for split, most in (("train", _TRAINING_IMAGES), ("test", _TEST_IMAGES))
    )
    read = _reader(code, train, values)
    mask = _mask(code, test.views[0].shape[1])
    found: dict[str, Any] = {
        "unit": code.record.scale.unit,
        "parameters": code.parameter(values).tolist(),
        "images": len(test.views[0]),
        "predictions": {},
    }
    for name, predict in _predictions(evaluation, code, train, test, values).items():
        errors, asked = [], []
        for number in range(len(values)):
            decoded = decoders("full", predict(number))
            square = np.square(decoded - test.views[number]).mean(axis=3)
            errors.append(square[:, mask].mean(axis=1))
            again = evaluation.run.encoder.of_views(np.clip(decoded, -0.5, 0.5))
            asked.append(read(again, number))
        found["predictions"][name] = _scores(np.array(errors), asked)
    return found


def parameters(code: Code) -> np.ndarray:
    """Returns structure values over the whole range, [steps]; the image's own first."""
    if code.levels is not None:
        return np.asarray(code.levels)
    if code.circular:
        return (code.identity() + np.arange(_STEPS) / _STEPS) % 1
    return np.linspace(0, 1, _STEPS)


def _views_of(evaluation: Evaluation, images: np.ndarray) -> np.ndarray:
    """Returns the views of images as they are."""
    stack = evaluation.run.method.two_views.stack
    return np.asarray(normalize(stack.apply(to_float(jnp.asarray(images)), None)))


def _sets(
    evaluation: Evaluation, code: Code, images: np.ndarray, values: np.ndarray
) -> Sets:
    sets = Sets([], [], [])
    for value in values:
        draws = code.draws_at(np.full(len(images), value))
        made = normalize(code.stack.apply(to_float(jnp.asarray(images)), draws))
        found = evaluation.run.encoder.of_views(made)
        sets.views.append(np.asarray(made))
        sets.features.append(found["full"])
        if "structure" in found:
            sets.structure.append(found["structure"])
    return sets


def _mask(code: Code, side: int) -> np.ndarray:
    """Returns the pixels that count: for rotations those that stay inside."""
    if code.record.stage not in ("rot", "ron"):
        return np.ones((side, side), bool)
    place = np.arange(side) - (side - 1) / 2
    return place[:, None] ** 2 + place[None, :] ** 2 <= (side / 2) ** 2


def _predictions(
    evaluation: Evaluation, code: Code, train: Sets, test: Sets, values: np.ndarray
) -> dict[str, Callable[[int], np.ndarray]]:
    """Returns what predicts the features at parameter number k, by name."""
    method, start = evaluation.run.method, test.features[0]
    first = train.features[0]
    found: dict[str, Callable[[int], np.ndarray]] = {
        "encoded": lambda k: test.features[k],
        "linear map": lambda k: ridge.fit_with_selection(
            first, train.features[k]
        ).predict(start),
        "unchanged": lambda k: start,
        "another image": lambda k: np.roll(test.features[k], 1, axis=0),
    }
    bins = getattr(method, "num_bins", _CONTROL_BINS)
    matrix = representation.as_matrix(jnp.asarray(start), bins)

    def shifted(k: int) -> np.ndarray:
        by = bins * (values[k] - values[0])
        return np.asarray(representation.shift(matrix, by)).reshape(start.shape)

    def steered(k: int) -> np.ndarray:
        there = representation.as_matrix(jnp.asarray(train.features[k]), bins)
        wanted = jnp.mean(representation.structure_logits(there), axis=0)
        wanted = jnp.broadcast_to(wanted, (len(start), bins))
        return np.asarray(representation.steer(matrix, wanted)).reshape(start.shape)

    if code.circular:
        found = {"shift": shifted, **found}
    if isinstance(method, Structured) and method.learned == code.name:
        found = {"steer": steered, **found}
    return found


def _reader(
    code: Code, train: Sets, values: np.ndarray
) -> Callable[[dict[str, np.ndarray], int], np.ndarray]:
    """Returns `f(representations, k)`: how far the parameter read is from number k.

    The regression is fitted on training images at all parameters. In the unit of the
    parameter, or 0 and 1 for the right and the wrong level.
    """
    features = np.concatenate(train.features)
    true = np.repeat(values, len(train.features[0]))
    fit = ridge.fit_with_selection(features, code.points(true))
    low, high = code.limits

    def read(found: dict[str, np.ndarray], number: int) -> np.ndarray:
        value = measures.values_at(fit.predict(found["full"]), circular=code.circular)
        asked = np.full(len(value), values[number])
        if code.levels is not None:
            return (code.level(value) != code.level(asked)).astype(float)
        error = measures.errors(asked, value, circular=code.circular)
        return np.abs(error) * (high - low)

    return read


def _scores(errors: np.ndarray, asked: list[np.ndarray]) -> dict[str, Any]:
    """Returns the scores of a prediction; errors are [parameters, n]."""
    control = np.array(asked)
    return {
        "mse": float(errors.mean()),
        "mse_interval": measures.bootstrap(np.mean, errors.mean(axis=0)),
        "mse_by_parameter": errors.mean(axis=1).tolist(),
        "error": float(control.mean()),
        "error_interval": measures.bootstrap(np.mean, control.mean(axis=0)),
        "error_by_parameter": control.mean(axis=1).tolist(),
    }


def _table(code: Code, found: dict[str, Any]) -> Table:
    rows = tuple(
        (name, f"{scores['mse']:.4f}", f"{scores['error']:.3g}")
        for name, scores in found["predictions"].items()
    )
    header = ("features", "MSE", f"error [{code.record.scale.unit}]")
    return Table(f"control of {code.name} ({code.record.summary})", header, rows)
