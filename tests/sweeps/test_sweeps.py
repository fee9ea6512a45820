"""Sweeps: what is run, how it survives, and what the tables say."""

import contextlib
import csv
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import program
import pytest
from forked import FORKS, Process

from duet_jax import cli
from duet_jax.config import loading
from duet_jax.loggers import read_rows
from duet_jax.runtime import devices, provenance
from duet_jax.sweeps import cli as sweep_cli
from duet_jax.sweeps import tables
from duet_jax.sweeps.trial import Trial
from duet_jax.types import DatasetFacts

ROOT = pathlib.Path(__file__).parents[2]
FIGURE4 = str(ROOT / "configs" / "figure4.py")
SWEEP = str(ROOT / "sweep.py")
ROWS_OF_4 = f"--experiment={FIGURE4}"

# Grey digits: duet-hue cannot be run on them.
ROWS = "simclr,duet-hue,duet-rot"
TINY = (
    f"--experiment={FIGURE4}",
    f"--rows={ROWS}",
    "--scale=tiny",
    "--seeds=2",
    "--config.dataset.name=digits",
    "--config.figures_every=99",
)
# Long enough for signals to meet them.
EPOCHS = 6


def run(*arguments, cwd):
    return program.run(*arguments, cwd=cwd, script=SWEEP, before=FORKS)


@contextlib.contextmanager
def started(*arguments, cwd):
    """A sweep at work, which does not outlive the test."""
    with (cwd / "sweep.log").open("ab") as log:
        process = Process(
            [SWEEP, *arguments],
            cwd=cwd,
            env=program.changed({}),
            stdout=log,
            stderr=log,
            before=FORKS,
        )
        try:
            yield process
        finally:
            process.terminate()  # and with it what it has started
            process.wait(program.PATIENCE)


def wait_for(condition, process):
    end = time.monotonic() + program.PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        assert process.poll() is None or condition(), "the sweep has ended"
        time.sleep(0.02)


def has_checkpoint(run):
    return any(path.name.isdigit() for path in run.glob("checkpoints/*"))


def record(workdir, row, seed):
    path = workdir / row / f"seed{seed}.figure4.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that was stopped, killed, and run to its end; with what it then said."""
    place = tmp_path_factory.mktemp("sweep")
    arguments = (*TINY, f"--config.epochs={EPOCHS}", "--workdir=runs")
    runs = place / "runs"
    with started(*arguments, cwd=place) as process:
        wait_for(lambda: has_checkpoint(runs / "simclr" / "seed0"), process)
        process.send_signal(signal.SIGTERM)
        stopped = process.wait(program.PATIENCE)
    after_stop = record(runs, "simclr", 0)
    with started(*arguments, cwd=place) as process:
        wait_for(lambda: has_checkpoint(runs / "duet-rot" / "seed0"), process)
        process.kill()
        process.wait()
    # Its training goes on alone; the next sweep waits for it.
    last = run(*arguments, cwd=place)
    return {
        "place": place,
        "arguments": arguments,
        "stopped": stopped,
        "after stop": after_stop,
        "last": last,
    }


def test_a_stopped_sweep_saves_what_it_was_at(swept):
    assert swept["stopped"] == 128 + signal.SIGTERM
    assert swept["after stop"]["status"] == 128 + signal.SIGTERM
    log = (swept["place"] / "runs/simclr/seed0.figure4.log").read_text()
    assert "SIGTERM" in log
    assert "continuing   from the checkpoint of step" in log


def test_a_sweep_goes_on_to_its_end(swept):
    runs = swept["place"] / "runs"
    for row in ("simclr", "duet-rot"):
        for seed in (0, 1):
            rows = read_rows(runs / row / f"seed{seed}" / "metrics.jsonl")
            epochs = [each["epoch"] for each in rows if each["split"] == "train"]
            assert epochs == [*range(1, EPOCHS + 1)]
            found = {p.name for p in (runs / row / f"seed{seed}/eval").glob("*.json")}
            about = {"equivariance.json"} if row == "duet-rot" else set()
            assert found == {"linear_probe.json", "knn.json"} | about
    # Nobody saw the end of the one; the disk says that it is done.
    assert record(runs, "duet-rot", 0)["status"] is None
    assert record(runs, "duet-rot", 1)["status"] == 0


def test_a_failing_row_is_told_and_does_not_keep_others_from_running(swept):
    last = swept["last"]
    assert last.status == 1
    for seed in (0, 1):
        (line,) = [
            x for x in last.errors if x.startswith(f"error: duet-hue seed {seed}")
        ]
        assert "hue (shift of the hue) needs images with 3 channels" in line
    table = (swept["place"] / "runs" / "table.md").read_text()
    assert "| duet-hue | - | - |" in table
    assert "- duet-hue seed 1: `config.augmentation.stack=" in table


def test_what_is_finished_is_skipped(swept):
    runs = swept["place"] / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("eval/*.json")}
    again = run(*swept["arguments"], cwd=swept["place"])
    assert again.status == 1
    assert "6 runs, 2 to do" in again.lines
    after = {path: path.stat().st_mtime_ns for path in runs.rglob("eval/*.json")}
    assert before == after
    assert len(before) == 10


@pytest.mark.parametrize(("cores", "said"), [(1, "cpu, 1 core"), (2, "cpu, 2 cores")])
def test_hardware_is_described_with_its_cores(monkeypatch, cores, said):
    monkeypatch.setattr(devices, "count_cores", lambda: cores)
    assert devices.describe() == said


