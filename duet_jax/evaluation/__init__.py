"""Evaluators of checkpoints: one module and one `EVALUATORS` entry each.

Start with `base.py`; `evaluate.py` restores the run, `store.py` writes the results.
"""

from ml_collections import ConfigDict

from duet_jax.augmentations import LEARNABLE
from duet_jax.evaluation import (
    equivariance,
    export_features,
    generation,
    html_report,
    knn,
    linear_probe,
    transfer,
)
from duet_jax.evaluation.base import Evaluation, Evaluator
from duet_jax.evaluation.result import Result, Table
from duet_jax.types import DatasetFacts

__all__ = ["EVALUATORS", "Evaluation", "Evaluator", "Result", "Table", "follow_up"]


def follow_up(config: ConfigDict, facts: DatasetFacts) -> list[str]:
    """Returns the modes that a finished training suggests.

    Args:
      config: of the run, resolved.
      facts: of its images.
    """
    codes = [config.learned] if "learned" in config else config.augmentation.stack
    modes = ["linear_probe", "knn"] if facts.num_classes else []
    modes += ["equivariance"] if {*codes} & {*LEARNABLE} else []
    return [*modes, *([] if facts.num_classes else ["features"]), "report"]


# Names are those of --mode.
EVALUATORS: dict[str, Evaluator] = {
    "linear_probe": Evaluator(
        linear_probe.measure,
        linear_probe.check,
        flags=("protocol",),
        fields=(
            "linear_probe.epochs",
            "linear_probe.repeats",
            "linear_probe.learning_rate",
        ),
        needs_labels=True,
    ),
    "knn": Evaluator(
        knn.measure, fields=("knn.k", "knn.temperature"), needs_labels=True
    ),
    "equivariance": Evaluator(equivariance.measure, equivariance.check, ("codes",)),
    "generation": Evaluator(
        generation.measure,
        equivariance.check,
        ("codes",),
        fields=(
            "generation.epochs",
            "generation.batch_size",
            "generation.learning_rate",
            "generation.width",
        ),
    ),
    "transfer": Evaluator(
        transfer.measure, transfer.check, ("datasets",), images=transfer.images
    ),
    "features": Evaluator(export_features.measure, export_features.check, ("out",)),
    # It measures kNN itself where no result is stored.
    "report": Evaluator(html_report.measure, fields=("knn.k", "knn.temperature")),
}
