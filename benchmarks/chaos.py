"""Kills a training repeatedly and checks that nothing is lost.

    python benchmarks/chaos.py --kills=100

The training command, in its own process, is killed with SIGKILL at a random moment of a
random phase and started again with the same arguments; after every few kills it may
finish. Then the run is compared with one that was not interrupted:

- parameters, running statistics and optimizer state: equal bits;
- metrics.jsonl: every line complete, none missing or duplicated, equal values (other
  than the speed); at most one checkpoint interval is recorded again;
- every .json file and figure can be read.
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

# Of the smoke configuration, which has a checkpoint after each epoch.
EPOCHS = 12
STEPS_PER_EPOCH = 2


def _text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def last_step(workdir: pathlib.Path) -> int:
    """Returns the step of the last complete test row of metrics.jsonl, or 0."""
    step = 0
    for line in _text(workdir / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            step = max(step, row["step"]) if row["split"] == "test" else step
    return step


class Start:
    """A process that trains in `workdir`; a context manager.

    Attributes:
      recorded: the last step recorded before this start.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self.recorded = last_step(workdir)
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
        """The output of the process so far."""
        return _text(self._log)

    @property
    def continued(self) -> int | None:
        """The step that training resumed from; None if not known yet."""
        found = re.search(r"from the checkpoint of step (\d+)\n", self.log)
        if found:
            return int(found[1])
        return 0 if "compiling" in self.log else None

    @property
    def repeats(self) -> int:
        """Number of recorded updates that are repeated."""
        return 0 if self.continued is None else self.recorded - self.continued

    def wait_for(self, phase: str) -> bool:
        """Returns True when the process reaches `phase`, False if it ends before."""
        reached, _ = PHASES[phase]
        deadline = time.monotonic() + _PATIENCE
        while not reached(self):
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise SystemExit(f"no {phase} in {self._log}")
            time.sleep(0.001)
        return True


def _evaluated(start: Start) -> bool:
    """True after the first evaluation since the start; the next one is near."""
    recorded = last_step(start.workdir)
    return "compiled in" in start.log and recorded > (start.continued or 0)


# Phase -> whether a process has reached it, and the longest time from then to the kill
# in seconds.
PHASES: dict[str, tuple[Callable[[Start], bool], float]] = {
    "starting": (lambda start: True, 4.0),
    "compiling": (lambda start: "compiling" in start.log, 2.0),
    "stepping": (lambda start: "compiled in" in start.log, 1.0),
    "evaluating": (_evaluated, 0.3),
    "saving": (lambda start: any(start.workdir.glob("checkpoints/*.orbax*")), 0.1),
    "finishing": (
        lambda start: last_step(start.workdir) == EPOCHS * STEPS_PER_EPOCH,
        0.5,
    ),
}


def finish(workdir: pathlib.Path) -> Start:
    """Runs the training in `workdir` to its end."""
    with Start(workdir) as start:
        status = start.process.wait(_PATIENCE)
    if status:
        raise SystemExit(f"status {status}:\n{start.log}")
    return start


def kill(workdir: pathlib.Path, phase: str, moment: float) -> Start | None:
    """Kills a training in `phase`; returns None if it ended before.

    Args:
      workdir: of the run.
      phase: key of PHASES.
      moment: of the kill within the phase, from 0 to 1.
    """
    with Start(workdir) as start:
        if not start.wait_for(phase):
            return None
        _, longest = PHASES[phase]
        time.sleep(moment * longest)
        if start.process.poll() is not None:
            return None
    return start


def rows(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of a run; fails at an incomplete line."""
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        row.pop("images_per_second", None)  # of training only
    return found


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint."""
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    found = {}
    for item in ("model", "train"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the sharding of the arrays
            tree = ocp.PyTreeCheckpointer().restore(newest.absolute() / item)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """Returns the differences between a killed run and an uninterrupted one."""
    problems = ["metrics.jsonl differs"] if rows(killed) != rows(whole) else []
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
    """Trains in `workdir` to the end, with at most `kills` kills.

    Returns:
      The kills by phase, and the number of updates that each start repeated.
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
    """Prints the kills by phase and the problems."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="total number")
    parser.add_argument(
        "--kills_per_run", type=int, default=8, help="before a run may finish"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
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
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    if problems or max(repeats) > STEPS_PER_EPOCH:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
