"""Evaluators of checkpoints: one module and one `EVALUATORS` entry each.

Start with `evaluator.py` and `base.py`; `evaluate.py` restores the run, `store.py`
writes the results.
"""

from etils import epy
from ml_collections import ConfigDict

from duet_jax.augmentations import LEARNABLE, split_codes
from duet_jax.evaluation import options
from duet_jax.evaluation.evaluator import Evaluator
from duet_jax.types import DatasetFacts

with epy.lazy_imports():
    from duet_jax.evaluation import (
        equivariance,
        export,
        export_features,
        generation,
        html_report,
        knn,
        linear_probe,
        monitors,
        transfer,
    )

__all__ = ["EVALUATORS", "Evaluator", "follow_up"]


def follow_up(config: ConfigDict, facts: DatasetFacts) -> list[str]:
    """Returns the modes that a finished training suggests.

    Args:
      config: of the run, resolved.
      facts: of its images.
    """
    learned = split_codes(config.get("learned", ""))
    codes = learned or config.augmentation.stack
    modes = ["linear_probe", "knn"] if facts.num_classes else []
    modes += ["equivariance"] if {*codes} & {*LEARNABLE} else []
    return [*modes, *([] if facts.num_classes else ["features"]), "report"]


# Names are those of --mode.
EVALUATORS: dict[str, Evaluator] = {
    "linear_probe": Evaluator(
        linear_probe,
        "accuracy of a linear classifier of the features",
        options.check_protocol,
        flags=("protocol",),
        fields=(
            "linear_probe.epochs",
            "linear_probe.repeats",
            "linear_probe.learning_rate",
        ),
        needs_labels=True,
    ),
    "knn": Evaluator(
        knn,
        "accuracy of a vote of the nearest neighbors",
        fields=("knn.k", "knn.weights", "knn.temperature"),
        needs_labels=True,
    ),
    "monitors": Evaluator(
        monitors,
        "over how many directions the features are spread; whether they have collapsed",
        fields=("monitor.images",),
    ),
    "equivariance": Evaluator(
        equivariance,
        "how the features tell, and move with, how an image was transformed",
        options.check_equivariance,
        ("codes", "measures"),
    ),
    "generation": Evaluator(
        generation,
        "decoders of the features; whether an image turns when its features do",
        options.check_codes,
        ("codes",),
        fields=(
            "generation.epochs",
            "generation.batch_size",
            "generation.learning_rate",
            "generation.width",
        ),
        needs_run=True,  # it trains decoders of the run's views
    ),
    "transfer": Evaluator(
        transfer,
        "linear probe on other data sets",
        options.check_datasets,
        ("datasets",),
        images=options.images,
    ),
    "features": Evaluator(
        export_features,
        "the features themselves, in an .npz file",
        options.check_out,
        ("out",),
    ),
    "export": Evaluator(
        export,
        "the encoder's weights and computation, for use elsewhere, with a model card",
        options.check_format,
        ("format",),
        images=options.no_images,
        needs_run=True,  # its files are of weights
    ),
    # It measures kNN and monitors itself where no result is stored.
    "report": Evaluator(
        html_report,
        "a page of all results and pictures",
        fields=("knn.k", "knn.weights", "knn.temperature", "monitor.images"),
    ),
}
