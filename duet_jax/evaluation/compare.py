"""Several runs side by side: one HTML page from what their evaluations have stored."""

import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from duet_jax import figures, loggers
from duet_jax.config import checks
from duet_jax.config.build import reads_learned
from duet_jax.errors import UsageError
from duet_jax.evaluation import foot, headlines, html_report, options, page, store
from duet_jax.evaluation.result import Table
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.types import DatasetFacts, same_images

_log = logging.getLogger(__name__)

_MINUS = "\N{MINUS SIGN}"
_NONE = "-"  # a cell of a run that has no such row


class _Run(NamedTuple):
    """One of the runs that are compared.

    Attributes:
      name: on the page; different for every run.
      directory: its work directory.
      config: its configuration.
      facts: of its images.
      rows: of its metrics.jsonl.
      results: stored results by name.
    """

    name: str
    directory: pathlib.Path
    config: ml_collections.ConfigDict
    facts: DatasetFacts
    rows: Sequence[Mapping]
    results: Mapping[str, Mapping[str, Any]]


def compare(*, workdirs: str | None = None, out: str | None = None) -> None:
    r"""Writes a page that compares trained runs; measures nothing.

    It holds the curves of the runs over each other, their results side by side with the
    differences to the first run, and their pictures, drawn on one scale. What a run has
    not stored is left out and named.

    Args:
      workdirs: directories of two or more runs, separated by commas; a comma in a path
        is written `\,`.
      out: the file to write; compare.html in the current directory if None.

    Raises:
      UsageError: a directory holds no run, or the page cannot be written.
    """
    runs = _read(options.directories(workdirs or ""))
    path = _place("compare.html" if out is None else out)
    text = page.build(
        _sections(runs),
        title=f"Comparison of {len(runs)} runs",
        headlines=headlines.together({run.name: run.results for run in runs}),
        subtitle=(
            f"Large numbers are those of the first one, {runs[0].name}; differences "
            "are to it."
        ),
        foot=[
            (f"{run.name}, {name}", text)
            for run in runs
            for name, text in foot.lines(run.directory, run.results)
        ],
    )
    with workdir.writing(path, "--out"), files.replacing(path) as partial:
        # The name of a directory may hold any bytes.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    _log.info("comparison in %s, %.1f MB", path, path.stat().st_size / 1e6)


def _place(out: str) -> pathlib.Path:
    path = files.local(out, "--out")
    if not out or path.is_dir():
        raise UsageError(f"--out={out} must name a file, such as compare.html.")
    workdir.check_writable(path.absolute().parent, "--out")
    return path


def _read(paths: Sequence[pathlib.Path]) -> list[_Run]:
    runs = []
    for path, name in zip(paths, _names(paths), strict=True):
        metrics = path / "metrics.jsonl"
        rows = loggers.read_rows(metrics) if metrics.exists() else []
        results = {}
        for stem in sorted(file.stem for file in (path / "eval").glob("[!.]*.json")):
            found = store.read(path / "eval", stem)
            if found is not None and stem not in html_report.LEFT_OUT:
                results[stem] = found
        config, facts = workdir.load_config(path), workdir.load_facts(path)
        runs.append(_Run(name, path, config, facts, rows, results))
    return runs


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the ends of the paths, long enough that they differ."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            break
    return names


def _sections(runs: Sequence[_Run]) -> list[page.Section]:
    stems = dict.fromkeys(stem for run in runs for stem in run.results)
    stems = [name for name in html_report.TITLES if name in stems] + [
        name for name in stems if name not in html_report.TITLES
    ]
    missing = {stem: [r.name for r in runs if stem not in r.results] for stem in stems}
    for stem, names in missing.items():
        if names:
            _log.warning("%s has no stored result of %s", stem, " and ".join(names))
    maps = [*_as_they_are(runs, "report_map")]
    return [
        page.Section("Runs", (_overview(runs),), note=_about_images(runs)),
        page.Section("Training", pictures=[_curves(runs)]),
        *(_results(runs, stem, missing[stem]) for stem in stems),
        page.Section("Map of the test features", pictures=maps),
        page.Section("Views", pictures=[*_as_they_are(runs, "views")]),
        page.Section("Configuration", (_configuration(runs),)),
    ]


