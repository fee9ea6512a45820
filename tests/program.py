"""The program as a user starts it: a process of its own, and what it left behind."""

import atexit
import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def _caches() -> pathlib.Path:
    """A directory that all workers share, and what they start, until the tests end."""
    place = os.environ.get("DUET_JAX_TEST_CACHES")
    if place is None:
        place = os.environ["DUET_JAX_TEST_CACHES"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return pathlib.Path(place)


# Compiled programs and decoded images, of the tests and of what they start.
CACHES = _caches()
MAIN = str(ROOT / "main.py")
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"

# Seconds until a program counts as hanging: for what takes 20 on an idle machine. Where
# others compute as well, two processes of a job wait for each other, and an epoch takes
# 15 seconds instead of half a one.
PATIENCE = 900

# The shortest run there is, on eight images; what is slow is left out.
TINY = (
    SMOKE,
    "--config.epochs=1",
    "--config.warmup_epochs=0",
    "--config.steps_per_epoch=1",
    "--config.batch_size=4",
    "--config.dataset.image_size=8",
    "--config.figures_every=9",
    "--noconfig.tensorboard",
)

# Becomes the program after giving up what an ordinary user does not have: the right of
# root to read and write everything, and room for files of more than some bytes.
_LAUNCHER = """
import ctypes, os, resource, sys
rights, size, closed, *command = sys.argv[1:]
if rights == "user" and os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            sys.exit(77)
if int(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
for descriptor in filter(None, closed.split(",")):
    os.close(int(descriptor))
os.execv(sys.executable, [sys.executable, *command])
"""
CANNOT_GIVE_UP_RIGHTS = 77


@dataclasses.dataclass(frozen=True)
class Done:
    """What a process that has ended has said."""

    status: int
    out: str
    lines: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("error: ")]


def run(
    *arguments: str,
    cwd: pathlib.Path,
    environment: Mapping[str, str | None] | None = None,
    as_user: bool = False,
    largest_file: int = 0,
    closed: tuple[int, ...] = (),
    script: str = MAIN,
    **options,
) -> Done:
    """Runs `python main.py arguments` and waits for its end.

    Args:
      *arguments: of the command line.
      cwd: where it is started.
      environment: changes of this process's own; None takes a variable away.
      as_user: permissions bind it, also where the tests are run by root.
      largest_file: bytes at which a file cannot grow any more, as on a full disk.
      closed: descriptors that it does not get, such as 1 for standard output.
      script: another one than main.py.
      **options: of `subprocess.run`.
    """
    changed = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(CACHES)}
    changed = {**os.environ, **changed, **(environment or {})}
    command = [sys.executable, script, *arguments]
    if as_user or largest_file or closed:
        limits = ["user" if as_user else "own", str(largest_file)]
        limits.append(",".join(map(str, closed)))
        command[:1] = [sys.executable, "-c", _LAUNCHER, *limits]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in changed.items() if value is not None},
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    out, err = (
        (text or b"").decode(errors="replace") for text in (done.stdout, done.stderr)
    )
    return Done(done.returncode, out, err.splitlines())


def snapshot(directory: pathlib.Path) -> dict:
    """Every path in a directory, with content and time of the files."""
    found = {}
    for path in directory.rglob("*"):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else None
        if stat.S_ISREG(info.st_mode):
            content = (path.read_bytes(), info.st_mtime_ns)
        found[path.relative_to(directory)] = content
    return found


def refusal(
    *arguments: str,
    cwd: pathlib.Path,
    status: int = 2,
    told: int = 0,
    begun: bool = False,
    **options,
) -> str:
    """Runs the program, which refuses, and returns its line without "error: ".

    Whatever there was below `cwd` has to be there as it was.

    Args:
      *arguments: of the command line.
      cwd: where it is started.
      status: with which it has to end.
      told: lines about what it did before, such as reading data, that may precede.
      begun: it may have begun to work, and have made files of its own.
      **options: of `run`.
    """
    before = snapshot(cwd)
    done = run(*arguments, cwd=cwd, **options)
    if done.status == CANNOT_GIVE_UP_RIGHTS:
        pytest.skip("root cannot give up its rights here")
    text = "\n".join(done.lines)
    assert (done.status, done.out) == (status, ""), text
    assert len(done.errors) == 1, text
    assert done.lines[-1] == done.errors[0], text
    assert len(done.lines) <= told + 1, text
    assert "Traceback" not in text
    after = snapshot(cwd)
    assert before.items() <= after.items()
    assert begun or len(after) == len(before)
    return done.lines[-1].removeprefix("error: ")


def side_by_side(
    function: Callable[[str, pathlib.Path], Any], request: pytest.FixtureRequest
) -> dict[str, concurrent.futures.Future]:
    """Starts to call `function` with the `case` of each test that takes a fixture.

    Two at a time: a process that refuses takes seconds, and of each two cores one.

    Args:
      function: (case, empty directory of its own) -> what the test is given.
      request: of the fixture.
    """
    places = request.getfixturevalue("tmp_path_factory")
    pool = concurrent.futures.ThreadPoolExecutor(2)
    request.addfinalizer(lambda: pool.shutdown(cancel_futures=True))
    return {
        case: pool.submit(function, case, places.mktemp("place"))
        for item in request.session.items
        if request.fixturename in item.fixturenames
        for case in [item.callspec.params["case"]]
    }
