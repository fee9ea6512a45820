"""Trains DUET or one of its peers, and evaluates trained runs.

    python main.py --config=configs/cifar10_duet_rot.py --workdir=runs/rot
    python main.py --workdir=runs/rot --mode=linear_probe,knn
    python main.py --config=configs/figure4.py:duet-rot --mode=train,linear_probe
    python main.py --mode=compare --workdirs=runs/rot,runs/simclr
    python main.py --mode=equivariance,knn --encoder=onnx:encoder.onnx --workdir=other
    python main.py --mode=knn --init_from=encoder.safetensors --workdir=again

Any field of the configuration can be set: --config.batch_size=512. An evaluation uses
the configuration of its run; only fields that do not alter the run can be set then.
"""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from absl import logging as absl_logging
from etils import epy
from ml_collections import config_flags

import duet_jax
from duet_jax import catalog
from duet_jax.augmentations import options_read, split_codes
from duet_jax.config import checks, loading, naming
from duet_jax.errors import (
    InterruptionError,
    TrainingError,
    UsageError,
    lookup,
    suggestion,
)
from duet_jax.evaluation import EVALUATORS, follow_up
from duet_jax.evaluation import options as of_evaluators
from duet_jax.evaluation.evaluator import check_labels
from duet_jax.lazy import jax
from duet_jax.runs import external, workdir
from duet_jax.runs.history import parse_source
from duet_jax.runtime import devices, files, processes, provenance
from duet_jax.runtime.terminal import (
    doing,
    flush_output,
    log_to_terminal,
    prepare_streams,
    printable,
    signs_of_life,
)

with epy.lazy_imports():  # what is done, when it is
    from duet_jax import profiling
    from duet_jax.evaluation import compare, evaluate
    from duet_jax.runs import weights_file
    from duet_jax.training import train

_log = logging.getLogger(__name__)

# A --workdir that is named by the configuration.
_AUTO = "auto"

# Modes that take a configuration: name -> function of (resolved config, work directory,
# **flags). The other modes are EVALUATORS, which take the directory of a run.
PROGRAMS: dict[str, Callable[..., None]] = {
    "train": lambda config, directory, **flags: train.train(config, directory, **flags),
    "benchmark": lambda config, directory, **flags: profiling.benchmark(
        config, directory, **flags
    ),
    # Takes neither: its flags name several runs.
    "compare": lambda config, directory, **flags: compare.compare(**flags),
}
# Programs that several processes carry out together.
_SHARED = ("train", "benchmark")
# Name -> what it does.
MODES = {
    "train": "trains an encoder, or continues a training",
    "benchmark": "times the compiled step of a configuration",
    "compare": "a page of several runs",
    **{mode: each.summary for mode, each in EVALUATORS.items()},
}


class Flag(NamedTuple):
    """A flag of the program.

    Attributes:
      modes: the modes that take it; none for a flag that every command reads.
      meaning: for --help.
      switch: True if it takes no value.
    """

    modes: Collection[str]
    meaning: str
    switch: bool = False


def _evaluators_with(flag: str) -> tuple[str, ...]:
    return tuple(mode for mode, each in EVALUATORS.items() if flag in each.flags)


