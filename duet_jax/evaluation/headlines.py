"""The numbers that a reader asks for first, beside their yardsticks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.evaluation.codes import by_code
from duet_jax.evaluation.page import Bar, Headline
from duet_jax.evaluation.result import percent
from duet_jax.metrics.knobs import best_knob

# Results by name, as they are stored.
Results = Mapping[str, Mapping[str, Any]]

_OWN = "this encoder"
_PROBES = {
    "linear_probe": (
        "Linear probe, top-1",
        "Share of the test images whose class a linear classifier reads off the frozen "
        "features. Larger is better.",
    ),
    "knn": (
        "Nearest neighbors, top-1",
        "Share of the test images whose class the most similar training images have. "
        "Larger is better.",
    ),
}


class _Measure(NamedTuple):
    """A number and its yardsticks.

    Attributes:
      name: what it is.
      meaning: one line for somebody who has not heard of it.
      own: the number.
      others: the yardsticks by name.
      unit: of all, of which only ° is written; None for shares from 0 to 1, of which
        larger is better.
      label: of the number among its yardsticks.
    """

    name: str
    meaning: str
    own: float
    others: Mapping[str, float]
    unit: str | None = None
    label: str = _OWN

    def text(self, value: float) -> str:
        """Returns a value as it is written."""
        if self.unit is None:
            return f"{percent(value)} %"
        return f"{value:.3g}{'°' if self.unit == 'degrees' else ''}"

    def box(self, own: Mapping[str, float]) -> Headline:
        """Returns the box of one or several runs, the best value first."""
        values = {**self.others, **own}
        most = 1.0 if self.unit is None else max(values.values()) or 1.0
        order = sorted(values, key=values.__getitem__, reverse=self.unit is None)
        bars = [
            Bar(name, self.text(values[name]), values[name] / most, name in own)
            for name in order
        ]
        number = self.text(next(iter(own.values())))
        return Headline(number, self.name, self.meaning, bars if len(bars) > 1 else ())


def headlines(results: Results) -> list[Headline]:
    """Returns the boxes of a report.

    Yardsticks, such as an untrained encoder, are shown where they were measured.
    """
    return [each.box({each.label: each.own}) for each in _measures(results)]


def together(runs: Mapping[str, Results]) -> list[Headline]:
    """Returns boxes that hold the numbers of several runs; the first run's is large.

    Yardsticks are shown where all of these runs have the same.
    """
    found: dict[str, dict[str, _Measure]] = {}
    for run, results in runs.items():
        for each in _measures(results):
            found.setdefault(each.name, {})[run] = each
    boxes = []
    for of_runs in found.values():
        first = next(iter(of_runs.values()))
        others = [each.others.items() for each in of_runs.values()]
        shared = {
            k: x for k, x in first.others.items() if all((k, x) in o for o in others)
        }
        own = {run: each.own for run, each in of_runs.items()}
        if len(own) > 1:
            boxes.append(first._replace(others=shared).box(own))
    return boxes


def _measures(results: Results) -> Iterator[_Measure]:
    for name, (title, meaning) in _PROBES.items():
        if name in results:  # not without labels
            found = results[name]["results"]
            own = found["representations"]["full"]["top1"]
            others = _scores(found.get("yardsticks"), "top1")
            yield _Measure(title, meaning, own, others)
    for code, found in by_code(
        results.get("equivariance", {}).get("results", {})
    ).items():
        yield from _of_code(code, found)
    for code, found in results.get("generation", {}).get("results", {}).items():
        yield from _controlled(code, found)


def _scores(yardsticks: Mapping[str, Any] | None, key: str) -> dict[str, float]:
    """Returns the yardsticks that have the score `key`."""
    return {
        name: scores[key]
        for name, scores in (yardsticks or {}).items()
        if isinstance(scores.get(key), int | float)
    }


def _about(code: str) -> str:
    # A result may have been edited.
    record = AUGMENTATIONS.get(code)
    return f"parameter of {code} ({record.summary})" if record else "parameter"


def _of_code(code: str, found: Mapping[str, Any]) -> Iterator[_Measure]:
    """Yields the numbers of one augmentation."""
    about = _about(code)
    yardsticks = found.get("yardsticks") or {}
    if "marginal" in found:
        # Of the yardsticks only a guess has no features.
        guess = {k: each for k, each in yardsticks.items() if k == "chance"}
        title, how = (
            f"{code}, read off the structure",
            f"{about} that the structure tells",
        )
        yield from _reading(title, how, found["marginal"]["mean"], guess, found["unit"])
    title = f"{code}, read off the features"
    how = f"{about} that a regression predicts from the frozen features"
    scores = found["regression"]["full"]
    yield from _reading(title, how, scores, yardsticks, found["unit"])
    shifts = found.get("shift", {})
    if shifts.get("learned") and shifts.get("mean"):
        meaning = (
            "Relative error of the transformed image's features, predicted by shifting "
            "the bins of the original's, by not shifting them, or by another image's. "
            "Smaller is better."
        )
        others = dict(shifts["mean"]["full"]["relative_error"])
        own = others.pop("shifted")
        yield _Measure(f"{code}, bins shifted", meaning, own, others, "", "shifted")


def _controlled(code: str, found: Mapping[str, Any]) -> Iterator[_Measure]:
    """Yields how well the parameter of decoded images is controlled, if that is known.

    The number is that of the knob with the smallest squared error.
    """
    predictions = found.get("predictions") or {}  # none of a reconstruction
    levels = found.get("levels") is not None
    scores = {k: each.get("regression") or {} for k, each in predictions.items()}
    errors = _scores({**scores, "chance": found.get("chance") or {}}, "error")
    best = best_knob({k: predictions[k].get("mse") for k in predictions if k in errors})
    if not best:
        return
    key = "accuracy" if levels else "error"
    read = {k: {key: 1 - x if levels else x} for k, x in errors.items()}
    how = (
        f"{_about(code)} that a regression reads off images decoded from features "
        "changed in the way that gives the smallest squared error"
    )
    scores = read.pop(best)
    yield from _reading(f"{code}, controlled", how, scores, read, found["unit"], best)


def _reading(
    title: str,
    about: str,
    scores: Mapping[str, Any],
    yardsticks: Mapping[str, Any],
    unit: str,
    label: str = _OWN,
) -> Iterator[_Measure]:
    """Yields how well a parameter is read, if that is known."""
    if "accuracy" in scores:
        meaning = f"Share of the test images with the right {about}. Larger is better."
        others = _scores(yardsticks, "accuracy")
        yield _Measure(title, meaning, scores["accuracy"], others, None, label)
    elif scores["error"] is not None:
        measured_in = "" if unit == "degrees" else f", in {unit}"
        meaning = f"Mean error of the {about}{measured_in}. Smaller is better."
        others = _scores(yardsticks, "error")
        yield _Measure(title, meaning, scores["error"], others, unit, label)
