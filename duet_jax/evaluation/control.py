"""Control: features are changed to be those of a transformed image, and decoded.

What is measured is given as functions, so that it can be checked with an encoder whose
answers are known. How the numbers are made into a result: see `generation.py`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.evaluation.equivariance import Code
from duet_jax.methods.base import Structured
from duet_jax.metrics import equivariance as measures
from duet_jax.metrics.knobs import KNOBS
from duet_jax.models import representation
from duet_jax.probes import ridge
from duet_jax.types import Array

STEPS = 24  # parameters over the whole range, if they are not few
# Features without bins are shifted as if they had so many, for a control.
_CONTROL_BINS = 8
# A parameter counts as drawn if one of so many draws comes so near to it.
_DRAWS, _REACHED = 4096, 0.01

STEERED, SHIFTED, MAPPED = KNOBS
TARGET, TRUE = "steer to target", "steer to true"
ORACLE, UNCHANGED = "oracle", "unchanged"
ANOTHER, REAL = "another image", "real image"

_ORDER = (*KNOBS, TARGET, TRUE, ORACLE, UNCHANGED, ANOTHER, REAL)


class Subject(NamedTuple):
    """An encoder and its decoder.

    Attributes:
      encode: normalized views [n, side, side, channels] -> representations by name,
        "full" and perhaps "structure".
      decode: full features, [n, features] -> views, not clipped.
      method: says how the bins are to be read, if they hold the structure of what is
        controlled; else None.
    """

    encode: Callable[[np.ndarray], dict[str, np.ndarray]]
    decode: Callable[[np.ndarray], np.ndarray]
    method: Structured | None


class Outcome(NamedTuple):
    """What a prediction leads to, for K parameters and n images.

    Attributes:
      mse: squared error of the decoded images, [K, n].
      read: structure value that is read off the decoded image when it is encoded again,
        [K, n], by the name of the reading: "regression" and perhaps "structure".
      shown: some decoded images, [K, shown, side, side, channels].
      marginals: their structure when encoded again, [K, shown, bins]; without one
        [K, shown, 0].
    """

    mse: np.ndarray
    read: dict[str, np.ndarray]
    shown: np.ndarray
    marginals: np.ndarray


class Control(NamedTuple):
    """The outcomes of all predictions.

    Attributes:
      values: structure values that were asked for, [K].
      outcomes: by name of the prediction.
      shown: the transformed images themselves, [K, shown, side, side, channels].
      steerable: share of the change of the features, f(transformed) - f(image), that is
        of the kind that `representation.steer` makes, its squares summed over all
        images and parameters; nan without bins.
    """

    values: np.ndarray
    outcomes: dict[str, Outcome]
    shown: np.ndarray
    steerable: float


def parameters(code: Code) -> np.ndarray:
    """Returns the structure values to ask for: those that are drawn, [K].

    On a circle they begin with the image as it is; on a line they go from end to end.
    """
    drawn = np.asarray(code.values(code.stack.draw(jax.random.key(0), _DRAWS)))
    if code.levels is not None:
        values = np.asarray(code.levels)
    elif code.circular:
        values = (code.identity() + np.arange(STEPS) / STEPS) % 1
    else:
        return np.linspace(drawn.min(), drawn.max(), STEPS)
    apart = measures.errors(values[:, None], drawn[None, :], circular=code.circular)
    values = values[np.abs(apart).min(axis=1) <= _REACHED]
    first = np.argmin(
        np.abs(measures.errors(code.identity(), values, circular=code.circular))
    )
    return np.roll(values, -first) if code.circular else values


def views_at(code: Code, images: np.ndarray, value: float | None) -> np.ndarray:
    """Returns normalized views of images at a structure value, or as they are.

    Args:
      code: the augmentation.
      images: uint8, [n, side, side, channels].
      value: the structure value; None for the plain views.
    """
    draws = None if value is None else code.draws_at(np.full(len(images), value))
    return np.asarray(_apply(images, draws, code.stack))


@functools.partial(jax.jit, static_argnames="stack")
def _apply(images: np.ndarray, draws: dict | None, stack: Stack) -> Array:
    return normalize(stack.apply(to_float(images), draws))


def measure(
    code: Code,
    subject: Subject,
    train: np.ndarray,
    test: np.ndarray,
    *,
    shown: Sequence[int] = (),
) -> Control:
    """Asks for every parameter, and measures what comes.

    Args:
      code: the augmentation that is controlled.
      subject: encoder and decoder.
      train: training images, uint8 [m, side, side, channels], for the linear map, for
        the structure that is steered to, and for the regression.
      test: test images, two or more, likewise.
      shown: numbers of test images whose decoded images are returned.
    """
    values = parameters(code)
    plain = _full(subject, views_at(code, train, None))
    moved = [_full(subject, views_at(code, train, value)) for value in values]
    readers = _readers(code, subject, moved, values)
    start = _full(subject, views_at(code, test, None))
    outcome = functools.partial(_outcome, code, subject, readers, [*shown])
    mapped = _mapped(plain, moved, start)
    found: dict[str, list[Outcome]] = {}
    true, changes = [], []
    for value, there, linear in zip(values, moved, mapped, strict=True):
        views = views_at(code, test, value)
        real = subject.encode(views)["full"]
        predicted = {
            MAPPED: linear,
            ORACLE: real,
            UNCHANGED: start,
            ANOTHER: real[measures.derangement(len(real))],
            **_shifted(code, subject, value, start),
            **_steered(subject, value, start, there, real),
        }
        for name, features in predicted.items():
            made = outcome(views, subject.decode(features))
            found.setdefault(name, []).append(made)
        found.setdefault(REAL, []).append(outcome(views, views))
        true.append(views[[*shown]])
        changes.append(real - start)
    return Control(
        values,
        {name: _stacked(found[name]) for name in _ORDER if name in found},
        np.stack(true),
        _steerable(subject, np.concatenate(changes)),
    )


def _full(subject: Subject, views: np.ndarray) -> np.ndarray:
    return subject.encode(views)["full"]


def _mapped(
    plain: np.ndarray, moved: Sequence[np.ndarray], start: np.ndarray
) -> Sequence[np.ndarray]:
    """Returns what linear maps, one for each parameter, make of test features.

    Args:
      plain: features of training images as they are, [m, features].
      moved: of the same images at each of the K parameters.
      start: of the test images as they are, [n, features].
    """
    # Side by side: they share the decomposition, and the strength of the penalty.
    fit = ridge.fit_with_selection(plain, np.concatenate(moved, axis=1))
    return np.split(np.float32(fit.predict(start)), len(moved), axis=1)


def _shifted(
    code: Code, subject: Subject, value: float, start: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns test features with shifted bins; nothing on a line."""
    bins = math.gcd(start.shape[1], _CONTROL_BINS)
    if subject.method is not None:
        bins = subject.method.num_bins
    if not code.circular or bins == 1:
        return {}
    by = bins * (value - code.identity())
    return {SHIFTED: _flat(representation.shift(_matrix(start, bins), by))}


