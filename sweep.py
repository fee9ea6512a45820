"""Runs the rows of an experiment one after another, and makes a table of them.

    python sweep.py --experiment=configs/figure4.py --rows='*-rot,simclr' --seeds=3

Every row is trained and measured with every seed, each by a command of main.py of its
own. Whatever is finished is skipped, whatever was interrupted goes on, and a row that
fails does not keep the others from being run: the same command again does the rest. In
the work directory appear table.md, table.csv, runs.csv and chart.png. Fields can be set
for all rows that read them: --config.dataset.path=<images>.
"""

import argparse
import fnmatch
import json
import logging
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import tqdm

import main as program
from duet_jax import config_files, grid, results
from duet_jax.errors import UsageError
from duet_jax.metrics.progress import duration
from duet_jax.terminal import log_to_terminal, prepare_streams, printable

_log = logging.getLogger("duet_jax.sweep")

# Until it is looked again whether another sweep has finished a run.
_SECONDS_OF_WAITING = 5.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--experiment", default="", help="file with rows: configs/figure4.py ..."
    )
    parser.add_argument(
        "--rows", default="*", help="names or patterns, such as 'simclr,*-rot'"
    )
    parser.add_argument(
        "--seeds", default="1", help="how many, from 0 on; or which: 3,4,7"
    )
    parser.add_argument("--scale", default="full", help=" ".join(config_files.scales()))
    parser.add_argument(
        "--workdir", help="directory of the runs; default runs/<experiment>"
    )
    parser.add_argument("--out", help="directory of the tables; default the workdir")
    parser.add_argument(
        "--print",
        action="store_true",
        help="print the command of each run, for a scheduler, and do nothing",
    )
    return parser


def plan(
    options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[config_files.Experiment, list[grid.Cell]]:
    """Returns the runs that are asked for, all of them checked.

    Raises:
      UsageError: whatever is wrong with an option, a row or a field.
    """
    experiment = config_files.load_experiment(options.experiment)
    if options.scale not in config_files.scales():
        raise UsageError(
            f"--scale={options.scale} is not known; choose one of "
            f"{', '.join(config_files.scales())}."
        )
    for override in overrides:
        if not override.startswith(("--config.", "--noconfig.")):
            raise UsageError(
                f"{override} is not a flag of sweep.py; fields are written "
                "--config.<field>=<value>."
            )
        if override.startswith("--config.seed="):
            raise UsageError(f"{override}: the seeds are chosen with --seeds.")
    rows = _select(experiment.rows, options.rows)
    cells = [
        _cell(experiment, row, seed, options, overrides)
        for row in rows
        for seed in _seeds(options.seeds)
    ]
    return experiment, cells


def _select(rows: Sequence[str], patterns: str) -> list[str]:
    """Returns the rows that match, in their own order."""
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not fnmatch.filter(rows, pattern):
            raise UsageError(
                f"--rows={patterns}: no row is called {pattern!r}; they are "
                f"{', '.join(rows)}."
            )
    return [row for row in rows if any(fnmatch.fnmatchcase(row, p) for p in wanted)]


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"--seeds={text} must be a number of seeds, such as 3, or the seeds "
            "themselves, such as 0,1,2."
        )
    numbers = [int(part) for part in parts]
    seeds = numbers if len(numbers) > 1 else [*range(numbers[0])]
    if not seeds or len({*seeds}) < len(seeds):
        raise UsageError(f"--seeds={text} must name one seed or more, each once.")
    return seeds


def _cell(
    experiment: config_files.Experiment,
    row: str,
    seed: int,
    options: argparse.Namespace,
    overrides: Sequence[str],
) -> grid.Cell:
    name = f"{experiment.path}:{row}"
    if options.scale != "full":
        name += f"@{options.scale}"
    workdir = pathlib.Path(_workdir(options)) / row / f"seed{seed}"
    code = _code(name)
    measures = {mode: dict(flags) for mode, flags in experiment.measures.items()}
    if "equivariance" in measures and code:
        measures["equivariance"].setdefault("codes", code)
    flags = {k: v for each in measures.values() for k, v in each.items()}
    arguments = [
        f"--config={name}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        *overrides,
        f"--mode={','.join(['train', *measures])}",
        *(f"--{flag}={value}" for flag, value in flags.items()),
    ]
    try:
        arguments = program.with_effect(["main.py", *arguments])[1:]
        config = program.parse(["main.py", *arguments]).config
    except UsageError as error:
        raise UsageError(f"{row}: {error}") from error
    return grid.Cell(
        experiment=pathlib.Path(experiment.path).stem,
        row=row,
        seed=seed,
        code=code,
        config=json.loads(config.to_json()),
        measures=measures,
        directory=workdir,
        arguments=tuple(arguments),
    )


