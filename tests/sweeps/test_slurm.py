"""Sweeps on a cluster: what is submitted, watched, requeued and refused.

There is no Slurm here. Jobs are run by submitit's local executor, or by hand; what is
asked of Slurm is answered by little programs that stand in for its own.
"""

import json
import os
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
import submitit
from forked import ROOT

from duet_jax.sweeps import cli as sweep_cli
from duet_jax.sweeps import runner, slurm
from duet_jax.sweeps.job import Job

EPOCHS = 6
# The shortest trial: trained on a few digits, measured by kNN alone.
EXPERIMENT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from configs import figure4
ROWS, get_config, MEASURES = figure4.ROWS, figure4.get_config, {{"knn": {{}}}}
"""
TINY = (
    "--experiment=mine.py",
    "--rows=simclr",
    "--scale=tiny",
    "--config.dataset.name=digits",
    f"--config.epochs={EPOCHS}",
    "--workdir=runs",
)
ON_SLURM = (*TINY, "--seeds=2", "--launcher=slurm", "--slurm=time=2:00:00")


def trials(*arguments):
    options, overrides = sweep_cli._parser().parse_known_args(arguments)
    return sweep_cli.plan(options, overrides)


def wait_for(condition):
    end = time.monotonic() + program.PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trial that was run by a job, which was requeued once; and its directory."""
    place = tmp_path_factory.mktemp("trained")
    (place / "mine.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))
        (trial,) = trials(*TINY)
        executor = submitit.LocalExecutor("jobs")
        executor.update_parameters(timeout_min=60, stderr_to_stdout=True)
        job = executor.submit(Job(trial, str(place)))
        checkpoints = place / "runs/simclr/seed0/checkpoints"
        try:
            wait_for(lambda: any(each.name.isdigit() for each in checkpoints.glob("*")))
            (task,) = children(job.job_id)
            os.kill(task, signal.SIGUSR2)  # as Slurm does before the time limit
            wait_for(job.done)
        finally:
            job.cancel()
        yield place, trial, job.paths.stdout.read_text()


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in path.read_text().split()]


