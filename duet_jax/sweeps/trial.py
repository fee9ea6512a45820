"""A row of an experiment with one seed, and how far it has come.

A trial is one command of `main.py`, which trains a row with a seed and measures it. Its
work directory, `<workdir>/<row>/seed<n>/`, tells whether that is done, whichever
process did it. Beside it are the output of the sweep's commands,
`seed<n>.<experiment>.log`, and the sweep's record of them, `seed<n>.<experiment>.json`.
"""

import contextlib
import fcntl
import json
import pathlib
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from duet_jax import data, loggers
from duet_jax.config import checks
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.options import chosen_measures
from duet_jax.metrics.knobs import best_knob
from duet_jax.runs import workdir
from duet_jax.runtime import files
from duet_jax.types import Identity, same_images

_MAIN = pathlib.Path(__file__).parents[2] / "main.py"
# What Python runs for a trial: the program of a clone, or the installed one.
PROGRAM = (str(_MAIN),) if _MAIN.is_file() else ("-m", "duet_jax")

# What reading a file can raise that someone may have changed; includes UsageError.
_ODD = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

# Evaluations whose result is the accuracy of classes.
_CLASSIFIERS = ("linear_probe", "knn")

# What controlled generation stands beside: the encoded transformed image, the image as
# it was, a guess.
_NO_KNOBS = ("oracle", "unchanged", "chance")

# Measure -> where it is in the equivariance to an augmentation.
_MAPPED = ("retrieval", "predictors", "linear map")
_PATHS = {
    "network_r2": ("mlp", "full", "r_squared"),
    "relative_r2": ("relative", "mlp", "r_squared"),
    "mrr": (*_MAPPED, "mrr"),
    "hits_1": (*_MAPPED, "hits_1"),
    "pre": (*_MAPPED, "pre"),
    "procrustes": ("geometry", "procrustes"),
    "gamma": ("geometry", "gamma"),
    "composition": ("geometry", "composition"),
}
# Predictors that a method itself has.
_OF_METHODS = ("bins shifted", "own predictor")
# The same, of the run.
_LOCAL = ("local", "rotation", "full", "invariant", "error")

# By name, path and cache directory of the data set.
_identities: dict[tuple[str, str, str], Identity | None] = {}


