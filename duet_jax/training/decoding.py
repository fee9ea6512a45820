"""Trains decoders of the frozen encoder of a run."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from duet_jax import loggers, optim
from duet_jax.config import build, checks
from duet_jax.errors import UsageError
from duet_jax.methods.reconstruction import Reconstruction
from duet_jax.runs import seal, workdir
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.history import ABOVE, Origin, Source
from duet_jax.runs.trained_run import Run
from duet_jax.runtime import files, mesh
from duet_jax.runtime.signals import Interruption
from duet_jax.training import train
from duet_jax.training.compiled import initial_shapes
from duet_jax.training.plan import Plan, make_plan
from duet_jax.types import Array, Dataset, TrainState

_log = logging.getLogger(__name__)

# Tests and checkpoints in a training of decoders, at most.
_TIMES = 5


class Decoders:
    """Trained decoders of a run's representations.

    Attributes:
      names: of the representations that they decode, "full" first.
    """

    def __init__(self, plan: Plan, params: dict):
        """Prepares the decoders.

        Args:
          plan: they were trained by.
          params: their parameters, by name of the representation.
        """
        self.names = tuple(sorted(params, key=lambda name: (name != "full", name)))
        self._size = plan.batch_size
        self._params = params
        networks = nnx.eval_shape(lambda: plan.method.init(nnx.Rngs(0))).decoders
        graphdefs = {name: nnx.split(networks[name])[0] for name in params}

        def decode(params: dict, given: Array, name: str) -> Array:
            return nnx.merge(graphdefs[name], params)(given)

        self._decode = jax.jit(decode, static_argnames="name")

    @property
    def params(self) -> dict:
        """Their parameters, by name of the representation."""
        return self._params

    def of(self, name: str) -> Callable[[Array], Array]:
        """Returns what a call does with `name`, as a pure function for JAX to trace."""
        return lambda given: self._decode(self._params[name], given, name)

    def __call__(self, name: str, given: np.ndarray) -> np.ndarray:
        """Decodes representations.

        Args:
          name: of the representation, one of `names`.
          given: [n, dimensions].

        Returns:
          Images, normalized like views and not clipped, float32
          [n, side, side, channels].
        """
        given, parts = jnp.asarray(given), []
        for start in range(0, len(given), self._size):
            batch = given[start : start + self._size]
            missing = ((0, self._size - len(batch)), (0, 0))
            made = self._decode(self._params[name], jnp.pad(batch, missing), name)
            parts.append(np.asarray(made)[: len(batch)])
        return np.concatenate(parts)


class _Frozen(NamedTuple):
    """The encoder that is decoded; see `initial.Weights`."""

    origin: Origin
    state: dict

    def put_into(self, state: TrainState) -> TrainState:
        """Returns a first state with a copy of the encoder in the place of its own."""
        # The first update frees the arrays of the state that it is given.
        own = jax.tree.map(np.array, self.state)
        own = mesh.replicate(own, state.step.sharding.mesh)
        return state._replace(batch_stats=state.batch_stats | {"encoder": own})

    def __str__(self) -> str:
        """Says whose it is."""
        return f"the encoder of step {self.origin.step}, frozen; decoders initialized"


def train_decoders(
    run: Run, config: ml_collections.ConfigDict, dataset: Dataset
) -> Decoders:
    """Returns decoders of a run, trained in `generation/` of its directory.

    They are those that lie there, if these are of the same encoder, images and
    settings; an unfinished training goes on. Other decoders are removed, and trained
    anew.

    Args:
      run: whose encoder is decoded; it is not changed.
      config: of the run, with the section `generation`.
      dataset: that of the run.

    Raises:
      UsageError: the directory cannot be used, or holds something else.
      TrainingError: the loss is no longer finite, or nothing can be saved.
      InterruptionError: by SIGTERM or SIGINT, after the training was saved.
    """
    directory = run.directory / "generation"
    plan = _make_plan(run, config, dataset)
    frozen = _freeze(run)
    begun = _begun(directory, plan, frozen.origin)
    if begun and _is_intact(directory / "checkpoints" / str(plan.total_steps)):
        _log.info("decoders     taken from %s", directory)
    else:
        _train(plan, directory, dataset, frozen)
    return _restored(plan, directory)


def load_decoders(run: Run) -> Decoders | None:
    """Returns the decoders of a run that lie in its directory, if they are whole.

    Nothing is trained or removed. None if there are none, or of other weights.

    Raises:
      UsageError: they are damaged.
    """
    directory = run.directory / "generation"
    if not directory.is_dir() or not _are_decoders(directory):
        return None
    _, history = workdir.load_history(directory)
    if history.origin.weights != run.fingerprint:
        _log.info("decoders     in %s are of other weights", directory)
        return None
    config, facts = workdir.load_config(directory), workdir.load_facts(directory)
    views = build.two_views(config, facts)
    method = Reconstruction(views, run.method, config.generation.width)
    plan = make_plan(config, facts, method=method)
    if not _is_intact(directory / "checkpoints" / str(plan.total_steps)):
        _log.info("decoders     in %s are not trained to their end", directory)
        return None
    return _restored(plan, directory)


def _restored(plan: Plan, directory: pathlib.Path) -> Decoders:
    shapes = initial_shapes(plan).params
    with Checkpoints(directory / "checkpoints", create=False) as saved:
        _, params, _ = saved.restore_model(shapes, {}, plan.total_steps)
    return Decoders(plan, params["decoders"])


def _train(
    plan: Plan, directory: pathlib.Path, dataset: Dataset, frozen: _Frozen
) -> None:
    source = Source(pathlib.Path(frozen.origin.run), frozen.origin.asked)
    with (
        Interruption() as interruption,
        workdir.claimed(plan.config, directory, source=source),
    ):
        train.proceed(plan, directory, dataset, interruption, frozen)


def _make_plan(run: Run, config: ml_collections.ConfigDict, dataset: Dataset) -> Plan:
    settings, examples = config.generation, dataset.facts.num_train
    if settings.batch_size > examples:
        raise UsageError(
            f"config.generation.batch_size={settings.batch_size} is more than the "
            f"{examples} training images of {dataset.name}; use at most {examples}."
        )
    mesh.check_batch_size(settings.batch_size, "config.generation.batch_size")
    config = config.copy_and_resolve_references()
    often = max(1, settings.epochs // _TIMES)
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "epochs": settings.epochs,
                "warmup_epochs": 0,
                "batch_size": settings.batch_size,
                # Short epochs of the run may have more batches than there are here.
                "steps_per_epoch": min(
                    config.steps_per_epoch, examples // settings.batch_size
                ),
                "optimizer.name": "adamw",
                "optimizer.scale": "none",
                "optimizer.learning_rate": settings.learning_rate,
                "optimizer.schedule": "step",
                "evaluate_every": often,
                "checkpoint.every": often,
                "checkpoint.within_epoch": 0,
                "checkpoint.keep": 1,
                "knn.every": 0,
                "figures_every": often,
                "tensorboard": False,
                "wandb.project": "",
            }
        )
        for name in optim.unread(config.optimizer):
            if name in config.optimizer:  # of the run's own optimizer
                del config.optimizer[name]
    # ESSL's own stack lacks what it predicts, which a decoder has to know.
    views = build.two_views(config, dataset.facts)
    method = Reconstruction(views, run.method, settings.width)
    return make_plan(config, dataset.facts, method=method)


def _freeze(run: Run) -> _Frozen:
    params, batch_stats = run.encoder.state
    origin = Origin(ABOVE, str(run.step), run.step, run.fingerprint)
    return _Frozen(origin, _merged(params, batch_stats))


def _merged(first: dict, second: dict) -> dict:
    """Returns nested dicts with the entries of both."""
    both = {**first, **second}
    for name in first.keys() & second.keys():
        both[name] = _merged(first[name], second[name])
    return both


def _begun(directory: pathlib.Path, plan: Plan, origin: Origin) -> bool:
    """Returns whether decoders of `plan` have been trained in `directory`.

    Others are removed, unless a process trains them.

    Raises:
      UsageError: they cannot be removed, or `directory` holds something else.
    """
    # A process that has only begun leaves directories, and files with hidden names.
    if not any(p.is_file() and p.name[0] != "." for p in directory.rglob("*")):
        return False
    if not _are_decoders(directory):
        raise UsageError(
            f"{directory}, where decoders are to be trained, holds something else; "
            "move it elsewhere."
        )
    reason = _why_others(directory, plan, origin)
    if not reason or workdir.is_in_use(directory):  # who uses it will be said
        return not reason
    if directory.is_symlink():
        raise UsageError(
            f"{directory} is a link to decoders {reason}; remove the link, and others "
            "are trained."
        )
    _log.info("decoders     %s are removed; others are trained", reason)
    # Renamed first: what a kill leaves of it then counts no more.
    with workdir.writing(directory, "--workdir"), files.scratch(directory) as aside:
        directory.rename(aside / directory.name)
    return False


def _are_decoders(directory: pathlib.Path) -> bool:
    """Returns whether decoders have been trained in `directory`, damaged or not."""
    with contextlib.suppress(UsageError):
        _, history = workdir.load_history(directory)
        return history.of_decoders
    try:
        rows = loggers.read_rows(directory / "metrics.jsonl")
    except (UsageError, OSError):
        return False
    return any("mse_full" in row for row in rows)


def _why_others(directory: pathlib.Path, plan: Plan, origin: Origin) -> str:
    """Returns why decoders are not those of `plan`; "" if they are."""
    try:
        old, history = workdir.load_history(directory)
        facts = workdir.load_facts(directory)
    except UsageError:
        return "whose config.json or dataset.json is damaged"
    new = json.loads(plan.config.to_json())
    # Of those that no training of a run reads, these matter here.
    own = [each for each in checks.changes(old, new) if each.startswith("generation.")]
    if changed := own or checks.differences(old, new):
        return f"with other settings ({'; '.join(changed)})"
    if history.origin != origin:
        return "of other weights"
    if facts != plan.facts:
        return "of other images"
    if any(map(_is_intact, workdir.steps(directory))):
        return ""
    return "without an intact checkpoint"


def _is_intact(checkpoint: pathlib.Path) -> bool:
    with contextlib.suppress(seal.DamageError):
        seal.verify(checkpoint)
        return True
    return False