def test_a_job_trains_is_requeued_and_goes_on(trained):
    place, trial, said = trained
    assert said.count("simclr seed 0  started") == 2
    assert "Requeued job" in said
    log = (place / trial.log).read_text()
    assert log.count("$ python") == 2
    assert "SIGTERM" in log
    rows = (place / trial.directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    epochs = [row["epoch"] for row in rows if row["split"] == "train"]
    assert epochs == [*range(1, EPOCHS + 1)]
    record = json.loads((place / "runs/simclr/seed0.mine.json").read_text())
    assert (record["status"], record["error"], record["lost"]) == (0, "", False)


# --- stand-ins for the programs of Slurm ----------------------------------------------

PROGRAMS = {
    "sbatch": """
        if [ -e $here/refuse ]; then cat $here/refuse >&2; exit 1; fi
        number=$(( $(cat $here/number) + 1 ))
        echo $number > $here/number
        cp "$1" $here/$number.sh
        echo "Submitted batch job $number"
    """,
    "squeue": """
        if [ -e $here/silent ]; then cat $here/silent >&2; exit 1; fi
        echo "$*" > $here/asked
        cat $here/queue
    """,
    "sacct": "cat $here/accounts",
    "srun": """
        while [ "${1#--}" != "$1" ]; do
          echo "$1" >> $here/given
          case "$1" in --output) shift;; esac
          shift
        done
        echo $$ > $here/task
        exec "$@"
    """,
    "scontrol": 'echo "$*" > $here/control',
}


class Cluster:
    """A directory of stand-ins: what they are to answer, and what they were given."""

    def __init__(self, place):
        self.place = place
        self.say(number="99", queue="", accounts="")
        for name, text in PROGRAMS.items():
            path = place / name
            path.write_text(f"#!/bin/sh\nhere={shlex.quote(str(place))}\n{text}")
            path.chmod(0o755)

    def say(self, **texts):
        for name, text in texts.items():
            (self.place / name).write_text(text)

    def read(self, name):
        return (self.place / name).read_text()

    @property
    def submitted(self):
        return int(self.read("number")) - 99

    def options(self, number):
        lines = re.findall(r"^#SBATCH --(.+)$", self.read(f"{number}.sh"), re.M)
        pairs = [line.partition("=") for line in lines]
        assert len({name for name, _, _ in pairs}) == len(pairs)
        return {name: value for name, _, value in pairs}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.py").write_text(EXPERIMENT)
    monkeypatch.chdir(here)
    return Cluster(place)


def sweep(monkeypatch, *steps, arguments=ON_SLURM):
    """Runs the sweep; between two questions to Slurm comes one step after another."""
    left = list(steps)

    def rest(stop, long):
        del stop
        if long:
            left.pop(0)()

    monkeypatch.setattr(slurm, "_rest", rest)
    status = sweep_cli.main(["sweep.py", *arguments])
    assert not left
    return status


def interrupt():
    signal.raise_signal(signal.SIGINT)


def finish(trained, place=pathlib.Path(".")):
    """Puts the finished run of seed 0 where the sweep looks for it."""
    target = place / "runs/simclr/seed0"
    shutil.copytree(trained[0] / "runs/simclr/seed0", target, dirs_exist_ok=True)


def record(seed):
    return json.loads(pathlib.Path(f"runs/simclr/seed{seed}.mine.json").read_text())


def test_what_is_submitted(cluster, monkeypatch, capsys):
    flags = (
        *("--slurm=partition=gpu", "--slurm=gpus-per-node=1", "--slurm=mem=32G"),
        *("--slurm=cpus_per_task=4", "--slurm=exclusive", "--slurm=account=a b"),
        *("--slurm=job-name=mine", "--parallel=1"),
    )
    assert sweep(monkeypatch, interrupt, arguments=(*ON_SLURM, *flags)) == 130
    options = cluster.options(100)
    logs = str(pathlib.Path("runs/slurm").absolute() / "%A_%a_0_log.out")
    assert (
        options.items()
        >= {
            "array": "0-1%1",
            "time": "2:00:00",
            "partition": "gpu",
            "gpus-per-node": "1",
            "mem": "32G",
            "cpus-per-task": "4",
            "exclusive": "",
            "account": "'a b'",
            "signal": "USR2@120",
            "requeue": "",
            "output": logs,
            "open-mode": "append",
            "nodes": "1",
        }.items()
    )
    assert options["job_name".replace("_", "-")] == "mine"
    assert record(0)["job"] == "100_0"
    assert record(1)["job"] == "100_1"
    assert cluster.submitted == 1
    said = capsys.readouterr().err
    assert "submitted    job 100, 2 runs; logs in runs/slurm" in said
    assert "simclr seed 1  PENDING, job 100_1" in said
    assert "jobs go on" in said
    assert "scancel 100 ends them" in said
    assert "--me --array" in cluster.read("asked")


def test_all_at_once_unless_a_number_is_given(cluster, monkeypatch):
    sweep(monkeypatch, interrupt)
    assert cluster.options(100)["array"] == "0-1%2"


def test_jobs_are_watched_to_their_end(cluster, trained, monkeypatch, capsys):
    def runs():
        cluster.say(queue="100_0 RUNNING\n100_1 PENDING\n7 RUNNING\n")

    def one_is_finished():
        finish(trained)
        cluster.say(queue="100_0 COMPLETING\n100_1 RUNNING\n")

    def slurm_is_busy():
        assert "| simclr |" in pathlib.Path("runs/table.md").read_text()
        cluster.say(silent="try later")

    def the_other_is_killed():
        (cluster.place / "silent").unlink()
        cluster.say(queue="", accounts="OUT_OF_MEMORY\n")

    def nothing():
        assert record(1)["error"] == ""  # the disk may be late

    steps = (runs, one_is_finished, slurm_is_busy, the_other_is_killed, nothing)
    assert sweep(monkeypatch, *steps) == 1
    said = capsys.readouterr().err
    log = "runs/slurm/100_1_0_log.out"
    lost = f"job 100_1 has ended as OUT_OF_MEMORY; see {log}"
    for line in (
        "simclr seed 0  RUNNING, job 100_0",
        "simclr seed 1  RUNNING, job 100_1",
        "simclr seed 0  kNN",
        "squeue does not answer (try later)",
        f"simclr seed 1  failed: {lost}",
        f"error: simclr seed 1: {lost}",
        "tables in    runs",
    ):
        assert line in said
    assert cluster.submitted == 1
    assert record(1)["error"] == lost
    assert f"- simclr seed 1: `{lost}`" in pathlib.Path("runs/table.md").read_text()

    # The same command submits what has failed, and nothing else.
    cluster.say(queue="7 RUNNING\n")
    assert sweep(monkeypatch, interrupt) == 130
    assert cluster.submitted == 2
    assert "array" not in cluster.options(101)
    assert (record(1)["job"], record(1)["error"]) == ("101", "")


def test_the_error_of_a_run_is_told(cluster, monkeypatch, capsys):
    def fail():
        (one,) = trials(*TINY)
        one.write(status=1, error="no images")

    assert sweep(monkeypatch, fail, lambda: None) == 1
    said = capsys.readouterr().err
    assert "simclr seed 0  failed: no images" in said
    assert "simclr seed 1  failed: job 100_1 has ended; see " in said
    assert "no run has finished" in said
    assert record(0)["error"] == "no images"


def test_jobs_are_found_again(cluster, trained, monkeypatch, capsys):
    sweep(monkeypatch, interrupt)
    cluster.say(queue="100_0 PENDING\n100_1 RUNNING\n")
    capsys.readouterr()
    assert sweep(monkeypatch, lambda: finish(trained), interrupt) == 130
    assert cluster.submitted == 1
    said = capsys.readouterr().err
    assert "submitted" not in said
    assert "simclr seed 1  RUNNING, job 100_1" in said
    assert "simclr seed 0  kNN" in said
    assert "scancel 100 ends them" in said
    # With other flags they are not the jobs that are asked for.
    other = (*ON_SLURM, "--config.batch_size=8", "--seeds=1,")
    assert sweep(monkeypatch, arguments=other) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: simclr seed 1: job 100_1 runs it with other flags")
    assert line.endswith("or end it with scancel 100_1.")


def test_a_finished_sweep_submits_nothing(cluster, trained, monkeypatch):
    finish(trained)
    arguments = (*ON_SLURM, "--seeds=1")
    assert sweep(monkeypatch, arguments=arguments) == 0
    assert cluster.submitted == 0
    assert pathlib.Path("runs/table.md").exists()


def test_what_another_process_runs_is_left_to_it(cluster, trained, monkeypatch, capsys):
    (one,) = trials(*TINY)
    with one.claimed() as claim:
        assert claim is not None
        arguments = (*ON_SLURM, "--seeds=1")
        assert sweep(monkeypatch, lambda: finish(trained), arguments=arguments) == 0
    assert cluster.submitted == 0
    assert "simclr seed 0  run by another process" in capsys.readouterr().err


def test_two_sweeps_submit_once(cluster, monkeypatch):
    """The second one waits until the first one's jobs are known."""
    alone = slurm._alone

    def after_another(folder):
        for number, trial in enumerate(trials(*TINY, "--seeds=2")):
            trial.directory.mkdir(parents=True)
            trial.write(job=f"50_{number}")
        cluster.say(queue="50_0 RUNNING\n50_1 PENDING\n")
        return alone(folder)

    monkeypatch.setattr(slurm, "_alone", after_another)
    assert sweep(monkeypatch, interrupt) == 130
    assert cluster.submitted == 0


# --- the script of a job, run by hand -------------------------------------------------


@pytest.fixture
def start(cluster):
    """Starts task 0 of the first array in a directory; returns process and output."""
    processes = []

    def start(place):
        numbers = {"JOB_ID": "7", "ARRAY_JOB_ID": "100", "ARRAY_TASK_ID": "0"}
        environment = {f"SLURM_{name}": value for name, value in numbers.items()}
        output = place / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", cluster.place / "100.sh"],
                cwd=place,
                env=program.changed({**environment, "PYTHONPATH": None}),
                stdout=file,
                stderr=file,
            )
        processes.append(process)
        return process, output

    yield start
    for process in processes:
        if process.poll() is None:
            os.kill(int(cluster.read("task")), signal.SIGKILL)
        process.wait()