class Trial(NamedTuple):
    """A row of an experiment with one seed.

    Attributes:
      experiment: name of its file.
      row: name of the row.
      seed: of everything random.
      codes: the augmentations that the row is about; may be none. Of several, each has
        measures of its own, such as read_r2@rot.
      config: of the training, resolved, as in a `config.json`.
      measures: flags by evaluation, in the order in which they follow the training.
      directory: of the run.
      arguments: of `main.py`.
    """

    experiment: str
    row: str
    seed: int
    codes: tuple[str, ...]
    config: dict[str, Any]
    measures: Mapping[str, Mapping[str, str]]
    directory: pathlib.Path
    arguments: tuple[str, ...]

    @property
    def method(self) -> str:
        """The name of the method, such as duet."""
        return self.config["method"]

    @property
    def epochs(self) -> int:
        """Number of training epochs."""
        return self.config["epochs"]

    @property
    def name(self) -> str:
        """The name of the trial on the terminal."""
        return f"{self.row} seed {self.seed}"

    @property
    def command(self) -> str:
        """The command as a person would type it in the current directory."""
        here = pathlib.Path.cwd() == _MAIN.parent and _MAIN.is_file()
        program = ("main.py",) if here else PROGRAM
        return shlex.join(["python", *program, *self.arguments])

    @property
    def log(self) -> pathlib.Path:
        """The file with the output of the command."""
        return self._beside("log")

    def _beside(self, suffix: str) -> pathlib.Path:
        name = f"{self.directory.name}.{self.experiment}.{suffix}"
        return self.directory.with_name(name)

    def record(self) -> dict[str, Any]:
        """Returns the entries that sweeps have written with `write`.

        Empty if the work directory is gone, or the record is damaged.
        """
        try:
            record = json.loads(self._beside("json").read_text())
            sound = (
                isinstance(record.get("seconds", 0.0), int | float)
                and isinstance(record.get("error", ""), str)
                and isinstance(record.get("job", ""), str)
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
        """True if it is trained and measured, by whatever process."""
        try:
            last = self._rows()[-1]
            return bool(
                last["split"] == "test"
                and last["epoch"] >= self.epochs
                and all(self._is_measured(mode, last["step"]) for mode in self.measures)
                and self.found()
                and self.facts()
                and not self._differences()
                and self._has_these_images()
            )
        except _ODD:
            return False

    def _rows(self) -> list[dict[str, Any]]:
        return loggers.read_rows(self.directory / "metrics.jsonl")

    def _is_measured(self, mode: str, step: int) -> bool:
        """Returns True if it was measured at that step, with the flags and fields."""
        found, known = self.result(mode), dict(checks.fields(self.config))
        asked = {name: known[name] for name in EVALUATORS[mode].fields}
        flags, options = dict(self.measures[mode]), dict(found["options"])
        # More than is asked for will do.
        wanted, had = (
            {*chosen_measures(each.pop("measures", None))} for each in (flags, options)
        )
        return (
            found["step"] == step
            and wanted <= had
            and flags.items() <= options.items()
            and asked.items() <= found["settings"].items()
        )

    def _has_these_images(self) -> bool:
        """Returns True if it was trained and measured on the images as they are now.

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
        """Returns which images a data set holds; read once per process.

        None for a data set that the first run has to prepare.
        """
        key = name, path, self.config["dataset"]["cache_dir"]
        if _identities.get(key) is None:
            _identities[key] = data.identify(name, path=path, cache_dir=key[2])
        return _identities[key]

    def _differences(self) -> list[str]:
        """Lists the fields in which the run in the work directory differs."""
        config = json.loads((self.directory / "config.json").read_text())
        return checks.differences(config, self.config)

    def check_images(self) -> None:
        """Raises a UsageError if the images are gone, or are not those of the run."""
        dataset = self.config["dataset"]
        now = self._identity(dataset["name"], dataset["path"])
        try:
            before = workdir.load_facts(self.directory).identity
        except UsageError:  # the run has not begun, or main.py will refuse it
            return
        started = workdir.is_started(self.directory)
        if now is not None and started and not same_images(before, now):
            raise UsageError(
                f"{self.directory} holds a run on other images than those of "
                f"config.dataset.path={dataset['path']!r}; restore its data, or "
                "choose another --workdir."
            )

    def check(self) -> None:
        """Raises a UsageError if the directory holds another run."""
        try:
            changed = self._differences()
        except _ODD:  # the run has not begun, or main.py will refuse it
            return
        if changed and workdir.is_started(self.directory):
            raise UsageError(
                f"{self.directory} holds a run with another configuration ("
                f"{'; '.join(changed)}); choose another --workdir or repeat its values."
            )

    def result(self, mode: str) -> dict[str, Any]:
        """Returns the stored result of an evaluation."""
        name = workdir.result_name(mode, self.measures[mode])
        return json.loads((self.directory / "eval" / f"{name}.json").read_text())

    def found(self) -> dict[str, float]:
        """Returns the results by measure; see `tables.measure_of`."""
        results = self._results()
        found = {mode: _top1(each) for mode, each in self._classified(results).items()}
        last = [row for row in self._rows() if row["split"] == "test"][-1]
        if "augmented_nt_xent" not in last or "online_top1" in last:  # else no labels
            found["online"] = last["online_top1"]
        for code, of_code in self._measured(results).items():
            found |= self._named(code, _of_code(code, of_code))
        found["local"] = _at(results, ("equivariance", *_LOCAL))
        if "generation" in results:
            decoded = results["generation"]["reconstruction"]["full"]
            found["reconstruction"] = decoded["mse"]["mean"]
        for code, controlled in self._controlled(results).items():
            predictions = controlled["predictions"]
            best = best_knob({k: each["mse"] for k, each in predictions.items()})
            values = _control(predictions.get(best, {}), controlled["levels"])
            found |= self._named(code, values)
        return {k: float(value) for k, value in found.items() if value is not None}

    def yardsticks(self) -> dict[str, dict[str, float]]:
        """Returns what the results stand beside: yardstick -> values by measure.

        See `evaluation.yardsticks`. Results of older versions have none.
        """
        results = self._results()
        found: dict[str, dict[str, float]] = {}
        for measure, each in self._classified(results).items():
            for name, scores in each.get("yardsticks", {}).items():
                found.setdefault(name, {})[measure] = scores["top1"]
        for code, of_code in self._measured(results).items():
            for name, scores in of_code.get("yardsticks", {}).items():
                values = self._named(code, _reading(scores))
                found.setdefault(name, {}).update(values)
        for code, controlled in self._controlled(results).items():
            guess = {"chance": {"regression": controlled["chance"]}}
            scores = controlled["predictions"] | guess
            for name in _NO_KNOBS:
                values = _control(scores.get(name, {}), controlled["levels"])
                found.setdefault(name, {}).update(self._named(code, values))
        return found

    def _named(self, code: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the measures of a code: of several, under `<measure>@<code>`."""
        several = len(self.codes) > 1
        return {f"{k}@{code}" if several else k: each for k, each in values.items()}

    def _measured(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the equivariance to the row's augmentations, by code."""
        if "equivariance" not in results:
            return {}
        return {code: results["equivariance"][code] for code in self.codes}

    def _controlled(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the controlled generation of the row's augmentations, by code."""
        found = results.get("generation", {})
        return {code: found[code] for code in self.codes if found.get(code)}

    def _results(self) -> dict[str, Any]:
        return {mode: self.result(mode)["results"] for mode in self.measures}

    @staticmethod
    def _classified(results: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the results that are accuracies of classes, by measure."""
        own = {mode: results[mode] for mode in _CLASSIFIERS if mode in results}
        return own | results.get("transfer", {})

    def facts(self) -> dict[str, str]:
        """Describes a finished trial: images, epochs, hardware and version."""
        images = json.loads((self.directory / "dataset.json").read_text())
        first = next(iter(self.measures), None)
        return {
            "data": f"{images['name']}, {images['num_train']:,} images",
            "epochs": str(self.epochs),
            "hardware": self.result(first)["device"] if first else "-",
            "commit": " ".join(self.record().get("commits", [])) or "-",
        }

    @property
    def share(self) -> float:
        """The share of the training that is done, from 0 to 1."""
        try:
            return min(1.0, self._rows()[-1]["epoch"] / self.epochs)
        except _ODD:
            return 0.0

    @contextlib.contextmanager
    def claimed(self) -> Iterator[int | None]:
        """Keeps other sweeps from this trial, and yields the file that holds the claim.

        A process that inherits the file keeps the claim until it ends, even if this one
        is killed. Yields None if another process has the claim, or trains there.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_name(f".{self.directory.name}.lock").open("w") as file:
            taken = workdir.is_in_use(self.directory)
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    # Not `lockf`, whose locks are not inherited by child processes.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    taken = True
            yield None if taken else file.fileno()


def _top1(results: Mapping[str, Any]) -> float:
    """Returns the accuracy on the full features, averaged over repeats."""
    top1 = results["representations"]["full"]["top1"]
    return statistics.fmean(top1) if isinstance(top1, list) else top1


def _of_code(code: str, results: Mapping[str, Any]) -> dict[str, float]:
    """Returns how well the parameter is predicted from the full features and bins."""
    values = _reading(results["regression"]["full"])
    structure = results.get("marginal", {}).get("mean", {})
    names = {"accuracy": "structure_level", "error": "structure_error"}
    values |= {names[key]: structure[key] for key in names if key in structure}
    if "divergence" in results:
        values["divergence"] = results["divergence"]["mean"]
    crosstalk = results.get("crosstalk", {})
    read = crosstalk.get("structure") or crosstalk.get("regression") or {}
    values |= {name: _at(results, path) for name, path in _PATHS.items()}
    predictors = results.get("retrieval", {}).get("predictors", {})
    for name in _OF_METHODS:
        values |= {"mrr_own": predictors[name]["mrr"]} if name in predictors else {}
    values |= _crosstalk(code, read.get("moves", {}))
    return {name: value for name, value in values.items() if value is not None}


def _at(results: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """Returns the number at a path of keys; None if it was not measured."""
    for key in path:
        results = (results or {}).get(key)
    return results


def _crosstalk(code: str, moves: Mapping[str, Any]) -> dict[str, float]:
    """Returns how far the reading of `code` follows another augmentation, by measure.

    Args:
      code: that is read.
      moves: how far its reading moves when each augmentation is applied.
    """
    own = moves.get(code, {}).get("mean")
    others = [each["mean"] for name, each in moves.items() if name != code]
    return {"crosstalk": max(others) / own} if own and others else {}


def _control(scores: Mapping[str, Any], levels: Any) -> dict[str, float]:
    """Returns the scores of a prediction by measure; a guess has no squared error."""
    values = {"control": scores.get("mse")}
    error = scores.get("regression", {}).get("error")
    if error is not None and levels is not None:
        values["control_level"] = 1 - error
    else:
        values["control_error"] = error
    return {name: value for name, value in values.items() if value is not None}


def _reading(regression: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of a regression by measure."""
    names = {"accuracy": "read_level", "r_squared": "read_r2", "error": "read_error"}
    return {names[key]: regression[key] for key in names if key in regression}
