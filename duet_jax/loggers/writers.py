"""Opens all metric writers of a run and writes to them together."""

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
    """Destination of rows and figures."""

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Records one row; see the package's docstring for its entries."""

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Records the PNG at `path`, if the writer supports images."""

    def close(self) -> None:
        """Finishes all writing; the writer is not used again."""


class Writers:
    """Passes every row to each of several writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Records one row in all writers."""
        for writer in self._writers:
            writer.write(row)

    def picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Records a PNG in all writers that support images."""
        for writer in self._writers:
            writer.picture(name, path, step)

    def close(self) -> None:
        """Closes all writers, even if one of them fails."""
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
    """Opens the writers that the configuration asks for.

    `metrics.jsonl` is always written; the curves are drawn from it.

    Args:
      workdir: directory of the run.
      config_dict: the resolved configuration, without secrets, for Weights & Biases.
      run_name: display name of the run there.
      wandb: `project` (None: no Weights & Biases), `entity` (None: the user's default)
        and `mode` ("online", "offline" or "disabled"; None: WANDB_MODE, or online).
      tensorboard: whether to write event files to `<workdir>/tensorboard`.
      resume_step: step of the checkpoint that training resumes from, None for a new
        run. Rows and events of later steps are dropped; Weights & Biases keeps them and
        ignores repeated ones.

    Raises:
      UsageError: the `wandb` section or the credentials file is invalid, or a file
        cannot be opened.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    writers: list[MetricWriter] = []
    # First, because it may refuse to open, before any file is truncated.
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
            f"({error.strerror}); fix this, or choose another directory."
        ) from error
    return Writers(writers)
