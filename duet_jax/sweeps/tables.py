"""What a grid of runs has found: a table for people, two for programs, a picture."""

import contextlib
import csv
import fcntl
import io
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from duet_jax.figures import build_bars
from duet_jax.figures.style import save
from duet_jax.runtime import files
from duet_jax.sweeps.trial import Trial


class Measure(NamedTuple):
    """A number by which rows are compared.

    Attributes:
      title: head of its column.
      percent: whether it is a fraction, shown as per cent.
      note: what it is, below the table.
    """

    title: str
    percent: bool
    note: str


MEASURES = {
    "linear_probe": Measure(
        "linear probe [%]",
        True,
        "top-1 of the linear probe on the full features, test split",
    ),
    "knn": Measure("kNN [%]", True, "top-1 of the nearest neighbours, full features"),
    "online": Measure(
        "online [%]",
        True,
        "top-1 of the online probe on the test split after the last epoch; it was "
        "trained on augmented views",
    ),
    "read_level": Measure(
        "code read [%]",
        True,
        "share of test images of which a regression on the full features tells the "
        "row's augmentation, where that has few values",
    ),
    "read_r2": Measure(
        "code read, R²",
        False,
        "R² of that regression, where the parameter is continuous",
    ),
    "divergence": Measure(
        "divergence",
        False,
        "Jensen-Shannon divergence of the structure from its target, in nats",
    ),
}
_FACTS = ("data", "epochs", "hardware", "commit")
_TRANSFER = Measure("{} [%]", True, "top-1 of a linear probe on that data set")


def measure_of(name: str) -> Measure:
    """Returns what is known of a measure; those of `transfer` are named by the set."""
    known = MEASURES.get(name)
    title = _TRANSFER.title.format(name)
    return known or _TRANSFER._replace(title=title)


class Row(NamedTuple):
    """What is known of a row of the experiment.

    Attributes:
      name: of the row.
      method: duet, simclr or essl.
      case: what tells it from the other rows of its method; "" for nothing.
      trials: of all its seeds.
      seeds: how many of them are finished.
      values: by measure, of those; fewer where one could not be measured.
      facts: what was run, in words.
      seconds: of a run, and whether they are complete; None if unknown.
      failed: what the others have said last, by seed.
    """

    name: str
    method: str
    case: str
    trials: tuple[Trial, ...]
    seeds: int
    values: dict[str, list[float]]
    facts: dict[str, str]
    seconds: tuple[float, bool] | None
    failed: dict[int, str]

    def shown(self, name: str) -> str:
        """Returns the value of a measure as a text; "-" for none."""
        values = self.values.get(name, [])
        text = shown(values, percent=measure_of(name).percent)
        fewer = values and len(values) < self.seeds
        return f"{text} (n = {len(values)})" if fewer else text


def collect(trials: Sequence[Trial]) -> list[Row]:
    """Returns the rows of a grid, in order, with what is finished of them."""
    names = dict.fromkeys(trial.row for trial in trials)
    return [_row([trial for trial in trials if trial.row == name]) for name in names]


def _row(trials: Sequence[Trial]) -> Row:
    first, done = trials[0], [trial for trial in trials if trial.finished]
    found = [trial.found() for trial in done]
    measures = dict.fromkeys(name for values in found for name in values)
    return Row(
        name=first.row,
        method=first.method,
        case=case_of(first.row, first.method),
        trials=tuple(trials),
        seeds=len(done),
        values={
            name: [values[name] for values in found if name in values]
            for name in measures
        },
        facts=_facts(done),
        seconds=_seconds(done),
        failed={
            trial.seed: trial.record()["error"]
            for trial in trials
            if trial not in done and trial.record().get("error")
        },
    )


def case_of(row: str, method: str) -> str:
    """Returns the name of a row without its method: duet-rot -> rot."""
    return "-".join(part for part in row.split("-") if part != method)


def _facts(trials: Sequence[Trial]) -> dict[str, str]:
    """What was run, in words; every answer where the trials differ."""
    found = [trial.facts() for trial in trials]
    return {
        name: "; ".join(dict.fromkeys(facts[name] for facts in found))
        for name in (found[0] if found else ())
    }


def _seconds(trials: Sequence[Trial]) -> tuple[float, bool] | None:
    """The median of the seconds that are known, and whether that is all of them."""
    records = [trial.record() for trial in trials]
    known = [record["seconds"] for record in records if "seconds" in record]
    if not known:
        return None
    whole = len(known) == len(trials) and all(
        r.get("status") == 0 and not r.get("lost") for r in records
    )
    return statistics.median(known), whole


