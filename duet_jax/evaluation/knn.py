"""Nearest neighbours of the test images among the training images."""

from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.metrics.classification import classification
from duet_jax.probes import knn


def measure(evaluation: Evaluation) -> Result:
    """Classifies the test split by its neighbours in every representation.

    Un-augmented central cuts, cosine similarity, and for each of the `knn.k` nearest
    training images a vote of exp(similarity / `knn.temperature`) for its class.

    Source: the protocol of the ESSL code and of solo-learn (k = 200, temperature 0.1),
    from Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination".
    """
    settings = evaluation.run.config.knn
    train, test = evaluation.features("train"), evaluation.features("test")
    bank_labels = evaluation.split("train").labels
    k = min(settings.k, len(bank_labels))
    found = {}
    with evaluation.timed("search"):
        for name, bank in train.items():
            scores = knn.classify(
                bank,
                bank_labels,
                test[name],
                num_classes=len(evaluation.dataset.class_names),
                k=k,
                temperature=settings.temperature,
            )
            labels = evaluation.split("test").labels
            found[name] = classification(scores, labels).as_dict()
    rows = tuple(
        (name, percent(scores["top1"]), percent(scores["top5"]))
        for name, scores in found.items()
    )
    title = f"k nearest neighbours, k = {k}, T = {settings.temperature:g} [%]"
    table = Table(title, ("representation", "top-1", "top-5"), rows)
    return Result({"k": k, "representations": found}, (table,), {})
