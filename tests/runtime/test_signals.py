"""SIGTERM and SIGINT, sent to the real program."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forked import ROOT, Process
from job import Job
from program import MAIN, PATIENCE, SMOKE, TINY, changed, run

from duet_jax import loggers
from duet_jax.runtime import signals
from duet_jax.runtime.signals import Interruption

# An epoch of one row and many calls, so that a signal finds it unfinished.
FIELDS = {
    "epochs": 4,
    "steps_per_epoch": 20,
    "warmup_epochs": 1,
    "evaluate_every": 4,
    "checkpoint.every": 4,
}

# As on a terminal: what is started in the background ignores SIGINT.
LISTENING = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@contextlib.contextmanager
def program(workdir, *, fields=FIELDS, **options):
    """Runs the training; yields the process and a function that returns its text."""
    log = workdir.with_suffix(f".{time.monotonic_ns()}.log")
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    with (
        log.open("w") as file,
        Process(
            [MAIN, SMOKE, f"--workdir={workdir}", *arguments],
            env=changed({}),
            stdout=file,
            stderr=subprocess.STDOUT,
            **options,
        ) as process,
    ):
        yield process, log.read_text


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with program(workdir) as (process, log):
        assert process.wait(PATIENCE) == 0, log()
    return loggers.read_rows(workdir / "metrics.jsonl")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_saves_the_run(tmp_path, uninterrupted, number, status):
    """In the middle of an epoch, of which the row is not to be lost."""
    for attempt in range(3):
        workdir = tmp_path / f"run{attempt}"
        step = stop_at_some_step(workdir, number, status)
        if step % 20:  # else it has hit the end of a row
            break
    assert step % 20
    assert (workdir / "checkpoints" / str(step) / "checksums.json").exists()
    with program(workdir) as (process, log):
        assert process.wait(PATIENCE) == 0, log()
        assert f"continuing   from the checkpoint of step {step}\n" in log()
    ours = loggers.read_rows(workdir / "metrics.jsonl")
    assert [comparable(row) for row in ours] == [
        comparable(row) for row in uninterrupted
    ]


def stop_at_some_step(workdir, number, status):
    """Returns the step at which a run has been saved because of a signal."""
    rows = workdir / "metrics.jsonl"
    with program(workdir) as (process, log):
        wait_until(lambda: rows.exists() and rows.read_text(), process)
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == status, log()
        assert time.monotonic() - start < 10
        last = log().splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}; step ")
    assert "the same command continues from there" in last
    return int(last.split("step ")[1].split()[0])


def comparable(row):
    return {k: v for k, v in row.items() if k != "images_per_second"}


# Its last words are never said.
SLOW = """
import time
from duet_jax import cli
cli.processes.shutdown = lambda: time.sleep(1000)
"""


def test_a_second_signal_ends_at_once(tmp_path):
    """Also while the first one is still being obeyed: here, for ever."""
    workdir = tmp_path / "run"
    with program(workdir, before=SLOW) as (process, log):
        wait_until(lambda: "compiled in" in log(), process)
        time.sleep(0.3)
        process.terminate()
        wait_until(lambda: "SIGTERM: ending when the run is saved" in log(), process)
        place = workdir / "checkpoints"
        wait_until(lambda: [*place.glob("[0-9]*/checksums.json")], process)
        time.sleep(0.2)
        assert process.poll() is None
        start = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE) == 143
        assert time.monotonic() - start < 2
    with program(workdir) as (process, log):  # what was saved is sound
        assert process.wait(PATIENCE) == 0, log()
        assert "continuing" in log()
        assert "damaged" not in log()


def test_a_signal_before_the_training_ends_at_once(tmp_path):
    """While XLA compiles, when Python's own handlers would have to wait."""
    fields = {"encoder.blocks": "9,9,9", "compilation_cache": "off"}
    with program(tmp_path / "run", fields=fields) as (process, log):
        wait_until(lambda: "compiling" in log(), process)
        time.sleep(0.5)
        assert "compiled in" not in log()
        start = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE) == 143
        assert time.monotonic() - start < 2
        assert log().endswith("stopped by SIGTERM\n")


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_terminal_that_takes_no_text(tmp_path, how):
    """What is to be said must not keep the program from ending."""
    reader, writer = os.pipe()
    code = (
        "import time\n"
        "from duet_jax.runtime.signals import Interruption\n"
        "with Interruption():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=writer
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        if how == "closed":
            os.close(reader)
        else:
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
            os.set_blocking(writer, True)
        process.terminate()
        assert process.wait(10) == 143
    os.close(writer)
    if how == "full":
        os.close(reader)


def test_a_signal_to_one_process_ends_the_job(tmp_path, uninterrupted):
    workdir = tmp_path / "run"
    with Job(workdir, 2, **FIELDS) as job:
        rows = workdir / "metrics.jsonl"
        wait_until(lambda: rows.exists() and rows.read_text(), job.processes[0])
        job.processes[1].terminate()
        assert [job.wait(0), job.wait(1)] == [143, 143], (job.log(0), job.log(1))
        assert "stopped by SIGTERM; step" in job.log(0)
    with program(workdir) as (process, log):
        assert process.wait(PATIENCE) == 0, log()
        assert "continuing" in log()
    ours = loggers.read_rows(rows)
    places = [(row["step"], row["split"]) for row in uninterrupted]
    assert [(row["step"], row["split"]) for row in ours] == places
    for row, whole in zip(ours, uninterrupted, strict=True):
        np.testing.assert_allclose(row["loss"], whole["loss"], rtol=3e-3)


def test_a_signal_to_all_processes_of_a_streamed_run(tmp_path):
    """As a scheduler sends it: those that read images must not end first."""
    workdir = tmp_path / "run"
    fields = FIELDS | {"dataset.placement": "host", "dataset.workers": 2}
    with program(workdir, group=True, fields=fields) as (process, log):
        rows = workdir / "metrics.jsonl"
        wait_until(lambda: rows.exists() and rows.read_text(), process)
        for child in children(process.pid):
            os.kill(child, signal.SIGTERM)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 143, log()
        assert "is saved in" in log()


def children(pid):
    """Two readers at least; the tracker of shared memory may be another."""
    place = pathlib.Path(f"/proc/{pid}/task")
    found = [
        int(child)
        for thread in place.iterdir()
        for child in (thread / "children").read_text().split()
    ]
    assert len(found) >= 2
    return found


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as heard:
        assert signal.getsignal(signal.SIGTERM) not in before
        heard.defer()
        signal.raise_signal(signal.SIGTERM)
        wait_for(lambda: heard.signal)
        assert heard.signal == signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as heard:
            heard.defer()
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)
            assert heard.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_heard():
    heard = []

    def enter():
        with Interruption() as each:
            heard.append(each.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [0]


def test_the_status_is_that_of_the_signal():
    error = signals.interrupted(signal.SIGINT, "nothing is lost")
    assert (str(error), error.status) == ("stopped by SIGINT; nothing is lost", 130)


# --- before and beside the training ---------------------------------------------------


def listens(process):
    """Whether SIGTERM no longer ends the process by itself."""
    (line,) = (
        line
        for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize(
    ("script", "delay"),
    [("main.py", 0), ("main.py", 0.2), ("main.py", 0.8), ("sweep.py", 0.4)],
)
def test_an_interrupt_in_the_first_seconds(script, delay, tmp_path):
    """While modules are imported, which swallow an exception or show a traceback."""
    about = {
        "main.py": [SMOKE],
        "sweep.py": [f"--experiment={ROOT / 'configs' / 'figure4.py'}", "--scale=tiny"],
    }
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, ROOT / script, *about[script]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=changed({}),
    )
    try:
        wait_until(lambda: listens(process), process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[0].decode()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("stopped") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory in which a run has been trained in run/."""
    place = tmp_path_factory.mktemp("finished")
    done = run(*TINY, "--workdir=run", cwd=place)
    assert done.status == 0, done.lines
    return place


# The last step of writing features takes for ever.
WAITING = """
import time
from duet_jax.evaluation import export_features
export_features._pack = lambda *_: time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
)
def test_an_evaluation_leaves_nothing_unfinished(finished, number, status):
    """It is removed at once, or, where nothing can be done, by the next call."""
    results, log = finished / "run" / "eval", finished / "log"
    command = [MAIN, "--workdir=run", "--mode=features"]
    with (
        log.open("w") as file,
        Process(
            command, cwd=finished, stderr=file, env=changed({}), before=WAITING
        ) as process,
    ):
        wait_until(lambda: [*results.glob(".*/*.npy")], process)
        process.send_signal(number)
        assert process.wait(PATIENCE) == status, log.read_text()
    assert "Traceback" not in log.read_text()
    left = [*results.iterdir()]
    assert bool(left) == (number == signal.SIGKILL)
    if left:
        done = run("--workdir=run", "--mode=features", cwd=finished)
        assert done.status == 0, done.lines
        names = {path.name for path in results.iterdir()}
        assert names == {"features.json", "features.npz"}
