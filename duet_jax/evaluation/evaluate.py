"""Evaluates a checkpoint: restores the encoder, runs evaluators, prints the results."""

import logging
import pathlib
import shutil
from collections.abc import Sequence

import ml_collections

from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.evaluator import check_labels
from duet_jax.evaluation.result import Table
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
    """Evaluates the run in `directory`; stores and prints the results.

    Args:
      names: keys of EVALUATORS, in order. They share the restored encoder and its
        representations.
      config: of the run, from `config.checks.check`.
      directory: the run's work directory; receives eval/<name>.json and pictures.
      step: of the checkpoint: a number, "newest" (None) or "best".
      **options: flags of the evaluators; each is given its own.

    Raises:
      UsageError: anything the user can fix; nothing has been overwritten then.
    """
    workdir.check_writable(directory / "eval", "--workdir")
    devices.select(config.device)
    devices.check(config.device)
    devices.enable_compilation_cache(config.compilation_cache)
    check_labels(EVALUATORS, names, workdir.load_facts(directory))
    run = trained_run.load_run(directory, step, config=config)
    _log.info("devices      %s", devices.describe())
    _log.info("checkpoint   step %d of %s, %s", run.step, directory, config.method)
    evaluation = Evaluation(run, EVALUATORS)
    columns = max(80, shutil.get_terminal_size().columns)
    for name in names:
        own = {k: v for k, v in options.items() if k in EVALUATORS[name].flags}
        _log.info("%-12s measuring ...", name)
        found = evaluation.evaluate(name, own)
        for table in found["tables"]:
            print(Table(**table).as_text(columns), end="\n\n")
        stem = workdir.result_name(name, own)
        _log.info("results in   %s", evaluation.directory / f"{stem}.json")
        for picture in found["pictures"]:
            _log.info("picture      %s", evaluation.directory / picture)
