"""Runs the rows of an experiment one after another, and makes a table of them.

    python sweep.py --experiment=configs/figure4.py --rows='*-rot,simclr' --seeds=3

Every row is trained and measured with every seed, each by a command of main.py of its
own. Whatever is finished is skipped, whatever was interrupted goes on, and a row that
fails does not keep the others from being run: the same command again does the rest. In
the work directory appear table.md, table.csv, runs.csv and chart.png. Fields can be set
for all rows that read them: --config.dataset.path=<images>.
"""

import argparse
import contextlib
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

from duet_jax import cli as program
from duet_jax.config import loading
from duet_jax.errors import UsageError, lookup
from duet_jax.evaluation import EVALUATORS
from duet_jax.loggers.progress import duration
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.runtime.terminal import (
    flush_output,
    log_to_terminal,
    prepare_streams,
    printable,
)
from duet_jax.sweeps import runner, tables
from duet_jax.sweeps.trial import Trial

_log = logging.getLogger(__name__)

# Until it is looked again whether another sweep has finished a run.
_SECONDS_OF_WAITING = 5.0
# Without a terminal: after which a run at work is mentioned again.
_SECONDS_OF_SILENCE = 300.0


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
        "--seeds", default="1", help="how many, from 0 on; or which: 3,4,7, or 7,"
    )
    parser.add_argument("--scale", default="full", help=" ".join(loading.scales()))
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


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    """Returns the runs that are asked for, all of them checked.

    Raises:
      UsageError: whatever is wrong with an option, a row or a field.
    """
    experiment = loading.load_experiment(options.experiment)
    if options.scale not in loading.scales():
        raise UsageError(
            f"--scale={options.scale} is not known; choose one of "
            f"{', '.join(loading.scales())}."
        )
    for name in ("workdir", "out"):
        if getattr(options, name) == "":
            raise UsageError(f"--{name}='' must name a directory, or be left out.")
    _check_measures(experiment)
    for override in overrides:
        _check_override(override)
    seeds = _seeds(options.seeds)
    rows = _select([*experiment.rows], options.rows)
    trials = [
        trial
        for row in rows
        for trial in _trials(experiment, row, seeds, options, overrides)
    ]
    for override in overrides:
        if not any(override in trial.arguments for trial in trials):
            raise UsageError(
                f"{override} has no effect in any of the rows that are chosen; leave "
                "it out, or choose others with --rows."
            )
    return trials


def _check_measures(experiment: loading.Experiment) -> None:
    for mode, flags in experiment.measures.items():
        where = f"--experiment={experiment.path}: MEASURES"
        try:
            known = lookup(EVALUATORS, mode, "mode").flags
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        for flag in flags:
            if flag not in known:
                raise UsageError(
                    f"{where}: {mode} has no flag {flag!r}; it has "
                    f"{', '.join(known) or 'none'}."
                )


def _check_override(override: str) -> None:
    if program.field_of(override) is None:
        raise UsageError(
            f"{override} is not a flag of sweep.py; fields are written "
            "--config.<field>=<value>."
        )
    if program.field_of(override) == "seed":
        raise UsageError(f"{override}: the seeds are chosen with --seeds.")


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
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(
            f"--seeds={text} must be a number of seeds, such as 3, or the seeds "
            "themselves, such as 0,1,2."
        )
    numbers = [int(part) for part in parts]
    seeds = numbers if "," in text else [*range(numbers[0])]
    if not seeds or len({*seeds}) < len(seeds):
        raise UsageError(f"--seeds={text} must name one seed or more, each once.")
    return seeds


def _trials(
    experiment: loading.Experiment,
    row: str,
    seeds: Sequence[int],
    options: argparse.Namespace,
    overrides: Sequence[str],
) -> Iterator[Trial]:
    """Yields a row with each of the seeds."""
    try:
        first = _trial(experiment, row, seeds[0], options, overrides)
        for seed in seeds:
            directory = first.directory.with_name(f"seed{seed}")
            changes = {
                f"--workdir={first.directory}": f"--workdir={directory}",
                f"--config.seed={seeds[0]}": f"--config.seed={seed}",
            }
            trial = first._replace(
                seed=seed,
                config=first.config | {"seed": seed},
                directory=directory,
                arguments=tuple(changes.get(each, each) for each in first.arguments),
            )
            trial.check()
            yield trial
    except UsageError as error:
        raise UsageError(f"{row}: {error}") from error


