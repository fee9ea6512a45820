"""Results of a sweep: a table to read, two CSV files, and a chart."""

import contextlib
import csv
import fcntl
import io
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from duet_jax.metrics.knobs import KNOBS
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.sweeps.trial import Trial

with epy.lazy_imports():
    from duet_jax.figures import dots, style


# In the notes of measures: where one code of several is named in its place.
_OWN = "the row's augmentation"


class Measure(NamedTuple):
    """A number by which rows are compared.

    Attributes:
      name: short.
      percent: True for a fraction, which is shown in percent.
      note: one sentence on what it is, below the table.
      digits: after the point, of what is no percentage.
    """

    name: str
    percent: bool
    note: str
    digits: int = 3

    def of(self, code: str) -> "Measure":
        """Returns the measure of one code of several."""
        name = self.name.removeprefix("code ")
        name = f"{code}: {name}" if name == self.name else f"{code} {name}"
        note = self.note.replace(_OWN, code)
        note = f"for {code}: {note}" if note == self.note else note
        return self._replace(name=name, note=note)

    @property
    def title(self) -> str:
        """The head of its column."""
        return f"{self.name} [%]" if self.percent else self.name

    def shown(self, values: Sequence[float]) -> str:
        """Returns mean ± standard deviation; percent with one decimal."""
        mean, deviation = mean_and_deviation(values)
        if mean is None:
            return "-"
        scale, digits = (100, 1) if self.percent else (1, self.digits)
        text = f"{scale * mean:.{digits}f}"
        return text if deviation is None else f"{text} ± {scale * deviation:.{digits}f}"


MEASURES = {
    "linear_probe": Measure(
        "linear probe", True, "top-1 of the linear probe, full features, test split"
    ),
    "knn": Measure("kNN", True, "top-1 of the nearest neighbors, full features"),
    "online": Measure(
        "online",
        True,
        "top-1 of the online probe on the test split after the last epoch; it was "
        "trained on augmented views",
    ),
    "read_level": Measure(
        "code read",
        True,
        "accuracy on the test split of a regression that predicts the parameter of the "
        "row's augmentation from the full features, if it has few values",
    ),
    "read_r2": Measure(
        "code read, R²",
        False,
        "R² on the test split of a regression that predicts the parameter of the row's "
        "augmentation from the full features, if it is continuous",
    ),
    "read_error": Measure(
        "code read, error",
        False,
        "mean error of the parameter of the row's augmentation that this regression "
        "predicts, in its unit",
    ),
    "structure_level": Measure(
        "structure read",
        True,
        "accuracy on the test split of the parameter of the row's augmentation that is "
        "read off the structure, if it has few values",
    ),
    "structure_error": Measure(
        "structure read, error",
        False,
        "mean error of the parameter of the row's augmentation that is read off the "
        "structure, in its unit, if it is continuous",
    ),
    "divergence": Measure(
        "divergence",
        False,
        "Jensen-Shannon divergence of the structure from its target, in nats",
    ),
    "crosstalk": Measure(
        "crosstalk",
        True,
        "how far the reading of the row's augmentation moves when another one is "
        "applied, as a share of how far it moves when its own is; the largest of all "
        "others, by the structure if there is one, else by the regression; 0 is ideal",
    ),
    "network_r2": Measure(
        "network read, R²",
        False,
        "R², pooled, of a small network that reads this parameter off one view",
    ),
    "relative_r2": Measure(
        "relative read, R²",
        False,
        "R², pooled, of a small network that reads off two views how they differ in it",
    ),
    "mrr": Measure(
        "MRR",
        False,
        "reciprocal rank of the view that is meant among those of its image, predicted "
        "by a linear map from the image as it is; higher is better",
    ),
    "hits_1": Measure("H@1", True, "share of these predictions with rank 1"),
    "mrr_own": Measure(
        "MRR, own",
        False,
        "likewise, predicted by what the method itself has for that: shifted bins, or "
        "a predictor",
    ),
    "pre": Measure(
        "PRE",
        False,
        "error of the parameter of the view of any image that is nearest to the linear "
        "map's prediction, from 0 to 1; lower is better",
    ),
    "procrustes": Measure(
        "Procrustes",
        False,
        "relative distance of the features of transformed images from rotated features "
        "of the images; lower is better",
    ),
    "gamma": Measure(
        "gamma",
        False,
        "change of the distances of pairs when both images are transformed; lower is "
        "better",
    ),
    "composition": Measure(
        "composition",
        False,
        "relative difference of the map of two transformations and the product of "
        "theirs; lower is better",
    ),
    "local": Measure(
        "local",
        False,
        "relative change of the features per degree of rotation; 0 if invariant",
    ),
    "reconstruction": Measure(
        "reconstruction",
        False,
        "mean squared error of test images decoded from the full features; pixels are "
        "from 0 to 1",
        digits=4,
    ),
    "control": Measure(
        "control",
        False,
        "mean squared error of images decoded from features that were changed to have "
        "another parameter of the row's augmentation, from the images with it; of the "
        f"best of {', '.join(KNOBS)}",
        digits=4,
    ),
    "control_level": Measure(
        "control read",
        True,
        "share of these images off which a regression reads the parameter asked for, "
        "if it has few values",
    ),
    "control_error": Measure(
        "control read, error",
        False,
        "mean error of the parameter that a regression reads off these images, in its "
        "unit, if it is continuous",
        digits=2,
    ),
}
_FACTS = ("data", "epochs", "hardware", "commit")