def test_the_tables_hold_what_was_measured(swept):
    runs = swept["place"] / "runs"
    with (runs / "table.csv").open() as file:
        table = {row["row"]: row for row in csv.DictReader(file)}
    assert [*table] == ["simclr", "duet-rot", "duet-hue"]  # the order of the file
    tops = [
        json.loads((runs / f"duet-rot/seed{s}/eval/linear_probe.json").read_text())[
            "results"
        ]["representations"]["full"]["top1"]
        for s in (0, 1)
    ]
    row = table["duet-rot"]
    assert float(row["linear_probe_mean"]) == pytest.approx(sum(tops) / 2)
    assert float(row["linear_probe_sd"]) == pytest.approx(
        abs(tops[0] - tops[1]) / 2**0.5
    )
    assert row["seeds"] == "2"
    assert row["epochs"] == str(EPOCHS)
    assert row["data"] == "digits, 72 images"
    assert row["seconds_complete"] == "False"  # one of its sweeps was killed
    assert float(row["seconds"]) > 1
    assert table["simclr"]["seconds_complete"] == "True"
    assert re.fullmatch(r"cpu, \d+ cores?", row["hardware"])
    assert row["commit"] == str(provenance.commit())
    assert (row["experiment"], row["scale"]) == ("figure4", "tiny")
    assert table["duet-hue"]["seeds"] == "0"
    assert table["duet-hue"]["linear_probe_mean"] == ""
    with (runs / "runs.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 6
    assert [float(x["linear_probe"]) for x in lines if x["row"] == "duet-rot"] == tops
    text = (runs / "table.md").read_text()
    assert "figure4, scale tiny" in text
    mean = tables.MEASURES["linear_probe"].shown(tops)
    assert f"| rot |  | {mean} |" in text  # method x case
    assert shlex.join(["python", "sweep.py", *swept["arguments"]]) in text
    assert (runs / "chart.png").stat().st_size > 1000


def test_the_tables_hold_the_yardsticks(swept):
    runs = swept["place"] / "runs"
    stored = [
        json.loads((runs / f"duet-rot/seed{s}/eval/{mode}.json").read_text())["results"]
        for mode in ("linear_probe", "equivariance")
        for s in (0, 1)
    ]
    probes = [each["yardsticks"] for each in stored[:2]]
    regressions = [each["rot"]["yardsticks"] for each in stored[2:]]
    text = (runs / "table.md").read_text()
    (header,) = re.findall(r"^\| compared with \|.*", text, re.MULTILINE)
    probe, read = (
        header.split(" | ").index(tables.MEASURES[name].title)
        for name in ("linear_probe", "read_r2")
    )
    for name in ("untrained encoder", "raw pixels", "chance"):
        (line,) = (
            each.split(" | ")
            for each in re.findall(rf"^\| {name} \|.*", text, re.MULTILINE)
            if "duet-rot" in each.split(" | ")[1]
        )
        tops = [each[name]["top1"] for each in probes]
        assert line[probe] == tables.MEASURES["linear_probe"].shown(tops)
        found = [each[name]["r_squared"] for each in regressions]
        assert line[read] == tables.MEASURES["read_r2"].shown(found)
    with (runs / "runs.csv").open() as file:
        lines = [each for each in csv.DictReader(file) if each["row"] == "duet-rot"]
    for name in probes[0]:
        found = [float(each[f"linear_probe, {name}"]) for each in lines]
        assert found == [each[name]["top1"] for each in probes]


def test_runs_of_a_scheduler_are_found(swept, tmp_path):
    """The printed command alone, in another process: nothing is left to be done."""
    place, runs = swept["place"], swept["place"] / "runs"
    shutil.copytree(runs / "duet-rot" / "seed1", tmp_path / "runs/duet-rot/seed1")
    arguments = (*TINY[:1], "--rows=duet-rot", *TINY[2:], f"--config.epochs={EPOCHS}")
    arguments = [*arguments[:3], "--seeds=1,2", *arguments[4:], "--workdir=runs"]
    printed = run(*arguments, "--print", cwd=place).out.splitlines()
    assert printed[0] == record(runs, "duet-rot", 1)["command"]
    with started(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: "[1 of 2" in (tmp_path / "sweep.log").read_text(), process)
    text = (tmp_path / "sweep.log").read_text()
    assert "2 runs, 1 to do" in text
    # A part of its measurements is not all.
    (tmp_path / "runs/duet-rot/seed1/eval/knn.json").unlink()
    with started(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: "2 to do" in (tmp_path / "sweep.log").read_text(), process)


def test_two_sweeps_do_not_do_the_same(swept, tmp_path):
    """The second leaves to the first what that is at, and waits for it."""
    arguments = (*TINY[:1], "--rows=simclr", *TINY[2:], "--config.epochs=4")
    with started(*arguments, "--workdir=runs", cwd=tmp_path) as first:
        first_run = tmp_path / "runs/simclr/seed0"
        wait_for(first_run.exists, first)
        second = run(*arguments, "--workdir=runs", "--out=second", cwd=tmp_path)
        assert first.wait(program.PATIENCE) == 0
    assert second.status == 0
    said = (tmp_path / "sweep.log").read_text() + "\n".join(second.lines)
    assert said.count("simclr seed 0  linear probe") == 2  # both tell of it
    log = (tmp_path / "runs/simclr/seed0.figure4.log").read_text()
    assert log.count("finished     online_top1") == 1
    assert (tmp_path / "second" / "table.md").exists()


def test_transfer_of_encoders_that_are_there(swept, tmp_path):
    """As Table 3 does with those of Table 2: trained once, measured by another file."""
    path = tmp_path / "mine.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from configs import figure4\n"
        "ROWS, get_config = figure4.ROWS, figure4.get_config\n"
        "MEASURES = {'transfer': {'datasets': 'digits'}}\n"
    )
    runs = swept["place"] / "runs"
    before = (runs / "duet-rot/seed0/metrics.jsonl").read_bytes()
    arguments = [f"--experiment={path}", "--rows=duet-rot", *TINY[2:]]
    arguments += [f"--config.epochs={EPOCHS}", f"--workdir={runs}", "--out=out"]
    done = run(*arguments, cwd=tmp_path)
    assert (done.status, done.errors) == (0, [])
    assert (runs / "duet-rot/seed0/metrics.jsonl").read_bytes() == before
    text = (tmp_path / "out/table.md").read_text()
    assert "| row | online [%] | digits [%] | seeds |" in text
    kept = json.loads((runs / "duet-rot/seed1.figure4.json").read_text())
    assert "equivariance" in kept["command"]  # each experiment has a record of its own


