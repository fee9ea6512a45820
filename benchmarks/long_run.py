"""Watches memory, open files and threads of a long training.

    python benchmarks/long_run.py --epochs=2000 --out=long_run.json

The smoke configuration, with an evaluation and two rows after each of the short epochs,
a drawing after every ten, and a checkpoint after every --checkpoint_every. Linux only:
the figures are those of /proc.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).parent.parent
_PARTS = 10  # lines of the table

_EPOCHS = flags.DEFINE_integer("epochs", 2000, "Of the run.", lower_bound=_PARTS)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 1, "Epochs between checkpoints.", lower_bound=1
)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Between two looks.", lower_bound=0.01)
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures.")


def look(pid: int, metrics: pathlib.Path) -> dict[str, float] | None:
    """Returns what a process uses, and the epochs it has done; None at its end."""
    place = pathlib.Path("/proc") / str(pid)
    try:
        status = dict(
            line.split(":", 1) for line in (place / "status").read_text().splitlines()
        )
        return {
            "epoch": metrics.read_bytes().count(b'"test"') if metrics.exists() else 0,
            "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
            "files": len([*(place / "fd").iterdir()]),
            "threads": int(status["Threads"]),
        }
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None


def watch(
    workdir: pathlib.Path, epochs: int, checkpoint_every: int, seconds: float
) -> list[dict]:
    """Trains, and looks at the process every so many seconds."""
    command = [
        sys.executable,
        "main.py",
        "--config=configs/smoke.py",
        f"--config.epochs={epochs}",
        f"--config.checkpoint.every={checkpoint_every}",
        f"--workdir={workdir}",
    ]
    looks = []
    with (workdir.parent / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(seconds)
            found = look(process.pid, workdir / "metrics.jsonl")
            looks += [found] if found and found["epoch"] else []
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"status {process.returncode}:\n{log.read()}")
    return looks


def by_part(looks: list[dict], epochs: int) -> list[dict[str, float]]:
    """Returns the medians over each tenth of the epochs."""
    table = []
    for part in range(_PARTS):
        first, last = part * epochs / _PARTS, (part + 1) * epochs / _PARTS
        own = [each for each in looks if first < each["epoch"] <= last]
        medians = {
            name: float(np.median([each[name] for each in own]))
            for name in ("memory_mib", "files", "threads")
            if own
        }
        table.append({"epochs": f"{first:.0f} to {last:.0f}", **medians})
    return table


def main(argv: list[str]) -> None:
    """Prints a table, and writes it."""
    del argv
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        looks = watch(
            pathlib.Path(place) / "run",
            _EPOCHS.value,
            _CHECKPOINT_EVERY.value,
            _SECONDS.value,
        )
    table = by_part(looks, _EPOCHS.value)
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    seconds = round(time.monotonic() - begun)
    print(f"{len(looks)} looks in {seconds} s")
    if _OUT.value:
        found = {
            "epochs": _EPOCHS.value,
            "checkpoint_every": _CHECKPOINT_EVERY.value,
            "seconds": seconds,
            "table": table,
        }
        pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
