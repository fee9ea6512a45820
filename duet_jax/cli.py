"""Trains DUET, SimCLR or ESSL, and measures what has been trained.

    python main.py --config=configs/cifar10_duet_rot.py --workdir=runs/rot
    python main.py --workdir=runs/rot --mode=linear_probe,knn
    python main.py --config=configs/figure4.py:duet-rot --mode=train,linear_probe

Any field of the configuration can be set: --config.batch_size=512. An evaluation takes
the run's own configuration; there, only what does not alter the run can be set.
"""

import contextlib
import errno
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from duet_jax.config import checks, loading
from duet_jax.errors import InterruptionError, TrainingError, UsageError, lookup
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.evaluate import evaluate
from duet_jax.profiling import benchmark
from duet_jax.runs import workdir
from duet_jax.runtime import files, processes
from duet_jax.runtime.terminal import (
    flush_output,
    log_to_terminal,
    prepare_streams,
    printable,
)
from duet_jax.training.train import train

_ROOT = pathlib.Path(__file__).parents[1]
_DEFAULT_CONFIG = str(_ROOT / "configs" / "digits_duet_rot.py")

# What is done with a configuration: name -> function of (resolved config, work
# directory) and the flags that are given of those it takes. With the work directory of
# a run the EVALUATORS do what they do.
PROGRAMS: dict[str, Callable[..., None]] = {"train": train, "benchmark": benchmark}
MODES = (*PROGRAMS, *EVALUATORS)

# Flags besides --config: name -> (default, meaning).
_FLAGS: dict[str, tuple[str | None, str]] = {
    "workdir": (
        None,
        "Directory of the run; default runs/<name of the configuration file>.",
    ),
    "mode": (
        "train",
        f"What to do: {', '.join(MODES)}; or several, one after another, such as "
        "train,linear_probe,knn.",
    ),
    "step": (None, "Checkpoint to evaluate: a number, newest or best; default newest."),
    "protocol": (None, "Of linear_probe: lbfgs or sgd; default lbfgs."),
    "codes": (
        None,
        "Of equivariance: augmentations to measure, such as rot,sca; default the one "
        "that was learnt, or all of the stack.",
    ),
    "datasets": (
        None,
        "Of transfer: mnist,digits,folder:<path> ...; a comma in a path is written \\,",
    ),
    "out": (
        None,
        "File to write. Of features: .npz, default eval/features.npz of the run; of "
        "benchmark: .json, default benchmark.json in the workdir.",
    ),
    "images": (
        None,
        "Of benchmark: noise or real; default noise, which needs no data.",
    ),
    "coordinator_address": (
        None,
        "Of train and benchmark, with several processes: host:port at which the first "
        "one listens. srun and mpirun need none of these three.",
    ),
    "num_processes": (None, "Likewise: processes of the job; 1 for this one alone."),
    "process_id": (None, "Likewise: which of them this is, from 0."),
}
# Those that every mode takes.
_COMMON = ("workdir", "mode")
# Those of the modes that take a configuration, and not a run.
_CLUSTER = ("coordinator_address", "num_processes", "process_id")
_BEFORE_A_RUN = {"train": _CLUSTER, "benchmark": ("images", "out", *_CLUSTER)}