def _overview(runs: Sequence[_Run]) -> Table:
    rows = []
    for run in runs:
        steps = {found["step"] for found in run.results.values()}
        steps = ", ".join(map(str, sorted(steps, key=str))) or "no results"
        config = run.config
        learned = config.learned if reads_learned(config.method) else _NONE
        about = [config.method, learned]
        numbers = [str(config.epochs), str(config.seed), steps]
        rows.append((run.name, *about, run.facts.name, *numbers))
    header = ("run", "method", "learned", "data", "epochs", "seed", "step of results")
    return Table("what is compared", header, tuple(rows))


def _about_images(runs: Sequence[_Run]) -> str:
    """Returns a note if not all runs have the same images, or the same test split."""
    first = runs[0].facts
    others = [
        run.name
        for run in runs[1:]
        if run.facts.class_names != first.class_names
        or not same_images(run.facts.identity, first.identity)
        or (run.facts.name, run.facts.num_test) != (first.name, first.num_test)
    ]
    if not others:
        return ""
    return (
        f"{', '.join(others)}: other images than those of {runs[0].name}. Differences "
        "between results on different images say little."
    )


def _curves(runs: Sequence[_Run]) -> page.Picture:
    classes = {run.facts.num_classes for run in runs}
    figure = figures.build_overlay(
        {run.name: run.rows for run in runs},
        num_classes=classes.pop() if len(classes) == 1 else None,
    )
    about = [
        f"{run.name}: {run.config.method} · {run.facts.name} · seed {run.config.seed}"
        for run in runs
    ]
    caption = html_report.CAPTIONS["curves"]
    return page.picture_of(figure, "curves", caption, "; ".join(about))


def _results(runs: Sequence[_Run], stem: str, missing: Sequence[str]) -> page.Section:
    """Returns the section of a result; runs without it are named."""
    having = [run for run in runs if stem in run.results]
    note = ""
    if missing:
        mode = having[0].results[stem]["mode"]
        note = f"Not measured: {', '.join(missing)}; --mode={mode} does it."
    title = html_report.title_of(stem)
    return page.Section(title, _tables(having, stem), [*_pictures(having, stem)], note)


# Tables.


def _tables(runs: Sequence[_Run], stem: str) -> list[Table]:
    """Returns the tables of a result, those of the same kind merged."""
    groups: dict[Any, dict[str, Table]] = {}
    for run in runs:
        for stored in run.results[stem]["tables"]:
            table = Table(**stored)
            # Titles may hold settings, which are numbers.
            key = re.sub(r"[\d.]+", "", table.title), table.header[0]
            groups.setdefault(key, {}).setdefault(run.name, table)
    return [_merged(tables) for tables in groups.values()]


def _merged(tables: Mapping[str, Table]) -> Table:
    """Returns one column a run, with differences to the first run that has the table.

    A line is a row and a column of the tables; intervals are left beside their number.
    """
    first, *others = tables
    cells = {name: dict(_cells(table)) for name, table in tables.items()}
    keys = dict.fromkeys(key for each in cells.values() for key in each)
    rows = []
    for key in keys:
        own = cells[first].get(key, _NONE)
        row = [key, own]
        for name in others:
            other = cells[name].get(key, _NONE)
            row += [other, _difference(own, other)]
        if {*row[1:]} - {_NONE, ""}:
            rows.append(tuple(row))
    columns = [cell for name in others for cell in (name, f"vs. {first}")]
    titles = {name: table.title for name, table in tables.items()}
    notes = [tables[first].note] if len({t.note for t in tables.values()}) == 1 else []
    if len({*titles.values()}) > 1:
        notes += [f"{name}: {title}." for name, title in titles.items()]
    header = (tables[first].header[0], first, *columns)
    return Table(titles[first], header, tuple(rows), " ".join(filter(None, notes)))


def _cells(table: Table) -> Iterator[tuple[str, str]]:
    """Yields a name and a text for every cell that is not an interval."""
    for row in table.rows:
        for number in range(1, len(row)):
            if table.header[number] == "95 %":
                continue
            text = row[number]
            if [*table.header[number + 1 : number + 2]] == ["95 %"]:
                text = f"{text} ({row[number + 1]})"
            yield f"{row[0]}: {table.header[number]}", text


