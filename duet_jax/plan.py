"""What is decided of a run before anything is compiled."""

import math
from typing import NamedTuple

import jax
import ml_collections
import optax
from flax import nnx

from duet_jax import optim, train_state
from duet_jax.errors import UsageError
from duet_jax.methods import METHODS, DataSpec, Method
from duet_jax.types import Dataset

# Updates per compiled call on a GPU: enough to hide the host, few enough for a live
# bar.
_GPU_STEPS_PER_CALL = 50


class Plan(NamedTuple):
    """What is decided before anything is compiled.

    Attributes:
      method: makes views and scores the networks.
      graphdef: structure of its networks.
      optimizer: of all parameters.
      rate: its learning rate, by step.
      seed: of everything random.
      epochs: of the whole run.
      batch_size: examples in a training batch.
      test_batch_size: likewise in evaluation.
      steps_per_epoch: updates in an epoch.
      steps_per_call: updates in a compiled call; divides steps_per_epoch.
      unroll: write the updates of a call out instead of looping.
    """

    method: Method
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    seed: int
    epochs: int
    batch_size: int
    test_batch_size: int
    steps_per_epoch: int
    steps_per_call: int
    unroll: bool

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.epochs * self.steps_per_epoch


def make_plan(config: ml_collections.ConfigDict, dataset: Dataset) -> Plan:
    """Returns the plan of the run that `config` describes on `dataset`.

    Raises:
      UsageError: the two do not go together.
    """
    data = DataSpec(
        dataset.name, dataset.side, dataset.channels, len(dataset.class_names)
    )
    method = METHODS[config.method].from_config(config, data)
    steps_per_epoch = _steps_per_epoch(config, len(dataset.train.labels))
    rate = optim.learning_rate(
        config.optimizer.learning_rate,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        steps_per_epoch=steps_per_epoch,
        schedule=config.optimizer.schedule,
    )
    on_cpu = jax.default_backend() == "cpu"
    wanted = config.steps_per_call or (1 if on_cpu else _GPU_STEPS_PER_CALL)
    return Plan(
        method=method,
        graphdef=train_state.graph_definition(method),
        optimizer=optim.adamw(
            rate,
            b1=config.optimizer.b1,
            b2=config.optimizer.b2,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
        ),
        rate=rate,
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        test_batch_size=min(config.batch_size, len(dataset.test.labels)),
        steps_per_epoch=steps_per_epoch,
        steps_per_call=nearest_divisor(
            steps_per_epoch, wanted, steps_per_epoch if not on_cpu else wanted
        ),
        unroll=on_cpu,
    )


def _steps_per_epoch(config: ml_collections.ConfigDict, examples: int) -> int:
    full = examples // config.batch_size
    if not full:
        raise UsageError(
            f"config.batch_size={config.batch_size} is more than the {examples} "
            f"training images of {config.dataset.name}; use at most {examples}."
        )
    if config.steps_per_epoch > full:
        raise UsageError(
            f"config.steps_per_epoch={config.steps_per_epoch} is more than the {full} "
            f"full batches of {config.batch_size} in {examples} training images; use "
            f"at most {full}, or 0 for all."
        )
    return config.steps_per_epoch or full


def nearest_divisor(number: int, wanted: int, most: int) -> int:
    """Returns the divisor of `number` whose ratio to `wanted` is closest to one.

    Args:
      number: what is divided.
      wanted: the ideal divisor.
      most: the largest that will do. Updates that are written out, not looped over,
        must not become more than was asked for.
    """
    divisors = [d for d in range(1, min(number, most) + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))
