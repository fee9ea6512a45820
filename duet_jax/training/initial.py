"""The first weights of a run, taken from a checkpoint of another one, or a file."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from duet_jax.errors import UsageError
from duet_jax.runs import weights_file, workdir
from duet_jax.runs.checkpoints import Checkpoints, shapes
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.runs.history import WEIGHTS, Origin, Source
from duet_jax.runtime import processes
from duet_jax.training.compiled import initial_shapes
from duet_jax.training.plan import Plan
from duet_jax.types import TrainState


class Weights(NamedTuple):
    """Networks of another run, or of a file.

    Attributes:
      origin: where they are from.
      params: by name of the network.
      batch_stats: likewise; without the networks that have none.
      anew: names of the networks of this run that are not among them.
    """

    origin: Origin
    params: dict
    batch_stats: dict
    anew: tuple[str, ...]

    def put_into(self, state: TrainState) -> TrainState:
        """Returns a first state with these weights in the place of its own."""
        return state._replace(
            params=state.params | self.params,
            batch_stats=state.batch_stats | self.batch_stats,
        )

    def __str__(self) -> str:
        """Says which networks are taken, from where, and which are not."""
        rest = f"; {', '.join(self.anew)} initialized anew" if self.anew else ""
        place = self.origin.run
        if self.origin.asked:  # a file has no steps to choose from
            place = f"step {self.origin.step} of {place}"
        return f"{', '.join(self.params)} of {place}{rest}"


def check(source: Source) -> None:
    """Raises a UsageError if `source` is no file, nor a run that has saved anything."""
    if source.is_file:
        _told(source, weights_file.check, source.run)
    elif source.run.is_file():
        raise UsageError(
            f"--init_from={source.run} is a file; one of weights ends in "
            f"{', '.join(WEIGHTS)}."
        )
    elif not source.run.exists():
        raise UsageError(
            f"--init_from={source.run} does not exist; name the --workdir of a "
            "training, or a file of weights."
        )
    elif not workdir.steps(source.run):
        raise UsageError(
            f"--init_from={source}: {source.run} holds no checkpoint; name the "
            "--workdir of a training."
        )


def load(source: Source, plan: Plan) -> Weights:
    """Restores the networks of `source` whose arrays have the shapes of the plan's.

    Raises:
      UsageError: there is no such checkpoint or file, it is damaged, or its encoder
        does not fit.
    """
    state = initial_shapes(plan)
    like = {"params": state.params, "batch_stats": state.batch_stats}
    restore = _from_file if source.is_file else _from_run
    step, params, batch_stats = _told(source, restore, source, like)
    encoder = FrozenEncoder(plan.method, batch_size=plan.batch_size)
    encoder.use(params["encoder"], batch_stats.get("encoder", {}))
    return Weights(
        Origin(str(source.run), source.step, step, encoder.fingerprint()),
        params,
        batch_stats,
        tuple(name for name in state.params if name not in params),
    )


def _told(source: Source, function: Callable, *arguments: Any) -> Any:
    """Calls a function; its errors say that they are about --init_from."""
    try:
        return function(*arguments)
    except UsageError as error:
        # What is said of a file begins with its path.
        place = "" if source.is_file else f"{source}: "
        raise UsageError(f"--init_from={place}{error}") from error


def _from_file(source: Source, like: dict) -> tuple[int, dict, dict]:
    """Returns the step of a file, parameters and running statistics of what fits."""
    about = weights_file.about(source.run)
    found = weights_file.read(source.run).networks(*like.values())
    # As from a checkpoint, on this process's first device.
    return about.step if about else 0, *jax.tree.map(jnp.asarray, found)


def _from_run(source: Source, like: dict) -> tuple[int, dict, dict]:
    """Returns a step of a run, parameters and running statistics of what fits."""
    with Checkpoints(source.run / "checkpoints", create=False) as saved:
        # Of a run that is still training, all processes must take the same.
        step = processes.broadcast(saved.find(source.step))
        fitting = _fitting(shapes(like), saved.shapes(step), source)
        parts = (
            {name: part[name] for name in fitting if name in part}
            for part in like.values()
        )
        return saved.restore_model(*parts, step)


def _fitting(wanted: dict, found: dict, source: Source) -> list[str]:
    """Returns the networks whose arrays all have the same shapes in both.

    Args:
      wanted: shapes by path: params or batch_stats, the network, and so on.
      found: likewise, in the checkpoint.
      source: of the checkpoint.

    Raises:
      UsageError: the encoder is not among them.
    """
    networks = dict.fromkeys(path[1] for path in wanted)
    differing = {
        path[1]: path
        for path in sorted({**found, **wanted}, reverse=True)
        if wanted.get(path) != found.get(path)
    }
    if path := differing.get("encoder"):
        raise UsageError(
            f"its encoder is another than config.encoder asks for "
            f"({'.'.join(path)} is {found.get(path, 'missing')} there and "
            f"{wanted.get(path, 'missing')} here); repeat the fields of config.encoder "
            f"and the channels of {source.run}, or leave --init_from out."
        )
    return [name for name in networks if name not in differing]
