"""Measures the training step of a configuration and its parts.

Read `benchmark` first. It trains nothing and writes one file, `benchmark.json`.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from duet_jax.data import decoding
from duet_jax.errors import UsageError
from duet_jax.methods import Metrics
from duet_jax.profiling import ceiling, flops, parts
from duet_jax.profiling.table import table
from duet_jax.profiling.timing import Times, calls_in, times_in_turn
from duet_jax.runs import workdir
from duet_jax.runs.frozen_encoder import encoder_shapes
from duet_jax.runtime import devices, files, mesh, processes
from duet_jax.training import train_step
from duet_jax.training.batches import Feed, make_feed, open_dataset
from duet_jax.training.compiled import (
    Compiled,
    initial_shapes,
    initial_state,
    lower_train,
    make_keys,
)
from duet_jax.training.plan import Plan, make_plan
from duet_jax.types import Dataset, Split, TrainState

_log = logging.getLogger(__name__)

IMAGES = ("noise", "real")
# As many random images as CIFAR-10 has, within a limit of memory.
_NOISE_IMAGES, _NOISE_BYTES = 50_000, 2**30
# For timing the step and its parts, or the step alone, and for timing the host.
_SECONDS, _BRIEF_SECONDS, _PIPELINE_SECONDS = 40.0, 10.0, 10.0


def benchmark(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    images: str = "noise",
    out: str | None = None,
    brief: bool = False,
    compile_only: bool = False,
    **cluster: str,
) -> None:
    """Times the training step that `config` describes; prints and stores the results.

    Args:
      config: resolved, from `config.checks.check`.
      directory: receives benchmark.json, unless `out` is given.
      images: "noise" for random RGB images of the configured size, which take the step
        as long as others; "real" for the data set, read as in training.
      out: file for the results.
      brief: True to time the step alone; see `measure`.
      compile_only: True to time nothing; see `measure`.
      **cluster: arguments of `processes.start`.

    Raises:
      UsageError: anything the user can fix.
    """
    if images not in IMAGES:
        raise UsageError(f"--images={images!r} must be one of {', '.join(IMAGES)}.")
    flag = "--out" if out else "--workdir"
    path = files.local(out, flag) if out else directory / "benchmark.json"
    workdir.check_writable(path.parent, flag, path.name)
    devices.select(config.device)
    processes.start(**cluster)
    devices.check(config.device)
    mesh.check_batch_size(config.batch_size)
    if images == "noise" and config.dataset.placement == "host":
        raise UsageError(
            "config.dataset.placement='host' has no effect on noise, which is made in "
            "memory; use --images=real, or leave it out."
        )
    most = 0 if compile_only else _NOISE_IMAGES  # one batch is enough then
    dataset = open_dataset(config) if images == "real" else noise(config, most)
    plan = make_plan(config, dataset.facts, streamed=dataset.streamed)
    feed, how = make_feed(plan, dataset), {"brief": brief, "compile_only": compile_only}
    with _empty_compilation_cache():
        results = {
            **_circumstances(config, plan, images),
            **measure(plan, feed, **how),
        }
    if processes.is_main_process():
        with workdir.writing(path, flag):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as partial:
                partial.write_text(json.dumps(results, indent=2) + "\n")
        print(table(results))
        _log.info("results in   %s", path)
    processes.barrier("the end")


def noise(config: ml_collections.ConfigDict, most: int = _NOISE_IMAGES) -> Dataset:
    """Returns random images of the configured size, `most` or what a batch takes."""
    side = decoding.preprocessed_side(
        config.dataset.image_size, config.dataset.center_crop
    )
    count = min(most, _NOISE_BYTES // (3 * side**2))
    count = max(count, config.batch_size * max(1, config.steps_per_epoch))
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(config.dataset.num_classes or 10)))

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        return Split(images, rng.integers(0, len(names), count, np.int32))

    return Dataset("noise", split(count), split(config.batch_size), names)


def measure(
    plan: Plan, feed: Feed, *, brief: bool = False, compile_only: bool = False
) -> dict[str, Any]:
    """Compiles and times the training call and its parts; returns the results.

    Args:
      plan: of the run.
      feed: its batches.
      brief: True to leave out the parts, the host and the second compilation, which
        together take most of the time: "parts_ms" and "host" are empty then.
      compile_only: True to compile and count, and to run nothing: "encoder",
        "compile_seconds", "operations" and "memory" are all that there is.
    """
    once = brief or compile_only
    call, compile_seconds = _compile(plan, feed, ("cold", "cached")[: 2 - once])
    counted = {
        "encoder": _encoder(plan),
        "compile_seconds": compile_seconds,
        "operations": _operations(plan),
        "memory": _memory(call),
    }
    if compile_only:
        return counted
    compiled = Compiled(call, None, make_keys(plan))
    with contextlib.closing(_endless(feed)) as calls:
        if brief:
            found = {"step": _time_step(plan, compiled, calls, _BRIEF_SECONDS)}
            host = {}
        else:
            found = _time_step_and_parts(plan, feed, compiled, calls)
            host = _time_host(plan, compiled, calls, feed, found["step"].median)
    step = found.pop("step")
    per_step = step.median / plan.steps_per_call
    return counted | {
        "step": _milliseconds(step, plan),
        "images_per_second": plan.batch_size / per_step,
        "parts_ms": {k: 1e3 * v.median / plan.steps_per_call for k, v in found.items()},
        "rate": _rate(plan, counted["operations"]["counted"], per_step),
        "memory": _memory(call),  # with the peak
        "host": host,
    }


def measure_step(plan: Plan, feed: Feed, seconds: float) -> dict[str, Any]:
    """Returns what `measure` finds of the training call alone, in less time.

    Args:
      plan: of the run.
      feed: its batches.
      seconds: of timing, within the limits of `times_in_turn`.
    """
    call, compile_seconds = _compile(plan, feed, ("cold",))
    compiled = Compiled(call, None, make_keys(plan))
    with contextlib.closing(_endless(feed)) as calls:
        step = _time_step(plan, compiled, calls, seconds)
    return {
        "compile_seconds": compile_seconds,
        "step": _milliseconds(step, plan),
        "images_per_second": plan.batch_size * plan.steps_per_call / step.median,
        "memory": _memory(call),
    }


def _compile(
    plan: Plan, feed: Feed, kinds: Sequence[str]
) -> tuple[Any, dict[str, float]]:
    """Compiles the training call: without a cached program, then with one."""
    seconds = {}
    for kind in kinds:
        _log.info("compiling (%s) ...", kind)
        jax.clear_caches()
        clock = time.perf_counter()
        call = lower_train(plan, feed).compile()
        seconds[kind] = time.perf_counter() - clock
    return call, seconds


@contextlib.contextmanager
def _empty_compilation_cache() -> Iterator[None]:
    """Replaces the compilation cache by an empty one."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    with tempfile.TemporaryDirectory() as directory:
        _configure(names, (directory, 0.0))
        try:
            yield
        finally:
            _configure(names, before)