# --- what is asked for ----------------------------------------------------------------


def commands(capsys, *arguments):
    assert sweep_cli.main(["sweep.py", *arguments, "--print"]) == 0
    return capsys.readouterr().out.splitlines()


def refusal(capsys, *arguments):
    assert sweep_cli.main(["sweep.py", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("scale", loading.scales())
@pytest.mark.parametrize(
    "name", ["figure4", "table2", "table3", "pairs", "peers", "duet_sweep"]
)
def test_every_row_can_be_run(name, scale, capsys, here):
    path = ROOT / "configs" / f"{name}.py"
    experiment = loading.load_experiment(str(path))
    lines = commands(capsys, f"--experiment={path}", f"--scale={scale}")
    assert len(lines) == len(experiment.rows) == len({*lines})
    assert not any(here.iterdir())


def test_printed_commands_are_commands(capsys, here):
    override = "--config.duet.structure_weight=7"
    lines = commands(
        capsys,
        f"--experiment={FIGURE4}",
        "--rows=*-rot",
        "--seeds=3,5",
        "--scale=short",
        "--workdir=some/place",
        override,
    )
    parsed = [cli.parse(shlex.split(line)[1:]) for line in lines]
    rows = ["simclr-rot", "simclr-rot", "essl-rot", "essl-rot", "duet-rot", "duet-rot"]
    assert [str(each.workdir) for each in parsed] == [
        f"some/place/{row}/seed{seed}"
        for row, seed in zip(rows, [3, 5] * 3, strict=True)
    ]
    assert [each.config.seed for each in parsed] == [3, 5] * 3
    assert [each.config.method for each in parsed] == [row[:-4] for row in rows]
    # Fields reach the rows that read them.
    assert [override in line for line in lines] == [False] * 4 + [True] * 2
    assert parsed[-1].config.duet.structure_weight == 7.0
    modes = ("train", "linear_probe", "knn", "equivariance")
    assert {each.modes for each in parsed} == {modes}
    assert {each.options["codes"] for each in parsed} == {"rot"}


TINY_RUNS = (*TINY[:1], "--rows=duet-rot", *TINY[2:], f"--config.epochs={EPOCHS}")


def test_another_way_to_measure_is_another_result(swept, tmp_path):
    """What was measured otherwise is measured again."""
    shutil.copytree(swept["place"] / "runs/duet-rot", tmp_path / "runs/duet-rot")
    arguments = (*TINY_RUNS, "--workdir=runs", "--config.knn.k=20")
    with started(*arguments, cwd=tmp_path) as process:
        wait_for(lambda: "to do" in (tmp_path / "sweep.log").read_text(), process)
    assert "2 runs, 2 to do" in (tmp_path / "sweep.log").read_text()


def test_a_directory_of_other_runs_is_refused(swept, capsys, monkeypatch):
    """Before anything is run, and with the tables as they were."""
    monkeypatch.chdir(swept["place"])
    table = (swept["place"] / "runs/table.md").read_bytes()
    arguments = [*TINY_RUNS[:2], "--scale=short", *TINY_RUNS[3:], "--workdir=runs"]
    line = refusal(capsys, *arguments)
    assert (
        "duet-rot: runs/duet-rot/seed0 holds a run with another configuration" in line
    )
    assert "batch_size: 16 -> 128" in line
    assert (swept["place"] / "runs/table.md").read_bytes() == table


def test_places_that_cannot_be_written(capsys, here):
    (here / "file").write_text("")
    for flag in ("--workdir", "--out"):
        line = refusal(capsys, *TINY, f"{flag}=file")
        assert f"{flag}: file cannot be written" in line


def test_the_home_of_the_user(capsys, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (line, *_) = commands(capsys, ROWS_OF_4, "--rows=simclr", "--workdir=~/runs")
    assert f"--workdir={here / 'home'}/runs/simclr/seed0" in line


def test_the_images_of_a_row_may_lie_in_a_folder(capsys, here):
    fields = ["--config.dataset.name=folder", "--config.dataset.path=x"]
    rows = [f"--experiment={ROOT / 'configs/table2.py'}", "--rows=cifar10-simclr"]
    (line,) = commands(capsys, *rows, *fields)
    assert " ".join(fields) in line


def test_one_seed_by_its_number(capsys, here):
    (line,) = commands(capsys, ROWS_OF_4, "--rows=simclr", "--seeds=7,")
    assert "--config.seed=7" in line


def test_rows_about_nothing_are_not_measured_for_it(capsys, here):
    (line,) = commands(capsys, ROWS_OF_4, "--rows=simclr")
    assert line.endswith("--mode=train,linear_probe,knn")


DUET_SWEEP = f"--experiment={ROOT / 'configs' / 'duet_sweep.py'}"

REFUSED = {
    "what a row is about": (
        [DUET_SWEEP, "--rows=lambda-*", "--config.duet.structure_weight=7"],
        ["lambda-0: --config.duet.structure_weight=7 is what the row is about"],
    ),
    "its code": (
        [ROWS_OF_4, "--rows=duet-rot", "--config.learned=sca"],
        ["duet-rot: --config.learned=sca is what the row is about"],
    ),
    "what no row reads": (
        [ROWS_OF_4, "--rows=simclr*", "--config.essl.hidden=7"],
        ["--config.essl.hidden=7 has no effect in any of the chosen rows"],
    ),
    "an empty place": ([ROWS_OF_4, "--workdir="], ["--workdir=''"]),
    "a bucket": ([ROWS_OF_4, "--workdir=gs://b"], ["--workdir=gs://b is an address"]),
    "tables in a bucket": ([ROWS_OF_4, "--out=s3://b"], ["--out=s3://b is an address"]),
    "a row that leaves": (["--experiment=up.py"], ["'../up' cannot be a file's name"]),
    "a mode that is none": (["--experiment=mode.py"], ["MEASURES", "'probe'"]),
    "a flag that is none": (["--experiment=flag.py"], ["knn has no flag 'step'"]),
    "no table of measures": (["--experiment=list.py"], ["list.py cannot be read"]),
    "codes": (["--experiment=codes.py"], ["--codes='rto' is not known"]),
    "codes of a row": (
        ["--experiment=other_row.py"],
        ["CODES: row='duet-rto' is not known", "Did you mean 'duet-rot'?"],
    ),
    "codes that are none": (
        ["--experiment=other_code.py"],
        ["CODES: duet-rot='jit' is not known", "rot, ron"],
    ),
    "no codes": (["--experiment=no_code.py"], ["CODES: duet-rot='' is not known"]),
    "codes of no row": (["--experiment=tuple.py"], ["its CODES must be a dict"]),
    "codes twice": (["--experiment=twice.py"], ["CODES and the codes of MEASURES"]),
    "no experiment": (["--rows=simclr"], ["--experiment"]),
    "no such file": (
        ["--experiment=fig4.py"],
        ["fig4.py", "'figure4'"],
    ),
    "no rows": ([f"--experiment={ROOT / 'configs/base.py'}"], ["ROWS", "--config="]),
    "no such row": (
        [ROWS_OF_4, "--rows=*rott*"],
        ["'*rott*'", "duet-rot"],
    ),
    "one of two": ([ROWS_OF_4, "--rows=simclr,"], ["''"]),
    "scale": ([ROWS_OF_4, "--scale=big"], ["big", "tiny"]),
    "seeds": ([ROWS_OF_4, "--seeds=many"], ["--seeds=many"]),
    "no seeds": ([ROWS_OF_4, "--seeds=0"], ["--seeds=0"]),
    "a seed twice": ([ROWS_OF_4, "--seeds=1,1"], ["--seeds=1,1"]),
    "a seed too large": (
        [ROWS_OF_4, "--seeds=1,9999999999"],
        ["config.seed=9999999999 must be from 0"],
    ),
    "flag": ([ROWS_OF_4, "--row=x"], ["--row=x", "Did you mean '--rows'?"]),
    "the flag": (["--experimnt=figure4"], ["Did you mean '--experiment'?"]),
    "a row, nearly": ([ROWS_OF_4, "--rows=duet-rto"], ["Did you mean 'duet-rot'?"]),
    "seed": ([ROWS_OF_4, "--config.seed=3"], ["--seeds"]),
    "field": (
        [ROWS_OF_4, "--config.epoch=3"],
        ["simclr", "config.epochs"],
    ),
    "value": ([ROWS_OF_4, "--config.epochs=0"], ["config.epochs=0"]),
    "broken": (
        ["--experiment=broken.py"],
        ["broken.py", "SyntaxError"],
    ),
}


OF_4 = "from configs.figure4 import ROWS, get_config\nMEASURES = "
CODES_OF_4 = "from configs.figure4 import ROWS, get_config\nCODES = "
FILES = {
    "broken": "ROWS = {",
    "up": "ROWS = {'../up': {}}",
    "mode": OF_4 + "{'probe': {}}",
    "flag": OF_4 + "{'knn': {'step': 3}}",
    "list": OF_4 + "['knn']",
    "codes": OF_4 + "{'equivariance': {'codes': 'rto'}}",
    "other_row": CODES_OF_4 + "{'duet-rto': 'rot'}",
    "other_code": CODES_OF_4 + "{'duet-rot': 'rot,jit'}",
    "no_code": CODES_OF_4 + "{'duet-rot': ' '}",
    "tuple": CODES_OF_4 + "('rot', 'hue')",
    "twice": OF_4 + "{'generation': {'codes': 'rot'}}\nCODES = {'duet-rot': 'hue'}",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, capsys, here):
    for name, source in FILES.items():
        (here / f"{name}.py").write_text(source)
    arguments, parts = REFUSED[case]
    line = refusal(capsys, *arguments)
    assert [part for part in parts if part not in line] == [], line
    assert {path.stem for path in here.iterdir()} == {*FILES}


ROW_REFUSED = {
    "": ["name one of its rows", ":simclr", "duet-rot"],
    ":duet-rto": ["'duet-rto'", "'duet-rot'"],
    ":duet-rot@tinny": ["'tinny'", "'tiny'"],
}


@pytest.mark.parametrize("row", ROW_REFUSED)
def test_rows_of_main(row, capsys, here):
    assert cli.main(["main.py", f"--config={FIGURE4}{row}"]) == 2
    line = capsys.readouterr().err
    assert [part for part in ROW_REFUSED[row] if part not in line] == [], line
    assert not any(here.iterdir())


def test_a_file_without_rows_takes_none(capsys, here):
    assert cli.main(["main.py", f"--config={ROOT}/configs/smoke.py:duet"]) == 2
    assert "has no rows; leave out :duet" in capsys.readouterr().err


def test_a_row_is_a_run_of_its_own(here):
    command = cli.parse(["main.py", f"--config={FIGURE4}:duet-rot@tiny"])
    assert str(command.workdir) == "runs/figure4-duet-rot@tiny"
    assert command.config.augmentation.stack == ("sca", "rot")


# --- tables ---------------------------------------------------------------------------


def cell_of(workdir, *arguments, name="r", method="duet"):
    dataset = {"name": "digits", "path": "", "cache_dir": ""}
    config = {"method": method, "epochs": 1, "dataset": dataset}
    return Trial("x", name, 0, ("rot",), config, {}, workdir, arguments)


@pytest.mark.parametrize(
    ("classes", "chance"), [((4, 4), 25.0), ((4, 5), None), ((0,), None)]
)
def test_chance_is_one_of_the_classes(classes, chance, tmp_path):
    rows = []
    for place, number in zip("ab", classes, strict=False):
        names = tuple(map(str, range(number)))
        facts = DatasetFacts("x", 8, 1, names, 2, 2)
        (tmp_path / place).mkdir()
        (tmp_path / place / "dataset.json").write_text(json.dumps(facts._asdict()))
        trial = cell_of(tmp_path / place)
        rows.append(tables.Row([tables.Run(trial, True, {}, FACTS, {})]))
    titles = ("linear probe [%]", "kNN [%]", "online [%]") if chance else ()
    assert tables._chance(rows) == dict.fromkeys(titles, chance)


FACTS = dict.fromkeys(("data", "epochs", "hardware", "commit"), "known")


def row(name, method, *found, failed=""):
    """A row with the values of its finished seeds, or one that has failed."""
    trial = cell_of(pathlib.Path("none/seed0"), name=name, method=method)
    runs = [tables.Run(trial, True, values, FACTS, {}) for values in found]
    if failed:
        runs.append(tables.Run(trial, False, {}, {}, {"error": failed}))
    return tables.Row(runs)


@pytest.mark.parametrize(
    ("name", "method", "case"),
    [
        ("simclr", "simclr", ""),
        ("duet-rot", "duet", "rot"),
        ("cifar10-duet-rot", "duet", "cifar10-rot"),
        ("lambda-10", "duet", "lambda-10"),
    ],
)
def test_names_of_cases(name, method, case):
    assert row(name, method, {}).case == case


def test_how_numbers_are_shown():
    percent, plain = tables.MEASURES["knn"], tables.MEASURES["divergence"]
    assert percent.shown([0.5, 0.7]) == "60.0 ± 14.1"
    assert percent.shown([0.5]) == "50.0"
    assert plain.shown([0.1234, 0.1236]) == "0.123 ± 0.000"
    assert percent.shown([]) == "-"


def test_the_table_for_people():
    rows = [
        row("simclr", "simclr", {"linear_probe": 0.25}, {"linear_probe": 0.75}),
        row("simclr-rot", "simclr", {"linear_probe": 0.5, "read_r2": 0.125}, {}),
        row("duet-rot", "duet", {"mnist": 0.9, "linear_probe": 1.0}),
        row("duet-hue", "duet", failed="error: no"),
    ]
    lines = tables.as_markdown(rows, "title", "about").splitlines()
    assert lines[:3] == ["# title", "", "about"]
    assert lines[4:10] == [
        "| linear probe [%] | simclr | duet |",
        "|---|---|---|",
        "| (none) | 50.0 ± 35.4 |  |",
        "| rot | 50.0 (n = 1) | 100.0 |",
        "| hue |  | - |",
        "",
    ]
    assert lines[10].startswith(
        "| row | linear probe [%] | code read, R² | mnist [%] | seeds | seconds |"
    )
    assert lines[14].startswith("| duet-rot | 100.0 | - | 90.0 | 1 of 1 | - |")
    assert "- duet-hue seed 0: `error: no`" in lines


def test_rows_with_the_same_yardsticks_share_a_line():
    def beside(name, **values):
        each = row(name, name.partition("-")[0], {"knn": 0.5}, {"knn": 0.7})
        runs = [run._replace(yardsticks=values) for run in each.runs]
        return tables.Row(runs)

    rows = [
        beside("simclr", chance={"knn": 0.1}),
        beside("essl-rot", chance={"knn": 0.1, "read_r2": 0.0}),
        beside("duet-rot", chance={"knn": 0.1, "read_r2": 0.0}),
        row("duet-hue", "duet", {"read_r2": 0.25}),
    ]
    lines = tables.as_markdown(rows, "t", "a").splitlines()
    start = lines.index("| compared with | of | kNN [%] | code read, R² |")
    assert lines[start + 2 : start + 5] == [
        "| chance | simclr | 10.0 ± 0.0 | - |",
        "| chance | essl-rot, duet-rot | 10.0 ± 0.0 | 0.000 ± 0.000 |",
        "",
    ]
    assert "compared with" not in tables.as_markdown(rows[3:], "t", "a")


def test_one_method_needs_no_matrix():
    text = tables.as_markdown([row("lambda-1", "duet", {"knn": 0.5})], "t", "a")
    assert text.splitlines()[4].startswith("| row |")


def test_a_record_goes_with_its_run(tmp_path):
    trial = cell_of(tmp_path / "s", "--a")
    trial.directory.mkdir()
    trial.write(status=0, seconds=3.0)
    assert trial._replace(arguments=("--b",)).record()["seconds"] == 3.0
    assert trial._replace(experiment="y").record() == {}
    trial.directory.rmdir()
    assert trial.record() == {}
    trial.directory.mkdir()
    for odd in ("{", "[]", '{"seconds": "x"}', '{"commits": 3}', "[" * 10_000):
        (tmp_path / "s.x.json").write_text(odd)
        assert trial.record() == {}


SGD = {"epochs": 100, "repeats": 5, "learning_rate": 30.0}


def test_what_a_finished_run_has(tmp_path):
    trial = cell_of(tmp_path / "s")
    probe = {"linear_probe": {"protocol": "sgd"}}
    trial = trial._replace(measures=probe, config=trial.config | {"linear_probe": SGD})
    row = {"step": 3, "epoch": 1.0, "split": "test", "online_top1": 0.25}
    result = {
        "step": 3,
        "options": {"protocol": "sgd"},
        "settings": {f"linear_probe.{name}": value for name, value in SGD.items()},
        "images": {"digits": [""]},
        "results": {"representations": {"full": {"top1": [0.5, 0.75]}}},
        "device": "a card",
    }
    facts = DatasetFacts("digits", 16, 1, ("0", "1"), 1442, 355)._asdict()
    files = {
        "config.json": trial.config,
        "dataset.json": facts,
        "metrics.jsonl": row,
        "eval/linear_probe_sgd.json": result,
    }
    (trial.directory / "eval").mkdir(parents=True)
    for name, content in files.items():
        assert not trial.finished
        (trial.directory / name).write_text(json.dumps(content))
    assert trial.finished
    assert trial.found() == {"linear_probe": 0.625, "online": 0.25}
    assert trial.facts() == {
        "data": "digits, 1,442 images",
        "epochs": "1",
        "hardware": "a card",
        "commit": "-",
    }
    probe, metrics = "eval/linear_probe_sgd.json", "metrics.jsonl"
    for name, other in (
        ("config.json", trial.config | {"epochs": 2}),
        ("config.json", []),
        ("dataset.json", {}),
        ("dataset.json", facts | {"content": "of others"}),
        (probe, result | {"images": {"digits": ["of others"]}}),
        (probe, result | {"images": {}}),
        (metrics, row | {"epoch": 0.5}),
        (metrics, row | {"epoch": "x"}),
        (metrics, row | {"split": "train"}),
        (metrics, {"step": 3, "epoch": 1.0, "split": "test"}),
        (probe, result | {"step": 2}),
        (probe, {"step": 3}),
        (probe, []),
        (probe, result | {"options": {}}),
        (
            probe,
            result | {"settings": result["settings"] | {"linear_probe.repeats": 4}},
        ),
        (probe, result | {"results": {}}),
    ):
        (trial.directory / name).write_text(json.dumps(other))
        assert not trial.finished, other
        (trial.directory / name).write_text(json.dumps(files[name]))
    assert trial.finished


BOTH = ("equivariance", "generation")
MEASURED = {
    "steer": {"mse": 0.04, "regression": {"error": 0.125}},
    "shift": {"mse": 0.03, "regression": {"error": 0.25}},
    "linear map": {"mse": None, "regression": {"error": 0.0}},
    "oracle": {"mse": 0.02, "regression": {"error": 0.0625}},
    "unchanged": {"mse": 0.05, "regression": {"error": 0.5}},
    "real image": {"mse": 0.0, "regression": {"error": 0.0}},
}
FULL = {"full": {"mse": {"mean": 0.01}}}


def measured(place, codes, **results):
    """A row about such codes with stored results, by evaluation."""
    measures = {mode: {} for mode in results}
    trial = cell_of(place / "s")._replace(measures=measures, codes=codes)
    (trial.directory / "eval").mkdir(parents=True)
    for mode, each in results.items():
        text = json.dumps({"results": each})
        (trial.directory / "eval" / f"{mode}.json").write_text(text)
    rows = {"split": "test", "online_top1": None, "epoch": 1.0, "step": 3}
    (trial.directory / "metrics.jsonl").write_text(json.dumps(rows))
    return trial


def generated(place, levels, predictions, code="rot"):
    """A row with such a stored result of controlled generation."""
    of_code = {"levels": levels, "predictions": predictions, "chance": {"error": 0.75}}
    codes = (code,) if code else ()
    return measured(place, codes, generation={"reconstruction": FULL, "rot": of_code})


def test_generation_is_measured_by_its_best_knob(tmp_path):
    """That with the smallest squared error, beside what is no knob."""
    trial = generated(tmp_path, None, MEASURED)
    values = {"reconstruction": 0.01, "control": 0.03, "control_error": 0.25}
    assert trial.found() == values
    yardsticks = {
        "oracle": {"control": 0.02, "control_error": 0.0625},
        "unchanged": {"control": 0.05, "control_error": 0.5},
        "chance": {"control_error": 0.75},
    }
    assert trial.yardsticks() == yardsticks
    run = tables.Run(trial, True, values, FACTS, {}, yardsticks)
    lines = tables.as_markdown([tables.Row([run])], "t", "a").splitlines()
    heads = ["reconstruction", "control", "control read, error"]
    for start, cells in (
        ("| row |", heads),
        ("| r |", ["0.0100", "0.0300", "0.25"]),
        ("| chance | r |", ["-", "-", "0.75"]),
        ("| oracle | r |", ["-", "0.0200", "0.06"]),
    ):
        (line,) = [each for each in lines if each.startswith(start)]
        assert line.startswith(f"{start} {' | '.join(cells)} |")
    notes = [line for line in lines if line.startswith("- control:")]
    assert "best of steer, shift, linear map" in notes[0]
    panels = tables._panels([tables.Row([run])])
    cases = [0.01, 0.03, 0.25]
    assert panels == {
        k: {"duet": {"r": [x]}} for k, x in zip(heads, cases, strict=True)
    }


@pytest.mark.parametrize(
    ("levels", "predictions", "code", "values"),
    [
        ([0, 1], MEASURED, "rot", {"control": 0.03, "control_level": 0.75}),
        ([0, 1], MEASURED, "hue", {}),
        (None, MEASURED, "", {}),
        (None, {"oracle": MEASURED["oracle"]}, "rot", {}),
        (None, {"shift": {"mse": 0.5, "regression": {}}}, "rot", {"control": 0.5}),
    ],
)
def test_what_generation_has_not_is_left_out(
    levels, predictions, code, values, tmp_path
):
    trial = generated(tmp_path, levels, predictions, code)
    assert trial.found() == {"reconstruction": 0.01, **values}
    assert "steer" not in trial.yardsticks()


def moved(**means):
    return {"moves": {code: {"mean": mean} for code, mean in means.items()}}


# Of one row: the structure reads an angle, and regressions read both.
EQUIVARIANCE = {
    "rot": {
        "regression": {"full": {"error": 9.0, "r_squared": 0.75}},
        "marginal": {"mean": {"error": 12.0, "r_squared": 0.5}},
        "divergence": {"mean": 0.0625},
        "yardsticks": {"chance": {"error": 90.0, "r_squared": 0.0}},
        "crosstalk": {
            "structure": moved(rot=0.25, gra=0.0625, hue=0.125),
            "regression": moved(rot=0.25, gra=0.25, hue=0.25),
        },
    },
    "gra": {
        "regression": {"full": {"accuracy": 0.75}},
        "marginal": {"mean": {"accuracy": 0.625}},
        "divergence": {"mean": 0.125},
        "yardsticks": {"chance": {"accuracy": 0.5}},
        "crosstalk": {"regression": moved(rot=0.5, gra=1.0)},
    },
}
OF_ROT = {
    "read_r2": 0.75,
    "read_error": 9.0,
    "structure_error": 12.0,
    "divergence": 0.0625,
    "crosstalk": 0.5,
}
OF_GRA = {
    "read_level": 0.75,
    "structure_level": 0.625,
    "divergence": 0.125,
    "crosstalk": 0.5,
}


def named(code, values):
    return {f"{name}@{code}": value for name, value in values.items()}


def test_one_code_has_the_measures_of_the_row(tmp_path):
    trial = measured(tmp_path, ("rot",), equivariance=EQUIVARIANCE)
    assert trial.found() == OF_ROT
    assert trial.yardsticks() == {"chance": {"read_r2": 0.0, "read_error": 90.0}}


@pytest.mark.parametrize(
    ("asked", "had", "enough"),
    [
        ({}, {}, True),
        ({}, {"measures": "basic"}, False),
        ({}, {"measures": "local"}, False),
        ({"measures": "basic"}, {}, True),
        ({"measures": "basic"}, {"measures": "local"}, True),
        ({"measures": "actions"}, {"measures": "matrix,actions"}, True),
        ({"measures": "actions"}, {"measures": "matrix"}, False),
    ],
)
def test_more_measures_than_are_asked_for_will_do(asked, had, enough, tmp_path):
    trial = measured(tmp_path, ("rot",), equivariance=EQUIVARIANCE)
    measures = {"equivariance": {"codes": "rot", **asked}}
    trial = trial._replace(measures=measures)
    path = trial.directory / "eval" / "equivariance.json"
    found = json.loads(path.read_text())
    found |= {"step": 7, "settings": {}, "options": {"codes": "rot", **had}}
    path.write_text(json.dumps(found))
    assert trial._is_measured("equivariance", 7) == enough
    assert not trial._is_measured("equivariance", 8)


def test_the_measures_of_the_field(tmp_path):
    predictors = {
        "linear map": {"mrr": 0.5, "hits_1": 0.25, "pre": 0.125},
        "bins shifted": {"mrr": 0.75, "hits_1": 0.5, "pre": 0.0},
    }
    of_rot = EQUIVARIANCE["rot"] | {
        "mlp": {"full": {"r_squared": 0.875}},
        "relative": {"mlp": {"r_squared": 0.625}},
        "retrieval": {"predictors": predictors},
        "geometry": {"procrustes": 0.5, "gamma": None, "composition": 0.25},
    }
    turned = {"full": {"invariant": {"error": 0.0625}}}
    results = {"rot": of_rot, "local": {"rotation": turned}}
    trial = measured(tmp_path, ("rot",), equivariance=results)
    assert trial.found() == {
        **OF_ROT,
        "network_r2": 0.875,
        "relative_r2": 0.625,
        "mrr": 0.5,
        "hits_1": 0.25,
        "pre": 0.125,
        "mrr_own": 0.75,
        "procrustes": 0.5,
        "composition": 0.25,
        "local": 0.0625,
    }
    for name in trial.found():
        assert tables.measure_of(name).note


def test_several_codes_have_measures_of_their_own(tmp_path):
    predictions = {"shift": MEASURED["shift"], "oracle": MEASURED["oracle"]}
    of_code = {"levels": None, "predictions": predictions, "chance": {"error": 0.75}}
    trial = measured(
        tmp_path,
        ("rot", "gra"),
        equivariance=EQUIVARIANCE,
        generation={"reconstruction": FULL, "rot": of_code},
    )
    control = {"control": 0.03, "control_error": 0.25}
    assert trial.found() == {
        "reconstruction": 0.01,
        **named("rot", OF_ROT | control),
        **named("gra", OF_GRA),
    }
    yardsticks = trial.yardsticks()
    assert yardsticks["chance"] == {
        **named("rot", {"read_r2": 0.0, "read_error": 90.0, "control_error": 0.75}),
        **named("gra", {"read_level": 0.5}),
    }
    oracle = {"control": 0.02, "control_error": 0.0625}
    assert yardsticks["oracle"] == named("rot", oracle)


@pytest.mark.parametrize(
    "crosstalk",
    [{}, {"regression": moved(rot=0.0, gra=0.5)}, {"regression": moved(rot=1.0)}],
)
def test_crosstalk_that_is_not_there_is_left_out(crosstalk, tmp_path):
    of_rot = EQUIVARIANCE["rot"] | {"crosstalk": crosstalk}
    trial = measured(tmp_path, ("rot",), equivariance={"rot": of_rot})
    assert "crosstalk" not in trial.found()
    assert trial.found()["divergence"] == 0.0625


@pytest.mark.parametrize(
    ("name", "title", "note"),
    [
        ("read_level@gra", "gra read [%]", "predicts the parameter of gra from"),
        ("read_r2@rot", "rot read, R²", "predicts the parameter of rot from"),
        ("read_error@rot", "rot read, error", "the parameter of rot that this"),
        ("structure_error@rot", "rot: structure read, error", "of rot that is read"),
        ("divergence@rot", "rot: divergence", "for rot: Jensen-Shannon"),
        ("crosstalk@rot", "rot: crosstalk [%]", "how far the reading of rot moves"),
        ("control@rot", "rot: control", "another parameter of rot, from"),
        ("control_level@gra", "gra: control read [%]", "for gra: share of these"),
        ("crosstalk", "crosstalk [%]", "how far the reading of the row's augmentation"),
        ("a@b", "a@b [%]", "top-1 of a linear probe on that data set"),
    ],
)
def test_a_measure_of_one_code_of_several_names_it(name, title, note):
    measure = tables.measure_of(name)
    assert measure.title == title
    assert note in measure.note


def test_columns_by_code(tmp_path, monkeypatch):
    """First what all rows have, then one code after the other, in the same order."""
    names = {"mnist": 0.5, **named("rot", OF_ROT), **named("gra", OF_GRA), "knn": 0.5}
    rows = [
        row("duet-rot+gra", "duet", names),
        row("duet-hue", "duet", {"divergence": 0.5}),
    ]
    titles = [
        *("kNN [%]", "divergence", "mnist [%]"),
        *("rot read, R²", "rot read, error", "rot: structure read, error"),
        *("rot: divergence", "rot: crosstalk [%]"),
        *("gra read [%]", "gra: structure read [%]"),
        *("gra: divergence", "gra: crosstalk [%]"),
    ]
    lines = tables.as_markdown(rows, "t", "a").splitlines()
    assert lines[4].startswith(f"| row | {' | '.join(titles)} | seeds |")
    cells = "50.0 | - | 50.0 | 0.750 | 9.000 | 12.000 | 0.062 | 50.0 | 75.0 | 62.5"
    assert lines[6].startswith(f"| duet-rot+gra | {cells} | 0.125 | 50.0 |")
    assert [*tables._panels(rows)] == titles
    monkeypatch.chdir(tmp_path)
    facts = DatasetFacts("x", 8, 1, ("0", "1"), 2, 2)
    (tmp_path / "none" / "seed0").mkdir(parents=True)
    place = tmp_path / "none" / "seed0" / "dataset.json"
    place.write_text(json.dumps(facts._asdict()))
    tables.write(rows, tmp_path, scale="tiny", about="")
    with (tmp_path / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["read_r2@rot_mean"]) == 0.75
    assert second["read_r2@rot_mean"] == ""
    with (tmp_path / "runs.csv").open() as file:
        assert float(next(csv.DictReader(file))["crosstalk@gra"]) == 0.5
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("codes", "given", "measured"),
    [
        (("rot",), {"equivariance": {}}, {"equivariance": "rot"}),
        (("rot",), {"generation": {}}, {"generation": "rot"}),
        (("fli",), {"equivariance": {}, "generation": {}}, dict.fromkeys(BOTH, "fli")),
        (("rot", "hue"), {"equivariance": {}}, {"equivariance": "rot,hue"}),
        ((), {"equivariance": {}, "generation": {}}, {}),
        (("rot",), {"generation": {"codes": "fli"}}, {"generation": "fli"}),
    ],
)
def test_codes_of_a_row_are_measured(codes, given, measured):
    experiment = loading.Experiment("x.py", {}, {"knn": {}, **given})
    expected = {"knn": {}, **{mode: {"codes": x} for mode, x in measured.items()}}
    assert sweep_cli._measures(experiment, codes) == expected


PAIRS = f"--experiment={ROOT / 'configs' / 'pairs.py'}"


def test_rows_of_a_pair_are_measured_for_both(capsys, here):
    lines = commands(capsys, PAIRS, "--rows=*hue*")
    parsed = [cli.parse(shlex.split(line)[1:]) for line in lines]
    learned = [each.config.get("learned") for each in parsed]
    assert learned == ["rot,hue", "rot", "hue", "rot,hue", None]  # SimCLR ignores both
    assert {each.options["codes"] for each in parsed} == {"rot,hue"}


def test_peers_are_chosen_by_name_or_for_their_weights(capsys, here):
    peers = f"--experiment={ROOT / 'configs' / 'peers.py'}"
    lines = commands(capsys, peers, "--rows=simclr,care,sie", "--scale=tiny")
    parsed = [cli.parse(shlex.split(line)[1:]) for line in lines]
    assert [each.config.method for each in parsed] == ["simclr", "care", "sie"]
    assert [each.config.get("learned") for each in parsed] == [None, None, "rot"]
    assert {each.options["codes"] for each in parsed} == {"rot"}
    lines = commands(capsys, peers, "--rows=augself-weight-*")
    parsed = [cli.parse(shlex.split(line)[1:]) for line in lines]
    assert [each.config.augself.weight for each in parsed] == [0.5, 2.0, 8.0]


ABOUT = {
    "duet": ({"method": "duet", "learned": "rot,hue"}, ("rot", "hue")),
    "essl": ({"method": "essl", "learned": "rot, hue"}, ("rot", "hue")),
    "simclr": ({"method": "simclr", "learned": "rot,hue"}, ("rot",)),
    "none": ({"method": "simclr", "learned": "hue"}, ()),
}


@pytest.mark.parametrize("case", ABOUT)
def test_what_a_row_is_about(case, here):
    fields, codes = ABOUT[case]
    source = f"""
from configs import base
def get_config():
    config = base.get_config()
    config.update({fields})
    config.augmentation.stack = ("sca", "rot")
    return config
"""
    (here / "mine.py").write_text(source)
    assert sweep_cli._codes("mine.py") == codes


def test_codes_that_a_file_names_are_those_of_all():
    """The evaluations of a command share their flags."""
    given = {"equivariance": {"codes": "rot,fli"}, "generation": {}}
    experiment = loading.Experiment("x.py", {}, given)
    assert sweep_cli._measures(experiment, ("rot",)) == given


def test_a_cell_is_claimed_once(tmp_path):
    trial = cell_of(tmp_path / "s")
    with trial.claimed() as first, trial.claimed() as second:
        assert first is not None
        assert second is None
    with trial.claimed() as third:
        assert third is not None


def test_the_claim_outlives_the_sweep(tmp_path):
    """A command that goes on when its sweep is killed keeps others away."""
    trial = cell_of(tmp_path / "s")
    with trial.claimed() as claim:
        command = [sys.executable, "-c", "input()"]
        orphan = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(claim,))
    with trial.claimed() as claim:
        assert claim is None
    orphan.communicate(b"\n")
    with trial.claimed() as claim:
        assert claim is not None