def _difference(first: str, other: str) -> str:
    """Returns other - first with the digits that they have; "" unless both are numbers.

    What follows a number, such as an interval, is not read. Powers of ten, such as the
    strength of a penalty, are settings.
    """
    numbers = [re.match(r"-?\d+(\.\d+)?(?=$| )", text) for text in (first, other)]
    if None in numbers:
        return ""
    before, after = (match[0] for match in numbers)
    digits = max(len(each.partition(".")[2]) for each in (before, after))
    text = f"{float(after) - float(before):+.{digits}f}"
    return text.replace("-", _MINUS) if float(text) else f"{0:.{digits}f}"


def _configuration(runs: Sequence[_Run]) -> Table:
    """Returns the fields in which the runs differ."""
    values = [dict(checks.fields(run.config)) for run in runs]
    rows = [
        (field, *(html_report.shown(each.get(field, _NONE)) for each in values))
        for field in values[0]
        if any(each.get(field, _NONE) != values[0][field] for each in values)
    ]
    header = ("field", *(run.name for run in runs))
    note = "" if rows else "All fields are equal."
    return Table("fields in which the runs differ", header, tuple(rows), note)


# Pictures.


def _pictures(runs: Sequence[_Run], stem: str) -> Iterator[page.Picture]:
    """Yields the pictures of a result.

    Those that can be drawn are drawn together, the others stand beside each other.
    """
    names = [name for run in runs for name in run.results[stem]["pictures"]]
    for file in dict.fromkeys(names):
        kind = html_report.kind_of(file)
        drawn: dict[str, figures.Drawing] = {}
        for run in runs:
            try:
                drawn[run.name] = drawing(run.results[stem], stem, file)
            except ValueError:
                continue
        about = [
            f"{run.name}: {store.about_run(run.results[stem])}"
            for run in runs
            if run.name in drawn
        ]
        caption = html_report.CAPTIONS.get(kind, "")
        if len(drawn) > 1:
            caption += " One scale for all."
        picture = _together(drawn, file, caption, "; ".join(about))
        if picture:
            yield picture
        others = [run for run in runs if not picture or run.name not in drawn]
        yield from _as_they_are(others, pathlib.PurePath(file).stem)


def drawing(found: Mapping[str, Any], stem: str, file: str) -> figures.Drawing:
    """Returns a picture of a stored result as data.

    Args:
      found: the result, from `store.read`.
      stem: name of its file without suffix.
      file: name of the picture.

    Raises:
      ValueError: it was not kept as data.
    """
    name = pathlib.PurePath(file).stem.removeprefix(f"{stem}_")
    try:
        if name == "confusion":
            matrix = found["results"]["representations"]["full"]["confusion"]
            summary = figures.Confusion(matrix, found["dataset"]["class_names"])
            title = "linear probe on the full representation"
            return figures.Drawing("confusion", title, summary)
        return figures.restored(found["drawings"][name])
    except (KeyError, TypeError) as error:
        raise ValueError("it was not kept as data") from error


def _together(
    drawn: Mapping[str, figures.Drawing], file: str, caption: str, small_print: str
) -> page.Picture | None:
    """Returns drawings in one picture, on one scale; None if there is none."""
    if not drawn:
        return None
    name, first = next(iter(drawn.items()))
    title = first.title if len(drawn) > 1 else f"{name}: {first.title}"
    try:
        figure = figures.draw(drawn, title=title)
        name = pathlib.PurePath(file).stem.replace("_", " ")
        return page.picture_of(figure, name, caption, small_print)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        # A result may have been edited.
        _log.warning("%s cannot be drawn together: %s", file, error)
        return None


def _as_they_are(runs: Sequence[_Run], stem: str) -> Iterator[page.Picture]:
    """Yields a stored picture of every run that has it, under the name of the run."""
    for run in runs:
        folder = run.directory / ("figures" if stem == "views" else "eval")
        yield from page.read_picture(folder / f"{stem}.png", f"{run.name}, as drawn.")