def measure_of(name: str) -> Measure:
    """Returns a measure.

    Args:
      name: in MEASURES; `<measure>@<code>` where the row is about several codes; or
        that of the data set, for `transfer`.
    """
    of_all, code = _split(name)
    if of_all not in MEASURES:
        return Measure(name, True, "top-1 of a linear probe on that data set")
    measure = MEASURES[of_all]
    return measure.of(code) if code else measure


def _split(name: str) -> tuple[str, str]:
    """Returns the name of a measure and the code that it is about, or ""."""
    of_all, _, code = name.rpartition("@")
    return (of_all, code) if of_all in MEASURES else (name, "")


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Returns the mean and the standard deviation (n - 1), None where undefined."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


class Run(NamedTuple):
    """What is known of one trial.

    Attributes:
      trial: row and seed.
      finished: True if it is trained and measured.
      values: results by measure; empty unless finished.
      facts: what was run, in words; empty unless finished.
      record: see `Trial.record`.
      yardsticks: see `Trial.yardsticks`; empty unless finished.
    """

    trial: Trial
    finished: bool
    values: Mapping[str, float]
    facts: Mapping[str, str]
    record: Mapping[str, Any]
    yardsticks: Mapping[str, Mapping[str, float]] = {}


class Row(NamedTuple):
    """A row of the experiment.

    Attributes:
      runs: of all its seeds.
    """

    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.runs[0].trial.row

    @property
    def method(self) -> str:
        """Such as duet."""
        return self.runs[0].trial.method

    @property
    def case(self) -> str:
        """The name without the method, duet-rot -> rot; may be ""."""
        return "-".join(part for part in self.name.split("-") if part != self.method)

    @property
    def done(self) -> list[Run]:
        """The finished runs."""
        return [run for run in self.runs if run.finished]

    def values(self, measure: str) -> list[float]:
        """Returns the results of the seeds; fewer where one could not be measured."""
        return [run.values[measure] for run in self.done if measure in run.values]

    def shown(self, measure: str) -> str:
        """Returns the result as text; "-" for none."""
        values = self.values(measure)
        text = measure_of(measure).shown(values)
        fewer = 0 < len(values) < len(self.done)
        return f"{text} (n = {len(values)})" if fewer else text

    def fact(self, name: str) -> str:
        """Returns what was run, in words; every answer where the seeds differ."""
        return "; ".join(dict.fromkeys(run.facts[name] for run in self.done))

    def seconds(self) -> tuple[float | None, bool | None]:
        """Returns the median of the known seconds, and True if no time is missing."""
        records = [run.record for run in self.done]
        known = [record["seconds"] for record in records if "seconds" in record]
        if not known:
            return None, None
        complete = len(known) == len(records) and all(
            record.get("status") == 0 and not record.get("lost") for record in records
        )
        return statistics.median(known), complete


