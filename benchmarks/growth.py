"""Measures how the training step grows with its sizes, as one table.

    python benchmarks/growth.py --out=growth.json
    python benchmarks/growth.py --out=now.json --against=growth.json

From one configuration, one factor is varied at a time: images in a batch, width, side,
bins, devices, which are simulated on a CPU. Every row has processes of its own
(`growth_row.py`): for speed, time to compile and memory of the step on this machine,
and for what XLA's compiler says of it for GPUs that are not there (`compiled_step.py`,
which takes the CUDA wheels). In brackets is the growth from the size before. The JSON
is written after each row, and a row that fails stops no other.

--against compares with an earlier file, names what became worse by more than a factor,
and ends with status 1 if something did. What was measured, the peak of the memory
included, is compared only if machine, versions and seconds are the same; what a
compiler counts always is.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

# Nothing here imports JAX: a process counts the memory of its parent as its own peak.
from duet_jax import cli
from duet_jax.errors import UsageError, lookup
from duet_jax.runs import workdir
from duet_jax.runtime import files

_HERE = pathlib.Path(__file__).parent
_PATIENCE = 1800.0  # seconds for a single process
# Fills two cores, and takes little time.
_BASE = ("--config=cifar10_narrow", "--config.batch_size=256")
TARGETS = ("a100", "a100-16gb", "h100")

# Factor -> field of the configuration, and sizes; devices are not in it.
FACTORS: dict[str, tuple[str, tuple[float, ...]]] = {
    "batch": ("batch_size", (64, 256, 1024, 4096)),
    "width": ("encoder.width_multiplier", (0.5, 1.0, 2.0, 4.0)),
    "side": ("dataset.image_size", (8, 16, 32, 64)),
    "bins": ("duet.num_bins", (2, 8, 32, 128)),
    "devices": ("", (1, 2, 4, 8)),
}


class Value(NamedTuple):
    """What is found for a row.

    Attributes:
      title: with the unit that the table counts in.
      unit: the same as a number.
      digits: after the point.
      measured: False if a compiler counts it.
      more_is_better: as of a speed.
    """

    title: str
    unit: float = 1.0
    digits: int = 0
    measured: bool = False
    more_is_better: bool = False


# As `growth_row.py` names them.
_OF_THIS_MACHINE = {
    "images_per_second": Value("images/s", measured=True, more_is_better=True),
    "compile_seconds": Value("compiling, s", digits=1, measured=True),
    "planned_bytes": Value("planned, MiB", 2**20),
    "peak_bytes": Value("peak, MiB", 2**20, measured=True),
}
_OF_TARGET = {
    "memory_bytes": Value("at most, MiB", 2**20),
    "operations": Value("operations"),
    "traffic_bytes": Value("read and written, GB", 1e9, 2),
}


# --- the rows -------------------------------------------------------------------------


def environment(task: str, count: int) -> dict[str, str]:
    """Returns the environment of a task: `count` devices, no programs compiled before.

    On a CPU the devices are simulated; on a GPU they are the first of those there.
    """
    found = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    flags = found.get("XLA_FLAGS", "").split()
    if task == "here":
        flags.append(f"--xla_force_host_platform_device_count={count}")
        every = ",".join(map(str, range(count)))
        visible = found.get("CUDA_VISIBLE_DEVICES", every).split(",")
        found["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:count])
    elif task in TARGETS:
        found["JAX_PLATFORMS"] = "cpu"  # compiles for GPUs, but does not look for one
        flags.append("--xla_gpu_autotune_level=0")
    return {**found, "XLA_FLAGS": " ".join(flags)}


def carry_out(
    task: str, seconds: float, count: int, fields: Sequence[str]
) -> dict[str, Any]:
    """Returns what a task finds; "failed" with the last line of its error if it fails.

    Args:
      task: of `growth_row.py`, in a process of its own.
      seconds: of timing.
      count: of devices.
      fields: flags of main.py.
    """
    command = [sys.executable, _HERE / "growth_row.py", task, seconds, count, *fields]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [*map(str, command)],
            env=environment(task, count),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            status = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {_PATIENCE:.0f} s"}
        finally:
            process.kill()
            process.wait()
        for file in (out, err):
            file.seek(0)
        if status < 0:  # most often for want of memory
            return {"failed": f"ended by {signal.Signals(-status).name}"}
        if status:
            lines = [line.strip() for line in err if line.strip()]
            return {"failed": (lines or [f"ended with status {status}"])[-1]}
        return json.loads(out.readlines()[-1])


def rows(config, count: int) -> Iterator[dict[str, Any]]:
    """Yields the rows: factor, size, devices, and the fields that differ from `config`.

    Args:
      config: the base.
      count: of GPUs; 0 on a CPU, where any number is simulated.
    """
    for factor, (field, sizes) in FACTORS.items():
        if factor == "bins" and "duet" not in config:
            continue
        for size in sizes:
            row = {"factor": factor, "size": size, "devices": 1, "fields": []}
            if not field:
                row["devices"] = size
            elif functools.reduce(getattr, field.split("."), config) != size:
                row["fields"] = [f"--config.{field}={size}"]
            if not count or row["devices"] <= count:
                yield row


def compiler_is_here() -> bool:
    """Returns whether JAX has a compiler for CUDA."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) for name in names)


