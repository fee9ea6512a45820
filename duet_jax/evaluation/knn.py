"""k nearest neighbors of the test images among the training images."""

from typing import Any

import numpy as np

from duet_jax.evaluation import yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.metrics.classification import classification
from duet_jax.probes import knn
from duet_jax.runs.frozen_encoder import FrozenEncoder


def measure(evaluation: Evaluation) -> Result:
    """Classifies the test split by its neighbors in every representation.

    Un-augmented center crops, cosine similarity; each of the `knn.k` nearest training
    images votes for its class with weight exp(similarity / `knn.temperature`), or all
    of them alike if `knn.weights` is uniform.

    Source: the protocol of the ESSL code and of solo-learn (k = 200, temperature 0.1),
    from Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination".
    """
    settings = evaluation.run.config.knn
    train, test = evaluation.features("train"), evaluation.features("test")
    dataset = evaluation.dataset
    k = min(settings.k, len(dataset.train.labels))
    uniform = settings.weights == "uniform"
    vote = "uniform" if uniform else settings.temperature

    def classify(bank: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
        votes = knn.classify(
            bank,
            dataset.train.labels,
            queries,
            num_classes=len(dataset.class_names),
            k=k,
            weights=settings.weights,
            temperature=settings.temperature,
        )
        return classification(votes, dataset.test.labels)._asdict()

    def measure_full(encoder: FrozenEncoder) -> dict[str, float]:
        bank, queries = (
            encoder(each.images)["full"] for each in (dataset.train, dataset.test)
        )
        scores = classify(bank, queries)
        return {name: scores[name] for name in ("top1", "top5")}

    with evaluation.timed("search"):
        found = {name: classify(bank, test[name]) for name, bank in train.items()}
    with evaluation.timed("yardsticks"):
        about = ["knn", k, vote, dataset.facts]
        compared = yardsticks.yardsticks(evaluation.run, about, measure_full)
    labels = dataset.train.labels, dataset.test.labels
    compared[yardsticks.CHANCE] = yardsticks.chance(*labels)
    rows = tuple(
        (name, percent(scores["top1"]), percent(scores["top5"]))
        for name, scores in (found | compared).items()
    )
    shown = "one vote each" if uniform else f"T = {vote:g}"
    title = f"k nearest neighbors, k = {k}, {shown} [%]"
    table = Table(title, ("representation", "top-1", "top-5"), rows)
    values = {"k": k, "representations": found, "yardsticks": compared}
    return Result(values, (table,), {})
