r"""Runs the rows of an experiment with several seeds, and makes tables of the results.

    python sweep.py --experiment=configs/figure4.py --rows='*-rot,simclr' --seeds=3

Each row is trained and measured with each seed, by a main.py command of its own.
Finished runs are skipped, interrupted ones continue, and a row that fails does not stop
the others: rerun the same command for what is left. The work directory receives
table.md, table.csv, runs.csv and chart.png. Fields can be set for all rows that read
them: --config.dataset.path=<images>.

On a cluster with Slurm the runs are jobs of an array (docs/cluster.md):

    python sweep.py --experiment=configs/figure4.py --seeds=3 --launcher=slurm \
        --slurm=time=8:00:00 --slurm=gpus-per-node=1 --slurm=partition=gpu
"""

import argparse
import contextlib
import fnmatch
import json
import logging
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence

from duet_jax import cli as program
from duet_jax.augmentations import split_codes
from duet_jax.config import loading
from duet_jax.config.build import reads_learned
from duet_jax.errors import UsageError, lookup, suggestion
from duet_jax.evaluation import EVALUATORS
from duet_jax.lazy import jax
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.runtime.terminal import (
    flush_output,
    log_to_terminal,
    prepare_streams,
    printable,
)
from duet_jax.sweeps import launchers, runner, tables
from duet_jax.sweeps.overview import error_of
from duet_jax.sweeps.trial import Trial

_log = logging.getLogger(__name__)


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
        "--seeds",
        default="1",
        help="how many, from 0 on; or which ones: 3,4,7, or 7, for a single one",
    )
    parser.add_argument("--scale", default="full", help=" ".join(loading.scales()))
    parser.add_argument(
        "--workdir", help="directory of the runs; default runs/<experiment>"
    )
    parser.add_argument("--out", help="directory of the tables; default the workdir")
    parser.add_argument(
        "--print",
        action="store_true",
        help="print the command of each run, for a scheduler, and run nothing",
    )
    launchers.add_flags(parser)
    return parser


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    """Returns the runs that are asked for, all of them checked.

    Raises:
      UsageError: something wrong with an option, a row or a field.
    """
    for override in overrides:
        if program.field_of(override) is None:
            known = [f"--{name}" for name in vars(options)]
            raise UsageError(
                f"{override} is not a flag of sweep.py; fields are written "
                "--config.<field>=<value>."
                f"{suggestion(override.partition('=')[0], known)}"
            )
    experiment = loading.load_experiment(options.experiment)
    lookup(dict.fromkeys(loading.scales()), options.scale, "--scale")
    for name in ("workdir", "out"):
        if getattr(options, name) == "":
            raise UsageError(f"--{name}='' must name a directory, or be left out.")
    _check_measures(experiment)
    for override in overrides:
        if program.field_of(override) == "seed":
            raise UsageError(f"{override}: choose the seeds with --seeds.")
    seeds = _seeds(options.seeds)
    trials = []
    for row in _select([*experiment.rows], options.rows):
        with _of_row(row):
            trials += _trials(experiment, row, seeds, options, overrides)
    for override in overrides:
        if not any(override in trial.arguments for trial in trials):
            raise UsageError(
                f"{override} has no effect in any of the chosen rows; leave it out, or "
                "choose others with --rows."
            )
    return trials


def _check_measures(experiment: loading.Experiment) -> None:
    where = f"--experiment={experiment.path}: MEASURES"
    for mode, flags in experiment.measures.items():
        known = lookup(EVALUATORS, mode, f"{where}: mode").flags
        for flag in flags:
            if flag not in known:
                raise UsageError(
                    f"{where}: {mode} has no flag {flag!r}; it has "
                    f"{', '.join(known) or 'none'}."
                )


