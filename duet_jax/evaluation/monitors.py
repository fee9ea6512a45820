"""Monitors of the representation, beside those of an encoder that has learned nothing.

They are measured on the images and views that a training measures them on.
"""

from collections.abc import Mapping

import numpy as np

from duet_jax.data.order import evaluation_order
from duet_jax.errors import UsageError
from duet_jax.evaluation import yardsticks
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Result, Table
from duet_jax.metrics.monitors import MONITORS
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.training import monitors

Scores = dict[str, float]


def can_measure(evaluation: Evaluation) -> bool:
    """Returns whether there are images to measure; see `monitors.sample_size`."""
    return _count(evaluation) > 0


def _count(evaluation: Evaluation) -> int:
    wanted = evaluation.run.config.monitor.images
    return monitors.sample_size(wanted, len(evaluation.split("test").labels))


def measure(evaluation: Evaluation) -> Result:
    """Measures all of MONITORS on every representation of a sample of test images.

    Raises:
      UsageError: the sample has no two images.
    """
    count = _count(evaluation)
    if not count:
        wanted = evaluation.run.config.monitor.images
        raise UsageError(
            f"config.monitor.images={wanted} leaves no two of the "
            f"{len(evaluation.split('test').labels)} test images to compare; set it to "
            "2 or more, such as 1024, and take two test images or more."
        )
    test, stack = evaluation.split("test"), evaluation.run.method.two_views.stack
    images = np.asarray(test.images)[evaluation_order(len(test.labels))[:count]]

    def measure_all(encoder: FrozenEncoder) -> dict[str, Scores]:
        plain = encoder(images)
        views = [
            encoder(images, stack, monitors.draw(stack, count, view))
            for view in range(monitors.VIEWS)
        ]
        return {
            name: {
                "dimensions": rows.shape[1],
                **monitors.measure(rows, np.stack([each[name] for each in views], 1)),
            }
            for name, rows in plain.items()
        }

    with evaluation.timed("views"):
        found = measure_all(evaluation.run.encoder)
    with evaluation.timed("yardsticks"):
        facts = evaluation.dataset.facts
        about = ["monitors", count, monitors.VIEWS, str(stack), facts]
        compared = yardsticks.yardsticks(
            evaluation.run, about, lambda encoder: measure_all(encoder)["full"]
        )
    values = {
        "images": count,
        "views": monitors.VIEWS,
        "representations": found,
        "yardsticks": compared,
    }
    return Result(values, (_table(count, found | compared),), {})


def _table(count: int, found: Mapping[str, Scores]) -> Table:
    rows = tuple(
        (name, *(f"{scores[each]:.4g}" for each in ("dimensions", *MONITORS)))
        for name, scores in found.items()
    )
    titles = [each.title for each in MONITORS.values()]
    abouts = [f"{each.title}: {each.about}." for each in MONITORS.values()]
    return Table(
        f"monitors, of {count} test images and {monitors.VIEWS} views of each",
        ("representation", "dimensions", *titles),
        rows,
        " ".join(abouts),
    )
