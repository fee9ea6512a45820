"""Control: features are changed to be those of a transformed image, and decoded.

One augmentation is controlled, or several together: then every combination of their
parameters is asked for. What is measured is given as functions, so that it can be
checked with an encoder whose answers are known. How the numbers are made into a result:
see `generation.py`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.evaluation.codes import Code
from duet_jax.methods.groups import Group
from duet_jax.metrics import equivariance as measures
from duet_jax.metrics.knobs import KNOBS
from duet_jax.models import representation
from duet_jax.probes import ridge
from duet_jax.types import Array

STEPS = 24  # parameters over the whole range, if they are not few
# Features without bins are shifted as if they had so many, for a control.
_CONTROL_BINS = 8

STEERED, SHIFTED, MAPPED = KNOBS
TARGET, TRUE = "steer to target", "steer to true"
ORACLE, UNCHANGED = "oracle", "unchanged"
ANOTHER, REAL = "another image", "real image"

_ORDER = (*KNOBS, TARGET, TRUE, ORACLE, UNCHANGED, ANOTHER, REAL)


class Subject(NamedTuple):
    """An encoder and its decoder.

    Attributes:
      encode: normalized views [n, side, side, channels] -> representations by name,
        "full" and perhaps structures.
      decode: full features, [n, features] -> views, not clipped.
      groups: code -> the group of the features that represents it, if there is one.
    """

    encode: Callable[[np.ndarray], dict[str, np.ndarray]]
    decode: Callable[[np.ndarray], np.ndarray]
    groups: Mapping[str, Group]


class Outcome(NamedTuple):
    """What a prediction leads to, for F combinations of parameters and n images.

    Attributes:
      mse: squared error of the decoded images, [F, n].
      read: code -> structure value that is read off the decoded image when it is
        encoded again, [F, n], by the name of the reading: "regression" and perhaps
        "structure".
      shown: some decoded images, [F, shown, side, side, channels].
      marginals: code with a structure -> that of these when they are encoded again,
        [F, shown, bins].
    """

    mse: np.ndarray
    read: dict[str, dict[str, np.ndarray]]
    shown: np.ndarray
    marginals: dict[str, np.ndarray]


class Control(NamedTuple):
    """The outcomes of all predictions.

    Attributes:
      steps: code -> the structure values that it takes, [S].
      values: code -> the structure value that was asked for in each of the F
        combinations of steps, [F]; that of the last code changes first.
      outcomes: by name of the prediction.
      shown: the transformed images themselves, [F, shown, side, side, channels].
      steerable: share of the change of the features, f(transformed) - f(image), that is
        of the kind that `representation.steer` makes, its squares summed over all
        images and combinations; nan without bins.
    """

    steps: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    outcomes: dict[str, Outcome]
    shown: np.ndarray
    steerable: float


def parameters(code: Code, steps: int = STEPS) -> np.ndarray:
    """Returns the structure values to ask for: those that are drawn, [S].

    On a circle they begin with the image as it is; on a line they go from end to end.

    Args:
      code: the augmentation.
      steps: their number on a line or on a whole circle, if they are not few.
    """
    if code.levels is not None:
        values = np.asarray(code.levels)
    elif code.circular:
        values = (code.identity() + np.arange(steps) / steps) % 1
    else:
        drawn = code.drawn()
        return np.linspace(drawn.min(), drawn.max(), steps)
    values = values[code.reached(values)]
    first = np.argmin(
        np.abs(measures.errors(code.identity(), values, circular=code.circular))
    )
    return np.roll(values, -first) if code.circular else values


def views_at(
    stack: Stack, images: np.ndarray, values: Mapping[str, float | np.ndarray]
) -> np.ndarray:
    """Returns normalized views of images at structure values, or as they are.

    Args:
      stack: of the augmentations.
      images: uint8, [n, side, side, channels].
      values: code -> its structure value, or one for each image; other codes of the
        stack do nothing. Empty for the plain views.
    """
    given = {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), len(images))
        for name, value in values.items()
    }
    draws = stack.params_at(given) if given else None
    return np.asarray(_apply(images, draws, stack))


@functools.partial(jax.jit, static_argnames="stack")
def _apply(images: np.ndarray, draws: dict | None, stack: Stack) -> Array:
    return normalize(stack.apply(to_float(images), draws))


def measure(
    codes: Sequence[Code],
    stack: Stack,
    subject: Subject,
    train: np.ndarray,
    test: np.ndarray,
    *,
    shown: Sequence[int] = (),
    steps: int = STEPS,
) -> Control:
    """Asks for every parameter, or every combination, and measures what comes.

    Args:
      codes: the augmentations that are controlled together.
      stack: applies them.
      subject: encoder and decoder.
      train: training images, uint8 [m, side, side, channels], for the linear maps, for
        the structures that are steered to, and for the regressions. Each code is
        applied to them at all its parameters; others have random ones.
      test: test images, two or more, likewise.
      shown: numbers of test images whose decoded images are returned.
      steps: see `parameters`.
    """
    by_code = {code.name: parameters(code, steps) for code in codes}
    known = {name: _learned(stack, subject, name, by_code, train) for name in by_code}
    readers = {
        code.name: _readers(code, subject, known[code.name].moved, by_code[code.name])
        for code in codes
    }
    start = _full(subject, views_at(stack, test, {}))
    mapped = _mapped(known.values(), start)
    asker = _Asker(codes, subject, readers, start, [*shown])
    found: dict[str, list[Outcome]] = {}
    asked, true, changes = [], [], []
    places = itertools.product(*(range(len(values)) for values in by_code.values()))
    for place, linear in zip(places, mapped, strict=True):
        at = dict(zip(by_code, place, strict=True))
        wanted = {name: float(by_code[name][step]) for name, step in at.items()}
        steered = {k: each.logits[at[k]] for k, each in known.items() if each.logits}
        views = views_at(stack, test, wanted)
        real = _full(subject, views)
        for name, features in asker.predict(wanted, linear, steered, real).items():
            outcome = asker.outcome(views, subject.decode(features))
            found.setdefault(name, []).append(outcome)
        found.setdefault(REAL, []).append(asker.outcome(views, views))
        asked.append(list(wanted.values()))
        true.append(views[[*shown]])
        changes.append(real - start)
    return Control(
        by_code,
        dict(zip(by_code, np.transpose(asked), strict=True)),
        {name: _stacked(found[name]) for name in _ORDER if name in found},
        np.stack(true),
        _steerable(codes, subject, np.concatenate(changes)),
    )


class _Known(NamedTuple):
    """What training images tell of one code.

    Attributes:
      base: their features without it, [m, features].
      moved: their features at each of its S parameters, each [m, features].
      logits: their mean structure logits likewise, each [1, bins]; empty without a
        group.
    """

    base: np.ndarray
    moved: list[np.ndarray]
    logits: list[np.ndarray]


def _learned(
    stack: Stack,
    subject: Subject,
    name: str,
    by_code: Mapping[str, np.ndarray],
    train: np.ndarray,
) -> _Known:
    """Applies a code to training images whose other codes are drawn at random."""
    rng = np.random.default_rng(0)
    others = {
        other: rng.choice(values, len(train))
        for other, values in by_code.items()
        if other != name
    }
    base = _full(subject, views_at(stack, train, others))
    moved = [
        _full(subject, views_at(stack, train, {**others, name: value}))
        for value in by_code[name]
    ]
    group, logits = subject.groups.get(name), []
    if group is not None:
        logits = [
            np.asarray(group.logits(x)).mean(axis=0, keepdims=True) for x in moved
        ]
    return _Known(base, moved, logits)


def _full(subject: Subject, views: np.ndarray) -> np.ndarray:
    return subject.encode(views)["full"]


def _mapped(known: Iterable[_Known], start: np.ndarray) -> list[np.ndarray]:
    """Returns what linear maps, one for each parameter, make of test features.

    Those of several codes are applied one after the other: one array for each
    combination, of which the parameter of the last code changes first.

    Args:
      known: of each code.
      start: of the test images as they are, [n, features].
    """
    found = [start]
    for base, moved, _ in known:
        # Side by side: they share the decomposition, and the strength of the penalty.
        fit = ridge.fit_with_selection(base, np.concatenate(moved, axis=1))
        found = [
            made
            for features in found
            for made in np.split(np.float32(fit.predict(features)), len(moved), axis=1)
        ]
    return found


class _Asker(NamedTuple):
    """Predicts the features of transformed test images, and sees what comes of it.

    Attributes:
      codes: that are controlled.
      subject: encoder and decoder.
      readers: code -> what reads its parameter, by name.
      start: features of the test images as they are, [n, features].
      shown: numbers of the test images whose decoded images are kept.
    """

    codes: Sequence[Code]
    subject: Subject
    readers: Mapping[str, Mapping[str, "_Reader"]]
    start: np.ndarray
    shown: list[int]

    def predict(
        self,
        wanted: Mapping[str, float],
        linear: np.ndarray,
        steered: Mapping[str, np.ndarray],
        real: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Returns predicted features, [n, features], by name of the prediction.

        Args:
          wanted: code -> structure value that is asked for.
          linear: what linear maps make of the features, [n, features].
          steered: code -> mean structure logits of training images with its structure
            value, [1, bins].
          real: features of the test images with these structure values.
        """
        return {
            MAPPED: linear,
            ORACLE: real,
            UNCHANGED: self.start,
            ANOTHER: real[measures.derangement(len(real))],
            **self._shifted(wanted),
            **self._steered(wanted, steered, real),
        }

    def _shifted(self, wanted: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Returns test features with shifted bins; nothing unless all have circles."""
        features = self.start
        for code in self.codes:
            group = self.subject.groups.get(code.name)
            if group is None and len(self.codes) == 1:
                bins = math.gcd(features.shape[1], _CONTROL_BINS)
                group = Group(code.name, bins, "von_mises", 1.0)
            if group is None or group.num_bins < 2 or not code.circular:
                return {}
            by = group.num_bins * (wanted[code.name] - code.identity())
            shifted = representation.shift(_matrix(group, features), by)
            features = np.asarray(group.replace(features, shifted))
        return {SHIFTED: features}

    def _steered(
        self,
        wanted: Mapping[str, float],
        steered: Mapping[str, np.ndarray],
        real: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Returns test features whose structures are steered; nothing without one."""
        if len(steered) < len(self.codes):
            return {}
        found = dict.fromkeys((STEERED, TARGET, TRUE), self.start)
        for code in self.codes:
            group = self.subject.groups[code.name]
            target = group.targets(jnp.asarray([wanted[code.name]], jnp.float32))
            logits = {
                STEERED: steered[code.name],
                TARGET: jnp.log(jnp.maximum(target, np.finfo(np.float32).tiny)),
                TRUE: group.logits(real),
            }
            for name, features in found.items():
                changed = representation.steer(
                    _matrix(group, features),
                    jnp.broadcast_to(logits[name], (len(features), group.num_bins)),
                    group.marginal,
                )
                found[name] = np.asarray(group.replace(features, changed))
        return found

    def outcome(self, views: np.ndarray, decoded: np.ndarray) -> Outcome:
        """Returns the outcome of one combination, its arrays without the axis F."""
        decoded = np.clip(decoded, -0.5, 0.5)
        square = np.square(decoded - views).mean(axis=3)
        again = self.subject.encode(decoded)
        groups = {code.name: self.subject.groups.get(code.name) for code in self.codes}
        return Outcome(
            square[:, _mask(self.codes, views.shape[1])].mean(axis=1),
            {
                code: {name: read(again) for name, read in by_name.items()}
                for code, by_name in self.readers.items()
            },
            decoded[self.shown],
            {
                code: again[group.name][self.shown]
                for code, group in groups.items()
                if group is not None
            },
        )


def _matrix(group: Group, features: np.ndarray) -> Array:
    return group.matrix(jnp.asarray(features))


def _steerable(codes: Sequence[Code], subject: Subject, changes: np.ndarray) -> float:
    groups = [subject.groups[c.name] for c in codes if c.name in subject.groups]
    kept, changes = 0.0, np.asarray(changes, float)
    for group in groups:
        matrix = group.matrix(changes)
        by_bin = matrix.mean(axis=2, keepdims=True)
        steered = by_bin - by_bin.mean(axis=1, keepdims=True)
        kept += np.square(steered).sum() * matrix.shape[2]
    total = np.square(changes).sum()
    return float(kept / total) if groups and total else float("nan")


def _mask(codes: Sequence[Code], side: int) -> np.ndarray:
    """Returns the pixels that count, [side, side]: those that rotations keep inside."""
    if not {code.record.stage for code in codes} & {"rot", "ron"}:
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

    group = subject.groups.get(code.name)
    if group is None:
        return {"regression": regression}

    def structure(found: dict[str, np.ndarray]) -> np.ndarray:
        read = measures.read_structure(found[group.name], circular=group.circular)
        return measures.calibrated(
            read, group.targets, num_bins=group.num_bins, circular=group.circular
        )

    return {"regression": regression, "structure": structure}


def _stacked(outcomes: Sequence[Outcome]) -> Outcome:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *outcomes)
