"""Trains DUET, SimCLR or ESSL.

    python main.py --config=configs/cifar10_duet_rot.py --workdir=runs/rot

Any field of the configuration can be set: --config.batch_size=512.
"""

import logging
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from duet_jax import settings
from duet_jax.errors import TrainingError, UsageError
from duet_jax.registry import lookup, suggestion
from duet_jax.terminal import log_to_terminal
from duet_jax.train import train

_HERE = pathlib.Path(__file__).parent
_DEFAULT_CONFIG = str(_HERE / "configs" / "digits_duet_rot.py")

# What can be done with a run: name -> function of (resolved config, work directory).
MODES: dict[str, Callable[[ml_collections.ConfigDict, pathlib.Path], None]] = {
    "train": train,
}

config_flags.DEFINE_config_file("config", _DEFAULT_CONFIG, "Configuration file.")
flags.DEFINE_string(
    "workdir", None, "Directory of the run; default runs/<config name>."
)
flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
FLAGS = flags.FLAGS

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_BAD_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


def parse(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, pathlib.Path, str]:
    """Returns the resolved configuration, the work directory and the mode.

    Raises:
      UsageError: whatever is wrong on the command line or in the configuration.
    """
    path = next((a.split("=", 1)[1] for a in argv if re.match("--?config=", a)), None)
    defaults = load_defaults(path or _DEFAULT_CONFIG)
    names = [match[1] for match in map(_OVERRIDE.match, argv) if match]
    settings.check_names(defaults, names)
    # ml_collections reads overrides from sys.argv, and only after --config.
    first = [a for a in argv[1:] if re.match("--?config=", a)] or [
        f"--config={_DEFAULT_CONFIG}"
    ]
    sys.argv = [argv[0], *first, *(a for a in argv[1:] if a not in first)]
    try:
        rest = FLAGS(sys.argv)
    except flags.Error as error:
        raise _explained(error, defaults) from error
    if rest[1:]:
        raise UsageError(f"{rest[1]!r} is not a flag; write --config.<field>=<value>.")
    lookup(MODES, FLAGS.mode, "--mode")
    config = settings.check(FLAGS.config, defaults)
    settings.check_unused(config.method, names)
    name = pathlib.Path(path or _DEFAULT_CONFIG).stem
    return config, pathlib.Path(FLAGS.workdir or f"runs/{name}"), FLAGS.mode


def load_defaults(path: str) -> ml_collections.ConfigDict:
    """Returns the configuration in the file at `path`, before any override."""
    if not pathlib.Path(path).is_file():
        files = sorted(f"configs/{p.name}" for p in _HERE.glob("configs/[!_]*.py"))
        raise UsageError(
            f"--config={path} is not a file; choose one of {', '.join(files)}."
            f"{suggestion(path, files)}"
        )
    return runpy.run_path(path)["get_config"]()


def _explained(error: flags.Error, defaults: ml_collections.ConfigDict) -> UsageError:
    match = _BAD_VALUE.match(str(error))
    if match:
        name, value = match[1], match[2]
        return settings.bad_value(name, value, dict(settings.fields(defaults))[name])
    text = " ".join(str(error).split())
    return UsageError(f"{text}; the flags are --config, --workdir and --mode.")


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax writes a page a save
    log_to_terminal(logging.INFO)
    try:
        config, workdir, mode = parse(argv)
        MODES[mode](config, workdir)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.define_help_flags()
    sys.exit(main(sys.argv))
