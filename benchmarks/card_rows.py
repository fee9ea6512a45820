"""What `on_a_gpu.py` measures, in the order of its worth, and what a result says.

Read `rows` first. KINDS, at the end, has a table for each kind of row.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from duet_jax.data import FROM_PATHS
from duet_jax.errors import UsageError

# Accuracy by kNN at which the race is over.
GOAL = 0.9

_CEILING = """
import json, pathlib, sys
from duet_jax.profiling import ceiling
found = {name: ceiling.measure(name) for name in ("bfloat16", "float32")}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
"""
_PYTEST = "import sys, pytest; sys.exit(pytest.main())"


class Row(NamedTuple):
    """Something to measure.

    Attributes:
      name: of the row and its files.
      kind: key of KINDS.
      cells: the first cells of its line in the table.
      command: what Python is given; "{out}" is where the result goes.
      guess: seconds that it may take, as long as none like it has been measured.
      needs: packages that must be installed.
      skip: why it cannot be measured, if that is known before.
    """

    name: str
    kind: str
    cells: tuple[str, ...]
    command: tuple[str, ...]
    guess: float
    needs: tuple[str, ...] = ()
    skip: str = ""


class Kind(NamedTuple):
    """What rows of a kind have in common.

    Attributes:
      title: of their table.
      head: its columns, with | between them.
      read: (file or directory of the result, output) -> result and what is wrong with
        it, "" for nothing.
      lines: result -> the last cells of its lines.
      environment: variables that are set if they are not.
    """

    title: str
    head: str
    read: Callable[[pathlib.Path, str], tuple[Any, str]]
    lines: Callable[[Any], list[tuple[str, ...]]]
    environment: Mapping[str, str]


# --- What is measured -----------------------------------------------------------------


def rows(tiny: bool, data: str | None) -> list[Row]:
    """Returns all rows in the order of their worth.

    Args:
      tiny: True for a try of everything in seconds, on small networks.
      data: of the race, as --data; None without.
    """
    first = [
        (method, "cifar10_resnet32", 1024, dtype)
        for dtype in ("bfloat16", "float32")
        for method in ("duet", "simclr", "essl")
    ]
    others = [
        (method, encoder, batch, dtype)
        for dtype in ("bfloat16", "float32")
        for encoder in ("cifar10_resnet32", "cifar10_resnet20")
        for batch in (1024, 4096, 256)
        for method in ("duet", "simclr", "essl")
    ]
    others = [each for each in others if each not in first]
    soon = [each for each in others if each[0] == "duet" and each[3] == "bfloat16"]
    size = ("--tiny",) if tiny else ()
    checks = ("benchmarks/device_checks.py", "--out={out}", *size)
    found = [
        Row("checks", "checks", (), checks, 120),
        _tests("test_golden.py", "-k", "targets" if tiny else "test"),
        Row("ceiling", "ceiling", (), ("-c", _CEILING, "{out}"), 30),
    ]
    if tiny:
        step = ("duet", "tiny", 32, "bfloat16")
        return [*found, _step(step), _torch(*step), _race(tiny, data)]
    return [
        *found,
        *(_step(each) for each in first),
        # DUET and SimCLR, and DUET in float32: the other side has no ESSL.
        *(_torch(*first[i]) for i in (0, 1, 3)),
        _tests("training/test_train.py", "-k", "same_bits or parts_say or 16_bits"),
        _tests("losses/test_losses.py"),
        _tests("augmentations/test_augmentations.py"),
        *(_step(each) for each in soon),
        _race(tiny, data),
        *(_step(each) for each in others if each not in soon),
    ]


def _tests(file: str, *chosen: str) -> Row:
    """A file of tests; the options of pyproject.toml are for many small processes."""
    options = ("-o", "addopts=--import-mode=importlib -q", "-W", "default", *chosen)
    command = ("-c", _PYTEST, f"tests/{file}", "-p", "no:cacheprovider", *options)
    return Row(
        f"tests-{pathlib.Path(file).stem}", "tests", (), command, 240, ("pytest",)
    )


def _fields(method: str, encoder: str, batch: int, dtype: str) -> tuple[str, ...]:
    """The configuration of a step."""
    fields = (
        f"--config.method={method}",
        f"--config.batch_size={batch}",
        f"--config.compute_dtype={dtype}",
    )
    if encoder == "tiny":
        return ("--config=configs/smoke.py", *fields)
    name = f"--config.encoder.name={encoder}"
    return ("--config=configs/cifar10_duet_rot.py", name, *fields)


def _step(step: tuple[str, str, int, str]) -> Row:
    method, encoder, batch, dtype = step
    short = encoder.removeprefix("cifar10_")
    command = (
        "main.py",
        "--mode=benchmark",
        "--brief",
        *_fields(*step),
        # Fifty updates in a call would take ten seconds, and a call is what is timed.
        "--config.steps_per_call=8",
        "--out={out}",
    )
    name = f"step-{method}-{short}-{batch}-{dtype}"
    return Row(name, "steps", (method, short, dtype, str(batch)), command, 150)


def _torch(method: str, encoder: str, batch: int, dtype: str) -> Row:
    short = encoder.removeprefix("cifar10_")
    command = (
        "benchmarks/torch_step.py",
        *_fields(method, encoder, batch, dtype),
        "--steps=8",
        "--rounds=4",
        "--out={out}",
    )
    cells = (f"{method}, {short}, {dtype}, batch {batch}",)
    name = f"torch-{method}-{short}-{batch}-{dtype}"
    return Row(name, "torch", cells, command, 240, ("torch", "kornia"))


def _race(tiny: bool, data: str | None) -> Row:
    """SimCLR until kNN is right for GOAL of the test images; a run like any other."""
    if tiny:
        fields = ("--config=configs/smoke.py", "--config.method=simclr")
        every, cells = 1, ("tiny", "float32", "2")
    else:
        fields = ("--config=configs/recipes/cifar10_race.py",)
        every, cells = 5, ("resnet18", "bfloat16", "400")
    if data is not None:
        name, path = data_set(data)
        fields = (*fields, f"--config.dataset.name={name}")
        fields += (f"--config.dataset.path={path}",) if path else ()
    command = (
        "main.py",
        *fields,
        *(f"--config.{k}={every}" for k in ("knn.every", "checkpoint.every")),
        f"--config.evaluate_every={every}",
        "--noconfig.tensorboard",
        "--workdir={out}",
    )
    skip = "" if data or tiny else "no --data=<CIFAR-10>"
    return Row("race", "race", cells, command, 0 if tiny else 120, (), skip)


def data_set(data: str) -> tuple[str, str]:
    """Returns `dataset.name` and `dataset.path` of --data.

    Raises:
      UsageError: it names no directory or file that is there.
    """
    if pathlib.Path(data).expanduser().is_dir():
        return "folder", str(pathlib.Path(data).expanduser().absolute())
    name, _, path = data.partition(":")
    place = pathlib.Path(path).expanduser().absolute()
    if "/" in name or (name in FROM_PATHS and not path) or not place.exists():
        raise UsageError(
            f"--data={data} is not there; give a directory of class folders, or "
            "<dataset.name>:<dataset.path>, such as folder:<path> or cifar10."
        )
    return name, str(place) if path else ""


# --- What a result says ---------------------------------------------------------------


def _read_json(path: pathlib.Path, text: str) -> tuple[Any, str]:
    del text
    return json.loads(path.read_text()), ""


def _read_checks(path: pathlib.Path, text: str) -> tuple[Any, str]:
    found, _ = _read_json(path, text)
    bad = [each["what"] for each in found if not each["holds"]]
    return found, f"{len(bad)} of {len(found)} differ: {', '.join(bad)}" if bad else ""


def _read_tests(path: pathlib.Path, text: str) -> tuple[Any, str]:
    del path
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", text.splitlines()[-1])
    found = {name: int(count) for count, name in counts}
    if not found.get("passed"):
        raise ValueError("no test has passed")
    bad = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", text, re.MULTILINE)
    found["bad"] = bad[:5]
    return found, f"{len(bad)} failed: {', '.join(bad[:5])}" if bad else ""


def _read_race(path: pathlib.Path, text: str) -> tuple[Any, str]:
    """Reads metrics.jsonl: the scores by kNN, and the seconds of training alone."""
    del text
    config = json.loads((path / "config.json").read_text())
    best, reached, epoch, step, seconds = (0.0, 0), None, 0, 0, 0.0
    for line in (path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "train":
            images = (row["step"] - step) * config["batch_size"]
            seconds, step = seconds + images / row["images_per_second"], row["step"]
            epoch = row["epoch"]
        elif "knn_top1" in row:
            best = max(best, (row["knn_top1"], row["epoch"]), key=lambda x: x[0])
            if reached is None and row["knn_top1"] >= GOAL:
                reached = row["epoch"]
    found = {"best": best[0], "at": best[1], "reached": reached, "epochs": epoch}
    return {**found, "training_seconds": seconds}, ""


def _check_lines(found: list[dict]) -> list[tuple[str, ...]]:
    """The checks; of a method or an augmentation each, as they were made."""

    def difference(each: dict) -> str:
        value = "" if each["difference"] is None else f"{each['difference']:.1e}"
        return value if each["holds"] else f"**{value}** above the limit".strip()

    return [
        (each["what"], difference(each), f"{each['limit']:.0e}", each["note"])
        for each in found
    ]


def _test_lines(found: dict) -> list[tuple[str, ...]]:
    counts = [f"{found[k]} {k}" for k in ("passed", "failed", "skipped") if k in found]
    return [(", ".join(counts), ", ".join(found["bad"]))]


def _step_lines(found: dict) -> list[tuple[str, ...]]:
    step, rate, memory = found["step"], found["rate"], found["memory"]
    low, high = step["fastest_ms"], step["slowest_ms"]
    peak = memory["peak"] or memory["peak_of_the_process"]
    return [
        (
            f"{step['median_ms']:.1f} ({low:.1f} to {high:.1f})",
            f"{found['images_per_second']:,.0f}",
            f"{rate['tflops_per_device']:.3g}",
            f"{100 * rate['share_of_ceiling']:.1f} %",
            f"{peak / 1e9:.1f} GB",
            f"{found['compile_seconds']['cold']:.0f}",
        )
    ]


def _torch_lines(found: dict) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{row['median_ms_per_step']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
            f"{row['compile_seconds']:.0f}",
        )
        for name, row in found["rows"].items()
    ]


def _race_lines(found: dict) -> list[tuple[str, ...]]:
    reached = found["reached"]
    return [
        (
            "not reached" if reached is None else f"after epoch {reached:g}",
            f"{100 * found['best']:.1f} % after epoch {found['at']:g}",
            f"{found['epochs']:g}",
            f"{found['training_seconds']:.0f}",
        )
    ]


def has_reached(place: pathlib.Path) -> bool:
    """Returns whether the race in `place` is over."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _read_race(place, "")[0]["reached"] is not None
    return False


