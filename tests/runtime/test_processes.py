"""Runs of two real processes, which talk over the loopback."""

import json
import pathlib
import re

import numpy as np
import pytest
import tiny
from job import Job, free_port

from duet_jax import loggers
from duet_jax.errors import UsageError
from duet_jax.runtime import processes
from duet_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]


def finished(workdir, count, **fields):
    """Runs a job to its end and returns its rows."""
    with Job(workdir, count, **fields) as job:
        for number in range(count):
            assert job.wait(number) == 0, job.log(number)
    return loggers.read_rows(workdir / "metrics.jsonl"), job


LONG = {"epochs": 8, "evaluate_every": 8, "checkpoint.keep": 100}
# Shorter than in use, but not so short that on a busy machine a missed heartbeat, at
# which JAX ends the process by a signal, comes before the exchange that fails.
IMPATIENT = "from duet_jax.runtime import processes; processes.HEARTBEAT_SECONDS = 20"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The rows of the long run in one process."""
    return finished(tmp_path_factory.mktemp("whole") / "run", 1, **LONG)[0]


def check_rows(rows, uninterrupted):
    """On other images, or from another state, the losses would be others."""
    places = [(row["step"], row["split"]) for row in uninterrupted]
    assert [(row["step"], row["split"]) for row in rows] == places
    for ours, theirs in zip(rows, uninterrupted, strict=True):
        # In float32 and after updates by AdamW; `test_mesh` compares in float64.
        for name in ("loss", "nt_xent", "structure_loss", "online_loss"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=3e-3)


def test_a_job_that_loses_a_process_ends_and_goes_on(tmp_path, uninterrupted):
    """With one process less."""
    workdir = tmp_path / "run"
    with Job(workdir, 2, IMPATIENT, **LONG) as job:
        job.wait_for_checkpoint(workdir)
        job.processes[-1].kill()
        assert job.wait(0, 60) == 1, job.log(0)
        assert "another process of this job is gone" in job.log(0)
        assert "continues from the newest checkpoint" in job.log(0)
        assert "Traceback" not in job.log(0)
    rows, job = finished(workdir, 1, **LONG)
    assert "continuing   from the checkpoint of step" in job.log(0)
    check_rows(rows, uninterrupted)
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 8


def test_two_processes_go_on_like_one(tmp_path, uninterrupted):
    """Each reads its own half of every batch; the first alone writes."""
    workdir = tmp_path / "run"
    with Job(workdir, 1, **LONG) as job:
        job.wait_for_checkpoint(workdir)
        job.processes[0].kill()
    streamed = {"dataset.placement": "host", "dataset.workers": 1}
    rows, job = finished(workdir, 2, **LONG, **streamed)
    assert "continuing   from the checkpoint of step" in job.log(0)
    check_rows(rows, uninterrupted)
    assert re.search(r"2 x cpu, \d+ cores? in 2 processes", job.log(0))
    said = [line for line in job.log(1).splitlines() if "Gloo" not in line]
    assert said == ["waiting for the other processes, for up to 300 s ..."]
    assert (workdir / "figures" / "views.png").exists()
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert steps == {*range(2, 17, 2)}


SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), r"--num_processes and --process_id must be given too"),
        ((None, "2", "0"), r"--coordinator_address must be given too"),
        (("host", "2", "0"), r"--coordinator_address='host' must be host:port"),
        (("host:x", "2", "0"), r"must be host:port, such as"),
        (("host:99999", "2", "0"), r"must be host:port, such as"),
        ((None, "1", "5"), r"--coordinator_address must be given too"),
        (("host:1", "two", "0"), r"--num_processes='two' must be a whole number"),
        (("host:1", "2", "2"), r"--process_id='2' must be a whole number from 0 to 1"),
        (("host:1", "2", "-1"), r"--process_id='-1' must be a whole number from 0"),
    ],
)
def test_arguments_that_make_no_job(arguments, message):
    with pytest.raises(UsageError, match=message):
        processes.start(*arguments)


def test_one_process_joins_nobody(monkeypatch):
    for variables in (SLURM, OPEN_MPI):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    # An interactive shell of a job of two, and a single process of mpirun.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    monkeypatch.setattr("jax.distributed.initialize", pytest.fail)
    processes.start()
    processes.start(num_processes="1")
    assert not processes.are_several()
    assert processes.is_main_process()


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI])
def test_a_launcher_is_recognised(variables, monkeypatch):
    """And JAX left to read the rest."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **each: calls.append(each))
    processes.start()
    assert [sorted(call) for call in calls] == [
        ["heartbeat_timeout_seconds", "initialization_timeout", "local_device_ids"]
    ]
    processes.start(num_processes="1")
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_launcher_that_jax_cannot_read_is_no_single_process(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match=rf"{name}=2: .* find .* --num_processes=1"):
        processes.start()


@pytest.mark.parametrize(
    ("visible", "installed", "local", "expected"),
    [
        ("0", 8, "4", [0]),  # each process is shown its own
        ("3", 8, "4", [0]),  # counted among those it sees
        ("0,1,2,3", 4, "1", [0, 1, 2, 3]),  # one process for a machine
        (None, 8, "1", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("0,1,2,3", 4, "4", None),  # JAX: number i takes GPU i
        (None, 0, "2", None),
        (None, 8, None, None),
    ],
)
def test_gpus_of_a_process(visible, installed, local, expected, monkeypatch, tmp_path):
    for number in range(installed):
        (tmp_path / str(number)).mkdir()
    monkeypatch.setattr(processes, "_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if local:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", local)
    assert processes._local_devices() == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_first_process_that_does_not_come(host, monkeypatch):
    monkeypatch.setattr(processes, "_START_SECONDS", 0.5)
    address = f"{host}:{free_port()}"
    with pytest.raises(UsageError, match=rf"{address}: process 0 cannot be reached \("):
        processes.start(address, "2", "1")


def test_an_error_of_jax_is_one_line(monkeypatch):
    def fails(**arguments):
        assert arguments["num_processes"] == 2
        raise RuntimeError("ALREADY_EXISTS: something\nelse")

    monkeypatch.setattr("jax.distributed.initialize", fails)
    with pytest.raises(UsageError, match=r"do not find each other \(ALREADY_EXISTS: "):
        processes.start("127.0.0.1:1", "2", "0")


def test_gpus_are_asked_for_after_the_processes_are_joined(monkeypatch, tmp_path):
    """To ask starts JAX, and then it is too late to join."""
    order = []
    monkeypatch.setattr(processes, "start", lambda **_: order.append("start"))
    monkeypatch.setattr(
        "jax.default_backend", lambda: order.append("backend") or pytest.fail("asked")
    )
    with pytest.raises(pytest.fail.Exception):
        train.train(tiny.config(device="gpu"), tmp_path)
    assert order == ["start", "backend"]
