"""The program as a user starts it: a process of its own, and what it left behind."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import pytest
from forked import ROOT, Process

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
    "--config.monitor.images=0",
    "--noconfig.tensorboard",
)

# A sign of life, which comes only where a machine is slow.
SIGN = re.compile(r".* \.\.\. \d+ s")


@dataclasses.dataclass(frozen=True)
class Done:
    """What a process that has ended has said, but for signs of life."""

    status: int
    out: str
    lines: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("error: ")]


def changed(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the environment of a started program; None takes a variable away."""
    changed = {**os.environ, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def run(
    *arguments: object,
    cwd: pathlib.Path,
    environment: Mapping[str, str | None] | None = None,
    script: str = MAIN,
    stdout: IO | None = None,
    **options,
) -> Done:
    """Runs `python main.py arguments` and waits for its end.

    Args:
      *arguments: of the command line.
      cwd: where it is started.
      environment: changes of this process's own; None takes a variable away.
      script: another one than main.py, or -c.
      stdout: a file instead of the text that is returned.
      **options: of `forked.Process`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with Process(
            [script, *map(str, arguments)],
            cwd=cwd,
            env=changed(environment or {}),
            stdout=stdout or out,
            stderr=err,
            **options,
        ) as process:
            process.wait(PATIENCE)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    lines = [line for line in texts[1].splitlines() if not SIGN.fullmatch(line)]
    return Done(process.returncode, texts[0], lines)


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