def test_a_job_of_a_finished_trial_has_nothing_to_do(
    cluster, start, trained, monkeypatch, tmp_path
):
    sweep(monkeypatch, interrupt, arguments=(*ON_SLURM, "--slurm=cpus-per-task=3"))
    here = pathlib.Path.cwd()
    finish(trained, here)
    process, output = start(tmp_path)
    assert process.wait(program.PATIENCE) == 0, output.read_text()
    assert "Job completed successfully" in output.read_text()
    assert not (here / "runs/simclr/seed0.mine.log").exists()
    assert "--cpus-per-task=3" in cluster.read("given").splitlines()


@pytest.mark.parametrize("first", [signal.SIGUSR2, signal.SIGTERM])
def test_a_job_goes_back_to_the_queue(first, cluster, start, monkeypatch, tmp_path):
    """By its own id, when it is told of the time limit, with what it was to do.

    A job that is to end waits for Slurm, which may preempt it.
    """
    sweep(monkeypatch, interrupt)
    (one,) = trials(*TINY)
    with one.claimed():  # it waits for the process that runs the trial
        process, output = start(tmp_path)

        def told(text):
            return text in output.read_text() or process.poll() is not None

        wait_for(lambda: told("waiting for the process that runs it"))
        if first == signal.SIGTERM:
            os.kill(int(cluster.read("task")), signal.SIGTERM)
            wait_for(lambda: told("Slurm now ends this job"))
        assert process.poll() is None, output.read_text()
        os.kill(int(cluster.read("task")), signal.SIGUSR2)
        assert process.wait(program.PATIENCE) == 255, output.read_text()
    assert cluster.read("control").split() == ["requeue", "100_0"]
    stored = pathlib.Path("runs/slurm/100_0_submitted.pkl")
    again = submitit.core.utils.DelayedSubmission.load(stored)
    assert again.function.trial == one


