"""Records memory, open files and threads of a long training.

    python benchmarks/long_run.py --epochs=2000 --out=long_run.json

Trains the smoke configuration, with an evaluation and two rows after each of the short
epochs, a figure after every ten, and a checkpoint after every --checkpoint_every. Linux
only, as the numbers come from /proc.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
_PARTS = 10  # lines of the table


def look(pid: int, metrics: pathlib.Path) -> dict[str, float] | None:
    """Returns the resources of a process and its epochs; None if it has ended."""
    place = pathlib.Path("/proc") / str(pid)
    try:
        lines = (place / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
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
    """Trains, and returns a `look` at the process every `seconds` seconds."""
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
    """Returns the medians of each tenth of the epochs."""
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


def main() -> None:
    """Prints and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=2000, help="of the run")
    parser.add_argument(
        "--checkpoint_every", type=int, default=1, help="epochs between checkpoints"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="between two looks")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
    options = parser.parse_args()
    for name, least in (("epochs", _PARTS), ("checkpoint_every", 1), ("seconds", 0.01)):
        if getattr(options, name) < least:
            parser.error(f"--{name}={getattr(options, name)} must be at least {least}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        run = pathlib.Path(place) / "run"
        looks = watch(run, options.epochs, options.checkpoint_every, options.seconds)
    table = by_part(looks, options.epochs)
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    seconds = round(time.monotonic() - begun)
    print(f"{len(looks)} looks in {seconds} s")
    if options.out:
        found = {
            "epochs": options.epochs,
            "checkpoint_every": options.checkpoint_every,
            "seconds": seconds,
            "table": table,
        }
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
