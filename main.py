"""Trains DUET, SimCLR or ESSL.

    python main.py --config=configs/cifar10_duet_rot.py --workdir=runs/rot

Any field of the configuration can be set: --config.batch_size=512.
"""

import logging
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from duet_jax import settings
from duet_jax.errors import TrainingError, UsageError
from duet_jax.registry import lookup, suggestion
from duet_jax.terminal import log_to_terminal
from duet_jax.train import train

_HERE = pathlib.Path(__file__).parent
_DEFAULT_CONFIG = str(_HERE / "configs" / "digits_duet_rot.py")
_BASE = str(_HERE / "configs" / "base.py")

# What can be done with a run: name -> function of (resolved config, work directory).
MODES: dict[str, Callable[[ml_collections.ConfigDict, pathlib.Path], None]] = {
    "train": train,
}

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_BAD_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


def parse(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, str]:
    """Returns the resolved configuration, the work directory and the mode.

    Raises:
      UsageError: whatever is wrong on the command line or in the configuration.
    """
    path, arguments = _split(argv[1:])
    defaults = load_defaults(path)
    names = [match[1] for match in map(_OVERRIDE.match, arguments) if match]
    settings.check_names(defaults, names)
    known = dict(settings.fields(defaults))
    arguments = [argv[0], *(_with_commas(each, known) for each in arguments)]
    values = _flags(defaults, arguments)
    try:
        rest = values(arguments)
    except flags.Error as error:
        raise _explained(error, known) from error
    if rest[1:]:
        raise UsageError(f"{rest[1]!r} is not a flag; write --config.<field>=<value>.")
    lookup(MODES, values.mode, "--mode")
    if values.workdir == "":
        raise UsageError("--workdir='' must name a directory, or be left out.")
    config = settings.check(values.config, defaults)
    settings.check_unused(values.config, names)
    workdir = values.workdir or f"runs/{pathlib.Path(path).stem}"
    return config, pathlib.Path(workdir), values.mode


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
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run; default runs/<name of the configuration file>.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "mode", "train", f"What to do: {', '.join(MODES)}.", flag_values=values
    )
    return values


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the last --config, or the default, and all other arguments."""
    path, others = _DEFAULT_CONFIG, []
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


def load_defaults(path: str) -> ml_collections.ConfigDict:
    """Returns the configuration in the file at `path`, before any override.

    Raises:
      UsageError: there is no such file, it fails, or its fields are not those of
        `configs/base.py`.
    """
    if not pathlib.Path(path).is_file():
        files = sorted(f"configs/{p.name}" for p in _HERE.glob("configs/[!_]*.py"))
        raise UsageError(
            f"--config={path} is not a file; choose one of {', '.join(files)}."
            f"{suggestion(path, files)}"
        )
    try:
        config = runpy.run_path(path)["get_config"]()
        settings.check_schema(config, runpy.run_path(_BASE)["get_config"]())
    except UsageError as error:
        raise UsageError(f"--config={path}: {error}") from error
    except Exception as error:  # it is a program: anything can happen
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"--config={path} cannot be read ({text}); it must define get_config() "
            "like configs/base.py."
        ) from error
    return config


def _explained(error: flags.Error, known: Mapping[str, Any]) -> UsageError:
    match = _BAD_VALUE.match(str(error))
    if match:
        return settings.bad_value(match[1], match[2], known[match[1]])
    text = " ".join(str(error).split())
    return UsageError(f"{text}; the flags are --config, --workdir and --mode.")


def help_text(argv: Sequence[str]) -> str:
    """Returns what --help prints: the flags, and the fields with their values."""
    path, _ = _split(argv[1:])
    defaults = load_defaults(path)
    values = _flags(defaults, [])
    about = [f"  --{name}: {values[name].help}" for name in values]
    shown = [
        f"  --config.{name}={value!r}" for name, value in settings.fields(defaults)
    ]
    title = f"Fields, explained in configs/base.py, with the values of {path}:"
    return "\n".join([__doc__, *about, "", title, "", *shown])


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax writes a page a save
    log_to_terminal(logging.INFO)
    try:
        if {"--help", "-help", "-h"} & set(argv):
            print(help_text(argv))
            return 0
        config, workdir, mode = parse(argv)
        MODES[mode](config, workdir)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: the device has too little memory for this run; lower "
            "config.batch_size or config.encoder.width_multiplier, or use "
            "config.compute_dtype=bfloat16.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "stopped; the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
