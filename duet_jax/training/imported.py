"""A run that is made of a file of weights, so that it can be evaluated like any."""

import logging
import pathlib
from collections.abc import Callable

import ml_collections

from duet_jax.data import find_dataset
from duet_jax.errors import UsageError
from duet_jax.runs import workdir
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.history import History, Source
from duet_jax.training import initial
from duet_jax.training.compiled import initial_state
from duet_jax.training.plan import make_plan
from duet_jax.types import DatasetFacts

_log = logging.getLogger(__name__)


def make_run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    source: Source,
    accept: Callable[[DatasetFacts], None] = lambda facts: None,
) -> None:
    """Makes a run whose only checkpoint, of step 0, has the weights of a file.

    Networks that the file does not have are drawn, as where a training begins. Nothing
    is done where `directory` holds that run.

    Args:
      config: resolved; of the run.
      directory: for the run.
      source: the file.
      accept: raises a UsageError for images that what follows cannot take.

    Raises:
      UsageError: the file or the directory cannot be used; nothing is written then.
    """
    workdir.check(config, directory, source=source)
    described = config.dataset.to_dict()
    for field in ("placement", "workers"):  # of trainings
        del described[field]
    facts = find_dataset(**described).facts
    accept(facts)
    workdir.check_dataset(facts, directory)
    plan = make_plan(config, facts)
    weights = initial.load(source, plan)
    if workdir.is_started(directory):
        _check_same(directory, weights)
        return
    _log.info("weights      %s", weights)
    state = weights.put_into(initial_state(plan))
    with workdir.claimed(config, directory, source=source):
        history = History(weights.origin)
        workdir.write_run(plan.config, facts, directory, history=history)
        with Checkpoints(directory / "checkpoints") as saved:
            saved.save(state, None)


def _check_same(directory: pathlib.Path, weights: initial.Weights) -> None:
    """Raises a UsageError if a run was made of the same file when it held others."""
    _, history = workdir.load_history(directory)
    if history.origin.weights != weights.origin.weights:
        raise UsageError(
            f"--init_from={weights.origin.run} holds other weights than when the run "
            f"in {directory} was made of it; choose another --workdir."
        )
