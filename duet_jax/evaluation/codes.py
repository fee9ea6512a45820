"""The augmentations that an evaluation applies, alone or together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.augmentations import (
    AUGMENTATIONS,
    LEARNABLE,
    Augmentation,
    Stack,
    measuring_stack,
    split_codes,
)
from duet_jax.augmentations.record import Frame
from duet_jax.errors import UsageError
from duet_jax.evaluation.base import Evaluation
from duet_jax.methods import Method
from duet_jax.metrics import equivariance as measures
from duet_jax.types import Array

# A structure value counts as drawn if one of so many draws comes so near to it.
_DRAWS, _REACHED = 4096, 0.01


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
        return self.stack.params_at({self.name: jnp.asarray(values, jnp.float32)})

    def drawn(self) -> np.ndarray:
        """Returns structure values as they are drawn, the same for every run, [n]."""
        draws = self.stack.draw(jax.random.key(0), _DRAWS)
        return np.asarray(self.values(draws), np.float64)

    def reached(self, values: np.ndarray) -> np.ndarray:
        """Returns which structure values [n] are drawn: bool [n].

        The parameter may have few levels, or cover a part of the circle only.
        """
        values = np.asarray(values, np.float64)[:, None]
        apart = measures.errors(values, self.drawn()[None, :], circular=self.circular)
        return np.abs(apart).min(axis=1) <= _REACHED

    def identity(self) -> float:
        """Returns the structure value of an image as it is."""
        return float(self.values(self.stack.identity(1))[0])

    def points(self, values: np.ndarray) -> np.ndarray:
        """Returns structure values as regression targets; see `measures.points`."""
        return measures.points(values, circular=self.circular)

    def level(self, values: np.ndarray) -> np.ndarray:
        """Returns the index of the nearest level of each structure value."""
        return measures.nearest_level(values, self.levels, circular=self.circular)

    def distance(self, true: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Returns how far structure values are apart, in the unit, without a sign.

        Where the parameter has few levels: 1.0 for two that are different, else 0.0.

        Args:
          true: structure values, of any shape.
          read: likewise; broadcast with `true`.
        """
        true, read = np.broadcast_arrays(true, read)
        if self.levels is not None:
            different = self.level(true.ravel()) != self.level(read.ravel())
            return different.reshape(true.shape).astype(float)
        low, high = self.limits
        apart = measures.errors(true, read, circular=self.circular)
        return np.abs(apart) * (high - low)

    def chance(self, values: np.ndarray) -> float:
        """Returns the mean distance of a constant from structure values, [n].

        It is their mean, or the most frequent level.
        """
        if self.levels is not None:
            counts = np.bincount(self.level(values), minlength=len(self.levels))
            return float(1 - counts.max() / len(values))
        mean = self.points(values).mean(axis=0, keepdims=True)
        constant = measures.values_at(mean, circular=self.circular)
        return float(self.distance(values, constant).mean())


class Difference(NamedTuple):
    """How much more of an augmentation a second view has than a first one.

    It is read like the parameter itself, and has the members of `Code` that this takes.
    Its values: on a circle what is between the two structure values, in [0, 1); on a
    line (1 + second - first) / 2, in [0, 1].

    Attributes:
      code: the augmentation.
    """

    code: Code

    @property
    def circular(self) -> bool:
        """True if the values 0 and 1 are the same."""
        return self.code.circular

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The values that occur, if they are few."""
        levels = self.code.levels
        if levels is None:
            return None
        pairs = np.array([self.between(x, levels) for x in levels])
        return tuple(np.unique(pairs.round(6)).tolist())

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the values of structure values of the two views, [n]."""
        by = np.asarray(second, np.float64) - np.asarray(first, np.float64)
        return by % 1 if self.circular else (1 + by) / 2

    def points(self, values: np.ndarray) -> np.ndarray:
        """Returns values as regression targets; see `measures.points`."""
        return measures.points(values, circular=self.circular)

    def level(self, values: np.ndarray) -> np.ndarray:
        """Returns the index of the nearest level of each value."""
        return measures.nearest_level(values, self.levels, circular=self.circular)

    def distance(self, true: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Returns how far values are apart, in the unit of the code, without a sign."""
        low, high = self.code.limits
        apart = np.abs(measures.errors(true, read, circular=self.circular))
        return apart * (high - low) * (1 if self.circular else 2)


def by_code(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results of an evaluator that are about one augmentation each."""
    return {name: each for name, each in results.items() if name in AUGMENTATIONS}


def default_codes(method: Method) -> list[str]:
    """Returns the codes that are measured by default, the most interesting first."""
    names = getattr(method, "learned", ()) or method.two_views.stack.codes
    return [name for name in names if name in LEARNABLE]


def make_codes(evaluation: Evaluation, codes: str | None) -> list[Code]:
    """Returns the augmentations that an evaluation of the run is about.

    Args:
      evaluation: of a run.
      codes: the value of --codes; None for `default_codes`.

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
    """Returns the augmentation `name` for images of the run; see `make_codes`."""
    stack = measuring_stack((name,), evaluation.run.method.two_views.stack)
    return Code(name, stack, *stack.stages[0])


def joint_stack(evaluation: Evaluation, codes: Sequence[Code]) -> Stack:
    """Returns the stack that applies several augmentations, in the run's order."""
    names = [code.name for code in codes]
    return measuring_stack(names, evaluation.run.method.two_views.stack)


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """Returns up to `most` rows, evenly spaced, as a split may be sorted by class."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]