FLAGS = {
    "config": Flag(
        (),
        "Configuration file, or the name of one in configs/; default that of the run "
        "in --workdir, if there is one, else digits_duet_rot.",
    ),
    "workdir": Flag(
        (),
        "Directory of the run; default runs/<name of the configuration file>. auto: "
        "that name and the fields that are set otherwise, such as runs/smoke-seed1.",
    ),
    "mode": Flag(
        (),
        f"What to do: {', '.join(MODES)}; or several in this order, such as "
        "train,linear_probe,knn. Default train.",
    ),
    "step": Flag(
        EVALUATORS, "Checkpoint to evaluate: a number, newest or best; default newest."
    ),
    "encoder": Flag(
        tuple(mode for mode, each in EVALUATORS.items() if not each.needs_run),
        "For evaluations: an encoder from elsewhere in the place of a run, onnx:<file> "
        "or python:<module>:<function>, which takes float32 images [n, side, side, "
        "channels] from 0 to 1 and returns features [n, d]. --config says on which "
        "images and views it is measured, --workdir where the results go.",
    ),
    "init_from": Flag(
        ("train", *EVALUATORS),
        "For train: <workdir>[:<step>] of a run whose weights a new run begins with, "
        "step as in --step; or a file of weights, .safetensors or a state dict of the "
        "reference (.pt, .pth, .ckpt). For evaluations: such a file, of which a run is "
        "made in --workdir; where it does not say what its encoder is, --config does.",
    ),
    "extend": Flag(
        ("train",),
        "For train: let a run that was begun with fewer epochs go on to config.epochs.",
        switch=True,
    ),
    "protocol": Flag(
        _evaluators_with("protocol"), "For linear_probe: lbfgs or sgd; default lbfgs."
    ),
    "codes": Flag(
        _evaluators_with("codes"),
        "For equivariance: augmentations to measure, such as rot,sca; default the "
        "learned ones, or all of the stack.",
    ),
    "format": Flag(
        _evaluators_with("format"),
        f"For export: {', '.join(of_evaluators.FORMATS)}, or several; default "
        f"{of_evaluators.FORMATS[0]}.",
    ),
    "measures": Flag(
        _evaluators_with("measures"),
        "For equivariance: what to measure beside readings and shifts, of readouts, "
        "actions, local, matrix, or basic for nothing else; default all.",
    ),
    "datasets": Flag(
        _evaluators_with("datasets"),
        "For transfer: mnist,digits,folder:<path> ...; write a comma in a path as \\,",
    ),
    "workdirs": Flag(
        ("compare",),
        "For compare: directories of two or more runs, separated by commas; write a "
        "comma in a path as \\,",
    ),
    "out": Flag(
        ("benchmark", "compare", *_evaluators_with("out")),
        "File to write. For features: .npz, default eval/features.npz of the run; for "
        "benchmark: .json, default benchmark.json in the workdir; for compare: .html, "
        "default compare.html.",
    ),
    "images": Flag(
        ("benchmark",),
        "For benchmark: noise or real; default noise, which needs no data.",
    ),
    "brief": Flag(
        ("benchmark",),
        "For benchmark: time the step alone, without its parts and the host.",
        switch=True,
    ),
    "compile_only": Flag(
        ("benchmark",),
        "For benchmark: time nothing; print the encoder's size and operations, and the "
        "memory that is planned for the step.",
        switch=True,
    ),
    "coordinator_address": Flag(
        _SHARED,
        "For train and benchmark with several processes: host:port at which the first "
        "one listens. srun and mpirun need none of these three flags.",
    ),
    "num_processes": Flag(
        _SHARED, "Likewise: number of processes; 1 for this one alone."
    ),
    "process_id": Flag(_SHARED, "Likewise: index of this process, from 0."),
}
# Flags that every command reads; the others are the options of a mode.
_COMMON = tuple(name for name, flag in FLAGS.items() if not flag.modes)
_CLUSTER = ("coordinator_address", "num_processes", "process_id")

# Spellings of switches that are looked for before anything is parsed.
_HELP = {"--help", "-help", "-h"}
_LIST = {"--list", "-list"}
_VERSION = {"--version", "-version"}
_DEBUG = {"--debug", "-debug", "--debug=true"}
_DEBUG_MEANING = "Print the traceback of an error before the line that explains it."

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
# JAX's messages when another process can no longer be reached.
_LOST = re.compile(r"(?i)connection (closed|reset|refused)|peer|heartbeat|UNAVAILABLE")
# Its messages when the memory does not suffice: on a GPU, and on a CPU.
_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|Out of memory allocating")
# Flags that absl reads in every program: they would add other flags or hide them.
_OF_ABSL = re.compile(r"--?(flagfile|undefok)(=|$)")
_BAD_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
      config: resolved.
      workdir: directory of the run.
      modes: one or more of MODES.
      options: the other flags that are given, by name; True for a switch.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    modes: tuple[str, ...]
    options: dict[str, Any]


