"""Cells of a grid: a row of an experiment with one seed, and how far it has come.

A trial is one command of `main.py`, which trains a row with a seed and measures it.
Whether that is done is seen in its work directory, `<workdir>/<row>/seed<n>/`, whoever
has done it. Beside that lie what the sweep's commands printed,
`seed<n>.<experiment>.log`, and what a sweep knows of them, `seed<n>.<experiment>.json`.
"""

import contextlib
import fcntl
import json
import pathlib
import shlex
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from duet_jax import data, loggers
from duet_jax.config import checks
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.types import Identity, same_images

_ROOT = pathlib.Path(__file__).parents[2]

# What reading files that somebody may have changed can raise; a UsageError as well.
_ODD = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Trial(NamedTuple):
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
        """As a person would type it in the current directory."""
        here = pathlib.Path.cwd() == _ROOT
        program = "main.py" if here else str(_ROOT / "main.py")
        return shlex.join(["python", program, *self.arguments])

    @property
    def log(self) -> pathlib.Path:
        """What it prints."""
        return self._beside("log")

    def _beside(self, suffix: str) -> pathlib.Path:
        name = f"{self.directory.name}.{self.experiment}.{suffix}"
        return self.directory.with_name(name)

    def record(self) -> dict[str, Any]:
        """Returns what sweeps know of it: the entries that `write` was given.

        Nothing if its work directory is gone, or if it is damaged.
        """
        try:
            record = json.loads(self._beside("json").read_text())
            sound = (
                isinstance(record.get("seconds", 0.0), int | float)
                and isinstance(record.get("error", ""), str)
                and all(isinstance(each, str) for each in record.get("commits", []))
            )
        except _ODD:
            return {}
        return record if sound and self.directory.exists() else {}

    def write(self, **entries: Any) -> None:
        """Changes entries of the record."""
        record = {**self.record(), "command": self.command, **entries}
        with files.replacing(self._beside("json")) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")

    @property
    def finished(self) -> bool:
        """Whether it is trained and measured, by whatever process."""
        try:
            last = loggers.read_rows(self.directory / "metrics.jsonl")[-1]
            trained = last["split"] == "test" and last["epoch"] >= self.epochs
            steps = [last["step"]] * len(self.measures)
            measured = all(map(self._measured, self.measures, steps))
            whole = bool(self.found() and self.facts())
            done = trained and measured and whole and not self.differences()
            return done and self._of_these_images()
        except _ODD:
            return False

    def _measured(self, mode: str, step: int) -> bool:
        """Whether it was measured at that step, in the way that is asked for."""
        found, known = self.result(mode), checks.flat(self.config)
        asked = {name: known[name] for name in EVALUATORS[mode].fields}
        flags = self.measures[mode].items()
        return (
            found["step"] == step
            and flags <= found["options"].items()
            and asked.items() <= found["settings"].items()
        )

    def _of_these_images(self) -> bool:
        """Whether it was trained and measured on the images as they are now.

        Raises:
          UsageError: some of them are gone, or cannot be read.
        """
        dataset = self.config["dataset"]
        for mode, options in self.measures.items():
            sources = EVALUATORS[mode].images(dataset, options)
            found = self.result(mode)["images"]
            if found.keys() != sources.keys() or not all(
                self._identity(*source) == tuple(found[name])
                for name, source in sources.items()
            ):
                return False
        return same_images(
            workdir.load_facts(self.directory).identity,
            self._identity(dataset["name"], dataset["path"]),
        )

    def _identity(self, name: str, path: str) -> Identity | None:
        return _identify(name, path, self.config["dataset"]["cache_dir"])

    def differences(self) -> list[str]:
        """Lists what its work directory was trained with otherwise; empty if nothing.

        Raises:
          OSError: there is no configuration.
          ValueError: it is damaged.
        """
        config = json.loads((self.directory / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json is no JSON object")
        return checks.differences(config, self.config)

    def check_images(self) -> None:
        """Raises a UsageError where its images are gone, or not those of its run."""
        dataset = self.config["dataset"]
        now = self._identity(dataset["name"], dataset["path"])
        try:
            before = workdir.load_facts(self.directory).identity
        except UsageError:  # a run that has not begun, or will write it again
            return
        started = workdir.is_started(self.directory)
        if now is not None and started and not same_images(before, now):
            raise UsageError(
                f"{self.directory} holds a run on other images than those of "
                f"config.dataset.path={dataset['path']!r}; give back its data, or "
                "choose another --workdir."
            )

    def check(self) -> None:
        """Raises a UsageError where its directory holds another run."""
        try:
            changed = self.differences()
        except (OSError, ValueError):
            return
        if changed and workdir.is_started(self.directory):
            raise UsageError(
                f"{self.directory} holds a run with another configuration ("
                f"{'; '.join(changed)}); choose another --workdir or repeat its values."
            )

    def result(self, mode: str) -> dict[str, Any]:
        """Returns what one of its evaluations has left in `eval/`."""
        name = workdir.result_name(mode, self.measures[mode])
        return json.loads((self.directory / "eval" / f"{name}.json").read_text())

    def found(self) -> dict[str, float]:
        """Returns what was measured, by measure; see `results.MEASURES`."""
        rows = loggers.read_rows(self.directory / "metrics.jsonl")
        found = {
            mode: _top1(self.result(mode)["results"])
            for mode in ("linear_probe", "knn")
            if mode in self.measures
        }
        tests = [row["online_top1"] for row in rows if row["split"] == "test"]
        found["online"] = tests[-1]
        if "equivariance" in self.measures and self.code:
            found |= _of_code(self.result("equivariance")["results"][self.code])
        if "transfer" in self.measures:
            for name, probe in self.result("transfer")["results"].items():
                found[name] = _top1(probe)
        return {k: float(value) for k, value in found.items() if value is not None}

    def facts(self) -> dict[str, str]:
        """Returns what was run, on what and where, in words; of a finished trial."""
        images = json.loads((self.directory / "dataset.json").read_text())
        evaluations = [self.result(mode) for mode in self.measures]
        return {
            "data": f"{images['name']}, {images['num_train']:,} images",
            "epochs": str(self.epochs),
            "hardware": evaluations[0]["device"] if evaluations else "-",
            "commit": " ".join(self.record().get("commits", [])) or "-",
        }

    @property
    def share(self) -> float:
        """How much of its training is done, from 0 to 1."""
        try:
            last = loggers.read_rows(self.directory / "metrics.jsonl")[-1]
            return min(1.0, last["epoch"] / self.epochs)
        except _ODD:
            return 0.0

    @contextlib.contextmanager
    def claimed(self) -> Iterator[int | None]:
        """Keeps other sweeps from this trial, and gives the file that holds the claim.

        A process that inherits the file holds the claim as well, until its end, should
        this one be killed. None if another process has it, or trains there.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_name(f".{self.directory.name}.lock").open("w") as file:
            taken = workdir.is_in_use(self.directory)
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    # Not `lockf`: this one a process hands on to those it starts.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    taken = True
            yield None if taken else file.fileno()


_identities: dict[tuple[str, str, str], Identity] = {}


def _identify(name: str, path: str, cache_dir: str) -> Identity | None:
    """Returns which images a set holds, looked at once a process.

    None for a set that the first run is to prepare.
    """
    key = (name, path, cache_dir)
    if key not in _identities:
        found = data.identify(name, path=path, cache_dir=cache_dir)
        if found is None:
            return None
        _identities[key] = found
    return _identities[key]


def _top1(found: Mapping[str, Any]) -> float:
    """Returns the accuracy on the full features; a mean where there are repeats."""
    top1 = found["representations"]["full"]["top1"]
    return statistics.fmean(top1) if isinstance(top1, list) else top1


def _of_code(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns how well the parameter is read off the full features, and off bins."""
    regression = found["regression"]["full"]
    names = {"accuracy": "read_level", "r_squared": "read_r2"}
    values = {names[key]: regression[key] for key in names if key in regression}
    if "divergence" in found:
        values["divergence"] = found["divergence"]["mean"]
    return values
