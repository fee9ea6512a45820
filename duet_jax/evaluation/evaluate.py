"""Evaluates a checkpoint: restores the encoder, runs evaluators, prints the results."""

import functools
import logging
import pathlib
import shutil
from collections.abc import Sequence

import ml_collections

from duet_jax.data import find_dataset
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.evaluator import check_labels
from duet_jax.evaluation.result import Table
from duet_jax.runs import external, trained_run, workdir
from duet_jax.runs.history import parse_source
from duet_jax.runs.trained_run import Run
from duet_jax.runtime import devices
from duet_jax.training import imported

_log = logging.getLogger(__name__)


def evaluate(
    names: Sequence[str],
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    *,
    step: int | str | None = None,
    encoder: str | None = None,
    init_from: str | None = None,
    **options: str,
) -> None:
    """Evaluates the run in `directory`, or an encoder; stores and prints the results.

    Args:
      names: keys of EVALUATORS, in order. They share the restored encoder and its
        representations.
      config: of the run, from `config.checks.check`.
      directory: the run's work directory; receives eval/<name>.json and pictures.
      step: of the checkpoint: a number, "newest" (None) or "best".
      encoder: one from elsewhere instead of a run, as `runs.external.check` takes it;
        `config` says on which images and views, and how, it is measured.
      init_from: a file of weights, of which a run is made in `directory` first; see
        `training.imported`.
      **options: flags of the evaluators; each is given its own.

    Raises:
      UsageError: anything the user can fix; nothing has been overwritten then.
    """
    workdir.check_writable(directory / "eval", "--workdir")
    devices.select(config.device)
    devices.check(config.device)
    devices.enable_compilation_cache(config.compilation_cache)
    if init_from is not None:
        accept = functools.partial(check_labels, EVALUATORS, names)
        imported.make_run(config, directory, parse_source(init_from), accept)
    if encoder is None:
        check_labels(EVALUATORS, names, workdir.load_facts(directory))
        run = trained_run.load_run(directory, step, config=config)
        source = f"checkpoint   step {run.step} of {directory}, {config.method}"
    else:
        run = _load_external(encoder, names, config, directory)
        source = f"encoder      {encoder}"
    _log.info("devices      %s", devices.describe())
    _log.info("%s", source)
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


def _load_external(
    spec: str,
    names: Sequence[str],
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
) -> Run:
    """Returns an encoder from elsewhere as a run; the images are not decoded yet."""
    loaded = external.load(spec)  # what is wrong with it, before files are read
    described = config.dataset.to_dict()
    for field in ("placement", "workers"):  # of trainings
        del described[field]
    facts = find_dataset(**described).facts
    check_labels(EVALUATORS, names, facts)
    name = external.short_name(spec)
    return trained_run.external_run(loaded, config, facts, directory, name=name)