def measure(options: argparse.Namespace, fields: list[str]) -> dict[str, Any]:
    """Fills the rows, and writes all that there are to `options.out` after each."""
    machine = carry_out("machine", 0, 1, fields)
    if "failed" in machine:
        raise UsageError(machine["failed"].removeprefix("error: "))
    results = {"fields": fields, "machine": machine, "seconds": options.seconds}
    results |= {"targets": options.targets, "rows": []}
    tasks = ["here", *(options.targets if compiler_is_here() else [])]
    known = {}  # the base is a row of every factor, and measured once
    for row in rows(_read(fields), machine["count"]):
        for task in tasks:
            key = (task, row["devices"], *row["fields"])
            if key not in known:
                print(f"{_name(row)}, {task} ...", file=sys.stderr, flush=True)
                command = (options.seconds, row["devices"], [*fields, *row["fields"]])
                known[key] = carry_out(task, *command)
            row[task] = known[key]
        results["rows"].append(row)
        with files.replacing(options.out) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")
    return results


# --- the table ------------------------------------------------------------------------


def columns(results: Mapping[str, Any]) -> dict[tuple[str, str], Value]:
    """Returns the values of a row by task and name."""
    found = {("here", name): value for name, value in _OF_THIS_MACHINE.items()}
    for target in results["targets"]:
        for name, value in _OF_TARGET.items():
            title = f"{target.upper()}: {value.title}"
            found[target, name] = value._replace(title=title)
    return found


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a table, with the growth from the size before."""
    machine, shown = results["machine"], columns(results)
    where = [machine["devices"], machine["processor"]]
    where += [f"jax {machine['versions']['jax']}", *results["fields"]]
    yield from (", ".join(filter(None, where)), "")
    yield from _head("", shown)
    before = {}
    for row in results["rows"]:
        before = before if before.get("factor") == row["factor"] else {}
        cells = []
        for (task, name), value in shown.items():
            number = row.get(task, {}).get(name)
            last = before.get(task, {}).get(name)
            grown = f" (x {number / last:.2f})" if number and last else ""
            missing = "failed" if task in row else "not compiled"
            cells.append(missing if number is None else _shown(number, value) + grown)
        yield f"| {_name(row)} | {' | '.join(cells)} |"
        before = row
    yield from dict.fromkeys(["", *_notes(results)])


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for whatever the table lacks."""
    for row in results["rows"]:
        for task in ("here", *results["targets"]):
            if task not in row:
                yield (
                    f"{task.upper()}: not compiled, as the CUDA wheels are missing; "
                    "install requirements.txt (no GPU is needed)."
                )
            elif "failed" in row[task]:
                yield f"{_name(row)}, {task}: {row[task]['failed']}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['factor']} {row['size']:g}"


def _shown(number: float, value: Value) -> str:
    return f"{number / value.unit:,.{value.digits}f}"


