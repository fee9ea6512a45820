"""Where the runs of a sweep are run."""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

from duet_jax.errors import UsageError, lookup
from duet_jax.sweeps import runner
from duet_jax.sweeps.local import Local
from duet_jax.sweeps.slurm import Slurm
from duet_jax.sweeps.trial import Trial


class Launcher(Protocol):
    """What runs the trials of a sweep.

    Attributes:
      farewell: what a user is told who stops the sweep.
    """

    farewell: str

    def perform(
        self,
        trials: Sequence[Trial],
        stop: runner.Stop,
        ended: Callable[[], None],
    ) -> None:
        """Runs the trials that are not finished, and returns when they have ended.

        Args:
          trials: of the sweep.
          stop: receives signals.
          ended: called after each run.
        """


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where to run."""
    parser.add_argument(
        "--launcher",
        default="local",
        help=f"where to run: {' '.join(LAUNCHERS)}; default local, one after another",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of sbatch, such as time=4:00:00, partition=gpu, gpus-per-node=1"
        ", cpus-per-task=8, mem=32G, account=lab; can be repeated",
    )
    parser.add_argument(
        "--parallel", help="how many runs at once, with --launcher=slurm; default all"
    )


def make(options: argparse.Namespace, workdir: pathlib.Path) -> Launcher:
    """Returns the launcher that is asked for, with its flags checked.

    Raises:
      UsageError: a flag is unknown, wrong or without effect.
    """
    launcher = lookup(LAUNCHERS, options.launcher, "--launcher")
    if options.print and launcher is not Local:
        raise UsageError(
            f"--launcher={options.launcher} has no effect with --print, which runs "
            "nothing; leave out one of them."
        )
    return launcher(options, workdir)


LAUNCHERS: dict[str, Callable[[argparse.Namespace, pathlib.Path], Launcher]] = {
    "local": Local,
    "slurm": Slurm,
}
