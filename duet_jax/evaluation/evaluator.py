"""What an evaluator is: all that the command line has to know of it.

An evaluator measures a restored encoder. It sees images only through the encoder and
does not depend on the training method: what a method adds, such as a structure, is
available through `methods.base`.
"""

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from duet_jax.errors import UsageError
from duet_jax.types import DatasetFacts

if TYPE_CHECKING:
    from duet_jax.evaluation.result import Result

# Name in a result -> name and path of a data set, as in the section `dataset`.
Sources = Mapping[str, tuple[str, str]]


def _own_images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data set of the run itself; see `Evaluator.images`."""
    return {dataset["name"]: (dataset["name"], dataset["path"])}


class Evaluator(NamedTuple):
    """One kind of evaluation; an entry of EVALUATORS.

    Attributes:
      module: whose `measure` is (Evaluation, **options) -> Result. It is imported when
        it measures.
      summary: what it measures, for --list.
      check: (**options) -> None; raises a UsageError for options that are wrong for
        any run. It is called before `measure`, and before anything is trained.
      flags: the command line flags it takes as options.
      fields: configuration fields that its result depends on, such as "knn.k".
      images: (section `dataset`, options) -> the data sets it measures on.
      needs_labels: True if it cannot measure on images without labels.
      needs_run: True if it cannot measure an encoder from elsewhere.
    """

    module: ModuleType
    summary: str
    check: Callable[..., None] = lambda: None
    flags: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    images: Callable[[Mapping[str, Any], Mapping[str, str]], Sources] = _own_images
    needs_labels: bool = False
    needs_run: bool = False

    @property
    def measure(self) -> "Callable[..., Result]":
        """What measures."""
        return self.module.measure


def check_labels(
    evaluators: Mapping[str, Evaluator], names: Iterable[str], facts: DatasetFacts
) -> None:
    """Raises a UsageError if one of the evaluators needs labels and there are none."""
    for name in names:
        if evaluators[name].needs_labels and not facts.num_classes:
            others = [n for n, each in evaluators.items() if not each.needs_labels]
            raise UsageError(
                f"--mode={name} needs labels, and config.dataset.name={facts.name!r} "
                f"gives images without; choose from {', '.join(others)}."
            )