def _steered(
    subject: Subject,
    value: float,
    start: np.ndarray,
    moved: np.ndarray,
    real: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns test features whose structure is steered; nothing without a structure.

    Args:
      subject: encoder and decoder.
      value: structure value that is asked for.
      start: features of the test images as they are, [n, features].
      moved: of training images with this structure value, [m, features].
      real: of the test images with this structure value, [n, features].
    """
    method = subject.method
    if method is None:
        return {}

    def logits(features: np.ndarray) -> Array:
        matrix = _matrix(features, method.num_bins)
        return representation.structure_logits(matrix, method.marginal)

    target = method.targets(jnp.asarray([value], jnp.float32))
    found = {}
    for name, wanted in (
        (STEERED, logits(moved).mean(axis=0, keepdims=True)),
        (TARGET, jnp.log(jnp.maximum(target, np.finfo(np.float32).tiny))),
        (TRUE, logits(real)),
    ):
        wanted = jnp.broadcast_to(wanted, (len(start), method.num_bins))
        matrix = _matrix(start, method.num_bins)
        found[name] = _flat(representation.steer(matrix, wanted, method.marginal))
    return found


def _matrix(features: np.ndarray, bins: int) -> Array:
    return representation.as_matrix(jnp.asarray(features), bins)


def _flat(matrix: Array) -> np.ndarray:
    return np.asarray(matrix).reshape(len(matrix), -1)


def _steerable(subject: Subject, changes: np.ndarray) -> float:
    if subject.method is None:
        return float("nan")
    bins = subject.method.num_bins
    matrix = np.asarray(changes, float).reshape(len(changes), bins, -1)
    by_bin = matrix.mean(axis=2, keepdims=True)
    steered = by_bin - by_bin.mean(axis=1, keepdims=True)
    kept = np.broadcast_to(steered, matrix.shape)
    total = np.square(matrix).sum()
    return float(np.square(kept).sum() / total) if total else float("nan")


def _mask(code: Code, side: int) -> np.ndarray:
    """Returns the pixels that count, [side, side]: those that rotations keep inside."""
    if code.record.stage not in ("rot", "ron"):
        return np.ones((side, side), bool)
    place = np.arange(side) - (side - 1) / 2
    return place[:, None] ** 2 + place[None, :] ** 2 <= (side / 2) ** 2


# Representations -> structure values read off them, [n].
_Reader = Callable[[dict[str, np.ndarray]], np.ndarray]


def _readers(
    code: Code, subject: Subject, moved: Sequence[np.ndarray], values: np.ndarray
) -> dict[str, _Reader]:
    """Returns what reads parameters, by name.

    The regression is fitted on training images at all parameters.
    """
    true = np.repeat(values, len(moved[0]))
    fit = ridge.fit_with_selection(np.concatenate(moved), code.points(true))

    def regression(found: dict[str, np.ndarray]) -> np.ndarray:
        return measures.values_at(fit.predict(found["full"]), circular=code.circular)

    method = subject.method
    if method is None:
        return {"regression": regression}

    def structure(found: dict[str, np.ndarray]) -> np.ndarray:
        read = measures.read_structure(found["structure"], circular=method.circular)
        return measures.calibrated(
            read, method.targets, num_bins=method.num_bins, circular=method.circular
        )

    return {"regression": regression, "structure": structure}


def _outcome(
    code: Code,
    subject: Subject,
    readers: dict[str, _Reader],
    shown: list[int],
    views: np.ndarray,
    decoded: np.ndarray,
) -> Outcome:
    """Returns the outcome for one parameter, its arrays without the axis K."""
    decoded = np.clip(decoded, -0.5, 0.5)
    square = np.square(decoded - views).mean(axis=3)
    again = subject.encode(decoded)
    marginals = again.get("structure", np.zeros((len(views), 0)))
    if subject.method is None:
        marginals = marginals[:, :0]
    return Outcome(
        square[:, _mask(code, views.shape[1])].mean(axis=1),
        {name: read(again) for name, read in readers.items()},
        decoded[shown],
        marginals[shown],
    )


def _stacked(outcomes: Sequence[Outcome]) -> Outcome:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *outcomes)