def parse(argv: Sequence[str]) -> Command:
    """Reads and checks the command line.

    Raises:
      UsageError: anything wrong in it or in the configuration.
    """
    command, unused = read(argv)
    for name, reason in unused.items():
        raise UsageError(
            f"config.{name} has no effect with {reason}; leave it out, or change that."
        )
    return command


def read(argv: Sequence[str]) -> tuple[Command, dict[str, str]]:
    """Reads the command line like `parse`, but accepts fields without an effect.

    Returns:
      The command, and the reason for each field on the command line that has no effect.
    """
    given, overrides = _parse_flags(argv)
    options = {name: each for name, each in given.items() if name not in _COMMON}
    modes = _modes(given.get("mode", "train"))
    _check_flags(given, options, modes)
    if modes == ("compare",) and ({"config", "workdir"} & {*given} or overrides):
        raise UsageError(
            "--mode=compare takes --workdirs and --out alone: the runs have their own "
            "configurations; leave out --config, --workdir and fields."
        )
    if modes == ("compare",):
        of_evaluators.directories(options.get("workdirs", ""))
    path = given.get("config", loading.DEFAULT)
    names = [name for name in map(field_of, overrides) if name is not None]
    evaluators = [EVALUATORS[mode] for mode in modes if mode in EVALUATORS]
    measured = [field for each in evaluators for field in each.fields]
    of_a_run = modes[0] in EVALUATORS and "encoder" not in given
    defaults = None
    if of_a_run:
        of_file = "init_from" in given
        defaults = _config_of_file(given) if of_file else _config_of_run(given)
        of_a_run = defaults is not None
    if defaults is None and _continues(given, modes):
        defaults = workdir.load_config(files.local(given["workdir"], "--workdir"))
    if defaults is None:
        defaults = loading.load(path)
    checks.check_names(defaults, names)
    if of_a_run:
        checks.check_evaluation(names, measured)
    elif "encoder" in given:
        _check_external(given, modes)
        checks.check_external(names, measured)
        defaults.method = "simclr"  # two views of the stack, and no structure
    asked = _override(defaults, overrides)
    config = checks.check(asked, defaults)
    for each in evaluators:
        each.check(**{name: options[name] for name in each.flags if name in options})
    directory = given.get("workdir", f"runs/{loading.stem(path)}")
    if directory == _AUTO:
        source = given.get("init_from")
        others = {"init_from": parse_source(source).short} if source else {}
        name = naming.run_name(loading.stem(path), defaults, config, **others)
        directory = f"runs/{name}"
    command = Command(config, files.local(directory, "--workdir"), modes, options)
    unused = checks.unused(asked, names)
    for code in split_codes(options.get("codes", "")) if "encoder" in given else ():
        for option in options_read(code):  # in no view, but measured
            unused.pop(f"augmentation.{option}", None)
    return command, unused


def field_of(argument: str) -> str | None:
    """Returns the field that an argument sets, such as epochs; None if it sets none."""
    match = _OVERRIDE.match(argument)
    return match and match[1]


