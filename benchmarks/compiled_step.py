"""Analyzes the program that XLA compiles for the training step on a GPU.

    pip install -r requirements.txt          # with the CUDA wheels
    python benchmarks/compiled_step.py --target=a100 --config.compute_dtype=bfloat16
    python benchmarks/compiled_step.py --config=configs/cifar10_duet_rot.py --devices=8

One update is compiled ahead of time, without a GPU, and never run. The report has the
planned memory, the operations, the layouts of convolutions, and the bytes read and
written. Nothing is tuned, as that takes the GPU: the workspaces of cuDNN, which add to
the memory, and the choice of algorithms are missing. An operand counts as read once in
full, or as far as it is gathered.
"""

import argparse
import collections
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

# The CUDA plugin is installed, but must not look for a GPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np
from jax.experimental import topologies

from duet_jax import cli
from duet_jax.data import decoding
from duet_jax.errors import UsageError
from duet_jax.runtime import mesh
from duet_jax.training import compiled as steps
from duet_jax.training import plan, train_step
from duet_jax.types import BATCH_AXIS, DatasetFacts

# Cores, units of a core, registers' clock in GHz, memory in bytes and bytes per second,
# caches and shared memory in bytes, compute capability. From NVIDIA's data sheets.
TARGETS = {
    "a100": (108, 64, 1.41, 85_100_068_864, 2_039_040_000_000, 41_943_040, 167_936,
             166_912, 8),
    "a100-16gb": (108, 64, 1.41, 15_800_000_000, 2_039_040_000_000, 41_943_040, 167_936,
                  166_912, 8),
    "h100": (132, 128, 1.98, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472,
             232_448, 9),
}  # fmt: skip
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {6} threads_per_core_limit: 2048 core_count: {0}
  fpus_per_core: {1} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {4} l2_cache_size: {5}
  clock_rate_ghz: {2} device_memory_size: {3} shared_memory_per_block_optin: {7}
  cuda_compute_capability {{ major: {8} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 dnn_version: "9.8.0" runtime_version: "12.8.0"
  driver_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
"""
# Images of CIFAR-10.
_TRAIN, _TEST, _CLASSES = 50_000, 10_000, 10


def compile_step(config, target: str, count: int):
    """Returns one compiled update for some devices of the target.

    Raises:
      UsageError: the compiler for CUDA is not installed.
    """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            target_config=_DESCRIPTION.format(*TARGETS[target]),
            topology=f"1x1x{count}",
        )
    except NotImplementedError as error:
        raise UsageError(
            f"--target={target} needs the compiler for CUDA, which JAX does not find; "
            "install requirements.txt, which has its wheels (no GPU is needed)."
        ) from error
    side = decoding.preprocessed_side(
        config.dataset.image_size, config.dataset.center_crop
    )
    names = tuple(map(str, range(_CLASSES)))
    run = plan.make_plan(config, DatasetFacts("-", side, 3, names, _TRAIN, _TEST))
    devices = jax.sharding.Mesh(np.array(topology.devices), (BATCH_AXIS,))
    run = run._replace(mesh=devices, unroll=True, steps_per_call=1)
    update = train_step.make_train_step(
        run.method, run.graphdef, run.optimizer, run.rate
    )
    call = steps.make_train_call(update, _pick, 1, unroll=True)
    data = mesh.shapes(
        (
            jax.ShapeDtypeStruct((_TRAIN, side, side, 3), np.uint8),
            jax.ShapeDtypeStruct((_TRAIN,), np.int32),
        ),
        mesh.replicated(devices),
    )
    rows = jax.ShapeDtypeStruct(
        (run.batch_size,), np.int32, sharding=mesh.sharded(devices)
    )
    whole = mesh.replicated(devices)
    with jax.set_mesh(devices):
        traced = jax.jit(call, donate_argnums=0, out_shardings=whole).trace(
            steps.initial_shapes(run), steps.key_shape(run), *data, rows
        )
    return traced.lower(lowering_platforms=("cuda",)).compile()


def _pick(step, images, labels, rows):
    return images[rows], labels[rows]


# --- the program as text --------------------------------------------------------------

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(
    r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, (.*))?$"
)
_FREE = {"get-tuple-element", "tuple", "parameter", "bitcast", "constant"}


class Operation(NamedTuple):
    """One line of a program: its result's shapes, its operands and attributes."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    kind: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(_BYTES[kind] * math.prod(dims) for kind, dims in self.shapes)


def parse(text: str) -> tuple[dict[str, dict[str, Operation]], str]:
    """Returns the computations of a program, by name, and the name of the first."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif match := _OPERATION.match(re.sub(r"/\*.*?\*/", "", line)):
            name, shape, kind, operands, attributes = match.groups()
            shapes = tuple(
                (kind, tuple(int(n) for n in dims.split(",") if n))
                for kind, dims in _SHAPE.findall(shape)
                if kind in _BYTES
            )
            names = tuple(re.findall(r"%([\w.-]+)", operands)) or (operands,)
            current[name] = Operation(name, shapes, kind, names, attributes or "")
    return computations, entry


def launched(computations, name: str) -> Iterator[tuple[dict, Operation]]:
    """Yields the operations launched on the device, with their computations."""
    for operation in computations[name].values():
        inner = re.search(r"(?:body|to_apply)=%([\w.-]+)", operation.attributes)
        if operation.kind in ("call", "while") and inner:
            yield from launched(computations, inner[1])
        elif operation.kind not in _FREE:
            yield computations[name], operation


def inside(computations, operation: Operation) -> dict[str, Operation]:
    """Returns the operations inside a fusion; none for other operations."""
    called = re.search(r"calls=%([\w.-]+)", operation.attributes)
    return computations[called[1]] if operation.kind == "fusion" and called else {}


def category(computations, operation: Operation) -> str:
    """Returns the kind of an operation, as text."""
    target = re.search(r'custom_call_target="([^"]*)"', operation.attributes)
    if target:
        return f"convolution ({target[1].removeprefix('__cudnn$conv')})"
    kinds = {each.kind for each in inside(computations, operation).values()}
    for kind in ("gather", "reduce", "transpose", "scatter"):
        if kind in kinds:
            return f"fused {kind}"
    return "fused element by element" if kinds else operation.kind


def read(computations, scope: dict, operation: Operation) -> int:
    """Returns the bytes that an operation reads."""
    body = inside(computations, operation)
    parameters = {
        int(each.operands[0]): each.name
        for each in body.values()
        if each.kind == "parameter"
    }
    total = 0
    for number, name in enumerate(operation.operands):
        size = scope[name].size if name in scope else 0
        users = [e for e in body.values() if parameters.get(number) in e.operands]
        if users and all("gather" in e.kind or "slice" in e.kind for e in users):
            size = min(size, sum(each.size for each in users))
        total += size
    return total


def _is_activation(operation: Operation, batch_size: int) -> bool:
    """Returns whether the result is as large as the activations of a batch."""
    return any(
        batch_size in dims and math.prod(dims) >= batch_size * 8 * 8 * 64
        for _, dims in operation.shapes
    )


_EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all",
              "collective-permute")  # fmt: skip


def exchanges(computations) -> Iterator[str]:
    """Yields the collectives: their number and size by kind."""
    found = collections.defaultdict(list)
    for computation in computations.values():
        for operation in computation.values():
            kind = operation.kind.removesuffix("-start")
            if kind in _EXCHANGES:
                found[kind].append(operation.size)
    for kind, sizes in found.items():
        yield (
            f"{kind}: {len(sizes)}, {sum(sizes) / 1e6:.2f} MB in all, the largest "
            f"{max(sizes) / 1e6:.2f} MB"
        )


class Figures(NamedTuple):
    """What a compiled program plans, does and moves.

    Attributes:
      peak_bytes: memory at most.
      operations: launched on the device.
      traffic_bytes: read and written by them.
      kinds: category -> operations launched, bytes read, bytes written.
    """

    peak_bytes: int
    operations: int
    traffic_bytes: int
    kinds: dict[str, tuple[int, int, int]]


def figures(compiled) -> Figures:
    """Returns the compiler's figures of a program."""
    computations, entry = parse(compiled.as_text())
    found = collections.defaultdict(lambda: (0, 0, 0))
    for scope, operation in launched(computations, entry):
        name = category(computations, operation)
        count, reads, writes = found[name]
        reads += read(computations, scope, operation)
        found[name] = (count + 1, reads, writes + operation.size)
    return Figures(
        compiled.memory_analysis().peak_memory_in_bytes,
        sum(row[0] for row in found.values()),
        sum(row[1] + row[2] for row in found.values()),
        dict(found),
    )


def _moved_activations(computations, entry: str, batch_size: int) -> int:
    """Returns the number of transposes and copies of activations."""
    return sum(
        part.kind in ("transpose", "copy") and _is_activation(part, batch_size)
        for _, operation in launched(computations, entry)
        for part in [operation, *inside(computations, operation).values()]
    )


def report(compiled, batch_size: int) -> Iterator[str]:
    """Yields the lines of the report."""
    memory, found = compiled.memory_analysis(), figures(compiled)
    text = compiled.as_text()
    computations, entry = parse(text)
    yield (
        f"memory: {memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries besides "
        f"{memory.argument_size_in_bytes / 1e9:.2f} GB of arguments; at most "
        f"{found.peak_bytes / 1e9:.2f} GB"
    )
    yield f"launched: {found.operations} operations"
    yield f"read and written: {found.traffic_bytes / 1e9:.1f} GB"
    large = _moved_activations(computations, entry, batch_size)
    yield f"transposes and copies of activations: {large}"
    layouts = collections.Counter(re.findall(r"dim_labels=(\S+?),", text))
    yield from exchanges(computations)
    yield f"convolutions: {', '.join(f'{n} {name}' for name, n in layouts.items())}"
    yield "\n| operations | number | read, GB | written, GB | share |"
    yield "|---|---:|---:|---:|---:|"
    for name, (count, reads, writes) in sorted(
        found.kinds.items(), key=lambda item: -item[1][1] - item[1][2]
    ):
        share = 100 * (reads + writes) / found.traffic_bytes
        yield (
            f"| {name} | {count} | {reads / 1e9:.2f} | {writes / 1e9:.2f} | "
            f"{share:.1f} % |"
        )


def run(argv: list[str]) -> None:
    """Compiles the step for the command line, and prints the report."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="All other arguments are those of main.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--target", choices=TARGETS, default="a100")
    parser.add_argument("--devices", type=int, default=1, help="number of GPUs")
    options, others = parser.parse_known_args(argv[1:])
    config = cli.parse([argv[0], *others, "--mode=benchmark"]).config
    print(
        f"{options.devices} x {options.target}, jax {jax.__version__}: "
        f"{config.method}, {config.encoder.name}, {config.compute_dtype}, batch "
        f"{config.batch_size}, remat {config.encoder.remat}"
    )
    compiled = compile_step(config, options.target, options.devices)
    print("\n".join(report(compiled, config.batch_size)))


if __name__ == "__main__":
    try:
        run(sys.argv)
    except UsageError as error:
        sys.exit(f"error: {error}")