def _workdir(options: argparse.Namespace) -> str:
    return options.workdir or f"runs/{pathlib.Path(options.experiment).stem}"


def _code(name: str) -> str:
    """Returns the augmentation that a row is about; "" for SimCLR's without one."""
    config = config_files.load(name)
    there = config.learned in config.augmentation.stack
    return config.learned if there or config.method != "simclr" else ""


class _Overview:
    """Says how far the sweep is, above or beside a bar for all of it."""

    def __init__(self, cells: Sequence[grid.Cell]):
        self._total = len(cells)
        self._done = self._total - len(grid.unfinished(cells))
        self._began, self._before = time.monotonic(), self._done
        self._bar = tqdm.tqdm(
            total=self._total,
            initial=self._done,
            bar_format="{n:.0f} of {total} runs  {desc}",
            disable=not sys.stderr.isatty(),
            leave=False,
        )

    def left(self, share: float = 0.0) -> str:
        """Returns the time that the rest will take, from what was done so far."""
        done = self._done + share - self._before
        if done <= 0:
            return "?"
        pace = (time.monotonic() - self._began) / done
        return duration(pace * (self._total - self._done - share))

    def show(self, cell: grid.Cell, share: float) -> None:
        """Shows the run at work, and how much of its training is done."""
        epoch = f"epoch {share * cell.epochs:.0f}/{cell.epochs}"
        text = f"{cell.name}  {epoch}  {self.left(share)} left"
        self._bar.set_description_str(text)

    def finished(self, cell: grid.Cell) -> None:
        """Says what was found."""
        self._done += 1
        self._bar.update(1)
        found = [
            f"{results.measure_of(name).title.removesuffix(' [%]')} "
            f"{results.shown([value], percent=results.measure_of(name).percent)}"
            for name, value in results.of_cell(cell).items()
        ]
        seconds = cell.record().get("seconds", 0.0)
        self._say(f"{cell.name}  {'  '.join(found)}  {duration(seconds)}")

    def failed(self, cell: grid.Cell) -> None:
        """Says why; the sweep goes on."""
        self._done += 1
        self._bar.update(1)
        self._say(f"{cell.name}  failed: {cell.record()['error']}")

    def _say(self, text: str) -> None:
        _log.info("[%d of %d, %s left] %s", self._done, self._total, self.left(), text)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


def perform(cells: Sequence[grid.Cell], stop: grid.Stop) -> Iterator[grid.Cell]:
    """Runs what is not finished, and yields each run that has ended.

    A run that another sweep is at comes last, and is waited for.
    """
    overview = _Overview(cells)
    waiting = grid.unfinished(cells)
    try:
        while waiting and not stop.signal:
            before, waiting = waiting, []
            for cell in before:
                if stop.signal:
                    break
                with cell.claimed() as claim:
                    if claim is None:
                        waiting.append(cell)
                        continue
                    _perform(cell, claim, stop, overview)
                yield cell
            if waiting == before:
                overview.show(waiting[0], waiting[0].share)
                time.sleep(_SECONDS_OF_WAITING)
    finally:
        overview.close()


def _perform(cell: grid.Cell, claim: int, stop: grid.Stop, overview: _Overview) -> None:
    if cell.finished:
        cell.settle()
        overview.finished(cell)
    elif grid.run(cell, claim, stop, lambda share: overview.show(cell, share)):
        overview.finished(cell)
    elif not stop.signal:
        overview.failed(cell)


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Does what the command line asks for, and returns the exit status."""
    experiment, cells = plan(options, overrides)
    if options.print:
        for cell in cells:
            print(cell.command)
        return 0
    out = pathlib.Path(options.out or _workdir(options))
    title = f"{pathlib.Path(experiment.path).stem}, scale {options.scale}"
    about = f"`{shlex.join(['python', 'sweep.py', *options.given])}`"
    _log.info("%d runs, %d to do", len(cells), len(grid.unfinished(cells)))
    with grid.Stop() as stop:
        for _ in perform(cells, stop):
            results.write(results.collect(cells), out, title, about)
        results.write(results.collect(cells), out, title, about)
    if stop.signal:
        _log.info("stopped; the same command goes on")
        return 128 + stop.signal
    left = grid.unfinished(cells)
    _log.info("tables in    %s", out)
    for cell in left:
        _log.error("%s: %s", cell.name, cell.record().get("error", "not run"))
    return 1 if left else 0


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    prepare_streams()
    log_to_terminal(logging.INFO)
    # Nothing is computed here, and no accelerator is taken from those who do.
    jax.config.update("jax_platforms", "cpu")
    parser = _parser()
    try:
        options, overrides = parser.parse_known_args(argv[1:])
        options.given = argv[1:]
        return sweep(options, overrides)
    except argparse.ArgumentError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    except UsageError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