def test_a_job_whose_run_fails_has_failed(cluster, start, monkeypatch, tmp_path):
    arguments = [*ON_SLURM[:1], "--rows=duet-hue", *ON_SLURM[2:]]
    sweep(monkeypatch, interrupt, arguments=arguments)
    process, output = start(tmp_path)
    assert process.wait(program.PATIENCE) == 2, output.read_text()
    record = json.loads(pathlib.Path("runs/duet-hue/seed0.mine.json").read_text())
    assert "hue (shift of the hue) needs images with 3 channels" in record["error"]
    assert (record["status"], record["job"]) == (2, "100_0")
    assert not (cluster.place / "control").exists()


def test_a_job_that_cannot_be_requeued_says_so(cluster):
    def refuse(number, frame):
        raise RuntimeError("timed-out too many times\n")

    (one,) = trials(*TINY)
    one.directory.mkdir(parents=True)
    with pytest.raises(RuntimeError, match="too many"):
        Job(one, ".")._requeue(refuse, signal.SIGUSR2)
    reason = "stopped at the time limit; timed-out too many times"
    assert record(0)["error"] == reason


def test_what_a_command_is_spared(cluster):
    """A signal for the job alone, from the start of its command on."""
    received = []
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append(1))
    try:
        with runner.held(signal.SIGUSR2):
            signal.raise_signal(signal.SIGUSR2)
            command = ["sh", "-c", "kill -USR2 $$; echo alive"]
            assert subprocess.check_output(command) == b"alive\n"
            assert received == []
        assert received == [1]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_ends_the_wait(monkeypatch):
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_QUESTIONS", 10 * program.PATIENCE)
    with runner.Stop() as stop:
        interrupt()
        slurm._rest(stop, True)
    assert stop.signal == signal.SIGINT


# --- what is refused ------------------------------------------------------------------