def _trial(
    experiment: loading.Experiment,
    row: str,
    seed: int,
    options: argparse.Namespace,
    overrides: Sequence[str],
) -> Trial:
    for override in overrides:
        # The images that a row is about may lie in a folder.
        place = override == "--config.dataset.name=folder"
        if program.field_of(override) in experiment.rows[row] and not place:
            raise UsageError(
                f"{override} is what the row is about; leave it out, or choose other "
                "rows with --rows."
            )
    name = f"{experiment.path}:{row}"
    if options.scale != "full":
        name += f"@{options.scale}"
    directory = _workdir(options) / row / f"seed{seed}"
    code = _code(name)
    measures = _measures(experiment, code)
    flags = {k: v for each in measures.values() for k, v in each.items()}
    arguments = [
        f"--config={name}",
        f"--workdir={directory}",
        f"--config.seed={seed}",
        *overrides,
        f"--mode={','.join(['train', *measures])}",
        *(f"--{flag}={value}" for flag, value in flags.items()),
    ]
    (_, *arguments), command = program.with_effect(["main.py", *arguments])
    return Trial(
        experiment=pathlib.Path(experiment.path).stem,
        row=row,
        seed=seed,
        code=code,
        config=json.loads(command.config.to_json()),
        measures=measures,
        directory=directory,
        arguments=tuple(arguments),
    )


def _measures(experiment: loading.Experiment, code: str) -> dict[str, dict[str, str]]:
    """Returns what is measured of a row that is about an augmentation, or about none.

    An equivariance is that to the row's augmentation unless the experiment says more.
    """
    measures = {mode: dict(flags) for mode, flags in experiment.measures.items()}
    if not measures.get("equivariance", {"codes": ""}):
        if code:
            measures["equivariance"]["codes"] = code
        else:
            del measures["equivariance"]
    return measures


def _workdir(options: argparse.Namespace) -> pathlib.Path:
    default = f"runs/{pathlib.Path(options.experiment).stem}"
    given = default if options.workdir is None else options.workdir
    return files.local(given, "--workdir")


def _code(name: str) -> str:
    """Returns the augmentation that a row is about; "" for SimCLR's without one."""
    config = loading.load(name)
    there = config.learned in config.augmentation.stack
    return config.learned if there or config.method != "simclr" else ""


class _Overview:
    """Says how far the sweep is: a bar on a terminal, and lines anywhere."""

    def __init__(self, trials: Sequence[Trial]):
        self._trials, self._total, self._failed = trials, len(trials), 0
        self._done = self._total - len(runner.unfinished(trials))
        self._began, self._before = time.monotonic(), self._done
        self._spoken = self._began
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

    def started(self, trial: Trial) -> None:
        """Says what is run now."""
        self._say(f"{trial.name}  started, {trial.log}")

    def waiting(self, trial: Trial) -> None:
        """Says that another process is at a run."""
        self._say(f"{trial.name}  another process is at it; waiting for its end")

    def show(self, trial: Trial, share: float) -> None:
        """Shows the run at work, and how much of its training is done."""
        epoch = f"epoch {share * trial.epochs:.0f}/{trial.epochs}"
        self._bar.set_description_str(f"{self.left(share)} left  {trial.name}  {epoch}")
        silent = time.monotonic() - self._spoken
        if self._bar.disable and silent > _SECONDS_OF_SILENCE:
            self._say(f"{trial.name}  {epoch}", share)

    def finished(self, trial: Trial) -> None:
        """Says what was found."""
        self._count()
        found = [
            f"{tables.measure_of(name).title.removesuffix(' [%]')} "
            f"{tables.shown([value], percent=tables.measure_of(name).percent)}"
            for name, value in trial.found().items()
        ]
        seconds = trial.record().get("seconds")
        taken = [] if seconds is None else [duration(seconds)]
        self._say("  ".join([trial.name, *found, *taken]))

    def failed(self, trial: Trial) -> None:
        """Says why; the sweep goes on."""
        self._failed += 1
        self._count()
        self._say(f"{trial.name}  failed: {_error(trial)}")

    def _count(self) -> None:
        """Looks how many runs have ended, whoever has run them."""
        left = len(runner.unfinished(self._trials)) - self._failed
        self._done = self._total - left
        self._bar.update(self._done - self._bar.n)

    def _say(self, text: str, share: float = 0.0) -> None:
        self._spoken = time.monotonic()
        left = self.left(share)
        _log.info("[%d of %d, %s left] %s", self._done, self._total, left, text)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


