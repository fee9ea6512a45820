"""How soon the programs answer, and with what little."""

import re
import resource
import subprocess
import sys

import jax
import pytest
from forked import ROOT
from program import PATIENCE, SMOKE, TINY, changed, run

import duet_jax

# Imports that take longer than everything else that is done for such an answer.
SLOW = ("jax", "flax", "optax", "orbax", "matplotlib", "sklearn", "scipy", "grain")
# Of a processor: others may keep a program waiting. Idle, half of one passes in all.
SECONDS = 2.5
IMPORT = "import time:"

ANSWERED = {
    "help": ["--help"],
    "list": ["--list"],
}
REFUSED = {
    "an unknown flag": ["--modes=train"],
    "an unknown mode": ["--mode=trian"],
    "an unknown file": ["--config=nothing.py"],
    "an unknown field": [SMOKE, "--config.epoch=3"],
    "a value out of range": [SMOKE, "--config.epochs=0"],
    "a value of another type": [SMOKE, "--config.epochs=many"],
    "an unknown method": [SMOKE, "--config.method=byol"],
    "an unknown encoder": [SMOKE, "--config.encoder.name=resnet101"],
    "an unknown augmentation": [SMOKE, "--config.augmentation.stack=sca,rott"],
    "bins that do not divide": [SMOKE, "--config.duet.num_bins=7"],
    "a target for circles": [SMOKE, "--config.duet.target=laplace"],
    "an augmentation that is not made": [
        SMOKE,
        "--config.augmentation.blur_probability=0.3",
    ],
    "no run": ["--mode=knn", "--workdir=nothing"],
    "an unknown protocol": ["--mode=linear_probe", "--workdir=run", "--protocol=adam"],
    "an unknown code": ["--mode=equivariance", "--workdir=run", "--codes=rott"],
    "no data sets": ["--mode=transfer", "--workdir=run", "--datasets="],
    "no file": ["--mode=features", "--workdir=run", "--out="],
    "no encoder": ["--encoder=onnx:no.onnx", "--mode=knn", "--workdir=new"],
    "no module": ["--encoder=python:no:f", "--mode=knn", "--workdir=new"],
    "decoders of an encoder": [
        *("--encoder=python:no:f", "--mode=generation,knn", "--workdir=new"),
    ],
    "one run to compare": ["--mode=compare", "--workdirs=run"],
    "an extension by another name": [SMOKE, "--extend", "--workdir=auto"],
}
OF_SWEEPS = {
    "overview": [],
    "help": ["--help"],
    "an unknown experiment": ["--experiment=nothing"],
    "an unknown row": ["--experiment=figure4", "--rows=nothing"],
    "commands": ["--experiment=figure4", "--rows=simclr", "--print"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a run in run/, trained for one step."""
    place = tmp_path_factory.mktemp("place")
    done = run(*TINY, "--workdir=run", cwd=place)
    assert done.status == 0, done.lines
    return place


def imports(lines):
    """Names of the packages whose import Python tells."""
    names = [line.rpartition("|")[2] for line in lines if line.startswith(IMPORT)]
    return {name.strip().partition(".")[0] for name in names}


def answer(script, arguments, place):
    """Returns status and lines of a new Python, which imports nothing slow."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, *arguments],
        cwd=place,
        env=changed({}),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < SECONDS
    lines = done.stderr.decode().splitlines()
    assert {"duet_jax", "numpy"} <= imports(lines)
    assert not imports(lines) & {*SLOW}
    return done.returncode, [line for line in lines if not line.startswith(IMPORT)]


@pytest.mark.parametrize("case", ANSWERED)
def test_answers_import_little(case, place):
    assert answer("main.py", ANSWERED[case], place) == (0, [])


def test_the_version_names_the_devices(place):
    """Which JAX knows: so it is the one answer that has to import it."""
    done = run("--version", cwd=place)
    assert done.status == 0
    assert re.match(
        rf"duet_jax {re.escape(duet_jax.__version__)}(, commit \w+\+?)?; "
        rf"jax {re.escape(jax.__version__)} on .*cpu",
        done.out.strip(),
    )


def test_the_call_from_python_imports_little():
    done = subprocess.run(
        [*(sys.executable, "-X", "importtime"), "-c", "import duet_jax.equivariance"],
        cwd=ROOT,
        env=changed({}),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert not imports(done.stderr.decode().splitlines()) & {*SLOW}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_import_little(case, place):
    status, (line,) = answer("main.py", REFUSED[case], place)
    assert status == 2
    assert line.startswith("error: ")


@pytest.mark.parametrize("case", OF_SWEEPS)
def test_sweeps_import_little(case, place):
    status, lines = answer("sweep.py", OF_SWEEPS[case], place)
    assert status == (2 if case.startswith("an ") else 0), lines


@pytest.mark.parametrize("arguments", [TINY, ["--mode=knn"]], ids=["train", "knn"])
def test_the_first_line_comes_before_slow_imports(arguments, place):
    program = [ROOT / "main.py", "--workdir=run", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *program],
        cwd=place,
        env=changed({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        lines = [next(process.stderr)]
        while lines[-1].startswith(IMPORT):
            lines.append(next(process.stderr))
        process.kill()
    assert lines[-1].startswith("starting     --mode=")
    assert not imports(lines) & {*SLOW}
