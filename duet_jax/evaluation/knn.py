"""k nearest neighbors of the test images among the training images."""

from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.metrics.classification import classification
from duet_jax.probes import knn


def measure(evaluation: Evaluation) -> Result:
    """Classifies the test split by its neighbors in every representation.

    Un-augmented center crops, cosine similarity; each of the `knn.k` nearest training
    images votes for its class with weight exp(similarity / `knn.temperature`).

    Source: the protocol of the ESSL code and of solo-learn (k = 200, temperature 0.1),
    from Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination".
    """
    settings = evaluation.run.config.knn
    train, test = evaluation.features("train"), evaluation.features("test")
    dataset = evaluation.dataset
    k = min(settings.k, len(dataset.train.labels))
    found = {}
    with evaluation.timed("search"):
        for name, bank in train.items():
            votes = knn.classify(
                bank,
                dataset.train.labels,
                test[name],
                num_classes=len(dataset.class_names),
                k=k,
                temperature=settings.temperature,
            )
            found[name] = classification(votes, dataset.test.labels)._asdict()
    rows = tuple(
        (name, percent(scores["top1"]), percent(scores["top5"]))
        for name, scores in found.items()
    )
    title = f"k nearest neighbors, k = {k}, T = {settings.temperature:g} [%]"
    table = Table(title, ("representation", "top-1", "top-5"), rows)
    return Result({"k": k, "representations": found}, (table,), {})
