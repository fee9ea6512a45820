"""What is decided of a run before anything is compiled."""

import math
from typing import NamedTuple

import jax
import ml_collections
import optax
from flax import nnx

from duet_jax.config import build
from duet_jax.errors import UsageError
from duet_jax.methods import Method
from duet_jax.runtime import mesh
from duet_jax.training import optim, train_step
from duet_jax.types import DatasetFacts

# Updates per compiled call on a GPU: enough to hide the host, few enough for a live
# bar.
_GPU_STEPS_PER_CALL = 50
# Images that are put on a device for one call; two calls' worth is there at a time.
_BYTES_PER_CALL = 2**28


class Plan(NamedTuple):
    """What is decided before anything is compiled.

    Attributes:
      mesh: the devices.
      method: makes views and scores the networks.
      graphdef: structure of its networks.
      optimizer: of all parameters.
      rate: its learning rate, by step.
      seed: of everything random.
      epochs: of the whole run.
      batch_size: examples in a training batch.
      test_batch_size: likewise in evaluation; the last one may be padded.
      steps_per_epoch: updates in an epoch.
      steps_per_call: updates in a compiled call; divides steps_per_epoch.
      unroll: write the updates of a call out instead of looping.
      on_nonfinite: what becomes of an update that is not finite; see `make_train_step`.
      rows_per_epoch: rows of training metrics in an epoch; a checkpoint goes with each
        but the last, which has a rhythm of its own.
    """

    mesh: jax.sharding.Mesh
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
    on_nonfinite: str
    rows_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.epochs * self.steps_per_epoch

    def test_batches(self, num_test: int) -> int:
        """Returns the batches of an evaluation on `num_test` images."""
        return -(-num_test // self.test_batch_size)

    def ends_row(self, step: int) -> bool:
        """Whether a row of training metrics ends at `step`, the end of a call."""
        calls = self.steps_per_epoch // self.steps_per_call
        done = -(-(step % self.steps_per_epoch) // self.steps_per_call)
        return done in {
            round(calls * row / self.rows_per_epoch)
            for row in range(self.rows_per_epoch)
        }


def make_plan(
    config: ml_collections.ConfigDict, facts: DatasetFacts, *, streamed: bool = False
) -> Plan:
    """Returns the plan of the run that `config` describes on the devices at hand.

    Args:
      config: resolved.
      facts: of the images.
      streamed: whether they come from the host, call by call.

    Raises:
      UsageError: configuration, images and devices do not go together.
    """
    mesh.check_batch_size(config.batch_size)
    method = build.make_method(config, facts)
    steps_per_epoch = _steps_per_epoch(config, facts.num_train)
    rate = optim.learning_rate(
        config.optimizer.learning_rate,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        steps_per_epoch=steps_per_epoch,
        schedule=config.optimizer.schedule,
    )
    on_cpu = jax.default_backend() == "cpu"
    steps_per_call = _steps_per_call(config, facts, steps_per_epoch, streamed=streamed)
    return Plan(
        mesh=mesh.make_mesh(),
        method=method,
        graphdef=train_step.graph_definition(method),
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
        test_batch_size=_test_batch_size(config.batch_size, facts.num_test),
        steps_per_epoch=steps_per_epoch,
        steps_per_call=steps_per_call,
        unroll=on_cpu,
        on_nonfinite=config.on_nonfinite,
        rows_per_epoch=config.checkpoint.within_epoch + 1,
    )


def _steps_per_call(
    config: ml_collections.ConfigDict,
    facts: DatasetFacts,
    steps_per_epoch: int,
    *,
    streamed: bool,
) -> int:
    """Returns a divisor of `steps_per_epoch` near to what is asked for, or is best."""
    on_cpu = jax.default_backend() == "cpu"
    wanted = config.steps_per_call or (1 if on_cpu else _GPU_STEPS_PER_CALL)
    most = wanted if on_cpu else steps_per_epoch
    if streamed and not config.steps_per_call:
        share = config.batch_size // jax.device_count()
        batch_bytes = share * facts.side**2 * facts.channels
        most = max(1, min(most, _BYTES_PER_CALL // batch_bytes))
        wanted = min(wanted, most)
    return nearest_divisor(steps_per_epoch, wanted, most)


def _test_batch_size(batch_size: int, num_test: int) -> int:
    """Returns a batch no larger than needed that the devices can share."""
    count = jax.device_count()
    return min(batch_size, -(-num_test // count) * count)


def check_start(plan: Plan, step: int) -> None:
    """Raises a UsageError unless a compiled call can begin at `step`."""
    if step % plan.steps_per_call:
        raise UsageError(
            f"the checkpoint of step {step} lies within an epoch, between two compiled "
            f"calls of {plan.steps_per_call} updates; set "
            f"config.steps_per_call={math.gcd(step, plan.steps_per_epoch)}."
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