def _head(corner: str, shown: Mapping[tuple[str, str], Value]) -> Iterator[str]:
    yield f"| {corner} | {' | '.join(value.title for value in shown.values())} |"
    yield f"|---|{'---:|' * len(shown)}"


# --- against an earlier table ---------------------------------------------------------


def compare(
    now: Mapping[str, Any], then: Mapping[str, Any], slower: float, larger: float
) -> tuple[list[str], list[str]]:
    """Compares the results of two calls.

    Args:
      now: the new results.
      then: the earlier ones.
      slower: factor from which on a measured value is worse.
      larger: factor from which on a counted one is.

    Returns:
      The lines of a table of ratios, new to earlier; and a line for each step
      backwards.
    """
    same = all(now[name] == then[name] for name in ("machine", "seconds"))
    earlier = {_name(row): row for row in then["rows"]}
    shown, worse = columns(now), []
    lines = [*_head("new / earlier", shown)]
    for row in now["rows"]:
        old, cells = earlier.get(_name(row), {}), []
        for (task, name), value in shown.items():
            a, b = (each.get(task, {}).get(name) for each in (row, old))
            if b and "failed" in row.get(task, {}):
                worse.append(f"{_name(row)}, {task}: failed")
            if not a or not b or (value.measured and not same):
                cells.append("-")
                continue
            cells.append(f"{a / b:.3f}")
            limit = slower if value.measured else larger
            if (b / a if value.more_is_better else a / b) > limit:
                change = f"{_shown(b, value)} -> {_shown(a, value)}"
                worse.append(f"{_name(row)}, {value.title}: {change} (x {a / b:.2f})")
        lines.append(f"| {_name(row)} | {' | '.join(cells)} |")
    if not same:
        why = "Another machine, other versions or other seconds"
        lines += ["", f"{why}: what was measured is not compared."]
    return lines, [*dict.fromkeys(worse)]


# --- the command line -----------------------------------------------------------------


def _read(fields: Sequence[str]):
    """Returns the configuration that flags of main.py describe, checked."""
    return cli.parse(["growth.py", *fields, "--mode=benchmark"]).config


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns what the command line asks for, and the base as flags of main.py."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="All other arguments are those of main.py, which come after "
        f"{' '.join(_BASE)}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", default="growth.json", help="JSON file for the results")
    add("--against", help="JSON file of an earlier call")
    add("--targets", default="a100", help=f"some of {','.join(TARGETS)}; or empty")
    add("--seconds", type=float, default=3.0, help="of timing a row; at least 5 calls")
    add("--slower", type=float, default=1.5, help="factor for what is measured")
    add("--larger", type=float, default=1.05, help="factor for what is counted")
    options, fields = parser.parse_known_args(argv[1:])
    options.targets = [name for name in options.targets.split(",") if name]
    for name in options.targets:
        lookup(dict.fromkeys(TARGETS), name, "--targets")
    for name, least in (("seconds", 0), ("slower", 1), ("larger", 1)):
        if not getattr(options, name) >= least:
            given = getattr(options, name)
            raise UsageError(f"--{name}={given} must be at least {least}.")
    return options, [*_BASE, *fields]


def _load(path: str, fields: list[str]) -> dict[str, Any]:
    """Returns the results of an earlier call with the same fields."""
    try:
        found = json.loads(files.local(path, "--against").read_text())
        before = found["fields"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"--against={path} cannot be read ({error}); name a file that this program "
            "has written."
        ) from error
    if before != fields:
        raise UsageError(
            f"--against={path} is of {shlex.join(before)}; this call is of "
            f"{shlex.join(fields)}: give the same fields in the same order."
        )
    return found


def run(argv: Sequence[str]) -> int:
    """Prints the table and the comparison; returns 1 if something became worse."""
    options, fields = _options(argv)
    _read(fields)
    then = _load(options.against, fields) if options.against else None
    options.out = files.local(options.out, "--out")
    workdir.check_writable(options.out.parent, "--out", options.out.name)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    now = measure(options, fields)
    print(*table(now), sep="\n")
    if then is None:
        return 0
    lines, worse = compare(now, then, options.slower, options.larger)
    print("", *lines, "", *(worse or ["Nothing became worse."]), sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv))
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
