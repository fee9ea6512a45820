"""A grid of runs: the rows of an experiment, each with several seeds.

A cell of the grid is one command of `main.py`, which trains a row with a seed and
measures it. Beside its work directory, `<workdir>/<row>/seed<n>/`, lie what it printed,
`seed<n>.<experiment>.log`, and how far it has come, `seed<n>.<experiment>.json`.
"""

import contextlib
import fcntl
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from duet_jax import atomic, metrics, settings, workdir
from duet_jax.terminal import printable

_ROOT = pathlib.Path(__file__).parent.parent
_SECONDS_BETWEEN_LOOKS = 1.0


class Cell(NamedTuple):
    """A row of an experiment with one seed.

    Attributes:
      experiment: name of its file.
      row: its name.
      seed: of everything random.
      code: the augmentation that the row is about; "" if about none.
      config: of its training, resolved, as in a `config.json`.
      measures: the evaluations that follow it, in order, and their flags.
      directory: of its run.
      arguments: of `main.py`.
    """

    experiment: str
    row: str
    seed: int
    code: str
    config: dict[str, Any]
    measures: Mapping[str, Mapping[str, str]]
    directory: pathlib.Path
    arguments: tuple[str, ...]

    @property
    def method(self) -> str:
        """Duet, simclr or essl."""
        return self.config["method"]

    @property
    def epochs(self) -> int:
        """Of its training."""
        return self.config["epochs"]

    @property
    def name(self) -> str:
        """As it is called on the terminal."""
        return f"{self.row} seed {self.seed}"

    @property
    def command(self) -> str:
        """As a person would type it."""
        return shlex.join(["python", "main.py", *self.arguments])

    @property
    def log(self) -> pathlib.Path:
        """What it prints."""
        return self._beside("log")

    @property
    def _record(self) -> pathlib.Path:
        return self._beside("json")

    def _beside(self, suffix: str) -> pathlib.Path:
        name = f"{self.directory.name}.{self.experiment}.{suffix}"
        return self.directory.with_name(name)

    def record(self) -> dict[str, Any]:
        """Returns how far it has come: the entries that `write` was given, or none."""
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        # What another command has left says nothing of this one.
        same = isinstance(record, dict) and record.get("command") == self.command
        return record if same else {}

    def write(self, **entries: Any) -> None:
        """Changes entries of the record."""
        record = {"command": self.command, **self.record(), **entries}
        with atomic.replacing(self._record) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")

    @property
    def finished(self) -> bool:
        """Whether it is trained and measured, by a sweep or by its command alone."""
        if self.record().get("status"):  # it has failed, or was stopped
            return False
        try:
            config = json.loads((self.directory / "config.json").read_text())
            last = metrics.read_rows(self.directory / "metrics.jsonl")[-1]
            steps = {self.result(mode)["step"] for mode in self.measures}
        except (OSError, ValueError, LookupError, TypeError):
            return False
        trained = last["split"] == "test" and last["epoch"] >= self.epochs
        same = not settings.differences(config, self.config)
        return trained and same and steps <= {last["step"]}

    def result(self, mode: str) -> dict[str, Any]:
        """Returns what one of its evaluations has left in `eval/`."""
        name = workdir.result_name(mode, self.measures[mode])
        return json.loads((self.directory / "eval" / f"{name}.json").read_text())

    def settle(self) -> None:
        """Notes that it was finished out of sight, so that nobody knows how long."""
        if self.record().get("status") != 0:
            self.write(status=0, lost=True)

    @property
    def share(self) -> float:
        """How much of its training is done, from 0 to 1."""
        path = self.directory / "metrics.jsonl"
        rows = metrics.read_rows(path) if path.exists() else []
        return min(1.0, rows[-1].get("epoch", 0) / self.epochs) if rows else 0.0

    @contextlib.contextmanager
    def claimed(self) -> Iterator[int | None]:
        """Keeps other sweeps from this cell, and gives the file that holds the claim.

        A process that inherits the file holds the claim as well, until its end, should
        this one be killed. None if another process has it.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_name(f".{self.directory.name}.lock").open("w") as file:
            try:
                # Not `lockf`: this one a process hands on to those it starts.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()


class Stop:
    """Remembers a SIGINT or SIGTERM, and hands it on to the command that runs.

    Attributes:
      signal: the first that came, or None.
    """

    def __init__(self) -> None:
        """Nothing has come."""
        self.signal: int | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Stop":
        """Takes the place of what Python does at these signals."""
        self._before = {
            each: signal.signal(each, self._take)
            for each in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_) -> None:
        """Puts it back."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _take(self, number: int, _) -> None:
        self.signal = self.signal or number
        # The first lets a training save its state; a second ends it at once.
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    @contextlib.contextmanager
    def passed_to(self, process: subprocess.Popen) -> Iterator[None]:
        """Hands on to `process` what comes while inside."""
        self._process = process
        try:
            if self.signal:
                process.send_signal(signal.SIGTERM)
            yield
        finally:
            self._process = None


def run(cell: Cell, claim: int, stop: Stop, look: Callable[[float], None]) -> bool:
    """Runs the command of a cell, from where it was left; returns whether it finished.

    Args:
      cell: to be run.
      claim: the file of `Cell.claimed`.
      stop: hears of signals.
      look: called every now and then with the share of the training that is done.
    """
    began = time.time()
    record = cell.record()
    # A start whose end nobody has seen: its seconds are lost.
    lost = record.get("lost", False) or record.get("status", 0) is None
    cell.write(status=None, error="", lost=lost, commit=commit())
    status = _run(cell, claim, stop, look)
    error = _last_line(cell.log, status) if status and not stop.signal else ""
    seconds = record.get("seconds", 0.0) + time.time() - began
    cell.write(status=status, error=error, seconds=round(seconds, 1))
    return status == 0


def _run(cell: Cell, claim: int, stop: Stop, look: Callable[[float], None]) -> int:
    with cell.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(_ROOT / "main.py"), *cell.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(claim,),
            # Ctrl-C goes to this process alone, which hands it on once.
            start_new_session=True,
        )
        with stop.passed_to(process):
            while True:
                try:
                    return process.wait(_SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    look(cell.share)


def _last_line(log: pathlib.Path, status: int) -> str:
    """Returns what a command that failed has said last."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}; see {log}"
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    last = printable(said[-1]) if said else f"status {status}; see {log}"
    return last.removeprefix("error: ")


def commit() -> str:
    """Returns the version of this code, with a + after changes; "" if unknown."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except OSError:
        return ""


def unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """Returns the cells that are still to be run, or to be run again."""
    return [cell for cell in cells if not cell.finished]
