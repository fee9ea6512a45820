"""The table of `benchmarks/growth.py`, with the smallest sizes, and its comparison."""

import copy
import json

import forked
import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled_step, growth
from duet_jax.errors import UsageError

FACTORS = {
    "batch": ("batch_size", (16, 32)),
    "width": ("encoder.width_multiplier", (1.0, 2.0)),
    "side": ("dataset.image_size", (8, 16)),
    "bins": ("duet.num_bins", (4, 8, 5)),
    "devices": ("", (1, 2)),
}
FIELDS = ("--config=configs/smoke.py", "--config.batch_size=16")
FIELDS += ("--config.dataset.image_size=8", "--config.augmentation.stack=rot")
# A table's lines of each factor, in the same order.
SIZES = [f"{name} {size:g}" for name, (_, sizes) in FACTORS.items() for size in sizes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command has written, and what it has said."""
    out = tmp_path_factory.mktemp("growth") / "new" / "growth.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "subprocess", forked.subprocesses)
        patch.setattr(growth, "FACTORS", FACTORS)
        patch.setattr(growth, "compiler_is_here", lambda: False)
        said = []
        patch.setattr("builtins.print", lambda *lines, **_: said.extend(lines))
        status = growth.run(["growth.py", f"--out={out}", "--seconds=0.1", *FIELDS])
    assert status == 0
    return json.loads(out.read_text()), said


@pytest.fixture
def results(made):
    """A copy, to be changed."""
    return copy.deepcopy(made[0])


def row(results, name):
    return results["rows"][SIZES.index(name)]


def test_every_row_is_measured(results):
    assert [growth._name(each) for each in results["rows"]] == SIZES
    assert results["machine"]["devices"].startswith("cpu, ")
    for each in results["rows"]:
        if growth._name(each) != "bins 5":
            assert {*each["here"]} == {*growth._OF_THIS_MACHINE}
            assert all(value > 0 for value in each["here"].values())
    base = row(results, "batch 16")["here"]
    for name in ("width 1", "side 8", "devices 1"):  # measured once
        assert row(results, name)["here"] == base
    for name in ("batch 32", "width 2", "side 16"):
        assert row(results, name)["here"]["planned_bytes"] > base["planned_bytes"]
    # Each of two devices has half of the activations, and all of the parameters.
    planned = row(results, "devices 2")["here"]["planned_bytes"]
    assert planned < base["planned_bytes"]


def test_a_row_that_fails_stops_no_other(made):
    results, said = made
    failed = row(results, "bins 5")["here"]["failed"]
    assert failed.startswith("error: config.duet.num_bins=5")
    assert f"bins 5, here: {failed}" in said
    assert any(line.startswith("| bins 5 | failed | failed |") for line in said)


def test_the_table(made):
    results, said = made
    lines = [line for line in said if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == SIZES
    cells = lines[1].split(" | ")
    speeds = [row(results, f"batch {n}")["here"]["images_per_second"] for n in (16, 32)]
    assert cells[1] == f"{speeds[1]:,.0f} (x {speeds[1] / speeds[0]:.2f})"
    assert "(x" not in lines[0]  # nothing before
    assert cells[-1].startswith("not compiled")
    assert sum("the CUDA wheels are missing" in line for line in said) == 1


def of_target(results, **changes):
    """Adds the figures of a target to the first row."""
    found = {"memory_bytes": 2e9, "operations": 400, "traffic_bytes": 3e9}
    row(results, "batch 16")["a100"] = {**found, **changes}
    return results


def test_a_step_backwards_is_named(results):
    then = of_target(copy.deepcopy(results))
    same = of_target(copy.deepcopy(results), operations=401)
    lines, worse = growth.compare(same, then, 1.5, 1.05)
    assert worse == []
    assert lines[2].startswith("| batch 16 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | ")
    now = of_target(results, operations=500)
    row(now, "batch 32")["here"]["images_per_second"] /= 2
    row(now, "width 2")["here"]["compile_seconds"] *= 1.4  # within the factor
    row(now, "side 16")["here"] = {"failed": "ended by SIGKILL"}
    row(now, "bins 8")["here"]["planned_bytes"] *= 1.1
    _, worse = growth.compare(now, then, 1.5, 1.05)
    assert [line.partition(":")[0] for line in worse] == [
        "batch 16, A100",
        "batch 32, images/s",
        "side 16, here",
        "bins 8, planned, MiB",
    ]
    assert worse[0] == "batch 16, A100: operations: 400 -> 500 (x 1.25)"


def test_times_of_another_machine_are_not_compared(results):
    now, then = of_target(results, operations=500), of_target(copy.deepcopy(results))
    now["machine"]["processor"] = "another"
    for each in now["rows"]:
        for name in ("images_per_second", "compile_seconds", "peak_bytes"):
            if name in each["here"]:
                each["here"][name] /= 100
    lines, worse = growth.compare(now, then, 1.5, 1.05)
    assert worse == ["batch 16, A100: operations: 400 -> 500 (x 1.25)"]
    assert "what was measured is not compared" in lines[-1]


def test_the_status_says_that_something_became_worse(results, tmp_path, monkeypatch):
    then = tmp_path / "then.json"
    then.write_text(json.dumps(results))
    row(results, "batch 32")["here"]["planned_bytes"] *= 2
    monkeypatch.setattr(growth, "measure", lambda options, fields: results)
    command = ["growth.py", f"--out={tmp_path}/now.json", *FIELDS]
    assert growth.run(command) == 0
    assert growth.run([*command, f"--against={then}"]) == 1
    assert growth.run([*command, f"--against={then}", "--larger=2.5"]) == 0


def test_only_devices_that_are_there():
    config = growth._read(growth._BASE)
    found = [*growth.rows(config, 2)]
    assert [each["devices"] for each in found if each["factor"] == "devices"] == [1, 2]
    simclr = growth._read((*growth._BASE, "--config.method=simclr"))
    assert not any(each["factor"] == "bins" for each in growth.rows(simclr, 0))


def test_the_environment_of_a_row(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_own=1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    found = growth.environment("here", 2)
    flags = "--xla_own=1 --xla_force_host_platform_device_count=2"
    assert (found["XLA_FLAGS"], found["CUDA_VISIBLE_DEVICES"]) == (flags, "4,5")
    found = growth.environment("a100", 2)
    assert found["XLA_FLAGS"] == "--xla_own=1 --xla_gpu_autotune_level=0"
    assert found["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--targets=a100,h200",), "--targets='h200' is not known; choose one of a100"),
        (("--slower=0.5",), r"--slower=0\.5 must be at least 1\."),
        (("--config.duet.num_bins=7",), r"config\.duet\.num_bins=7"),
        (("--against=missing.json",), r"--against=missing\.json cannot be read"),
        (("--out=/dev/null/x.json",), r"--out: .* cannot be written"),
    ],
)
def test_refusals(flags, said):
    with pytest.raises(UsageError, match=said):
        growth.run(["growth.py", *flags])


def test_other_fields_are_not_compared(results, tmp_path):
    then = tmp_path / "then.json"
    then.write_text(json.dumps(results))
    with pytest.raises(UsageError, match=r"is of .*smoke.* give the same fields"):
        growth.run(["growth.py", f"--out={tmp_path}/x.json", f"--against={then}"])


def test_the_figures_of_a_program():
    """Of one product: nothing else is launched, read or written."""
    shapes = (jax.ShapeDtypeStruct((64, 64), jnp.float32),) * 2
    found = compiled_step.figures(jax.jit(jnp.matmul).lower(*shapes).compile())
    assert found.operations == 1
    assert found.traffic_bytes == 3 * 4 * 64**2
    assert sum(row[0] for row in found.kinds.values()) == 1
    assert tuple(compiled_step.TARGETS) == growth.TARGETS