TIME = "--slurm=time=10"
REFUSED = {
    "a launcher that is none": (
        ["--launcher=slrum"],
        ["--launcher='slrum'", "local, slurm", "Did you mean 'slurm'?"],
    ),
    "an option without Slurm": (
        ["--slurm=time=10"],
        ["--slurm=time=10 has no effect with --launcher=local"],
    ),
    "a number without Slurm": (
        ["--parallel=3"],
        ["--parallel=3 has no effect with --launcher=local"],
    ),
    "printing": (
        ["--launcher=slurm", TIME, "--print"],
        ["--launcher=slurm has no effect with --print"],
    ),
    "no time": (["--launcher=slurm"], ["needs a time limit", "--slurm=time=4:00:00"]),
    "odd time": (
        ["--launcher=slurm", "--slurm=time=4h"],
        ["not --slurm=time=4h", "--slurm=time=1-12"],
    ),
    "too little time": (
        ["--launcher=slurm", "--slurm=time=3:59"],
        ["--slurm=time=3:59 is too short", "use 4 minutes or more"],
    ),
    "time without a value": (
        ["--launcher=slurm", "--slurm=time"],
        ["needs a time limit"],
    ),
    "parallel": (
        ["--launcher=slurm", TIME, "--parallel=0"],
        ["--parallel=0 must be a whole number above 0"],
    ),
    "dashes": (
        ["--launcher=slurm", TIME, "--slurm=--mem=3"],
        ["--slurm=--mem=3 must be an option of sbatch without its dashes"],
    ),
    "no value": (
        ["--launcher=slurm", TIME, "--slurm=mem="],
        ["--slurm=mem= must be an option"],
    ),
    "twice": (
        ["--launcher=slurm", TIME, "--slurm=mem=3", "--slurm=mem=4"],
        ["--slurm=mem=4: mem is given twice"],
    ),
    "what is ours": (
        ["--launcher=slurm", TIME, "--slurm=array=0-9"],
        ["--slurm=array=0-9 cannot be set", "--parallel"],
    ),
    "what is ours, otherwise written": (
        ["--launcher=slurm", TIME, "--slurm=ntasks_per_node=2"],
        ["--slurm=ntasks_per_node=2 cannot be set: a run is one process"],
    ),
}


def refusal(capsys, *arguments):
    """Returns the line of a sweep that is refused, and has written nothing."""
    before = program.snapshot(pathlib.Path())
    assert sweep_cli.main(["sweep.py", *arguments]) == 2
    assert program.snapshot(pathlib.Path()) == before
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, cluster, capsys):
    arguments, parts = REFUSED[case]
    line = refusal(capsys, *TINY, *arguments)
    assert [part for part in parts if part not in line] == [], line
    assert cluster.submitted == 0


def test_submitit_is_not_installed(cluster, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    line = refusal(capsys, *ON_SLURM)
    assert "pip install submitit, which is the extra slurm" in line


@pytest.mark.parametrize("name", ["sbatch", "srun", "squeue"])
def test_there_is_no_slurm(name, cluster, monkeypatch, capsys):
    (cluster.place / name).unlink()
    monkeypatch.setenv("PATH", str(cluster.place))
    line = refusal(capsys, *ON_SLURM)
    assert f"there is no {name} on this machine" in line
    assert "--launcher=local" in line


def test_slurm_refuses(cluster, monkeypatch, capfd):
    cluster.say(refuse="sbatch: error: invalid partition specified: gpo\n")
    arguments = (*ON_SLURM, "--slurm=partition=gpo")
    assert sweep(monkeypatch, arguments=arguments) == 2
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if "invalid partition" in line]
    assert (out, len(errors)) == ("", 1)
    assert errors[0].startswith("error: --launcher=slurm: sbatch refuses the jobs (")
    assert not pathlib.Path("runs/simclr/seed0.mine.json").exists()


def test_slurm_is_silent_from_the_start(cluster, monkeypatch, capsys):
    cluster.say(silent="slurm_load_jobs error: Unable to contact slurm controller\n")
    assert sweep(monkeypatch) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: --launcher=slurm: squeue does not answer (slurm_load"
    )
    assert cluster.submitted == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:30", 91),
        ("4:00:00", 240),
        ("0:04:01", 5),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2-0:0:1", 2881),
    ],
)
def test_minutes_of_a_time_limit(text, expected):
    assert slurm.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "1-", "-1", "1:2:3:4", "1-1:1:1:1", "x"])
def test_time_limits_that_are_none(text):
    with pytest.raises(slurm.UsageError, match="needs a time limit"):
        slurm.minutes(text)
