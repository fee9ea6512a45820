"""The training command, killed and started again, against one that was left alone.

`benchmarks/chaos.py` does the same a hundred times, at random.
"""

import json
import shutil

import forked
import pytest

from benchmarks import chaos


@pytest.fixture(scope="module", autouse=True)
def _quick_starts():
    """The program without its imports, and with compiled programs at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos, "subprocess", forked.subprocesses)
        patch.setattr(chaos, "EPOCHS", 6)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    chaos.finish(workdir)
    return workdir


def test_a_run_that_is_killed_comes_to_the_same_end(whole, tmp_path):
    workdir = tmp_path / "run"
    for phase in ("compiling", "stepping", "saving", "evaluating", "finishing"):
        start = chaos.kill(workdir, phase, 0.2)
        assert start is not None, phase
        assert start.repeats <= chaos.STEPS_PER_EPOCH
    last = chaos.finish(workdir)
    assert last.recorded > 0
    assert last.repeats <= chaos.STEPS_PER_EPOCH
    assert chaos.differences(whole, workdir) == []


def duplicated(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))


def changed_row(run):
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["loss"] += 1e-6
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_arrays(run):
    steps = sorted(
        (p for p in (run / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda path: int(path.name),
    )
    shutil.rmtree(steps[-1] / "train")
    shutil.copytree(steps[-2] / "train", steps[-1] / "train")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (duplicated, "metrics.jsonl differs"),
        (changed_row, "metrics.jsonl differs"),
        (other_arrays, "differs"),
    ],
)
def test_the_comparison_finds(whole, tmp_path, damage, found):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    assert chaos.differences(whole, copy) == []
    damage(copy)
    assert any(found in each for each in chaos.differences(whole, copy))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "figures/curves.png"])
def test_the_comparison_stops_at_half_a_file(whole, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    path = copy / name
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half.rstrip(b"}\n"))  # a half may end where a row does
    with pytest.raises((ValueError, OSError)):
        chaos.differences(whole, copy)