def collect(trials: Sequence[Trial]) -> list[Row]:
    """Returns the rows of a sweep in order, with the results so far."""
    rows: dict[str, list[Run]] = {}
    for trial in trials:
        finished = trial.finished
        values, facts = (trial.found(), trial.facts()) if finished else ({}, {})
        yardsticks = trial.yardsticks() if finished else {}
        run = Run(trial, finished, values, facts, trial.record(), yardsticks)
        rows.setdefault(trial.row, []).append(run)
    return [Row(runs) for runs in rows.values()]


def write(
    rows: Sequence[Row], directory: pathlib.Path, *, scale: str, about: str
) -> None:
    """Writes table.md, table.csv, runs.csv and, if anything is finished, chart.png.

    Only one process at a time writes in a directory.

    Args:
      rows: from `collect`.
      directory: for the files.
      scale: at which the rows were run.
      about: text for the head of the table, such as the command.
    """
    measures = _measures(rows)
    title = f"{rows[0].runs[0].trial.experiment}, scale {scale}"
    lines = [_line_of_row(row, measures, scale) for row in rows]
    compared = _names_of_yardsticks(rows)
    runs = [_line_of_run(run, measures, compared) for row in rows for run in row.runs]
    texts = {
        "table.md": as_markdown(rows, title, about),
        "table.csv": _as_csv(lines),
        "runs.csv": _as_csv(runs),
    }
    panels = _panels(rows)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        for name, text in texts.items():
            with files.replacing(directory / name) as partial:
                partial.write_text(text, encoding="utf-8")
        if panels:
            figure = dots.build_dots(panels, chance=_chance(rows), title=title)
            style.save(directory / "chart.png", figure)
        else:
            style.remove(directory / "chart.png")


def _measures(rows: Sequence[Row]) -> list[str]:
    """Returns all measures: those of all rows, of `transfer`, and of each code.

    The first and the last are in the order of MEASURES.
    """
    found = dict.fromkeys(
        name for row in rows for run in row.runs for name in run.values
    )
    places = {name: place for place, name in enumerate(MEASURES)}
    codes = [*dict.fromkeys(_split(name)[1] for name in found)]

    def place(name: str) -> tuple[int, int]:
        of_all, code = _split(name)
        return codes.index(code) if code else -1, places.get(of_all, len(places))

    return sorted(found, key=place)


def as_markdown(rows: Sequence[Row], title: str, about: str) -> str:
    """Returns the table to read.

    First, where there are several methods, the main measure as case x method; then
    every row with all measures.
    """
    parts = [f"# {title}", about]
    measures = _measures(rows)
    if measures and len({row.method for row in rows}) > 1:
        parts.append(_matrix(rows, measures[0]))
    parts.append(_long(rows, measures))
    if yardsticks := _yardsticks(rows, measures):
        parts.append(yardsticks)
    parts.append(
        "Mean ± standard deviation (n - 1) over seeds. Seconds are the run time of a "
        "run's commands in this experiment, median over seeds; ≥ where a part is not "
        "known."
    )
    notes = [f"- {measure_of(m).title}: {measure_of(m).note}." for m in measures]
    if notes:
        parts.append("\n".join(notes))
    failed = [
        f"- {row.name} seed {run.trial.seed}: `{run.record['error']}`"
        for row in rows
        for run in row.runs
        if not run.finished and run.record.get("error")
    ]
    if failed:
        parts.append("\n".join(["Failed:", "", *failed]))
    return "\n\n".join(parts) + "\n"


def _matrix(rows: Sequence[Row], measure: str) -> str:
    methods = list(dict.fromkeys(row.method for row in rows))
    cases = dict.fromkeys(row.case for row in rows)
    cells = {(row.case, row.method): row.shown(measure) for row in rows}
    header = [measure_of(measure).title, *methods]
    lines = [
        [case or "(none)", *(cells.get((case, method), "") for method in methods)]
        for case in cases
    ]
    return _table([header, *lines])