def _configure(names: Sequence[str], values: Sequence[Any]) -> None:
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX reads the directory only once


def _endless(feed: Feed) -> Iterator[tuple]:
    """Yields the arguments of training calls, of one run after another."""
    while True:
        yield from feed.training(0)


def _time_step_and_parts(
    plan: Plan, feed: Feed, compiled: Compiled, calls: Iterator[tuple]
) -> dict[str, Times]:
    """Times the training call, as "step", and each of its parts by name."""
    key, state = compiled.keys.training, initial_state(plan)
    first = next(calls)

    def batch_and_views(key, *arguments):
        batch = feed.pick_train(jnp.zeros((), jnp.int32), *arguments)
        return batch, plan.method.make_views(key, batch.images, train=True)

    with jax.set_mesh(plan.mesh):
        batch, views = jax.jit(batch_and_views)(key, *first)
    arguments = (state, key, batch, views)
    _log.info("compiling its parts ...")
    found = {name: parts.compile_part(plan, name, arguments) for name in parts.PARTS}
    _log.info("timing the step and its parts ...")
    timed = [functools.partial(part, *arguments) for part in found.values()]
    times = times_in_turn([_step(plan, compiled, calls), *timed], _SECONDS)
    return dict(zip(["step", *found], times, strict=True))


def _time_step(
    plan: Plan, compiled: Compiled, calls: Iterator[tuple], seconds: float
) -> Times:
    """Times the training call alone."""
    _log.info("timing the step ...")
    (times,) = times_in_turn([_step(plan, compiled, calls)], seconds)
    return times


def _step(
    plan: Plan, compiled: Compiled, calls: Iterator[tuple]
) -> Callable[[], Metrics]:
    """Returns a function that makes the next training call of a run."""
    state = initial_state(plan)  # donated, call by call

    def step():
        nonlocal state
        state, scores = compiled.train(state, compiled.keys.training, *next(calls))
        return scores

    return step


