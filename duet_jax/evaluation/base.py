"""What an evaluator is, and what it is given.

An evaluator measures a restored encoder. It sees images only through the encoder and
never asks which method trained it: what a method adds, such as a structure, it offers
through `methods.base`.
"""

import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from duet_jax.config.checks import fields
from duet_jax.data import identify, load_dataset
from duet_jax.errors import UsageError
from duet_jax.evaluation import store
from duet_jax.evaluation.result import Result
from duet_jax.runs import workdir
from duet_jax.runs.frozen_encoder import Representations
from duet_jax.runs.trained_run import Run, check_dataset
from duet_jax.runtime import devices
from duet_jax.types import Dataset, DatasetFacts, Identity, Split, same_images

_log = logging.getLogger(__name__)

# Name, in the run's configuration, of each section's field, such as "knn.k".
Fields = tuple[str, ...]


# Name in a result -> name and path of a data set, as in the section `dataset`.
Sources = Mapping[str, tuple[str, str]]


def own_images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data set of the run itself.

    Args:
      dataset: section of the run's configuration.
      options: flags of the evaluator.
    """
    del options
    return {dataset["name"]: (dataset["name"], dataset["path"])}


class Evaluator(NamedTuple):
    """A way to look at a run; a row of EVALUATORS.

    Attributes:
      measure: (Evaluation, options by flag) -> Result.
      check: (options by flag) -> None, or a UsageError for what is wrong with them
        whatever the run; it can be asked before there is one.
      flags: of the command line that it takes.
      fields: of the configuration that its result depends on.
      images: (section `dataset`, options by flag) -> the data sets that it measures on.
    """

    measure: Callable[..., Result]
    check: Callable[..., None] = lambda: None
    flags: tuple[str, ...] = ()
    fields: Fields = ()
    images: Callable[[Mapping[str, Any], Mapping[str, str]], Sources] = own_images


class Evaluation:
    """A run under evaluation, with its data and their representations.

    Attributes:
      run: restored.
      directory: `eval/` of its work directory.
      seconds: what the parts of the work have taken.
    """

    def __init__(
        self, run: Run, directory: pathlib.Path, evaluators: Mapping[str, Evaluator]
    ):
        """Reads nothing yet.

        Args:
          run: restored.
          directory: receives the results.
          evaluators: by name, those that others may build on.
        """
        self.run = run
        self.directory = directory
        self.seconds: dict[str, float] = {}
        self._evaluators = evaluators
        self._features: dict[str, Representations] = {}

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set of the training.

        Raises:
          UsageError: it cannot be read, or is another one.
        """
        dataset = load(self.run)
        check_dataset(self.run, dataset)
        _warn_of_others(self.run.facts, dataset.facts)
        return dataset

    def identities(self, sources: Sources) -> dict[str, Identity | None]:
        """Returns which images some data sets hold, by the names in `sources`.

        Raises:
          UsageError: one of them is gone, or cannot be read.
        """
        settings = self.run.config.dataset
        own = settings.name, settings.path
        return {
            key: self.dataset.facts.identity
            if (name, path) == own
            else identify(name, path=path, cache_dir=settings.cache_dir)
            for key, (name, path) in sources.items()
        }

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

    def stored(
        self, name: str, parts: Sequence[str] = (), **options: str
    ) -> dict[str, Any]:
        """Returns what `eval/<name>.json` holds.

        It is measured first, with `options`, where it is of another checkpoint, of
        other settings or other images, or has not all `parts` among its results.
        """
        found = self.valid(name)
        if found is not None and found["results"].keys() >= set(parts):
            _log.info("%-12s taken from %s", name, self.directory / f"{name}.json")
            return found
        _log.info("%-12s measuring ...", name)
        return self.perform(name, options)

    def valid(self, stem: str) -> dict[str, Any] | None:
        """Returns what `eval/<stem>.json` holds, if that still holds.

        None where it is of another checkpoint, of other settings or other images, or is
        no result at all.
        """
        found = store.read(self.directory, stem)
        if found is None or found["mode"] not in self._evaluators:
            return None
        try:
            origin = store.plain(self._origin(found["mode"], found["options"]))
        except UsageError as error:
            _log.info("%-12s as stored does not count: %s", stem, error)
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        others = [key for key, value in origin.items() if found.get(key) != value]
        if others:
            _log.info("%-12s as stored is of other %s", stem, " and ".join(others))
            return None
        return found

    def perform(self, name: str, options: Mapping[str, str]) -> dict[str, Any]:
        """Runs an evaluator, writes its files and returns what its .json holds."""
        start = time.perf_counter()
        with self.own_seconds() as parts:
            result = self._evaluators[name].measure(self, **options)
        seconds = {**parts, "total": time.perf_counter() - start}
        about = {
            "mode": name,
            "options": options,
            **self._origin(name, options),
            "method": self.run.config.method,
            "dataset": self.facts._asdict(),
            "seconds": seconds,
            "device": devices.describe(),
        }
        stem = workdir.result_name(name, options)
        return store.write(self.directory, stem, about, result)

    def _origin(self, name: str, options: Mapping[str, str]) -> dict[str, Any]:
        """What a result is of: weights, fields of the configuration, images."""
        run, evaluator = self.run, self._evaluators[name]
        known = dict(fields(run.config))
        return {
            "step": run.step,
            "weights": run.fingerprint,
            "settings": {field: known[field] for field in evaluator.fields},
            "images": self.identities(evaluator.images(run.config.dataset, options)),
        }

    @property
    def facts(self) -> DatasetFacts:
        """What was measured on, or where that was not looked at, trained on."""
        return self.dataset.facts if "dataset" in vars(self) else self.run.facts

    @contextlib.contextmanager
    def own_seconds(self) -> Iterator[dict[str, float]]:
        """Counts the seconds of what is done inside by themselves."""
        outer, self.seconds = self.seconds, {}
        try:
            yield self.seconds
        finally:
            self.seconds = outer

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds what is done inside to the seconds of `part`."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.seconds[part] = self.seconds.get(part, 0.0) + spent


def load(run: Run, name: str | None = None, path: str | None = None) -> Dataset:
    """Returns a data set in the size of the run's images.

    Args:
      run: says the size, and which set where it is not given.
      name: as `dataset.name`; None for the run's own, with its share of the training
        images.
      path: as `dataset.path`; None for the run's own.

    Raises:
      UsageError: it cannot be read.
    """
    settings = run.config.dataset
    return load_dataset(
        settings.name if name is None else name,
        path=settings.path if path is None else path,
        image_size=settings.image_size,
        center_crop=settings.center_crop,
        cache_dir=settings.cache_dir,
        train_fraction=settings.train_fraction if name is None else 1.0,
    )


def _warn_of_others(trained: DatasetFacts, found: DatasetFacts) -> None:
    """Says where the images are not those of the training."""
    if same_images(trained.identity, found.identity):
        return
    what = "images"
    if len(trained.digests) == len(found.digests) == 2:
        pairs = zip(("training", "test"), trained.digests, found.digests, strict=True)
        names = [split for split, before, now in pairs if before != now]
        what = f"{' and '.join(names)} images"
    _log.warning(
        "the %s of %s are not those that were there at the training; the results are "
        "of what is there now",
        what,
        found.name,
    )
