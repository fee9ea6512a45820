"""Kills a training again and again, and checks that nothing of it is lost.

    python benchmarks/chaos.py --kills=100

The training command is the one that users run, in a process of its own. It is killed
with SIGKILL at a random moment of a random phase, started again with the same
arguments, and so on; after every few kills it is left to finish. Then it is compared
with a run that nobody has touched:

- parameters, running statistics and the state of the optimiser: equal bits;
- metrics.jsonl: every line whole, none missing or twice, equal values (other than the
  speed); never more than one checkpoint interval is recorded again;
- every .json file and picture can be read.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
_PATIENCE = 300.0  # seconds for a single start

# Of every run; the smoke configuration has two updates an epoch.
EPOCHS = 12
STEPS_PER_EPOCH = 2  # and a checkpoint after each epoch


def _text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def recorded_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the step of every whole line of metrics.jsonl, test rows only."""
    steps = []
    for line in _text(workdir / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            steps += [row["step"]] if row["split"] == "test" else []
    return steps


class Start:
    """One process that trains in `workdir`, to be used in `with`.

    Attributes:
      recorded: the last step that had been recorded before.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self.recorded = max(recorded_steps(workdir), default=0)
        self._log = workdir.with_suffix(f".{time.monotonic_ns()}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "main.py",
                    "--config=configs/smoke.py",
                    f"--config.epochs={EPOCHS}",
                    "--config.figures_every=1",
                    f"--workdir={self.workdir}",
                ],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What the process has said so far."""
        return _text(self._log)

    @property
    def continued(self) -> int | None:
        """The step it went on from; None while it has not said."""
        found = re.search(r"from the checkpoint of step (\d+)\n", self.log)
        if found:
            return int(found[1])
        return 0 if "compiling" in self.log else None

    @property
    def repeats(self) -> int:
        """Updates that had been recorded before, and that it makes again."""
        return 0 if self.continued is None else self.recorded - self.continued

    def wait_for(self, phase: str) -> bool:
        """Returns whether the process has come to `phase` before its end."""
        deadline = time.monotonic() + _PATIENCE
        while not PHASES[phase](self):
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise SystemExit(f"no {phase} in {self._log}")
            time.sleep(0.001)
        return True


def _recorded(start: Start) -> int:
    return max(recorded_steps(start.workdir), default=0)


# Phase -> whether a process has come to it.
PHASES: dict[str, Callable[[Start], bool]] = {
    "starting": lambda start: True,
    "compiling": lambda start: "compiling" in start.log,
    "stepping": lambda start: "compiled in" in start.log,
    # A row is written at the end of an evaluation; the next one is not far.
    "evaluating": lambda start: (
        "compiled in" in start.log and _recorded(start) > (start.continued or 0)
    ),
    "saving": lambda start: any(start.workdir.glob("checkpoints/*.orbax*")),
    "finishing": lambda start: _recorded(start) == EPOCHS * STEPS_PER_EPOCH,
}
# The longest time from then to the kill, in seconds.
_SPREAD = {
    "starting": 4.0,
    "compiling": 2.0,
    "stepping": 1.0,
    "evaluating": 0.3,
    "saving": 0.1,
    "finishing": 0.5,
}


def finish(workdir: pathlib.Path) -> Start:
    """Lets the training in `workdir` come to its end."""
    with Start(workdir) as start:
        status = start.process.wait(_PATIENCE)
    if status:
        raise SystemExit(f"status {status}:\n{start.log}")
    return start


def kill(workdir: pathlib.Path, phase: str, moment: float) -> Start | None:
    """Kills a training in `phase`; None if it ended before."""
    with Start(workdir) as start:
        if not start.wait_for(phase):
            return None
        time.sleep(moment * _SPREAD[phase])
        if start.process.poll() is not None:
            return None
    return start


def rows(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of a run; fails at a line that is not whole."""
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        del row["images_per_second"]
    return found


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint."""
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    found = {}
    for item in ("model", "train"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they go back to where they were
            tree = ocp.PyTreeCheckpointer().restore(newest.absolute() / item)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """Lists in what a killed run differs from one that was left alone."""
    problems = []
    if rows(killed) != rows(whole):
        problems.append("metrics.jsonl differs")
    expected, actual = arrays(whole), arrays(killed)
    if expected.keys() != actual.keys():
        problems.append("the checkpoints hold other arrays")
    problems += [
        f"{name} differs"
        for name in expected.keys() & actual.keys()
        if expected[name].tobytes() != actual[name].tobytes()
    ]
    for path in killed.rglob("*.json"):
        json.loads(path.read_text())
    for path in killed.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    return problems


def trial(
    workdir: pathlib.Path, kills: int, moments: random.Random
) -> tuple[collections.Counter, list[int]]:
    """Trains in `workdir` to the end, through up to so many kills.

    Returns:
      The kills by phase, and how many updates each start had to record again.
    """
    killed, repeats = collections.Counter(), []
    for _ in range(kills):
        phase = moments.choice([*PHASES])
        start = kill(workdir, phase, moments.random())
        if start is None:
            break
        killed[phase] += 1
        repeats.append(start.repeats)
    return killed, [*repeats, finish(workdir).repeats]


def main() -> None:
    """Counts kills by phase, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="in all")
    parser.add_argument(
        "--kills_per_run", type=int, default=8, help="before a run may finish"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the counts")
    options = parser.parse_args()
    for name in ("kills", "kills_per_run"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)} must be at least 1")
    absl_logging.set_verbosity(absl_logging.FATAL)
    moments = random.Random(options.seed)
    begun = time.monotonic()
    killed, repeats, problems, runs = collections.Counter(), [], [], 0
    with tempfile.TemporaryDirectory() as place:
        whole = pathlib.Path(place) / "whole"
        finish(whole)
        while killed.total() < options.kills:
            runs += 1
            run = pathlib.Path(place) / f"run{runs}"
            kills = min(options.kills_per_run, options.kills - killed.total())
            counts, again = trial(run, kills, moments)
            killed += counts
            repeats += again
            found = differences(whole, run)
            problems += [f"run {runs}: {each}" for each in found]
            print(f"run {runs}: {killed.total()} kills, {found or 'equal'}", flush=True)
            shutil.rmtree(run)
    result = {
        "kills": dict(killed),
        "runs": runs,
        "most_updates_recorded_again": max(repeats),
        "updates_between_checkpoints": STEPS_PER_EPOCH,
        "problems": problems,
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if problems or max(repeats) > STEPS_PER_EPOCH:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