def _time_host(
    plan: Plan, compiled: Compiled, calls: Iterator[tuple], feed: Feed, call: float
) -> dict[str, float]:
    """Returns what the host does in calls that take `call` seconds each."""
    _log.info("timing what the host does ...")
    some = itertools.islice(calls, calls_in(_PIPELINE_SECONDS, call))
    return _host_times(compiled, initial_state(plan), some, feed)


def _host_times(
    compiled: Compiled, state: TrainState, calls: Iterator[tuple], feed: Feed
) -> dict[str, float]:
    """Runs calls as in training, with metrics read one call late.

    Returns the fractions of the time in which the host waited for the device, which is
    busy then, and for images.
    """
    waited, images, count, late = 0.0, feed.waited or 0.0, 0, None
    start = time.perf_counter()
    for arguments in calls:
        state, scores = compiled.train(state, compiled.keys.training, *arguments)
        if late is not None:
            clock = time.perf_counter()
            jax.device_get(late)
            waited += time.perf_counter() - clock
        late, count = scores, count + 1
    jax.block_until_ready(late)
    wall = time.perf_counter() - start
    return {
        "waits_for_device": waited / wall,
        "waits_for_images": ((feed.waited or 0.0) - images) / wall,
        "ms_per_call": 1e3 * wall / count,
    }


def _encoder(plan: Plan) -> dict[str, int]:
    """Returns what the encoder is: features, parameters, and operations of an image.

    The operations are those of the forward pass for one view of the configured side.
    """
    stack, settings = plan.method.two_views.stack, plan.method.two_views.encoder
    graphdef, params, batch_stats = encoder_shapes(plan.method)
    image = jax.ShapeDtypeStruct(
        (1, stack.image_size, stack.image_size, stack.channels), np.float32
    )

    def forward(params, batch_stats, image):
        return nnx.merge(graphdef, params, batch_stats)(image, train=False)

    return {
        "features": settings.num_features,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "operations_per_image": flops.count(forward, params, batch_stats, image),
    }


def _operations(plan: Plan) -> dict[str, float]:
    """Returns the operations of one update on all devices: XLA's count and ours."""
    update = train_step.make_train_step(
        plan.method, plan.graphdef, plan.optimizer, plan.rate, plan.config.on_nonfinite
    )
    stack = plan.method.two_views.stack
    shape = (plan.batch_size, stack.input_side, stack.input_side, stack.channels)
    batch = (
        jax.ShapeDtypeStruct(shape, np.uint8),
        jax.ShapeDtypeStruct((plan.batch_size,), np.int32),
    )
    shapes = jax.eval_shape(lambda x: x, initial_shapes(plan))
    lowered = jax.jit(update).lower(shapes, jax.random.key(0), *batch)
    return {
        "xla": lowered.cost_analysis()["flops"],
        "counted": flops.count(update, shapes, jax.random.key(0), *batch),
    }


def _rate(plan: Plan, operations: float, seconds: float) -> dict[str, Any]:
    """Returns the operations per second of one device, and its maximum."""
    dtype = str(plan.method.two_views.encoder.dtype)
    achieved = operations / seconds / jax.device_count()
    most = {name: ceiling.measure(name) for name in sorted({dtype, "bfloat16"})}
    return {
        "tflops_per_device": achieved / 1e12,
        "ceiling_tflops": {name: value / 1e12 for name, value in most.items()},
        "share_of_ceiling": achieved / most[dtype],
    }


def _memory(call) -> dict[str, int | None]:
    """Returns the bytes on one device: planned by the compiler, and the peak so far."""
    planned = call.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "arguments": planned.argument_size_in_bytes,
        "temporaries": planned.temp_size_in_bytes,
        "peak": stats.get("peak_bytes_in_use"),
        "peak_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * 1024,
    }


def _milliseconds(step: Times, plan: Plan) -> dict[str, float]:
    scale = 1e3 / plan.steps_per_call
    return {
        "median_ms": scale * step.median,
        "fastest_ms": scale * step.fastest,
        "slowest_ms": scale * step.slowest,
        "calls": step.calls,
        "steps_per_call": plan.steps_per_call,
    }


def _circumstances(
    config: ml_collections.ConfigDict, plan: Plan, images: str
) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "devices": devices.describe(),
        "cores": devices.count_cores(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "platform": jax.devices()[0].client.platform_version,
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "images": images,
        "batch_size": plan.batch_size,
        "config": json.loads(config.to_json()),
    }