# Ways to write these two switches, which count wherever they stand.
_HELP = {"--help", "-help", "-h"}
_DEBUG = {"--debug", "-debug", "--debug=true"}

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
# What JAX says when it no longer reaches another process.
_LOST = re.compile(r"(?i)connection (closed|reset|refused)|peer|heartbeat|UNAVAILABLE")
# What it says when memory does not suffice: GPUs, and processors.
_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|Out of memory allocating")
# Flags that absl reads in any program: they would bring in others, or hide them.
_OF_ABSL = re.compile(r"--?(flagfile|undefok)(=|$)")
_BAD_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
      config: resolved.
      workdir: directory of the run.
      modes: one or more of MODES.
      options: the other flags that are given, by name.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    modes: tuple[str, ...]
    options: dict[str, str]


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line.

    Raises:
      UsageError: whatever is wrong on it or in the configuration.
    """
    command, unused = _read(argv)
    for name, reason in unused.items():
        raise UsageError(
            f"config.{name} has no effect with {reason}; leave it out, or change that."
        )
    return command


def with_effect(argv: Sequence[str]) -> tuple[list[str], Command]:
    """Returns the arguments without the fields that nothing reads, and what they ask.

    So that one list of fields can be given to commands that differ, say, in method.

    Raises:
      UsageError: as `parse`, save for those fields.
    """
    command, unused = _read(argv)
    return [each for each in argv if field_of(each) not in unused], command


def field_of(argument: str) -> str | None:
    """Returns the field that an argument sets, such as epochs; None if it sets none."""
    match = _OVERRIDE.match(argument)
    return match and match[1]


def _read(argv: Sequence[str]) -> tuple[Command, dict[str, str]]:
    """Returns what is asked for, and why which of the fields set has no effect."""
    path, arguments = _split(argv[1:])
    program = _program_flags(argv[:1] + arguments)
    modes = _modes(program.mode)
    evaluating = modes[0] not in PROGRAMS
    if evaluating:
        defaults = _of_the_run(path, program)
    else:
        path = _DEFAULT_CONFIG if path is None else path
        defaults = loading.load(path)
    names = [name for name in map(field_of, arguments) if name is not None]
    checks.check_names(defaults, names)
    if evaluating:
        measured = [field for mode in modes for field in EVALUATORS[mode].fields]
        checks.check_evaluation(names, measured)
    known = dict(checks.fields(defaults))
    arguments = [argv[0], *(_with_commas(each, known) for each in arguments)]
    values = _flags(defaults, arguments)
    try:
        rest = values(arguments)
    except flags.Error as error:
        raise _explained(error, known) from error
    if rest[1:]:
        raise UsageError(f"{rest[1]!r} is not a flag; write --config.<field>=<value>.")
    config = checks.check(values.config, defaults)
    for mode in modes:
        if mode in EVALUATORS:
            EVALUATORS[mode].check(**_own(_options(values), EVALUATORS[mode].flags))
    directory = values.workdir or f"runs/{loading.stem(path)}"
    place = files.local(directory, "--workdir")
    command = Command(config, place, modes, _options(values))
    return command, checks.unused(values.config, names)


def _own(options: Mapping[str, str], flags: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name in flags}


def _modes(names: str) -> tuple[str, ...]:
    """Returns what --mode asks for, one thing after another."""
    modes = tuple(name.strip() for name in names.split(","))
    for mode in modes:
        lookup(dict.fromkeys(MODES), mode, "--mode")
    for mode in modes[1:]:
        if mode in PROGRAMS or modes[0] == "benchmark":
            raise UsageError(
                f"--mode={names}: {mode} cannot come after {modes[0]}; evaluations "
                "can, of a run or after its training."
            )
    if len({*modes}) < len(modes):
        raise UsageError(f"--mode={names} names a mode twice.")
    return modes


def _program_flags(arguments: Sequence[str]) -> flags.FlagValues:
    """Reads the flags that are not fields of a configuration, and checks them.

    They decide which configuration there is, and so come first.
    """
    values = flags.FlagValues()
    _define(values)
    for argument in arguments:
        if _OF_ABSL.match(argument):
            raise _explained(flags.Error(f"{argument} is not taken here"), {})
        _check_encoding(argument)
    try:
        values(arguments, known_only=True)
    except flags.Error as error:
        raise _explained(error, {}) from error
    modes = _modes(values.mode)
    if values.workdir == "":
        raise UsageError("--workdir='' must name a directory, or be left out.")
    for name in ("workdir", "out"):
        files.local(values[name].value or "", f"--{name}")
    taken = {name for mode in modes for name in _taken(mode)}
    for name in _options(values):
        if name not in taken:
            takers = [mode for mode in MODES if name in _taken(mode)]
            raise UsageError(
                f"--{name} has no effect with --mode={values.mode}; it belongs to "
                f"--mode={' or '.join(takers)}."
            )
    several = [name for name in _options(values) if name in _CLUSTER]
    if several and any(mode in EVALUATORS for mode in modes):
        raise UsageError(
            f"--{several[0]} has no effect with --mode={values.mode}: evaluations take "
            "one process; evaluate in a job of its own."
        )
    return values


def _check_encoding(argument: str) -> None:
    """Raises a UsageError for what cannot be passed on to libraries in C++."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{argument} is not UTF-8; give that file or directory another name."
        ) from error


def _taken(mode: str) -> tuple[str, ...]:
    """Returns the names of the flags that are of use in a mode."""
    if mode in _BEFORE_A_RUN:
        return (*_COMMON, *_BEFORE_A_RUN[mode])
    return (*_COMMON, "step", *EVALUATORS[mode].flags)


def _options(values: flags.FlagValues) -> dict[str, str]:
    return {
        name: values[name].value
        for name in _FLAGS
        if name not in _COMMON and values[name].value is not None
    }


def _of_the_run(
    path: str | None, program: flags.FlagValues
) -> ml_collections.ConfigDict:
    """Returns the configuration of the run that is to be evaluated."""
    if path is not None:
        raise UsageError(
            f"--config={path} has no effect with --mode={program.mode}, which takes "
            "the run's own config.json; leave it out and name the --workdir."
        )
    if program.workdir is None:
        raise UsageError(
            f"--mode={program.mode} needs --workdir, the directory of a training."
        )
    saved = workdir.load_config(files.local(program.workdir, "--workdir"))
    try:
        return checks.completed(saved, loading.schema())
    except UsageError as error:
        raise UsageError(f"{program.workdir}: {error}") from error


def _define(values: flags.FlagValues) -> None:
    for name, (default, meaning) in _FLAGS.items():
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    flags.DEFINE_boolean(
        "debug",
        False,
        "Print the traceback of an error before the line that explains it.",
        flag_values=values,
    )