def _long(rows: Sequence[Row], measures: Sequence[str]) -> str:
    titles = [measure_of(name).title for name in measures]
    lines = [["row", *titles, "seeds", "seconds", *_FACTS]]
    for row in rows:
        seconds, complete = row.seconds()
        known = "-" if seconds is None else f"{seconds:.0f}"
        lines.append(
            [
                row.name,
                *(row.shown(name) for name in measures),
                f"{len(row.done)} of {len(row.runs)}",
                known if complete or seconds is None else f"≥ {known}",
                *(row.fact(name) or "-" for name in _FACTS),
            ]
        )
    return _table(lines)


def _yardsticks(rows: Sequence[Row], measures: Sequence[str]) -> str:
    """Returns the table of what the rows are compared with; "" if nothing is known.

    Rows for which a yardstick has the same values share a line.
    """
    shared: dict[tuple[str, ...], list[str]] = {}
    for name in _names_of_yardsticks(rows):
        for row in rows:
            found = [run.yardsticks[name] for run in row.done if name in run.yardsticks]
            values = [[each[m] for each in found if m in each] for m in measures]
            if any(values):
                pairs = zip(measures, values, strict=True)
                cells = [measure_of(measure).shown(each) for measure, each in pairs]
                shared.setdefault((name, *cells), []).append(row.name)
    if not shared:
        return ""
    header = ["compared with", "of", *(measure_of(name).title for name in measures)]
    lines = [[name, ", ".join(of), *cells] for (name, *cells), of in shared.items()]
    return _table([header, *lines])


def _names_of_yardsticks(rows: Sequence[Row]) -> list[str]:
    runs = (run for row in rows for run in row.done)
    return [*dict.fromkeys(name for run in runs for name in run.yardsticks)]


def _table(lines: Sequence[Sequence[str]]) -> str:
    texts = [
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |"
        for line in lines
    ]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]])


def _line_of_row(row: Row, measures: Sequence[str], scale: str) -> dict[str, Any]:
    """Returns a line of table.csv; what is not known is None, an empty cell."""
    line = {
        "experiment": row.runs[0].trial.experiment,
        "scale": scale,
        "row": row.name,
        "method": row.method,
        "case": row.case,
    }
    for name in measures:
        mean, deviation = mean_and_deviation(row.values(name))
        line |= {f"{name}_mean": mean, f"{name}_sd": deviation}
    seconds, complete = row.seconds()
    return line | {
        "seeds": len(row.done),
        "seeds_asked": len(row.runs),
        "seconds": seconds,
        "seconds_complete": complete,
        **{name: row.fact(name) for name in _FACTS},
    }


def _line_of_run(
    run: Run, measures: Sequence[str], compared: Sequence[str]
) -> dict[str, Any]:
    """Returns a line of runs.csv; `compared` are the yardsticks."""
    return {
        "row": run.trial.row,
        "seed": run.trial.seed,
        "finished": run.finished,
        **{name: run.values.get(name) for name in measures},
        **{
            f"{name}, {yardstick}": run.yardsticks.get(yardstick, {}).get(name)
            for yardstick in compared
            for name in measures
        },
        "seconds": run.record.get("seconds"),
        "commit": " ".join(run.record.get("commits", [])),
        "error": "" if run.finished else run.record.get("error", ""),
        "command": run.trial.command,
    }


def _as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _chance(rows: Sequence[Row]) -> dict[str, float]:
    """Returns what a guess of the class reaches, by title; empty if classes differ."""
    classes = {
        workdir.load_facts(run.trial.directory).num_classes
        for row in rows
        for run in row.done
    }
    number = classes.pop() if len(classes) == 1 else 0
    names = ("linear_probe", "knn", "online") if number else ()
    return {MEASURES[name].title: 100 / number for name in names}


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns the values of the chart by title of the measure, method and case.

    With several methods, a measure that only one of them has is left out: there is
    nothing to compare.
    """
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in _measures(rows):
        measure = measure_of(name)
        scale = 100 if measure.percent else 1
        methods = panels.setdefault(measure.title, {})
        for row in rows:
            if values := row.values(name):
                cases = methods.setdefault(row.method, {})
                cases[row.case] = [scale * value for value in values]
    several = len({row.method for row in rows if row.done}) > 1
    return {k: v for k, v in panels.items() if len(v) > 1 or not several}
