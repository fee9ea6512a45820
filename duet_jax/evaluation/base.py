"""The `Evaluation` that evaluators receive; see `evaluator.py` for what they are."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duet_jax.config.checks import fields
from duet_jax.data import identify, load_dataset
from duet_jax.errors import UsageError
from duet_jax.evaluation import store
from duet_jax.evaluation.evaluator import Evaluator
from duet_jax.runs import workdir
from duet_jax.runs.frozen_encoder import Representations
from duet_jax.runs.trained_run import Run, check_dataset
from duet_jax.runtime import devices, terminal
from duet_jax.types import Dataset, DatasetFacts, Identity, Split, same_images

_log = logging.getLogger(__name__)


class Evaluation:
    """A run under evaluation, with its data and their representations.

    Attributes:
      run: the restored run.
      directory: `eval/` of its work directory, which holds the results.
    """

    def __init__(
        self,
        run: Run,
        evaluators: Mapping[str, Evaluator],
        dataset: Dataset | None = None,
    ):
        """Reads no data yet; `dataset` is used instead of what the run names."""
        if dataset is not None:
            self.dataset = dataset  # in the place of the cached property
        self.run = run
        self.directory = run.directory / "eval"
        self._evaluators = evaluators
        self._features: dict[str, Representations] = {}
        self._seconds: dict[str, float] = {}
        self._name = ""  # of the evaluator that measures

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set of the training; a UsageError if it is missing or another."""
        own = self.run.config.dataset
        dataset = read_dataset(
            self.run, own.name, own.path, train_fraction=own.train_fraction
        )
        check_dataset(self.run, dataset)
        _warn_if_changed(self.run.facts, dataset.facts)
        return dataset

    def split(self, name: str) -> Split:
        """Returns the split `train` or `test`."""
        return getattr(self.dataset, name)

    def features(self, split: str) -> Representations:
        """Returns the representations of a split, encoded once; see `Run`."""
        if split not in self._features:
            images = self.split(split).images
            with self.timed("encoding"):
                self._features[split] = self.run(images)
        return self._features[split]

    def evaluate(self, name: str, options: Mapping[str, str]) -> dict[str, Any]:
        """Runs an evaluator, stores its result and returns the stored content."""
        evaluator = self._evaluators[name]
        evaluator.check(**options)
        outer = self._seconds, self._name
        self._seconds, self._name = {}, name
        start = time.perf_counter()
        with terminal.doing(f"{name:<12} measuring"):
            result = evaluator.measure(self, **options)
        seconds = self._seconds | {"total": time.perf_counter() - start}
        self._seconds, self._name = outer
        origin = self._origin(name, options)
        # A transfer to other images does not read the run's own data set.
        facts = self.dataset.facts if "dataset" in vars(self) else self.run.facts
        about = {
            "mode": name,
            "options": options,
            **origin,
            "method": self.run.config.method,
            "seed": self.run.config.seed,
            "dataset": facts._asdict(),
            "seconds": seconds,
            "device": devices.describe(),
        }
        stem = workdir.result_name(name, options)
        return store.write(self.directory, stem, about, result)

    def load_valid(
        self, stem: str, *, any_settings: bool = False
    ) -> dict[str, Any] | None:
        """Returns the stored result `eval/<stem>.json` if it is still valid.

        None if it is for another checkpoint, other settings or other images, or if the
        file holds no result.

        Args:
          stem: of the file.
          any_settings: True to take it with the settings that it was measured with.
        """
        found = store.read(self.directory, stem)
        if found is None or found["mode"] not in self._evaluators:
            return None
        try:
            origin = store.plain(self._origin(found["mode"], found["options"]))
        except UsageError as error:
            _log.info("%-12s stored result is not used: %s", stem, error)
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if any_settings:
            del origin["settings"]
        others = [key for key, value in origin.items() if found.get(key) != value]
        if others:
            _log.info("%-12s stored result is for other %s", stem, " and ".join(others))
            return None
        return found

    def load_or_evaluate(
        self, name: str, parts: Sequence[str] = (), **options: str
    ) -> dict[str, Any]:
        """Returns the stored result if it is valid and has all `parts`.

        Otherwise runs the evaluator with `options`, as `evaluate` does.
        """
        found = self.load_valid(name)
        if found is not None and found["results"].keys() >= set(parts):
            _log.info("%-12s taken from %s", name, self.directory / f"{name}.json")
            return found
        _log.info("%-12s measuring ...", name)
        return self.evaluate(name, options)

    def _origin(self, name: str, options: Mapping[str, str]) -> dict[str, Any]:
        """Returns what a result depends on; it is valid while this stays the same."""
        evaluator = self._evaluators[name]
        values = dict(fields(self.run.config))
        sources = evaluator.images(self.run.config.dataset, options)
        return {
            "step": self.run.step,
            "weights": self.run.fingerprint,
            "settings": {field: values[field] for field in evaluator.fields},
            "images": {key: self._identity(*source) for key, source in sources.items()},
        }

    def _identity(self, name: str, path: str) -> Identity | None:
        """Returns which images a data set holds; see `data.identify`."""
        own = self.run.config.dataset
        if (name, path) == (own.name, own.path):
            return self.dataset.facts.identity
        return identify(name, path=path, cache_dir=own.cache_dir)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds spent inside to those of `part`."""
        start = time.perf_counter()
        with terminal.doing(f"{self._name:<12} {part}"):
            yield
        spent = time.perf_counter() - start
        self._seconds[part] = self._seconds.get(part, 0.0) + spent


def read_dataset(run: Run, name: str, path: str, **options: float | int) -> Dataset:
    """Returns a data set in the size of the images of `run`.

    Args:
      run: whose encoder is to take the images.
      name: as in the section `dataset` of the configuration.
      path: likewise.
      **options: other arguments of `load_dataset`.

    Raises:
      UsageError: it cannot be read.
    """
    settings = run.config.dataset
    own = {
        field: settings[field]
        for field in ("image_size", "center_crop", "cache_dir", "holdout", "channels")
    }
    return load_dataset(name, path=path, **own | options)


def _warn_if_changed(trained: DatasetFacts, found: DatasetFacts) -> None:
    """Warns if the images are not those of the training."""
    if same_images(trained.identity, found.identity):
        return
    changed = []
    if len(found.digests) > 1:  # one of each split
        digests = zip(
            ("training", "test"), trained.digests, found.digests, strict=False
        )
        changed = [split for split, before, now in digests if before != now]
    _log.warning(
        "the %s of %s have changed since the training; the results are for the current "
        "images",
        f"{' and '.join(changed)} images".lstrip(),
        found.name,
    )
