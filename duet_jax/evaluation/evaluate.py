"""Evaluation: from a work directory to what its checkpoint is worth.

Restores the encoder, lets evaluators measure it, and leaves each result in `eval/` of
the work directory: `<name>.json`, its pictures, and a table on the terminal.
"""

import logging
import pathlib
from collections.abc import Sequence

import ml_collections

from duet_jax.evaluation import EVALUATORS, Evaluation, Table
from duet_jax.runs import trained_run, workdir
from duet_jax.runtime import devices

_log = logging.getLogger(__name__)


def evaluate(
    names: Sequence[str],
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    step: int | str | None = None,
    **options: str,
) -> None:
    """Measures the run in `directory` and stores and prints the results.

    Args:
      names: keys of EVALUATORS, in order. They share the restored encoder and the
        representations it gives.
      config: of the run, from `config.checks.check`.
      directory: the run's work directory; receives eval/<name>.json and pictures.
      step: of the checkpoint: a number, "newest" (None) or "best".
      **options: flags of the evaluators; each is given its own.

    Raises:
      UsageError: anything the user can put right; nothing has been overwritten then.
    """
    workdir.check_writable(directory / "eval", "--workdir")
    devices.select(config.device)
    devices.check(config.device)
    devices.enable_compilation_cache(config.compilation_cache)
    run = trained_run.load_run(directory, step, config=config)
    _log.info("devices      %s", devices.describe())
    _log.info("checkpoint   step %d of %s, %s", run.step, directory, config.method)
    evaluation = Evaluation(run, directory / "eval", EVALUATORS)
    for name in names:
        own = {k: v for k, v in options.items() if k in EVALUATORS[name].flags}
        found = evaluation.perform(name, own)
        for table in found["tables"]:
            print(Table(**table).as_text())
            print()
        stem = workdir.result_name(name, own)
        _log.info("results in   %s", directory / "eval" / f"{stem}.json")
