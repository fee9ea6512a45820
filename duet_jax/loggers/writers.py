"""All places a run writes its metrics to, behind one call."""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from duet_jax.errors import UsageError
from duet_jax.loggers.jsonl import JsonLines
from duet_jax.loggers.tensorboard import TensorBoard
from duet_jax.loggers.wandb_run import open_wandb


class MetricWriter(Protocol):
    """One place that rows go to."""

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Records one row; see the package's docstring for its entries."""

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Records the PNG at `path`; does nothing where pictures have no place."""

    def close(self) -> None:
        """Finishes all writing; the writer is not used again."""


class Writers:
    """Hands every row to each of several writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Records one row everywhere."""
        for writer in self._writers:
            writer.write(row)

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Records a PNG wherever pictures have a place."""
        for writer in self._writers:
            writer.picture(name, path, step)

    def close(self) -> None:
        """Closes every writer, also those that come after one that fails."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)


def open_writers(
    workdir: str | os.PathLike,
    *,
    config_dict: Mapping,
    run_name: str,
    wandb: Mapping[str, str | None],
    tensorboard: bool,
    resume_step: int | None,
) -> Writers:
    """Opens everything the configuration asks for.

    `metrics.jsonl` is always written: it is what the curves are drawn from.

    Args:
      workdir: directory of the run.
      config_dict: the resolved configuration, for the server's table of runs.
      run_name: how the server calls the run.
      wandb: `project` (None: no Weights & Biases), `entity` and `mode`.
      tensorboard: whether to write event files to `<workdir>/tensorboard`.
      resume_step: the step of the checkpoint training goes on from, None for a new
        run. Rows and events of later steps are dropped; Weights & Biases cannot forget
        and ignores what is sent again.

    Raises:
      UsageError: the `wandb` section or the credentials file is wrong, or a file cannot
        be opened.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    writers: list[MetricWriter] = []
    # First the one that may refuse to open, before any file is shortened.
    if wandb.get("project"):
        run = open_wandb(workdir, wandb, config_dict, run_name, resume_step)
        writers += [run] if run else []
    try:
        if tensorboard:
            writers.append(TensorBoard(workdir / "tensorboard", resume_step))
        writers.insert(0, JsonLines(workdir / "metrics.jsonl", resume_step))
    except OSError as error:
        Writers(writers).close()
        raise UsageError(
            f"--workdir={workdir}: {error.filename} cannot be written "
            f"({error.strerror}); put that right, or choose another."
        ) from error
    return Writers(writers)