def _parse_flags(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the FLAGS that are given, and all other arguments.

    The flags decide which configuration the other arguments change.
    """
    values = flags.FlagValues()
    for name, flag in FLAGS.items():
        define = flags.DEFINE_boolean if flag.switch else flags.DEFINE_string
        define(name, None, flag.meaning, flag_values=values)
    flags.DEFINE_boolean("debug", False, _DEBUG_MEANING, flag_values=values)
    for argument in argv[1:]:
        if _OF_ABSL.match(argument):
            raise _explained(flags.Error(f"{argument} is not taken here"))
        if argument.encode(errors="ignore").decode() != argument:
            raise UsageError(
                f"{argument} is not UTF-8; give that file or directory another name."
            )
    try:
        _, *others = values(argv, known_only=True)
    except (flags.Error, ValueError) as error:
        raise _explained(error) from error
    given = {name: values[name].value for name in FLAGS}
    # --noextend is as good as nothing.
    return {k: v for k, v in given.items() if v is not None and v is not False}, others


def _modes(names: str) -> tuple[str, ...]:
    """Returns the modes that --mode names, in order."""
    modes = tuple(name.strip() for name in names.split(","))
    for mode in modes:
        lookup(MODES, mode, "--mode")
    for mode in modes[1:]:
        if mode in PROGRAMS or modes[0] in ("benchmark", "compare"):
            raise UsageError(
                f"--mode={names}: {mode} cannot come after {modes[0]}; only "
                "evaluations can follow, after a training or after each other."
            )
    if len({*modes}) < len(modes):
        raise UsageError(f"--mode={names} names a mode twice.")
    return modes


def _check_flags(
    given: Mapping[str, Any], options: Mapping[str, Any], modes: Sequence[str]
) -> None:
    """Raises a UsageError for a bad path, or for an option that no mode takes."""
    if "extend" in given and given.get("workdir") == _AUTO:
        raise UsageError(
            "--extend with --workdir=auto: the directory would be named after the new "
            "epochs; name that of the run."
        )
    if given.get("workdir") == "":
        raise UsageError("--workdir='' must name a directory, or be left out.")
    for name in ("workdir", "out"):
        files.local(given.get(name, ""), f"--{name}")
    shown = f"--mode={','.join(modes)}"
    for name in options:
        takers = FLAGS[name].modes
        if not {*takers} & {*modes}:
            raise UsageError(
                f"--{name} has no effect with {shown}; it belongs to "
                f"--mode={' or '.join(takers)}."
            )
        if name in _CLUSTER and modes[-1] in EVALUATORS:
            raise UsageError(
                f"--{name} has no effect with {shown}: evaluations use one process; "
                "evaluate in a job of its own."
            )


def _continues(given: Mapping[str, str], modes: Sequence[str]) -> bool:
    """Returns whether a training is that of a run, which has its configuration."""
    directory = given.get("workdir", _AUTO)
    if modes[0] != "train" or "config" in given or directory == _AUTO:
        return False
    return (files.local(directory, "--workdir") / "config.json").is_file()


def _config_of_run(given: Mapping[str, str]) -> ml_collections.ConfigDict:
    """Returns the configuration of the run that is to be evaluated."""
    if "config" in given:
        raise UsageError(
            f"--config={given['config']} has no effect with --mode={given['mode']}, "
            "which takes the run's own config.json; leave it out and name the "
            "--workdir."
        )
    if given.get("workdir", _AUTO) == _AUTO:
        raise UsageError(
            f"--mode={given['mode']} needs --workdir, the directory of a training; "
            "auto names one only where there is a --config."
        )
    return workdir.load_config(files.local(given["workdir"], "--workdir"))


def _config_of_file(given: Mapping[str, str]) -> ml_collections.ConfigDict | None:
    """Returns the configuration in the file of weights that is to be evaluated.

    None if it has none, and --config says what is in it.
    """
    source = parse_source(given["init_from"])
    if not source.is_file:
        raise UsageError(
            f"--init_from={source} is a run, which --mode={given['mode']} takes as it "
            "is; name its --workdir instead."
        )
    if given.get("workdir", _AUTO) == _AUTO:
        raise UsageError(
            f"--init_from={source} needs --workdir, a directory for the run that is "
            "made of it; name one."
        )
    try:
        about = weights_file.about(source.run)
    except UsageError as error:
        raise UsageError(f"--init_from={error}") from error
    if about and "config" in given:
        raise UsageError(
            f"--config={given['config']} has no effect with --init_from={source}, "
            "which has the configuration of its training; leave it out."
        )
    if not about and "config" not in given:
        raise UsageError(
            f"--init_from={source} does not say what its encoder is; name a --config "
            "with its encoder and images."
        )
    return about and about.config


def _check_external(given: Mapping[str, str], modes: Sequence[str]) -> None:
    """Raises a UsageError unless the modes can measure the encoder that is given."""
    takers = FLAGS["encoder"].modes
    for mode in modes:
        if mode not in takers:
            raise UsageError(
                f"--encoder={given['encoder']}: --mode={mode} takes a run of this "
                f"program only; choose from {', '.join(takers)}."
            )
    if "step" in given:
        raise UsageError(
            f"--step={given['step']} has no effect with --encoder, which has no "
            "checkpoints; leave it out."
        )
    if "init_from" in given:
        raise UsageError(
            f"--init_from={given['init_from']} has no effect with --encoder, which "
            "brings its own weights; leave one of them out."
        )
    if given.get("workdir", _AUTO) == _AUTO:
        raise UsageError(
            "--encoder needs --workdir, a directory for the results; name one."
        )
    directory = files.local(given["workdir"], "--workdir")
    if (directory / "config.json").exists():
        raise UsageError(
            f"--workdir={directory} holds a run, whose results would be replaced by "
            "those of --encoder; name another directory."
        )
    external.check(given["encoder"])


def _override(
    defaults: ml_collections.ConfigDict, arguments: Sequence[str]
) -> ml_collections.ConfigDict:
    """Returns the configuration with the fields that `arguments` set."""
    known = dict(checks.fields(defaults))
    argv = ["main.py", *(_with_commas(each, known) for each in arguments)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config",
        checks.open_fields(defaults),
        flag_values=values,
        sys_argv=argv,
    )
    try:
        _, *rest = values(argv)
    except (flags.Error, ValueError) as error:
        match = _BAD_VALUE.match(str(error))
        if match:
            raise checks.bad_value(match[1], match[2], known[match[1]]) from error
        raise _explained(error) from error
    if rest:
        raise UsageError(f"{rest[0]!r} is not a flag; write --config.<field>=<value>.")
    return values.config


def _with_commas(argument: str, known: Mapping[str, Any]) -> str:
    """Lets the elements of a tuple be separated by spaces as well: 'sca rot'."""
    flag, _, value = argument.partition("=")
    plain = re.fullmatch(r"[^'\"()\[\]]+", value)
    if plain and isinstance(known.get(field_of(flag)), tuple):
        return f"{flag}={','.join(value.replace(',', ' ').split())}"
    return argument


def _explained(error: Exception) -> UsageError:
    names = (*FLAGS, "debug")
    text, guess = " ".join(str(error).split()), ""
    if isinstance(error, flags.UnrecognizedFlagError):  # without absl's own guess
        text = f"Unknown command line flag {error.flagname!r}"
        guess = suggestion(error.flagname, names)
    known = ", --".join((*names, "list", "version", "help"))
    return UsageError(f"{text}; the flags are --{known}.{guess}")


def help_text(argv: Sequence[str]) -> str:
    """Returns what --help prints: the flags, and the fields with their values."""
    path = _parse_flags(argv)[0].get("config", loading.DEFAULT)
    defaults = checks.fields(loading.load(path))
    about = [f"  --{name}: {flag.meaning}" for name, flag in FLAGS.items()]
    about += [
        f"  --debug: {_DEBUG_MEANING}",
        "  --list: Print what there is: configurations, modes, methods, augmentations, "
        "encoders, data sets.",
        "  --version: Print the version, the commit, JAX's version and the devices.",
    ]
    shown = [f"  --config.{name}={value!r}" for name, value in defaults]
    title = f"Fields, explained in configs/base.py, with the values of {path}:"
    program = shlex.join(provenance.program(argv[0]))
    examples = __doc__.replace("python main.py", program)
    return "\n".join([examples, *about, "", title, "", *shown])


def perform(command: Command) -> None:
    """Runs the modes of a command in order."""
    config, directory, modes, options = command
    if "jax" not in sys.modules:  # which takes a second, and more where it is cold
        _log.info("starting     --mode=%s, importing JAX ...", ",".join(modes))
    evaluations = [mode for mode in modes if mode in EVALUATORS]
    if modes[0] in PROGRAMS:
        own = {k: v for k, v in options.items() if modes[0] in FLAGS[k].modes}
        if evaluations:  # what they cannot take is refused before the training
            own["accept"] = functools.partial(check_labels, EVALUATORS, evaluations)
        PROGRAMS[modes[0]](config, directory, **own)
        options = {k: v for k, v in options.items() if k != "init_from"}
    if evaluations:
        processes.check_alone(f"--mode={','.join(evaluations)}")
        evaluate.evaluate(evaluations, config, directory, **options)
    elif modes == ("train",) and processes.is_main_process():
        modes = follow_up(config, workdir.load_facts(directory))
        _log.info("next         %s", _command_of_evaluations(directory, modes))


def _command_of_evaluations(directory: pathlib.Path, modes: Sequence[str]) -> str:
    """Returns a command that evaluates a run, ready to be pasted."""
    python = sys.executable
    if shutil.which("python") == python:
        python = "python"
    elif python.startswith(f"{os.getcwd()}{os.sep}"):
        python = os.path.relpath(python)
    program = provenance.program(sys.argv[0], python)
    return shlex.join([*program, f"--workdir={directory}", f"--mode={','.join(modes)}"])


def _version() -> str:
    """Returns what --version prints."""
    commit = str(provenance.commit())
    devices.select("auto")
    return (
        f"duet_jax {duet_jax.__version__}{f', commit {commit}' if commit else ''}; "
        f"jax {jax.__version__} on {devices.describe()}"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    debug = bool(_DEBUG & set(argv))
    # Orbax logs a page for each save, and several for a failed one, which is reported.
    absl_logging.set_verbosity(absl_logging.WARNING if debug else absl_logging.FATAL)
    prepare_streams()
    log_to_terminal(logging.INFO)
    command = None
    try:
        if _HELP & set(argv):
            print(help_text(argv))
        elif _LIST & set(argv):
            print(catalog.overview(MODES))
        elif _VERSION & set(argv):
            print(_version())
        else:
            command = parse(argv)
            with signs_of_life(), doing(f"--mode={','.join(command.modes)}"):
                perform(command)
        flush_output()
    except (Exception, KeyboardInterrupt) as error:
        known = _message(error, command)
        if known is None:
            if not processes.are_several():
                raise
            # For `processes.leave`: after an exception Python waits for the others.
            traceback.print_exception(error)
            return 1
        line, status = known
        if debug:
            traceback.print_exception(error)
        if line:
            print(printable(line), file=sys.stderr)
        with contextlib.suppress(OSError):
            flush_output()
        return status
    return 0


def _message(error: BaseException, command: Command | None) -> tuple[str, int] | None:
    """Returns the message ("" for none) and exit status; None for a defect.

    Args:
      error: the exception that ends the program.
      command: what was running; None while the command line was read.
    """
    mode, directory = (command.modes[0], command.workdir) if command else (None, None)
    again = "the same command starts again"
    if mode == "train":
        again = "the same command continues from the newest checkpoint"
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
        case BrokenPipeError() if not command:
            return "", 1  # what reads --help or --list has seen enough
        case OSError():
            place = error.filename or directory or "standard output"
            reason = error.strerror or text or type(error).__name__
            return f"error: {place}: {reason}; {_remedy(error)}, then {again}.", 1
        case MemoryError():
            reason = f"this machine has too little memory ({text}); {_smaller(mode)}"
        case RuntimeError() if _EXHAUSTED.search(text):
            reason = f"the device has too little memory for this run; {_smaller(mode)}"
        # JAX raises a ValueError where it reads the loss at the start of a computation.
        case RuntimeError() | ValueError() if lost:
            reason = (
                f"another process of this job is gone ({text[:160]}); see the messages "
                f"of the others, then {again}"
            )
        case _:
            return None
    return f"error: {reason}.", 1


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "change its permissions, or choose another place"
    return "fix this"


def _smaller(mode: str | None) -> str:
    remedy = "lower config.batch_size"
    if mode in PROGRAMS:
        remedy += (
            " or config.encoder.width_multiplier, or use "
            "config.compute_dtype=bfloat16 or config.encoder.remat=true"
        )
    return remedy
