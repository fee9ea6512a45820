"""The first half hour on a card, tried on a CPU; and what may happen in it."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import types

import forked
import numpy as np
import pytest
from program import PATIENCE

from benchmarks import card_rows, device_checks, on_a_gpu
from benchmarks.card_rows import Row
from duet_jax import cli
from duet_jax.errors import UsageError

ABOUT = {
    "device": "a card",
    "driver": "1",
    "runtime": "2",
    "platform": "cpu",
    "versions": {"jax": "3"},
    "commit": "0123456789",
    "clean": True,
    "date": "2026-11-29T00:00:00+00:00",
    "tiny": False,
}

# Little time for each measurement.
BRIEF = """
from duet_jax import profiling
from duet_jax.profiling import ceiling
ceiling._SIDES["cpu"] = 128
ceiling.measure.__defaults__ = (0.05,)
profiling._BRIEF_SECONDS, profiling._NOISE_IMAGES = 0.2, 64
"""


def popen(command, *, start_new_session, close_fds, **options):
    return forked.Process(command[1:], group=start_new_session, before=BRIEF, **options)


@pytest.fixture(scope="module", autouse=True)
def _quick_starts():
    """The programs without their imports."""
    quick = types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_a_gpu, "subprocess", quick)
        yield


def go(place, *arguments):
    return on_a_gpu.main(["on_a_gpu.py", f"--out={place}", *arguments])


def records(place):
    return json.loads((place / "state.json").read_text())["records"]


def page(place):
    return (place / "benchmarks.md").read_text()


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    place = tmp_path_factory.mktemp("tried") / "card"
    assert go(place, "--tiny", "--minutes=60") == 0, page(place)
    return place


def test_all_of_it_runs_on_a_cpu(tried, capsys):
    status = {name: each["status"] for name, each in records(tried).items()}
    torch = status.pop("torch-duet-tiny-32-bfloat16")
    assert torch in ("done", "skipped")
    names = "checks tests-test_golden ceiling step-duet-tiny-32-bfloat16 race"
    assert status == dict.fromkeys(names.split(), "done")
    text = page(tried)
    assert "not measured" not in text
    for line in (
        r"\| stopped and resumed \| 0.0e\+00 \| 0e\+00 \| bit for bit \|",
        r"\| tests-test_golden \| \d+ passed \|",
        r"\| bfloat16 \| [\d.e-]+ \|",
        r"\| duet \| tiny \| bfloat16 \| 32 \| [\d.]+ \(.*\) \| [\d,]+ \| .* % \| ",
        r"\| tiny \| float32 \| 2 \| not reached \| [\d.]+ % after epoch \d \| 2 \|",
    ):
        assert re.search(line, text), line
    # What is measured is kept.
    before = records(tried)
    assert go(tried, "--tiny") == 0
    said = capsys.readouterr().out
    assert "..." not in said
    kept = records(tried)
    assert {k: v for k, v in kept.items() if v["status"] == "done"} == {
        k: v for k, v in before.items() if v["status"] == "done"
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("device", "another card", "with device another card, and here it is cpu"),
        ("tiny", False, "with tiny False, and here it is True"),
        ("versions", {"jax": "0.1"}, "with jax 0.1, and here it is "),
    ],
)
def test_another_card_is_refused(tried, tmp_path, capsys, field, value, message):
    place = tmp_path / "card"
    shutil.copytree(tried, place)
    state = json.loads((place / "state.json").read_text())
    state["about"][field] = value
    (place / "state.json").write_text(json.dumps(state))
    assert go(place, "--tiny") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith("; use another --out.")


def test_refusals(tmp_path, capsys):
    assert go(tmp_path, "--rows=stpe-*") == 2
    assert "--rows=stpe-* is none of checks, " in capsys.readouterr().err
    assert go(tmp_path) == 2
    assert "JAX finds no GPU here, only cpu" in capsys.readouterr().err
    assert go(tmp_path, f"--data={tmp_path}/nothing") == 2
    assert "is not there; give a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        go(tmp_path, "--minutes=0")


@pytest.mark.parametrize("data", ["folder", "folder:/nowhere", "a/b", "npz:"])
def test_images_that_are_not_there(data):
    with pytest.raises(UsageError, match="is not there"):
        card_rows.data_set(data)


def test_images_that_are_there(tmp_path):
    assert card_rows.data_set(str(tmp_path)) == ("folder", str(tmp_path))
    assert card_rows.data_set(f"npz:{tmp_path}") == ("npz", str(tmp_path))
    assert card_rows.data_set("cifar10") == ("cifar10", "")


def test_every_row_is_a_command(tmp_path):
    """What is asked for on a card is refused by no one."""
    names = set()
    for row in card_rows.rows(tiny=False, data=str(tmp_path)):
        script, *arguments = row.command
        if script == "main.py":
            cli.parse(["main.py", *arguments])
        elif row.kind == "torch":
            cli.parse(["torch_step.py", *arguments[:-3]])
        elif row.kind == "tests":
            file = on_a_gpu.ROOT / arguments[1]
            chosen = arguments[-1].split(" or ") if "-k" in arguments else ["test"]
            assert all(each in file.read_text() for each in chosen)
        names.add(row.name)
    assert len(names) == 2 + 4 + 36 + 3 + 1
    skipped = [each for each in card_rows.rows(tiny=False, data=None) if each.skip]
    assert [each.name for each in skipped] == ["race"]


# --- With rows of their own -----------------------------------------------------------

WRITE = (
    "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"float32\": 2e12}')"
)
SLEEP = """
import os, sys, time
open(sys.argv[1] + ".pid", "w").write(str(os.getpid()))
time.sleep(900)
"""


def row(name, code, guess=0, kind="ceiling", **options):
    return Row(name, kind, (), ("-c", code, "{out}"), guess, **options)


@pytest.fixture
def only(monkeypatch):
    """Makes the rows that are given all that there is."""

    def only(*rows):
        monkeypatch.setattr(on_a_gpu, "look", lambda place, tiny: ABOUT)
        monkeypatch.setattr(on_a_gpu, "rows", lambda tiny, data: list(rows))

    return only


def test_a_row_that_fails_does_not_end_the_others(only, tmp_path, capsys):
    broken = row("broken", "raise MemoryError('80 GB\\n are not | enough')")
    killed = row("killed", "import os; os.kill(os.getpid(), 9)")
    only(broken, killed, row("a", WRITE), row("missing", WRITE, needs=("no_such",)))
    assert go(tmp_path) == 1
    found = records(tmp_path)
    assert found["broken"]["said"] == "failed: MemoryError: 80 GB"
    assert found["killed"]["said"] == "failed: nothing was said, ended by SIGKILL"
    assert found["a"] | {"seconds": 0} == {
        "status": "done",
        "said": "",
        "seconds": 0,
        "result": {"float32": 2e12},
        "commit": "0123456",
    }
    assert found["missing"]["said"] == "skipped: no_such is not installed"
    assert "| float32 | 2 |" in page(tmp_path)
    assert "| killed | failed: nothing was said, ended by SIGKILL |" in page(tmp_path)
    capsys.readouterr()
    only(row("broken", WRITE), killed, row("a", "raise"), row("new", WRITE))
    assert go(tmp_path) == 1
    # What failed is tried again, after what was not tried yet.
    begun = re.findall(r"^(\w+) \.\.\.$", capsys.readouterr().out, re.MULTILINE)
    assert begun == ["new", "broken", "killed"]
    status = {name: each["status"] for name, each in records(tmp_path).items()}
    assert status["broken"] == status["new"] == status["a"] == "done"


def test_the_time_that_is_given(only, tmp_path, capsys):
    only(row("a", WRITE), row("long", SLEEP), row("never", WRITE, 100, "steps"))
    assert go(tmp_path, "--minutes=0.1") == 0
    found = records(tmp_path)
    assert found["a"]["status"] == "done"
    assert found["long"]["status"] == "stopped"
    assert re.fullmatch(r"stopped after \d+ s: the time is up", found["long"]["said"])
    assert "never" not in found
    assert "not begun: may take 100 s, 0 are left" in capsys.readouterr().out
    assert "| never | not measured |" in page(tmp_path)


def test_a_row_is_expected_to_take_what_the_last_one_took(only, tmp_path):
    rows = [row("a", WRITE, 100), row("b", WRITE, 100), row("c", WRITE, 7, "steps")]
    state = on_a_gpu.State(tmp_path, ABOUT, rows)
    assert [state.expected(each) for each in rows] == [100, 100, 7]
    record = {"status": "done", "said": "", "seconds": 12.0, "result": {}}
    state.keep("a", record)
    state.keep("c", record | {"status": "failed", "result": None})
    assert [state.expected(each) for each in rows] == [12, 12, 7]


# A process of its own, which can be ended: rows as JSON, then the arguments.
PROGRAM = f"""
import json, sys
from benchmarks import on_a_gpu
from benchmarks.card_rows import Row
rows = [Row(*each) for each in json.loads(sys.argv.pop(1))]
on_a_gpu.rows = lambda tiny, data: rows
on_a_gpu.look = lambda place, tiny: json.loads({json.dumps(ABOUT)!r})
sys.exit(on_a_gpu.main(sys.argv))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_before_the_end(only, tmp_path, capsys, number):
    place = tmp_path / "card"
    rows = [row("a", WRITE), row("long", SLEEP), row("c", WRITE)]
    command = ["-c", PROGRAM, json.dumps(rows), f"--out={place}"]
    with (
        (tmp_path / "out").open("w+") as out,
        forked.Process(command, cwd=forked.ROOT, stdout=out, stderr=out) as process,
    ):
        deadline = time.monotonic() + PATIENCE
        sleeper = place / "rows" / "long.json.pid"
        while not (sleeper.exists() and sleeper.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        status = process.wait(PATIENCE)
    said = (tmp_path / "out").read_text()
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert status == 130
        assert records(place)["long"]["said"].endswith("s: interrupted")
        assert said.splitlines()[-1].startswith(
            f"stopped; what is measured is in {place}"
        )
    assert records(place)["a"]["status"] == "done"
    only(row("a", "raise"), row("long", WRITE), row("c", WRITE))
    if number == signal.SIGKILL:  # the row goes on, and would be measured with ours
        assert go(place) == 2
        assert "is in use, by another start or by a row" in capsys.readouterr().err
        os.kill(int(sleeper.read_text()), signal.SIGKILL)
        while go(place) == 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert go(place) == 0
    assert {each["status"] for each in records(place).values()} == {"done"}


def test_a_check_that_does_not_hold(only, tmp_path):
    found = [
        device_checks.Found("views, rot", 0.2, 1e-4),
        device_checks.Found("views, sca", 1e-6, 1e-4),
        device_checks.Found("duet", None, 0.0, "ValueError: no"),
    ]
    text = json.dumps([{**x._asdict(), "holds": x.holds} for x in found])
    code = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({text!r})"
    only(row("checks", code, kind="checks"))
    assert go(tmp_path) == 1
    said = records(tmp_path)["checks"]["said"]
    assert said == "failed: 2 of 3 differ: views, rot, duet"
    assert "| views, rot | **2.0e-01** above the limit | 1e-04 |" in page(tmp_path)
    assert "| views, sca | 1.0e-06 | 1e-04 |" in page(tmp_path)
    assert "| ValueError: no |" in page(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault", "counts"),
    [
        ("..\n12 passed in 3s\n", "", "12 passed"),
        (
            "F.\nFAILED tests/a.py::test_b - x\n1 failed, 3 passed, 1 warning in 3s",
            "1 failed: test_b",
            "3 passed, 1 failed",
        ),
    ],
)
def test_what_tests_say(tmp_path, text, fault, counts):
    kind = card_rows.KINDS["tests"]
    result, found = kind.read(tmp_path, text)
    assert found == fault
    assert kind.lines(result)[0][0] == counts
    with pytest.raises(ValueError, match="no test has passed"):
        kind.read(tmp_path, "ERROR: not found: tests/b.py\n\nno tests ran in 0.1s")


# A run that goes on until it is stopped; its second epoch is at the goal.
RACE = """
import json, pathlib, sys, time
place = pathlib.Path(sys.argv[1])
place.mkdir(exist_ok=True)
(place / "config.json").write_text('{"batch_size": 10}')
with (place / "metrics.jsonl").open("w") as file:
    for epoch, score in enumerate(SCORES, 1):
        train = {"split": "train", "step": 4 * epoch, "epoch": epoch}
        test = {"split": "test", "epoch": epoch, "knn_top1": score}
        for row in (train | {"images_per_second": 20}, test):
            print(json.dumps(row), file=file)
time.sleep(900)
"""


def test_the_race_ends_at_the_goal(only, tmp_path):
    place = tmp_path / "card"
    slow = row("race", RACE.replace("SCORES", "[0.5, 0.8]"), kind="race")
    only(slow)
    assert go(place, "--minutes=0.1") == 0
    (stopped,) = records(place).values()
    assert stopped["status"] == "stopped"
    assert stopped["result"]["best"] == 0.8
    line = r"\| not reached \| 80.0 % after epoch 2 \| 2 \| 4 \| \d+ \|"
    assert re.search(line, page(place))
    only(row("race", RACE.replace("SCORES", "[0.5, 0.93, 0.92]"), kind="race"))
    assert go(place) == 0
    (record,) = records(place).values()
    assert record["status"] == "done"
    assert record["result"] == {
        "best": 0.93,
        "at": 2,
        "reached": 2,
        "epochs": 3,
        "training_seconds": 6.0,
    }
    assert record["seconds"] > stopped["seconds"]  # the first start counts too


# --- Against the CPU ------------------------------------------------------------------


def test_a_wrong_view_is_noticed(monkeypatch):
    device = device_checks.cpu()
    (found,) = device_checks.of_augmentation("rot", device, device_checks.TINY)
    assert found.holds
    to_float = device_checks.to_float
    monkeypatch.setattr(device_checks, "to_float", lambda x: to_float(x) * 1.001)
    (found,) = device_checks.of_augmentation("rot", device, device_checks.TINY)
    assert found.difference > found.limit


def test_an_update_in_16_bits_is_noticed(monkeypatch):
    monkeypatch.setattr(device_checks, "TYPE", "bfloat16")
    outcomes = device_checks.of_method(
        "simclr", device_checks.cpu(), device_checks.TINY
    )
    wrong = {each.what for each in outcomes if not each.holds}
    assert wrong == {
        f"{kind} of an update, simclr"
        for kind in ("losses", "gradients", "statistics", "weights")
    }


def test_what_cannot_be_computed_does_not_end_the_rest(monkeypatch):
    def fails():
        raise RuntimeError("no such\nkernel")
        yield

    def works():
        yield device_checks.Found("good", 0.0, 0.0)

    table = {"bad": fails, "good": works}
    monkeypatch.setattr(device_checks, "groups", lambda size: table)
    bad, good = device_checks.measure(device_checks.TINY)
    assert (bad.holds, bad.note) == (False, "RuntimeError: no such kernel")
    assert good.holds


def test_distances():
    one = {"a": np.array([3.0, 0.0]), "b": np.array(4)}
    assert device_checks.distance(one, one) == 0
    other = {"a": np.array([3.0, 1.0]), "b": np.array(4)}
    assert device_checks.distance(other, one) == pytest.approx(0.2)
    assert math.isnan(device_checks.distance({"a": np.nan}, {"a": 1.0}))
    assert not device_checks.Found("x", math.nan, 1.0).holds
    with pytest.raises(ValueError, match="is not"):
        device_checks.distance({"a": np.zeros(2)}, {"a": np.zeros(3)})