# A CPU beside the card, and little memory at a time.
_BESIDE = {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# The tests compile much and compute little: no kernel is chosen by trying.
_TESTS = {
    **_BESIDE,
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}
_SPEED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
KINDS = {
    "checks": Kind(
        "Against float64 on the CPU",
        "what | difference | limit | ",
        _read_checks,
        _check_lines,
        _BESIDE,
    ),
    "tests": Kind("Tests", "file | on the card | ", _read_tests, _test_lines, _TESTS),
    "ceiling": Kind(
        "The ceiling, by products of large random matrices",
        "type | TFLOP/s",
        _read_json,
        lambda found: [(k, f"{v / 1e12:.4g}") for k, v in found.items()],
        {},
    ),
    "steps": Kind(
        "The step; the target is 45 % of the ceiling (resnet32, bfloat16, batch 1024)",
        "method | encoder | type | batch | ms per step | images/s | TFLOP/s | "
        "share of the ceiling | peak memory | compiling, s",
        _read_json,
        _step_lines,
        _SPEED,
    ),
    "torch": Kind(
        "Against PyTorch; the target is 5 times the reference's images/s",
        "step | program | ms per step | images/s | its time / ours | compiling, s",
        _read_json,
        _torch_lines,
        {},
    ),
    "race": Kind(
        f"SimCLR to {GOAL:.0%} by kNN",
        "encoder | type | epochs planned | reached | best | epochs trained | "
        "training alone, s | in all, s",
        _read_race,
        _race_lines,
        _SPEED,
    ),
}
