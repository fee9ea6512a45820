"""Compares the results of two versions of the program bit for bit.

    python benchmarks/same_bits.py record CHECKOUT before.json
    python benchmarks/same_bits.py record ANOTHER after.json
    python benchmarks/same_bits.py compare before.json after.json

Trains the smoke configuration with each method, and `digits_duet_rot`, evaluates these
runs, and records a hash of every array of the checkpoints and of every value of the
metrics and results, except times and speeds. Both versions use the Python that runs
this file and single-threaded matrix products. Record both on the same machine, since
another processor may round differently.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

EVALUATIONS = "linear_probe,knn,equivariance,features,report"
# Name of a run -> configuration and flags.
RUNS = {
    "smoke-duet": ("smoke", "--config.method=duet"),
    "smoke-simclr": ("smoke", "--config.method=simclr"),
    "smoke-essl": ("smoke", "--config.method=essl", "--config.learned=ron"),
    "digits": ("digits_duet_rot", "--config.epochs=2", "--config.warmup_epochs=1"),
}
# Values that differ between runs of the same version.
VOLATILE = {"images_per_second", "provenance", "seconds"}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _steady(value: Any) -> Any:
    """Returns `value` without volatile entries."""
    if isinstance(value, dict):
        return {key: _steady(value[key]) for key in sorted(value.keys() - VOLATILE)}
    if isinstance(value, list):
        return [_steady(each) for each in value]
    return value


def _of_checkpoint(directory: pathlib.Path) -> dict[str, str]:
    found = {}
    for item in ("model", "train"):
        tree = ocp.PyTreeCheckpointHandler().restore(directory / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = f"{item}{jax.tree_util.keystr(path)}"
            found[name] = _hash(np.asarray(leaf).tobytes())
    return found


def _of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the results of a run and its evaluations, by file and name."""
    found = {}
    for number, line in enumerate((workdir / "metrics.jsonl").read_text().splitlines()):
        for name, value in _steady(json.loads(line)).items():
            found[f"metrics.jsonl:{number} {name}"] = value
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdecimal():
            for name, value in _of_checkpoint(path).items():
                found[f"checkpoints/{path.name}:{name}"] = value
    for path in (workdir / "eval").glob("*.json"):
        text = json.dumps(_steady(json.loads(path.read_text())), sort_keys=True)
        found[f"eval/{path.name}"] = _hash(text.encode())
    with np.load(workdir / "eval" / "features.npz", allow_pickle=False) as arrays:
        for name in arrays.files:
            found[f"eval/features.npz:{name}"] = _hash(arrays[name].tobytes())
    return found


def record(checkout: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the results of each of RUNS, by the program in `checkout`."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        flags = "--xla_cpu_multi_thread_eigen=false"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        for name, (config, *fields) in RUNS.items():
            command = [
                sys.executable,
                str(checkout / "main.py"),
                f"--config={checkout / 'configs' / config}.py",
                f"--workdir={name}",
                f"--mode=train,{EVALUATIONS}",
                "--config.compilation_cache=off",
                *fields,
            ]
            options = {"cwd": place, "env": environment, "check": True}
            subprocess.run(command, stdout=subprocess.DEVNULL, **options)
            found[name] = _of_run(pathlib.Path(place, name))
    return found


def differences(before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    """Returns one line for each difference between two records."""
    lines = []
    for run in sorted(before.keys() | after.keys()):
        ours, theirs = before.get(run, {}), after.get(run, {})
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                lines.append(f"{run}  {name}: {ours.get(name)} -> {theirs.get(name)}")
    return lines


def main() -> int:
    """Records or compares; the exit status is 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("checkout", type=pathlib.Path)
    recording.add_argument("file", type=pathlib.Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=pathlib.Path, nargs=2)
    options = parser.parse_args()
    if options.command == "record":
        found = record(options.checkout.absolute())
        options.file.write_text(json.dumps(found, indent=1))
        print(f"{sum(map(len, found.values()))} values in {options.file}")
        return 0
    before, after = (json.loads(path.read_text()) for path in options.files)
    lines = differences(before, after)
    count = sum(map(len, before.values()))
    print("\n".join(lines) or f"{count} values, all equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
