"""Measures one row of `growth.py`, whose process this is.

    python benchmarks/growth_row.py TASK SECONDS DEVICES --config=... --config.field=...

TASK is machine, here, or a target of `compiled_step.py`; SECONDS of timing are for here
alone. The last line of the output is what was found, as JSON.
"""

import contextlib
import json
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from duet_jax import cli, profiling
from duet_jax.errors import UsageError
from duet_jax.runtime import devices, provenance
from duet_jax.training.batches import make_feed
from duet_jax.training.plan import make_plan


def find_machine(config) -> dict[str, Any]:
    """Returns what a time depends on besides the program; the count is of GPUs."""
    devices.select(config.device)
    devices.check(config.device)
    return {
        "devices": devices.describe(),
        "processor": _processor(),
        "count": 0 if jax.default_backend() == "cpu" else jax.device_count(),
        "versions": provenance.describe()["versions"],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    """Returns the name of the CPU, or "" where the system does not tell it."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def measure_here(config, seconds: float) -> dict[str, float]:
    """Compiles the step and times it for some seconds on this machine.

    Returns:
      Speed, seconds to compile, and bytes on a device: arguments and temporaries that
      the compiler plans, and the peak, on a CPU that of this process.
    """
    devices.select(config.device)
    devices.check(config.device)
    dataset = profiling.noise(config)
    plan = make_plan(config, dataset.facts)
    found = profiling.measure_step(plan, make_feed(plan, dataset), seconds)
    memory = found["memory"]
    return {
        "images_per_second": found["images_per_second"],
        "compile_seconds": found["compile_seconds"]["cold"],
        "planned_bytes": memory["arguments"] + memory["temporaries"],
        "peak_bytes": memory["peak"] or memory["peak_of_the_process"],
    }


def analyze_target(config, target: str, count: int) -> dict[str, float]:
    """Compiles the step for `count` GPUs of a target; returns the compiler's figures.

    Returns:
      Bytes of memory at most, operations launched, and bytes read and written by them.
    """
    from benchmarks import compiled_step  # changes the environment

    found = compiled_step.figures(compiled_step.compile_step(config, target, count))
    return {
        "memory_bytes": found.peak_bytes,
        "operations": found.operations,
        "traffic_bytes": found.traffic_bytes,
    }


def run(argv: list[str]) -> None:
    """Carries out the task of the command line, and prints what is found."""
    program, task, seconds, count, *fields = argv
    config = cli.parse([program, *fields, "--mode=benchmark"]).config
    if task == "machine":
        found = find_machine(config)
    elif task == "here":
        found = measure_here(config, float(seconds))
    else:
        found = analyze_target(config, task, int(count))
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        run(sys.argv)
    except UsageError as error:
        sys.exit(f"error: {error}")
