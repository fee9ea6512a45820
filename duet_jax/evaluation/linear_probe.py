"""Linear probes: linear classifiers on frozen features."""

import jax
import numpy as np

from duet_jax import figures
from duet_jax.augmentations import Options, Stack, make_stack
from duet_jax.evaluation import options, yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.metrics.classification import classification
from duet_jax.probes import logistic, sgd
from duet_jax.runs.frozen_encoder import FrozenEncoder, Representations
from duet_jax.types import Dataset

_MOST_CLASSES_LISTED = 20


def measure(evaluation: Evaluation, protocol: str = "lbfgs") -> Result:
    """Fits linear classifiers to the training split, scores them on the test split."""
    return _PROTOCOLS[protocol](evaluation)


def _lbfgs(evaluation: Evaluation) -> Result:
    """Multinomial logistic regression, solved to convergence; see `fit`."""
    train, test = evaluation.features("train"), evaluation.features("test")
    class_names = evaluation.dataset.class_names
    with evaluation.timed("solver"):
        found = fit(train, test, evaluation.dataset)
    rows = [
        (
            name,
            str(train[name].shape[1]),
            percent(scores["top1"]),
            percent(scores["top5"]),
            f"{scores['l2']:.0e}",
            "yes" if scores["converged"] else "no",
        )
        for name, scores in found.items()
    ]
    compared = beside(evaluation, evaluation.dataset)
    rows += [
        (name, "-", percent(scores["top1"]), percent(scores["top5"]), "-", "-")
        for name, scores in compared.items()
    ]
    header = ("representation", "dimensions", "top-1", "top-5", "L2", "converged")
    tables = [Table("linear probe, L-BFGS to convergence [%]", header, tuple(rows))]
    if len(class_names) <= _MOST_CLASSES_LISTED:
        tables.append(_by_class(found, class_names))
    # Not as a drawing, for the matrix is among the values.
    matrix = figures.Confusion(found["full"]["confusion"], class_names)
    title = "linear probe on the full representation"
    confusion = figures.build_confusion({"": matrix}, title=title)
    return Result(
        {"protocol": "lbfgs", "representations": found, "yardsticks": compared},
        tuple(tables),
        {"confusion": confusion},
    )


def _by_class(found: dict, class_names: tuple[str, ...]) -> Table:
    rows = tuple(
        (name, *(percent(scores["per_class"][i]) for scores in found.values()))
        for i, name in enumerate(class_names)
    )
    return Table("linear probe, top-1 by class [%]", ("class", *found), rows)


def fit(
    train: Representations, test: Representations, dataset: Dataset
) -> dict[str, dict]:
    """Fits a classifier to each representation and scores it on the test split.

    Uses the standardized features. The L2 strength with the best accuracy on a held-out
    tenth of the training split is selected, and the classifier is refitted on all of
    it. Deterministic.

    Args:
      train: representations of the training split.
      test: representations of the test split.
      dataset: its labels and classes are used.

    Returns:
      The scores by representation.
    """
    found = {}
    for name in train:
        solution = logistic.fit_with_selection(
            train[name], dataset.train.labels, num_classes=len(dataset.class_names)
        )
        scores = classification(solution.logits(test[name]), dataset.test.labels)
        found[name] = scores._asdict() | {
            "l2": solution.l2,
            "held_out": {f"{l2:g}": top1 for l2, top1 in solution.held_out.items()},
            "converged": solution.converged,
            "iterations": solution.iterations,
            "gradient_norm": solution.gradient_norm,
        }
    return found


def beside(evaluation: Evaluation, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Returns the yardsticks of the probe on a data set: name -> top1 and top5.

    They are of the L-BFGS protocol; see `yardsticks`.
    """

    def measure(encoder: FrozenEncoder) -> dict[str, float]:
        train, test = (encoder(each.images) for each in (dataset.train, dataset.test))
        scores = fit(train, test, dataset)["full"]
        return {name: scores[name] for name in ("top1", "top5")}

    with evaluation.timed("yardsticks"):
        about = ["linear_probe", dataset.facts]
        found = yardsticks.yardsticks(evaluation.run, about, measure)
    labels = dataset.train.labels, dataset.test.labels
    return {**found, yardsticks.CHANCE: yardsticks.chance(*labels)}


def _sgd(evaluation: Evaluation) -> Result:
    """Stochastic gradient descent on the features of augmented views.

    Every epoch uses a fresh crop and mirror of every training image. All repeats see
    the same views and differ in initial weights and order. Scored after the last epoch.

    Source: the linear evaluation of the ESSL code for CIFAR-10: 100 epochs, batch size
    256, momentum 0.9, learning rate 30 on a cosine to 0, no weight decay, 5 repeats,
    crops of 8 to 100 % of the area. The views are those of this project: bilinear, not
    bicubic; the test view is the center crop of the training's evaluation.
    """
    settings = evaluation.run.config.linear_probe
    dataset = evaluation.dataset
    images, labels = dataset.train
    key = jax.random.key(evaluation.run.config.seed)
    stack = _crop_and_mirror(evaluation.run.method.two_views.stack)
    state = None
    for epoch in range(settings.epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        draws = stack.draw(jax.random.fold_in(epoch_key, 0), len(images))
        with evaluation.timed("encoding"):
            views = evaluation.run.encoder(images, stack, draws)
        with evaluation.timed("solver"):
            if state is None:
                classes = len(dataset.class_names)
                state = {
                    name: sgd.start(key, features.shape[1], classes, settings.repeats)
                    for name, features in views.items()
                }
            for name, features in views.items():
                state[name] = sgd.epoch(
                    state[name],
                    jax.random.fold_in(epoch_key, 1),
                    features,
                    labels,
                    epochs=settings.epochs,
                    learning_rate=settings.learning_rate,
                )
    return _over_repeats(evaluation, state)


def _crop_and_mirror(like: Stack) -> Stack:
    return make_stack(
        ("sca", "fli"),
        input_side=like.input_side,
        image_size=like.image_size,
        channels=like.channels,
        options=Options(crop_area=(0.08, 1.0)),
    )


def _over_repeats(evaluation: Evaluation, state: dict[str, sgd.SgdState]) -> Result:
    """Scores all repeats: mean and standard deviation."""
    test, labels = evaluation.features("test"), evaluation.dataset.test.labels
    found, rows = {}, []
    for name, classifiers in state.items():
        scores = [
            classification(logits, labels)
            for logits in sgd.logits(classifiers, test[name])
        ]
        found[name], cells = {}, []
        for metric in ("top1", "top5"):
            values = [getattr(each, metric) for each in scores]
            mean, std = float(np.mean(values)), float(np.std(values))
            found[name] |= {f"{metric}_mean": mean, f"{metric}_std": std}
            cells.append(f"{percent(mean)} ± {percent(std)}")
        found[name]["top1"] = [each.top1 for each in scores]
        rows.append((name, *cells))
    compared = beside(evaluation, evaluation.dataset)
    for name, scores in compared.items():
        by = "" if name == yardsticks.CHANCE else ", L-BFGS"
        rows.append((name + by, percent(scores["top1"]), percent(scores["top5"])))
    settings = evaluation.run.config.linear_probe
    title = (
        f"linear probe, SGD on augmented views, {settings.epochs} epochs, "
        f"mean and deviation of {settings.repeats} [%]"
    )
    table = Table(title, ("representation", "top-1", "top-5"), tuple(rows))
    values = {"protocol": "sgd", "representations": found, "yardsticks": compared}
    return Result(values, (table,), {})


_PROTOCOLS = dict(zip(options.PROTOCOLS, (_lbfgs, _sgd), strict=True))
