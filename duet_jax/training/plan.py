"""The plan of a run: everything that is decided before anything is compiled."""

import math
from typing import NamedTuple

import jax
import ml_collections
import optax
from flax import nnx

from duet_jax import optim
from duet_jax.config import build
from duet_jax.errors import UsageError
from duet_jax.methods import Method
from duet_jax.methods.reconstruction import Reconstruction
from duet_jax.runs.history import Extension
from duet_jax.runtime import mesh
from duet_jax.training import monitors, train_step
from duet_jax.types import DatasetFacts

# Updates per compiled call on a GPU: enough to hide the host's work, few enough for a
# live progress bar.
_GPU_STEPS_PER_CALL = 50
# Images on a device for one streamed call. There are two calls' worth at a time.
_BYTES_PER_CALL = 2**28


class Plan(NamedTuple):
    """A run's configuration and what follows from it.

    Attributes:
      config: resolved.
      facts: of the images.
      streamed: True if the images come from the host, call by call.
      mesh: the devices.
      method: makes views and scores the networks.
      graphdef: structure of its networks.
      optimizer: of all parameters.
      rate: its learning rate, by step.
      test_batch_size: images in a test batch; the last one may be padded.
      steps_per_epoch: updates in an epoch.
      steps_per_call: updates in a compiled call; divides steps_per_epoch.
      unroll: write the updates of a call out instead of looping.
      extensions: of the run, in the order in which they were made.
    """

    config: ml_collections.ConfigDict
    facts: DatasetFacts
    streamed: bool
    mesh: jax.sharding.Mesh
    method: Method
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    test_batch_size: int
    steps_per_epoch: int
    steps_per_call: int
    unroll: bool
    extensions: tuple[Extension, ...] = ()

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.config.seed

    @property
    def batch_size(self) -> int:
        """Images in a training batch."""
        return self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def test_batches(self) -> int:
        """Batches of the test split, of which the last one is filled up."""
        return -(-self.facts.num_test // self.test_batch_size)

    @property
    def of_decoders(self) -> bool:
        """Whether decoders of a frozen encoder are trained, not a method."""
        return isinstance(self.method, Reconstruction)

    @property
    def monitored(self) -> int:
        """Number of test images that monitors are measured on; 0 for no monitors."""
        if self.of_decoders:  # the encoder is frozen
            return 0
        return monitors.sample_size(self.config.monitor.images, self.facts.num_test)

    @property
    def directions(self) -> int:
        """Largest rank that the monitored features can have."""
        return min(self.monitored, self.method.two_views.encoder.num_features)

    @property
    def monitored_rows(self) -> int:
        """How many of a test batch are encoded for them, evenly split over devices."""
        count = self.mesh.size
        return min(self.test_batch_size, -(-self.monitored // count) * count)

    @property
    def remedy(self) -> str:
        """What may help where a loss is not finite."""
        if self.of_decoders:  # all else is the run's, and stays
            return "a lower config.generation.learning_rate"
        return "a lower config.optimizer.learning_rate or config.compute_dtype=float32"

    @property
    def base_rate(self) -> float:
        """The learning rate after the warm-up, for the size of the batches."""
        settings = self.config.optimizer
        return optim.scaled(settings.learning_rate, settings.scale, self.batch_size)

    def ends_row(self, step: int) -> bool:
        """Whether a row of training metrics ends at `step`, the end of a call.

        Rows are evenly spaced in an epoch, and a checkpoint goes with each but the
        last, for which `config.checkpoint.every` decides.
        """
        rows = self.config.checkpoint.within_epoch + 1
        calls = self.steps_per_epoch // self.steps_per_call
        done = -(-(step % self.steps_per_epoch) // self.steps_per_call)
        return done in {round(calls * row / rows) for row in range(rows)}

    def ends_epochs(self, step: int, epochs: int) -> bool:
        """Whether a multiple of `epochs` ends at `step`; never for 0."""
        return epochs > 0 and step % (epochs * self.steps_per_epoch) == 0


def make_plan(
    config: ml_collections.ConfigDict,
    facts: DatasetFacts,
    *,
    streamed: bool = False,
    method: Method | None = None,
) -> Plan:
    """Returns the plan of the run that `config` describes on the available devices.

    Args:
      config: resolved.
      facts: of the images.
      streamed: True if they come from the host, call by call.
      method: what is trained, if it is not the method of `config`.

    Raises:
      UsageError: configuration, images and devices do not fit together.
    """
    mesh.check_batch_size(config.batch_size)
    if config.knn.every and not facts.num_classes:
        raise UsageError(
            f"config.knn.every={config.knn.every} needs labels, and "
            f"config.dataset.name={facts.name!r} gives images without; set it to 0."
        )
    method = method or build.make_method(config, facts)
    steps_per_epoch = _steps_per_epoch(config, facts.num_train)
    rate, optimizer = _make_optimizer(config, steps_per_epoch)
    return Plan(
        config=config,
        facts=facts,
        streamed=streamed,
        mesh=mesh.make_mesh(),
        method=method,
        graphdef=train_step.graph_definition(method),
        optimizer=optimizer,
        rate=rate,
        test_batch_size=_test_batch_size(config.batch_size, facts.num_test),
        steps_per_epoch=steps_per_epoch,
        steps_per_call=_steps_per_call(config, facts, steps_per_epoch, streamed),
        unroll=jax.default_backend() == "cpu",
    )


def with_extensions(plan: Plan, extensions: tuple[Extension, ...]) -> Plan:
    """Returns the plan of a run that has been extended; the plan itself for none."""
    if not extensions:
        return plan
    rate, optimizer = _make_optimizer(plan.config, plan.steps_per_epoch, extensions)
    return plan._replace(rate=rate, optimizer=optimizer, extensions=extensions)


def _make_optimizer(
    config: ml_collections.ConfigDict,
    steps_per_epoch: int,
    extensions: tuple[Extension, ...] = (),
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate and the optimizer that follows it."""
    settings = config.optimizer
    base = optim.scaled(settings.learning_rate, settings.scale, config.batch_size)
    rate = optim.learning_rate(
        base,
        epochs=extensions[0].before if extensions else config.epochs,
        warmup_epochs=config.warmup_epochs,
        steps_per_epoch=steps_per_epoch,
        schedule=settings.schedule,
        extensions=[(each.step, each.after) for each in extensions],
    )
    return rate, optim.make(rate, settings)


def _steps_per_call(
    config: ml_collections.ConfigDict,
    facts: DatasetFacts,
    steps_per_epoch: int,
    streamed: bool,
) -> int:
    """Returns a divisor of `steps_per_epoch` close to the requested or best size."""
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
    """Returns the smallest sufficient batch size that all devices can share."""
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
      number: to divide.
      wanted: the ideal divisor.
      most: the largest divisor allowed. Unrolled calls must not have more updates than
        requested.
    """
    divisors = [d for d in range(1, min(number, most) + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))
