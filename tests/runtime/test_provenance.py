"""Where results come from."""

import datetime
import json
import platform
import shutil
import subprocess
import sys

import jax
import pytest
import tiny

from duet_jax.runs import workdir
from duet_jax.runtime import devices, provenance


def git(place, *arguments):
    command = ["git", "-C", place, "-c", "user.name=me", "-c", "user.email=me@here"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The root of a repository with one file, in which the package seems to lie."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    return tmp_path


def test_the_commit_of_a_clone(clone, monkeypatch):
    full = git(clone, "rev-parse", "HEAD")
    assert len(full) == 40
    assert provenance.commit() == (full, True)
    assert str(provenance.commit()) == full[:7]
    (clone / "notes.txt").write_text("not of the code")
    assert provenance.commit() == (full, True)
    (clone / "code.py").write_text("2")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")  # as in a hook of another repository
    assert provenance.commit() == (full, False)
    assert str(provenance.commit()) == f"{full[:7]}+"


def test_the_branch_may_have_no_commit_yet(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit() == (None, None)


def test_an_installed_package_asks_no_git(clone, monkeypatch):
    """Its place may well be below the repository of something else."""
    inside = clone / "lib" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "_ROOT", inside)
    monkeypatch.setattr(subprocess, "run", None)
    assert provenance.commit() == (None, None)
    assert str(provenance.commit()) == ""


@pytest.mark.parametrize(
    "fault",
    [
        FileNotFoundError("git"),
        subprocess.TimeoutExpired("git", 2),
        subprocess.CalledProcessError(128, "git"),
    ],
)
def test_git_may_be_missing_slow_or_unwilling(clone, monkeypatch, fault):
    def fail(*arguments, **options):
        assert options["timeout"] <= 2
        raise fault

    monkeypatch.setattr(subprocess, "run", fail)
    assert provenance.commit() == (None, None)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["main.py", "--config=a b.py"], "python main.py '--config=a b.py'"),
        (["main.py", "--api_key=5ecret"], "python main.py --api_key=..."),
        (["main.py", "--token", "5ecret", "x"], "python main.py --token ... x"),
        (["main.py", "--token", "--debug"], "python main.py --token --debug"),
        (
            ["main.py", "--config.wandb.password=5ec=ret", "--config.seed=1"],
            "python main.py --config.wandb.password=... --config.seed=1",
        ),
        (
            ["main.py", "--config.dataset.path=http://me:5ecret@host/x"],
            "python main.py --config.dataset.path=http://...@host/x",
        ),
    ],
)
def test_secrets_are_left_out_of_the_command(arguments, shown):
    assert provenance.command_line(arguments) == shown


def test_each_start_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workdir=run"])
    facts = tiny.dataset(6, 3).facts
    for step in (0, 4):
        workdir.write_run(tiny.config(), facts, tmp_path, step)
    lines = (tmp_path / "provenance.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["step"], second["step"]) == (0, 4)
    assert {*first} == {
        "step",
        "commit",
        "clean",
        "versions",
        "device",
        "date",
        "command",
    }
    assert (first["commit"], first["clean"]) == provenance.commit()
    assert first["versions"]["python"] == platform.python_version()
    assert first["versions"]["jax"] == jax.__version__
    assert first["device"] == devices.describe()
    assert first["command"] == "python main.py --workdir=run"
    date = datetime.datetime.fromisoformat(first["date"])
    assert date.utcoffset() == datetime.timedelta(0)
    age = datetime.datetime.now(datetime.UTC) - date
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