def write(
    rows: Sequence[Row], directory: pathlib.Path, *, scale: str, about: str
) -> None:
    """Writes table.md, table.csv, runs.csv and, if anything is finished, chart.png.

    Args:
      rows: from `collect`; no others will be in the tables.
      directory: that receives them.
      scale: at which the rows were run.
      about: lines on what was run, such as the command.
    """
    with _alone(directory):
        _write(rows, directory, scale, about)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[None]:
    """Lets one sweep at a time write there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(
    rows: Sequence[Row], directory: pathlib.Path, scale: str, about: str
) -> None:
    title = f"{rows[0].trials[0].experiment}, scale {scale}"
    texts = {
        "table.md": as_markdown(rows, title, about),
        "table.csv": _as_csv(_records(rows, scale)),
        "runs.csv": _as_csv(_runs(rows)),
    }
    for name, text in texts.items():
        with files.replacing(directory / name) as partial:
            partial.write_text(text, encoding="utf-8")
    panels = _panels(rows)
    if panels:
        save(directory / "chart.png", build_bars(panels, title=title))
    else:
        (directory / "chart.png").unlink(missing_ok=True)


def _measures(rows: Sequence[Row]) -> list[str]:
    """All measures of a grid: ours in our order, then those of `transfer`."""
    found = dict.fromkeys(name for row in rows for name in row.values)
    return [name for name in MEASURES if name in found] + [
        name for name in found if name not in MEASURES
    ]


def shown(values: Sequence[float], *, percent: bool) -> str:
    """Returns mean ± standard deviation; per cent with one decimal, else three."""
    if not values:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.{digits}f}"
    return text


def as_markdown(rows: Sequence[Row], title: str, about: str) -> str:
    """Returns the table for people.

    First, where there are several methods, the main measure as method x case; then
    every row with all that was measured.
    """
    parts = [f"# {title}", about]
    measures = _measures(rows)
    if measures and len({row.method for row in rows}) > 1:
        parts.append(_matrix(rows, measures[0]))
    parts.append(_long(rows, measures))
    parts.append(
        "Mean ± standard deviation (n - 1) over seeds. Seconds are those of a run's "
        "commands in this experiment, from start to end, median over seeds; ≥ where a "
        "part of them is not known."
    )
    notes = [f"- {measure_of(m).title}: {measure_of(m).note}." for m in measures]
    if notes:
        parts.append("\n".join(notes))
    failed = [
        f"- {row.name} seed {seed}: `{error}`"
        for row in rows
        for seed, error in row.failed.items()
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
    titles = (measure_of(name).title for name in measures)
    header = ["row", *titles, "seeds", "seconds", *_FACTS]
    lines = [
        [
            row.name,
            *(row.shown(name) for name in measures),
            f"{row.seeds} of {len(row.trials)}",
            _as_text(row.seconds),
            *(row.facts.get(name, "-") for name in _FACTS),
        ]
        for row in rows
    ]
    return _table([header, *lines])


def _as_text(seconds: tuple[float, bool] | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds[0]:.0f}" if seconds[1] else f"≥ {seconds[0]:.0f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    texts = [
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |"
        for line in lines
    ]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]])


def _records(rows: Sequence[Row], scale: str) -> Iterable[dict[str, Any]]:
    """One line a row: means and standard deviations."""
    measures = _measures(rows)
    for row in rows:
        record = {
            "experiment": row.trials[0].experiment,
            "scale": scale,
            "row": row.name,
            "method": row.method,
            "case": row.case,
        }
        for name in measures:
            values = row.values.get(name, ())
            record[f"{name}_mean"] = statistics.fmean(values) if values else ""
            record[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else ""
        yield record | {
            "seeds": row.seeds,
            "seeds_asked": len(row.trials),
            "seconds": row.seconds[0] if row.seconds else "",
            "seconds_complete": row.seconds[1] if row.seconds else "",
            **{name: row.facts.get(name, "") for name in _FACTS},
        }


def _runs(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """One line a run."""
    measures = _measures(rows)
    for trial in (trial for row in rows for trial in row.trials):
        finished, record = trial.finished, trial.record()
        values = trial.found() if finished else {}
        yield {
            "row": trial.row,
            "seed": trial.seed,
            "finished": finished,
            **{name: values.get(name, "") for name in measures},
            "seconds": record.get("seconds", ""),
            "commit": " ".join(record.get("commits", [])),
            "error": "" if finished else record.get("error", ""),
            "command": trial.command,
        }


def _as_csv(records: Iterable[Mapping[str, Any]]) -> str:
    records = list(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Values by title of the measure, method and case; what the picture shows.

    What only one of several methods has is no comparison, and is left out.
    """
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in _measures(rows):
        measure = measure_of(name)
        scale = 100 if measure.percent else 1
        for row in rows:
            if row.values.get(name):
                methods = panels.setdefault(measure.title, {})
                values = [scale * value for value in row.values[name]]
                methods.setdefault(row.method, {})[row.case] = values
    several = len({row.method for row in rows if row.values}) > 1
    return {k: v for k, v in panels.items() if len(v) > 1 or not several}