def _flags(
    defaults: ml_collections.ConfigDict, arguments: Sequence[str]
) -> flags.FlagValues:
    """Returns the program's flags, among them the fields that `arguments` set."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config",
        defaults.copy_and_resolve_references(),
        "Configuration file; default configs/digits_duet_rot.py.",
        flag_values=values,
        sys_argv=list(arguments),
    )
    _define(values)
    return values


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the last --config, or None, and all other arguments."""
    path, others = None, []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(remaining, "")
        else:
            others.append(argument)
    return path, others


def _with_commas(argument: str, known: Mapping[str, Any]) -> str:
    """Lets the words of a tuple be separated by spaces as well: 'sca rot'."""
    flag, _, value = argument.partition("=")
    match = _OVERRIDE.match(flag)
    plain = re.fullmatch(r"[^'\"()\[\]]+", value)
    if match and plain and isinstance(known[match[1]], tuple):
        return f"{flag}={','.join(value.replace(',', ' ').split())}"
    return argument


def _explained(error: flags.Error, known: Mapping[str, Any]) -> UsageError:
    match = _BAD_VALUE.match(str(error))
    if match:
        return checks.bad_value(match[1], match[2], known[match[1]])
    text = " ".join(str(error).split())
    names = ", ".join(f"--{name}" for name in ("config", *_FLAGS, "debug"))
    return UsageError(f"{text}; the flags are {names}.")


def help_text(argv: Sequence[str]) -> str:
    """Returns what --help prints: the flags, and the fields with their values."""
    path = _split(argv[1:])[0] or _DEFAULT_CONFIG
    defaults = loading.load(path)
    values = _flags(defaults, [])
    about = [f"  --{name}: {values[name].help}" for name in values]
    shown = [f"  --config.{name}={value!r}" for name, value in checks.fields(defaults)]
    title = f"Fields, explained in configs/base.py, with the values of {path}:"
    return "\n".join([__doc__, *about, "", title, "", *shown])


def perform(command: Command) -> None:
    """Does what is asked for, one mode after another."""
    config, directory, modes, options = command
    for mode in modes:
        if mode in PROGRAMS:
            own = _own(options, _BEFORE_A_RUN[mode])
            PROGRAMS[mode](config, directory, **own)
    measured = [mode for mode in modes if mode in EVALUATORS]
    if measured:
        processes.check_alone(f"--mode={','.join(measured)}")
        evaluate(measured, config, directory, **options)


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    debug = bool(_DEBUG & set(argv))
    # Orbax writes a page for each save, and several for one that fails and is told.
    absl_logging.set_verbosity(absl_logging.WARNING if debug else absl_logging.FATAL)
    prepare_streams()
    log_to_terminal(logging.INFO)
    command = None
    try:
        if _HELP & set(argv):
            print(help_text(argv))
        else:
            command = parse(argv)
            perform(command)
        flush_output()
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error, command)
        if told is None:
            if not processes.are_several():
                raise
            # For `processes.leave`: an exception that ends Python waits for the others.
            traceback.print_exception(error)
            return 1
        line, status = told
        if debug:
            traceback.print_exception(error)
        print(printable(line), file=sys.stderr)
        with contextlib.suppress(OSError):
            flush_output()
        return status
    return 0


def _told(error: BaseException, command: Command | None) -> tuple[str, int] | None:
    """Returns what is said of an error and the exit status; None for a defect.

    Args:
      error: that ends the program.
      command: what it was doing; None while the command line was read.
    """
    mode, directory = (command.modes[0], command.workdir) if command else (None, None)
    again = "the same command starts again"
    if mode == "train":
        again = "the same command goes on from the newest checkpoint"
    text = " ".join(str(error).split())
    lost = processes.are_several() and _LOST.search(text)
    match error:
        case UsageError():
            return f"error: {error}", 2
        case TrainingError():
            return f"error: {error}", 1
        case InterruptionError():
            return str(error), error.status
        case KeyboardInterrupt():
            return f"stopped; {again}", 130
        case OSError():
            place = error.filename or directory or "standard output"
            reason = error.strerror or text or type(error).__name__
            return f"error: {place}: {reason}; {_cure(error)}, then {again}.", 1
        case MemoryError():
            reason = f"this machine has too little memory ({text}); {_less(mode)}"
        case RuntimeError() if _EXHAUSTED.search(text):
            reason = f"the device has too little memory for this run; {_less(mode)}"
        # A ValueError where JAX meets the loss as it starts a computation.
        case RuntimeError() | ValueError() if lost:
            reason = (
                f"another process of this job is gone ({text[:160]}); see what the "
                f"others say, then {again}"
            )
        case _:
            return None
    return f"error: {reason}.", 1


def _cure(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give the right to it, or choose another place"
    return "put that right"


def _less(mode: str | None) -> str:
    remedy = "lower config.batch_size"
    if mode in _BEFORE_A_RUN:
        remedy += (
            " or config.encoder.width_multiplier, or use "
            "config.compute_dtype=bfloat16 or config.encoder.remat=true"
        )
    return remedy