def _select(rows: Sequence[str], patterns: str) -> list[str]:
    """Returns the rows that match, in their own order."""
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not fnmatch.filter(rows, pattern):
            raise UsageError(
                f"--rows={patterns}: no row is called {pattern!r}; they are "
                f"{', '.join(rows)}.{suggestion(pattern, rows)}"
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


@contextlib.contextmanager
def _of_row(row: str) -> Iterator[None]:
    """Names the row in a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{row}: {error}") from error


def _trials(
    experiment: loading.Experiment,
    row: str,
    seeds: Sequence[int],
    options: argparse.Namespace,
    overrides: Sequence[str],
) -> list[Trial]:
    """Returns a row with each of the seeds, checked."""
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
    codes = experiment.codes.get(row) or _codes(name)
    measures = _measures(experiment, codes)
    flags = {k: v for each in measures.values() for k, v in each.items()}
    measuring = [
        f"--mode={','.join(['train', *measures])}",
        *(f"--{flag}={value}" for flag, value in flags.items()),
    ]
    directory = _workdir(options) / row

    def arguments(seed: int, fields: Sequence[str]) -> tuple[str, ...]:
        place = f"--workdir={directory / f'seed{seed}'}"
        return f"--config={name}", place, f"--config.seed={seed}", *fields, *measuring

    # The seeds have a range; the rest is the same for all of them.
    command, unused = program.read(["main.py", *arguments(max(seeds), overrides)])
    config = json.loads(command.config.to_json())
    fields = [each for each in overrides if program.field_of(each) not in unused]
    trials = [
        Trial(
            experiment=pathlib.Path(experiment.path).stem,
            row=row,
            seed=seed,
            codes=codes,
            config=config | {"seed": seed},
            measures=measures,
            directory=directory / f"seed{seed}",
            arguments=arguments(seed, fields),
        )
        for seed in seeds
    ]
    for trial in trials:
        trial.check()
    return trials


def _codes(name: str) -> tuple[str, ...]:
    """Returns the augmentations that a row is about.

    Of a method that learns none, those that its stack has.
    """
    config = loading.load(name)
    codes = split_codes(config.learned)
    if not reads_learned(config.method):
        return tuple(code for code in codes if code in config.augmentation.stack)
    return codes


def _measures(
    experiment: loading.Experiment, codes: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """Returns the evaluations of a row that is about `codes`, which may be none.

    Equivariance and generation are measured for these codes unless the experiment names
    others; without a code they are not.
    """
    measures = {mode: dict(flags) for mode, flags in experiment.measures.items()}
    # Evaluations of one command share their flags.
    if any("codes" in flags for flags in measures.values()):
        return measures
    for mode in ("equivariance", "generation"):
        if mode in measures and codes:
            measures[mode]["codes"] = ",".join(codes)
        elif not codes:
            measures.pop(mode, None)
    return measures


def _workdir(options: argparse.Namespace) -> pathlib.Path:
    default = f"runs/{pathlib.Path(options.experiment).stem}"
    return files.local(options.workdir or default, "--workdir")


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Does what the command line asks for, and returns the exit status.

    Raises:
      UsageError: something the user can fix, before anything is run.
      OSError: the work directory or the tables can no longer be written.
    """
    trials = plan(options, overrides)
    launcher = launchers.make(options, _workdir(options))
    if options.print:
        for trial in trials:
            print(trial.command)
        return 0
    out = _workdir(options)
    workdir.check_writable(out, "--workdir")
    if options.out is not None:
        out = files.local(options.out, "--out")
        workdir.check_writable(out, "--out")
    about = f"`{shlex.join(['python', 'sweep.py', *options.given])}`"
    for trial in trials:
        with _of_row(trial.row):
            trial.check_images()
    count = f"{len(trials)} run{'s' if len(trials) > 1 else ''}"
    _log.info("%s, %d to do", count, len(runner.unfinished(trials)))

    def write() -> None:
        tables.write(tables.collect(trials), out, scale=options.scale, about=about)

    # This process computes nothing; the runs need the accelerators.
    jax.config.update("jax_platforms", "cpu")
    with runner.Stop() as stop:
        launcher.perform(trials, stop, write)
        write()
    if stop.signal:
        _log.info("%s", launcher.farewell)
        return 128 + stop.signal
    left = runner.unfinished(trials)
    if len(left) == len(trials):
        _log.error("no run has finished; there is nothing to put in a table")
    else:
        _log.info("tables in    %s", out)
    for trial in left:
        _log.error("%s: %s", trial.name, error_of(trial))
    return 1 if left else 0


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    prepare_streams()
    log_to_terminal(logging.INFO)
    try:
        if not argv[1:]:
            print(loading.overview(experiments=True))
            print("\npython sweep.py --experiment=<name>, and more with --help")
            return 0
        options, overrides = _parser().parse_known_args(argv[1:])
        options.given = argv[1:]
        status = sweep(options, overrides)
        flush_output()
        return status
    except (argparse.ArgumentError, UsageError) as error:
        text, status = str(error), 2
    except OSError as error:
        text, status = error.strerror or str(error), 1
        if error.filename:
            text = f"{error.filename}: {text}"
        text += "; fix this and rerun the same command"
    except KeyboardInterrupt:  # while the rows were checked
        return 130
    print(f"error: {printable(text)}", file=sys.stderr)
    with contextlib.suppress(OSError):
        flush_output()
    return status