def _check_images(trial: Trial) -> None:
    try:
        trial.check_images()
    except UsageError as error:
        raise UsageError(f"{trial.row}: {error}") from error


def _error(trial: Trial) -> str:
    """Returns what a run that failed has said last."""
    return trial.record().get("error") or f"not complete; see {trial.log}"


def perform(trials: Sequence[Trial], stop: runner.Stop) -> Iterator[Trial]:
    """Runs what is not finished, and yields each run that has ended.

    A run that another process is at comes last, and is waited for.
    """
    overview = _Overview(trials)
    waiting, told = runner.unfinished(trials), False
    try:
        while waiting and not stop.signal:
            before, waiting = waiting, []
            for trial in before:
                if stop.signal:
                    break
                with trial.claimed() as claim:
                    if claim is None:
                        waiting.append(trial)
                        continue
                    _perform(trial, claim, stop, overview)
                yield trial
            if waiting == before:
                if not told:
                    overview.waiting(waiting[0])
                told = True
                overview.show(waiting[0], waiting[0].share)
                time.sleep(_SECONDS_OF_WAITING)
    finally:
        overview.close()


def _perform(trial: Trial, claim: int, stop: runner.Stop, overview: _Overview) -> None:
    if not trial.finished:
        overview.started(trial)
        runner.run(trial, claim, stop, lambda share: overview.show(trial, share))
    if trial.finished:
        overview.finished(trial)
    elif not stop.signal:
        overview.failed(trial)


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Does what the command line asks for, and returns the exit status.

    Raises:
      UsageError: whatever the user can put right, before anything is run.
      OSError: the work directory or the tables cannot be written any more.
    """
    trials = plan(options, overrides)
    if options.print:
        for trial in trials:
            print(trial.command)
        return 0
    out = _workdir(options)
    if options.out is not None:
        out = files.local(options.out, "--out")
    workdir.check_writable(_workdir(options), "--workdir")
    workdir.check_writable(out, "--workdir" if options.out is None else "--out")
    about = f"`{shlex.join(['python', 'sweep.py', *options.given])}`"
    for trial in trials:
        _check_images(trial)
    count = f"{len(trials)} run{'s' if len(trials) > 1 else ''}"
    _log.info("%s, %d to do", count, len(runner.unfinished(trials)))

    def write() -> None:
        tables.write(tables.collect(trials), out, scale=options.scale, about=about)

    with runner.Stop() as stop:
        for _ in perform(trials, stop):
            write()
        write()
    if stop.signal:
        _log.info("stopped; the same command goes on")
        return 128 + stop.signal
    left = runner.unfinished(trials)
    _log.info("tables in    %s", out)
    for trial in left:
        _log.error("%s: %s", trial.name, _error(trial))
    return 1 if left else 0


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    prepare_streams()
    log_to_terminal(logging.INFO)
    # Nothing is computed here, and no accelerator is taken from those who do.
    jax.config.update("jax_platforms", "cpu")
    try:
        options, overrides = _parser().parse_known_args(argv[1:])
        options.given = argv[1:]
        status = sweep(options, overrides)
        flush_output()
        return status
    except (argparse.ArgumentError, UsageError) as error:
        text, status = str(error), 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        text, status = f"{place}{error.strerror or error}; put that right, and go on", 1
    except KeyboardInterrupt:  # while the rows were checked
        return 130
    print(f"error: {printable(text)}", file=sys.stderr)
    with contextlib.suppress(OSError):
        flush_output()
    return status
