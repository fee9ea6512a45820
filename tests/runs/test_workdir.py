"""Whose a directory is, and what may be changed in it."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import tiny
from program import run

from duet_jax.errors import UsageError
from duet_jax.runs import workdir
from duet_jax.types import DatasetFacts

FACTS = DatasetFacts("digits", 16, 1, ("0", "1"), 100, 50)

HOLDER = """
import sys, pathlib, fcntl
file = (pathlib.Path(sys.argv[1]) / ".lock").open("a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere\\n")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def held(directory):
    """A process that trains in `directory`, until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    return process


def started(directory, config, step=4):
    """A directory with a run that has saved something."""
    workdir.write_run(config, FACTS, directory)
    (directory / "checkpoints" / str(step)).mkdir(parents=True)


def test_a_second_process_is_refused(tmp_path):
    config = tiny.config()
    process = held(tmp_path)
    try:
        with pytest.raises(UsageError, match=r"in use: process 7 on elsewhere trains"):
            workdir.check(config, tmp_path)
        with (
            pytest.raises(UsageError, match=r"in use: process 7"),
            workdir.claimed(config, tmp_path),
        ):
            pytest.fail("claimed twice")
    finally:
        process.communicate()
    workdir.check(config, tmp_path)
    with workdir.claimed(config, tmp_path):
        assert "process" in (tmp_path / ".lock").read_text()


def test_a_claim_holds_against_others(tmp_path):
    with workdir.claimed(tiny.config(), tmp_path / "new" / "run"):
        code = (
            "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
            "import tiny; from duet_jax.runs import workdir\n"
            "workdir.check(tiny.config(), Path(sys.argv[1]))"
        )
        place = tmp_path / "new" / "run"
        refused = run(code, place, *sys.path, script="-c", cwd=tmp_path)
        assert "is in use: process" in refused.lines[-1]


def test_what_happened_before_the_claim_is_seen(tmp_path):
    """Two runs that were both accepted in an empty directory."""
    workdir.check(tiny.config(seed=1), tmp_path)
    started(tmp_path, tiny.config())
    with (
        pytest.raises(UsageError, match=r"another configuration \(seed: 0 -> 1\)"),
        workdir.claimed(tiny.config(seed=1), tmp_path),
    ):
        pytest.fail("claimed another's run")


def test_errors_of_the_training_are_not_those_of_the_directory(tmp_path):
    with (
        pytest.raises(OSError, match="of the training"),
        workdir.claimed(tiny.config(), tmp_path),
    ):
        raise OSError("of the training")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"epochs": 9}, ["epochs: 2 -> 9"]),
        (
            {"duet__num_bins": 4, "encoder__widths": (8, 8, 16, 64)},
            ["duet.num_bins: 8 -> 4", "encoder.widths: [8, 8, 16, 32] -> [8, 8, 16,"],
        ),
        ({"dataset__image_size": 32}, ["dataset.image_size: 16 -> 32"]),
        ({"optimizer__schedule": "step"}, ["optimizer.schedule: epoch -> step"]),
        ({"method": "simclr"}, ["method: duet -> simclr", "learned: rot -> None"]),
    ],
)
def test_a_change_that_alters_the_run_is_refused(tmp_path, changes, words):
    started(tmp_path, tiny.config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UsageError) as refused:
        workdir.check(tiny.config(**changes), tmp_path)
    assert [word for word in words if word not in str(refused.value)] == []
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "run-seed1"),
        ({"epochs": 9, "temperature": 0.2}, "run-epochs9-temperature0.2"),
        # What only one of the two reads: told if it is not the default.
        ({"method": "simclr"}, "run-method_simclr"),
        (
            {"method": "essl", "essl__hidden": 2048, "essl__prediction_weight": 1.0},
            "run-method_essl-prediction_weight1.0",
        ),
        ({"duet__target": "gaussian", "duet__sigma": 0.3}, "run-sigma0.3-target_gau"),
    ],
)
def test_a_free_directory_is_offered(tmp_path, changes, name):
    started(tmp_path / "run", tiny.config())
    with pytest.raises(UsageError) as refused:
        workdir.check(tiny.config(**changes), tmp_path / "run")
    offered = f"choose another, such as --workdir={tmp_path / name}"
    assert offered in str(refused.value)
    assert not (tmp_path / name).exists()


def test_a_directory_that_is_offered_has_no_other_run(tmp_path, monkeypatch):
    def offered():
        with pytest.raises(UsageError) as refused:
            workdir.check(tiny.config(seed=1), place)
        return re.search(r"--workdir=(.*), or repeat", str(refused.value))[1]

    monkeypatch.chdir(tmp_path)
    place = pathlib.Path("a b")
    started(place, tiny.config())
    first = offered()
    assert re.fullmatch(r"a_b-seed1-[0-9a-f]{8}", first)
    started(pathlib.Path(first), tiny.config(seed=1))
    assert offered() == first  # begun there by the same command
    (pathlib.Path(first) / "config.json").write_text("{")
    assert offered() == f"{first}-2"
    pathlib.Path(f"{first}-2").mkdir()  # by somebody else
    assert offered() == f"{first}-3"
    monkeypatch.chdir(place)
    place = pathlib.Path()
    assert offered() == str(tmp_path / f"{first}-3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_train": 99}, "num_train: 100 -> 99"),
        ({"class_names": ("0", "2")}, "class_names: "),
        ({"class_names": ("é", "1")}, "class_names: "),
        ({"content": "b"}, "as many of the same classes, in other files"),
        ({"digests": ("x", "z")}, "as many of the same classes, in other files"),
    ],
)
def test_other_images_are_refused(tmp_path, change, words):
    facts = FACTS._replace(content="a", digests=("x", "y"))
    workdir.write_run(tiny.config(), facts, tmp_path)
    workdir.check_dataset(facts._replace(**change), tmp_path)  # nothing is saved yet
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    workdir.check_dataset(facts, tmp_path)
    with pytest.raises(UsageError, match="holds a run on other images") as refused:
        workdir.check_dataset(facts._replace(**change), tmp_path)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"class_names": ("e\u0301", "z")}, {"class_names": ("\u00e9", "z")}),
        ({"digests": ()}, {"digests": ("x", "y")}),  # of an earlier version
    ],
)
def test_the_same_images_are_taken(tmp_path, before, now):
    workdir.write_run(tiny.config(), FACTS._replace(**before), tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    workdir.check_dataset(FACTS._replace(**now), tmp_path)


def test_a_harmless_change_is_recorded(tmp_path):
    started(tmp_path, tiny.config())
    changed = tiny.config(evaluate_every=2, checkpoint__keep=5)
    workdir.check(changed, tmp_path)
    workdir.write_run(changed, FACTS, tmp_path, step=4)
    (line,) = (tmp_path / "changes.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 4
    assert record["changes"] == ["checkpoint.keep: 2 -> 5", "evaluate_every: 1 -> 2"]
    assert json.loads((tmp_path / "config.json").read_text())["evaluate_every"] == 2
    workdir.write_run(changed, FACTS, tmp_path, step=8)  # the same again
    assert len((tmp_path / "changes.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("remains", ["nothing", "an empty directory", "damaged-4"])
def test_a_run_that_lost_its_checkpoints_is_not_started_over(tmp_path, remains):
    config = tiny.config()
    workdir.write_run(config, FACTS, tmp_path)
    last = 1 if remains == "damaged-4" else 2
    rows = [
        {"step": 2 * n, "epoch": float(n), "split": "test"} for n in range(1, last + 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    if remains != "nothing":
        (tmp_path / "checkpoints").mkdir()
    if remains == "damaged-4":
        (tmp_path / "checkpoints" / remains).mkdir()
    with pytest.raises(UsageError, match=r"up to epoch \d but none of its checkpoints"):
        workdir.check(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    config = tiny.config()
    workdir.write_run(config, FACTS, tmp_path)
    for name in ("2.unsealed.orbax-checkpoint-tmp", "2.unsealed"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    row = {"step": 2, "epoch": 1.0, "split": "test"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    workdir.check(config, tmp_path)
    workdir.check(tiny.config(seed=3), tmp_path)  # nothing of it counts


def test_those_who_look_do_not_exclude_each_other(tmp_path):
    (tmp_path / ".lock").touch()
    looker = HOLDER.replace("LOCK_EX", "LOCK_SH")
    with subprocess.Popen(
        [sys.executable, "-c", looker, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"held\n"
        workdir.check(tiny.config(), tmp_path)
        other.communicate()
