"""Linear classifiers on frozen features."""

import jax
import numpy as np

from duet_jax import errors, figures
from duet_jax.augmentations import Options, make_stack
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table, percent
from duet_jax.metrics.classification import classification
from duet_jax.probes import logistic, sgd


def measure(evaluation: Evaluation, protocol: str = "lbfgs") -> Result:
    """Fits linear classifiers to the training split and scores them on the test split.

    Args:
      evaluation: of a run.
      protocol: a key of PROTOCOLS.

    Raises:
      UsageError: an unknown protocol.
    """
    check(protocol)
    return PROTOCOLS[protocol](evaluation)


def check(protocol: str = "lbfgs") -> None:
    """Raises a UsageError for an unknown protocol."""
    errors.lookup(PROTOCOLS, protocol, "--protocol")


def _converged(evaluation: Evaluation) -> Result:
    """Multinomial logistic regression, solved to convergence.

    On the standardised features of the un-augmented central cut; the L2 strength is the
    one with the best accuracy on a held-out tenth of the training split, and the
    classifier is then fitted to all of it. Nothing is random.
    """
    train, test = evaluation.features("train"), evaluation.features("test")
    class_names = evaluation.dataset.class_names
    found = {}
    with evaluation.timed("solver"):
        for name in train:
            found[name] = solve(
                (train[name], evaluation.split("train").labels),
                (test[name], evaluation.split("test").labels),
                len(class_names),
            )
    rows = tuple(
        (
            name,
            str(train[name].shape[1]),
            percent(scores["top1"]),
            percent(scores["top5"]),
            f"{scores['l2']:.0e}",
            "yes" if scores["converged"] else "no",
        )
        for name, scores in found.items()
    )
    header = ("representation", "dimensions", "top-1", "top-5", "L2", "converged")
    tables = [Table("linear probe, L-BFGS to convergence [%]", header, rows)]
    if len(class_names) <= _MOST_CLASSES_LISTED:
        tables.append(_by_class(found, class_names))
    confusion = figures.build_confusion(
        np.array(found["full"]["confusion"]),
        class_names,
        title="linear probe on the full representation",
    )
    return Result(
        {"protocol": "lbfgs", "representations": found},
        tuple(tables),
        {"confusion": confusion},
    )


_MOST_CLASSES_LISTED = 20


def _by_class(found: dict, class_names: tuple[str, ...]) -> Table:
    rows = tuple(
        (name, *(percent(scores["per_class"][i]) for scores in found.values()))
        for i, name in enumerate(class_names)
    )
    return Table("linear probe, top-1 by class [%]", ("class", *found), rows)


def solve(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
) -> dict:
    """Returns the scores of the converged classifier on one representation.

    Args:
      train: features [n, dimensions] and labels [n].
      test: likewise.
      num_classes: labels go from 0 to `num_classes` - 1.
    """
    fit = logistic.fit_with_selection(*train, num_classes=num_classes)
    scores = classification(fit.logits(test[0]), test[1]).as_dict()
    solution = fit.solution
    return {
        **scores,
        "l2": solution.l2,
        "held_out": {f"{l2:g}": top1 for l2, top1 in fit.held_out.items()},
        "converged": bool(solution.converged and fit.all_converged),
        "iterations": int(solution.iterations),
        "gradient_norm": float(solution.gradient_norm),
    }


def _stochastic(evaluation: Evaluation) -> Result:
    """Stochastic gradient descent on the features of augmented views.

    A fresh crop and mirror of every training image in each epoch; all repeats see the
    same views and differ in initial weights and order. Accuracy after the last epoch.

    Source: the linear evaluation of the ESSL code for CIFAR-10: 100 epochs, batch 256,
    momentum 0.9, rate 30 that follows a cosine to 0, no weight decay, 5 repeats, crops
    of 8 to 100 % of the area. The views are those of this project: bilinear, not
    bicubic, and the test view is the central cut of the training's evaluation.
    """
    settings = evaluation.run.config.linear_probe
    classes = len(evaluation.dataset.class_names)
    labels, images = evaluation.split("train").labels, evaluation.split("train").images
    key = jax.random.key(evaluation.run.config.seed)
    stack = _crop_and_mirror(evaluation)
    state = None
    for epoch in range(settings.epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        draws = stack.draw(jax.random.fold_in(epoch_key, 0), len(images))
        with evaluation.timed("encoding"):
            views = evaluation.run.encoder(images, stack, draws)
        with evaluation.timed("solver"):
            if state is None:
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


def _crop_and_mirror(evaluation: Evaluation):
    own = evaluation.run.method.two_views.stack
    return make_stack(
        ("sca", "fli"),
        input_side=own.input_side,
        image_size=own.image_size,
        channels=own.channels,
        options=Options(crop_area=(0.08, 1.0)),
    )


def _over_repeats(evaluation: Evaluation, state: dict) -> Result:
    test, labels = evaluation.features("test"), evaluation.split("test").labels
    found = {}
    for name, classifiers in state.items():
        repeats = [
            classification(logits, labels)
            for logits in sgd.logits(classifiers, test[name])
        ]
        found[name] = {
            f"{metric}_{how}": float(how_much([getattr(r, metric) for r in repeats]))
            for metric in ("top1", "top5")
            for how, how_much in (("mean", np.mean), ("std", np.std))
        } | {"top1": [r.top1 for r in repeats]}
    rows = tuple(
        (
            name,
            f"{percent(x['top1_mean'])} ± {percent(x['top1_std'])}",
            f"{percent(x['top5_mean'])} ± {percent(x['top5_std'])}",
        )
        for name, x in found.items()
    )
    settings = evaluation.run.config.linear_probe
    title = (
        f"linear probe, SGD on augmented views, {settings.epochs} epochs, "
        f"mean and deviation of {settings.repeats} [%]"
    )
    table = Table(title, ("representation", "top-1", "top-5"), rows)
    return Result({"protocol": "sgd", "representations": found}, (table,), {})


# By the name that --protocol takes.
PROTOCOLS = {"lbfgs": _converged, "sgd": _stochastic}
