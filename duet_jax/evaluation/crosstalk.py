"""Crosstalk: whether the reading of one parameter is moved by another augmentation.

With K augmentations there are K x K answers to two questions about test images:

moves  How far does the reading of code i move when code j alone is applied? Ideally as
       far as the parameter itself on the diagonal, and not at all beside it.
errs   How far is the reading of code i from the parameter that was drawn when code j is
       applied as well? Ideally not at all; on the diagonal, i is applied alone.

Both are in the unit of code i, or shares of readings with another level where it has
few. Source: ours. The paper has one group, and so no crosstalk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from duet_jax import figures
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, joint_stack, spaced
from duet_jax.evaluation.result import Table
from duet_jax.figures import Drawing
from duet_jax.metrics import equivariance as measures
from duet_jax.runs.frozen_encoder import Representations

# Name -> representations to structure values, [n].
Readers = Mapping[str, Callable[[Representations], np.ndarray]]
# Code -> reader -> structure values that are read, [n].
_Readings = dict[str, dict[str, np.ndarray]]

QUESTIONS = ("moves", "errs")
_IMAGES = 2000  # each is encoded once for no code, every code and every pair


def measure(
    evaluation: Evaluation, codes: Sequence[Code], readers: Mapping[str, Readers]
) -> dict[str, dict[str, Any]]:
    """Returns the row of every code: what moves its readings.

    Args:
      evaluation: of a run.
      codes: two augmentations or more.
      readers: code -> what reads its parameter, by name.

    Returns:
      Code -> "images", their number; "exact", how far exact readings move when the
      code is applied; "chance", the error of a constant answer; and by reader, question
      and applied code the "mean" over images with its 95 % "interval".
    """
    names = [code.name for code in codes]
    stack = joint_stack(evaluation, codes)
    images = spaced(evaluation.split("test").images, _IMAGES)
    key = jax.random.fold_in(jax.random.key(evaluation.run.config.seed), 2)
    draws = stack.draw(key, len(images))

    def read(*applied: str) -> _Readings:
        found = evaluation.run.encoder(images, stack, stack.only(draws, applied))
        return {
            name: {how: reader(found) for how, reader in readers[name].items()}
            for name in names
        }

    true = {name: np.asarray(x) for name, x in stack.structure(draws).items()}
    plain, alone = read(), {name: read(name) for name in names}
    both = {
        frozenset((one, other)): read(one, other)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    }
    return {code.name: row(code, true[code.name], plain, alone, both) for code in codes}


def row(
    code: Code,
    true: np.ndarray,
    plain: _Readings,
    alone: Mapping[str, _Readings],
    both: Mapping[frozenset[str], _Readings],
) -> dict[str, Any]:
    """Returns what moves the readings of one code; see `measure`.

    Args:
      code: that is read.
      true: its structure values that were drawn, [n].
      plain: readings of images as they are.
      alone: of images to which one code is applied, by that code.
      both: of images to which two codes are applied, by these.
    """
    own = code.name
    found: dict[str, Any] = {
        "images": len(true),
        "exact": float(code.distance(code.identity(), true).mean()),
        "chance": code.chance(true),
    }
    for how in plain[own]:
        found[how] = {question: {} for question in QUESTIONS}
        for other, readings in alone.items():
            moved = code.distance(plain[own][how], readings[own][how])
            together = readings if other == own else both[frozenset((own, other))]
            error = code.distance(true, together[own][how])
            for question, each in zip(QUESTIONS, (moved, error), strict=True):
                found[how][question][other] = {
                    "mean": float(each.mean()),
                    "interval": measures.bootstrap(each),
                }
    return found


def tables(codes: Sequence[Code], found: Mapping[str, Any]) -> list[Table]:
    """Returns a table for each code that is read, a row for each that is applied."""
    return [_table(code, found[code.name]) for code in codes]


def _table(code: Code, scores: Mapping[str, Any]) -> Table:
    unit = code.record.scale.unit
    if code.levels is not None:
        unit = "share of other levels"
    hows = [how for how in ("structure", "regression") if how in scores]
    columns = [(how, question) for how in hows for question in QUESTIONS]
    applied = scores[hows[0]]["moves"]
    rows = tuple(
        (other, *(_cell(scores[how][question][other]) for how, question in columns))
        for other in sorted(applied, key=lambda name: name != code.name)
    )
    note = (
        f"Over {scores['images']} test images, 95 % intervals in parentheses. moves: "
        "how far the reading moves when the code alone is applied; ideally 0 in all "
        "rows but the first. errs: how far it is from what was drawn when the code is "
        f"applied as well. Exact readings move by {scores['exact']:.3g}, a constant "
        f"answer errs by {scores['chance']:.3g}."
    )
    return Table(
        f"crosstalk: what moves the reading of {code.name} ({code.record.summary}), "
        f"[{unit}]",
        ("applied", *(f"{how} {question}" for how, question in columns)),
        rows,
        note,
        code.name,
    )


def _cell(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['mean']:.3g} ({low:.3g} to {high:.3g})"


def draw(codes: Sequence[Code], found: Mapping[str, Any]) -> Drawing:
    """Returns the matrices as a picture."""
    names = [code.name for code in codes]
    hows = [
        h for h in ("structure", "regression") if any(h in r for r in found.values())
    ]
    matrices = {
        f"{how} {question}": np.array(
            [
                [
                    found[own].get(how, {}).get(question, {}).get(other, {}).get("mean")
                    for other in names
                ]
                for own in names
            ],
            float,
        )
        for how in hows
        for question in QUESTIONS
    }
    summary = figures.Crosstalk(
        codes=names,
        units=[
            "other level" if code.levels is not None else code.record.scale.unit
            for code in codes
        ],
        matrices=matrices,
        **{
            key: np.array([found[name][key] for name in names])
            for key in ("exact", "chance")
        },
    )
    return Drawing("crosstalk", "crosstalk: one code is read, another applied", summary)
