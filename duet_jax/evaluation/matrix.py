"""The matrix: what each representation knows of every augmentation.

A row for each augmentation that the images can take, those of the run first; a column
for each representation. Each is applied alone, and its parameter is read off as in
`readouts`: R², pooled over outputs, or accuracy where there are few levels. Which
entries should be high and which low follows from what the method was trained for.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from duet_jax import figures
from duet_jax.augmentations import AUGMENTATIONS, LEARNABLE
from duet_jax.errors import UsageError
from duet_jax.evaluation import readouts
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import make_code
from duet_jax.evaluation.result import Table, percent
from duet_jax.figures import Drawing
from duet_jax.methods import Method
from duet_jax.runs.frozen_encoder import ExternalEncoder

_log = logging.getLogger(__name__)

# Images of each split, for each augmentation.
_IMAGES = 4000
HIGH, LOW = "high", "low"
# Marks in the table, above what is written.
_MARKS = {HIGH: " ▲", LOW: " ▽", "": ""}


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the matrix.

    Args:
      evaluation: of a run.

    Returns:
      Code -> "role" ("learned", "in the stack" or "left out"); "chance"; and by
      representation its scores with "should_be": "high", "low" or "" for neither. Of an
      encoder from elsewhere both are "": nobody knows how it was trained.
    """
    run = evaluation.run
    learned, stack = _known(run.method)
    elsewhere = isinstance(run.encoder, ExternalEncoder)
    channels = run.method.two_views.stack.channels
    possible = [c for c in LEARNABLE if channels in AUGMENTATIONS[c].channels]
    order = [*learned, *stack, *possible]
    found = {}
    for name in sorted(possible, key=order.index):
        code = make_code(evaluation, name)
        train, test = (
            readouts.encode(evaluation, code, split, run.encoder, most=_IMAGES, again=3)
            for split in ("train", "test")
        )
        try:
            with evaluation.timed("regression"):
                fits = readouts.fits(code, train)
        except UsageError as error:  # too few images; the code was not asked for
            _log.warning("matrix       without %s: %s", name, error)
            continue
        scores = {rep: fit.scores(test) for rep, fit in fits.items()}
        role = "in the stack" if name in stack else "left out"
        role = "learned" if name in learned else role
        found[name] = {
            "role": "" if elsewhere else role,
            "chance": readouts.constant(code, train.values, test.values),
            "representations": {
                rep: {
                    **each,
                    "should_be": "" if elsewhere else expected(run.method, name, rep),
                }
                for rep, each in scores.items()
            },
        }
    return found


def _known(method: Method) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the codes that a method learns, and those of its stack."""
    stack = method.two_views.stack.codes
    parts = [
        c for c, a in AUGMENTATIONS.items() if "jit" in stack and a.stage == "jitter"
    ]
    return tuple(getattr(method, "learned", ())), (*stack, *parts)


def expected(method: Method, code: str, representation: str) -> str:
    """Returns whether a representation should know of an augmentation.

    Args:
      method: that it was trained with.
      code: the augmentation.
      representation: one of `Method.representations`.

    Returns:
      "high": the method learns the parameter, and the representation is where it should
      be; "low": it should not be there, as both views are to have the same features, or
      as another part of the features is for it; "" if the training says nothing.
    """
    learned, stack = _known(method)
    if representation in ("content", "invariant"):
        return LOW if code in (*learned, *stack) else ""
    if representation.startswith("structure"):
        own = representation.removeprefix("structure").strip("_") or learned[0]
        return HIGH if code == own else LOW if code in (*learned, *stack) else ""
    if code in learned:
        return HIGH
    return LOW if code in stack and method.is_invariant else ""


def skill(scores: Mapping[str, Any], chance: Mapping[str, Any]) -> float:
    """Returns a readout from 0 (a constant answer) to 1 (exact).

    R², or how much of the way from the accuracy of a constant answer to 1.
    """
    if "accuracy" in scores:
        guess = chance["accuracy"]
        return (scores["accuracy"] - guess) / (1 - guess) if guess < 1 else np.nan
    return scores["r_squared"]


def table(found: Mapping[str, Any]) -> Table:
    """Returns the matrix as a table."""
    names = _columns(found)
    rows = tuple(
        (
            f"{code} ({row['role']})" if row["role"] else code,
            *(_cell(row["representations"][name]) for name in names),
            _cell(row["chance"]),
        )
        for code, row in found.items()
    )
    return Table(
        "what each representation knows of every augmentation",
        ("applied alone", *names, "chance"),
        rows,
        "R² pooled over outputs, or accuracy in percent where there are few levels, of "
        "the linear readout, with half the width of its 95 % interval. ▲: the method "
        "is trained to have it there; ▽: it should not be there.",
    )


def _columns(found: Mapping[str, Any]) -> Sequence[str]:
    return [*next(iter(found.values()))["representations"]]


def _cell(scores: Mapping[str, Any]) -> str:
    mark = _MARKS[scores.get("should_be", "")]
    name = "accuracy" if "accuracy" in scores else "r_squared"
    if not np.isfinite(scores[name]):
        return "-"
    low, high = scores[f"{name}_interval"]
    if name == "accuracy":
        half = percent((high - low) / 2)
        return f"{percent(scores[name])} ± {half} %{mark}"
    return f"{_two_digits(scores[name])} ± {(high - low) / 2:.2f}{mark}"


def draw(found: Mapping[str, Any]) -> Drawing:
    """Returns the matrix as a picture."""
    names = _columns(found)

    def entries(of):
        return [[of(row, row["representations"][n]) for n in names] for row in found]

    found = list(found.items())
    codes = [code for code, _ in found]
    found = [row for _, row in found]
    summary = figures.Matrix(
        rows=codes,
        roles=[row["role"] for row in found],
        columns=names,
        skills=np.array(
            entries(lambda row, each: skill(each, row["chance"])), np.float64
        ),
        texts=entries(lambda _, each: _short(each)),
        wanted=entries(lambda _, each: each["should_be"]),
    )
    return Drawing("matrix", "what each representation knows", summary)


def _short(scores: Mapping[str, Any]) -> str:
    if "accuracy" in scores:
        return f"{percent(scores['accuracy'])} %"
    return _two_digits(scores["r_squared"])


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00
