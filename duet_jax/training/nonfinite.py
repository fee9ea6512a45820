"""Why an update was not finite: it is computed again, and everything is looked at.

The state that the train step leaves under on_nonfinite=stop is the one that the broken
update began with. Batch, keys and draws follow from its step.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duet_jax.data.order import TrainingRows
from duet_jax.errors import TrainingError
from duet_jax.methods import Method
from duet_jax.runtime import files, mesh, processes
from duet_jax.training import train_step
from duet_jax.training.batches import Feed
from duet_jax.training.plan import Plan
from duet_jax.types import TrainState

_log = logging.getLogger(__name__)

# What a loss is made of says more than what it is, and comes first.
_TOTAL = "loss"
_REMEDIES = (
    "try a lower config.optimizer.learning_rate or config.compute_dtype=float32, or "
    "leave such updates out with config.on_nonfinite=skip"
)


def stop(
    plan: Plan,
    feed: Feed,
    state: TrainState,
    num_train: int,
    directory: pathlib.Path,
    last_good: int | None,
) -> TrainingError:
    """Diagnoses a broken update, writes it down and returns the error that ends a run.

    Every process of a job must call it: they compute together, the first one writes.

    Args:
      plan: of the run.
      feed: its batches.
      state: as the update left it; its step is that of the update.
      num_train: images in the training split.
      directory: of the run, receives nonfinite_step_<n>.json.
      last_good: step of the newest checkpoint; None where there is none.
    """
    _log.info("an update was not finite: computing it again ...")
    try:
        diagnosis = diagnose(plan, feed, state, num_train)
    except Exception as error:  # such as want of memory: not what ends the run
        reason = " ".join(str(error).split())[:200]
        return TrainingError(
            f"the update of step {int(state.step)} is not finite; it was not applied, "
            f"and cannot be computed again ({reason}); {_kept(last_good)}; {_REMEDIES}."
        )
    path = directory / f"nonfinite_step_{diagnosis['step']}.json"
    where = f"batch, draws and norms are in {path}"
    try:
        if processes.is_main_process():
            write(path, diagnosis)
    except OSError as error:  # the cause of the stop matters more
        where = f"{path} could not be written ({error.strerror or error})"
    return TrainingError(explain(diagnosis, where, last_good))


def explain(diagnosis: Mapping[str, Any], where: str, last_good: int | None) -> str:
    """Returns what is wrong, what is left and what can be done, in one line.

    Args:
      diagnosis: from `diagnose`.
      where: what has become of the file, in words.
      last_good: step of the newest checkpoint; None where there is none.
    """
    causes = "; ".join(diagnosis["causes"])
    return (
        f"the update of step {diagnosis['step']} is not finite: {causes}. It was not "
        f"applied; {_kept(last_good)}; {where}; {_REMEDIES}."
    )


def _kept(last_good: int | None) -> str:
    if last_good is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is that of step {last_good}"


def write(path: str | os.PathLike, diagnosis: Mapping[str, Any]) -> None:
    """Writes a diagnosis, whole or not at all.

    It is JSON as every reader takes it: what is not finite is "nan", "inf" or "-inf".
    """
    entries = ",\n".join(
        f"  {json.dumps(name)}: {_rows(_plain(value))}"
        for name, value in diagnosis.items()
    )
    with files.replacing(path) as partial:
        partial.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")


def _rows(value: Any) -> str:
    """Returns JSON in which each layer has a line, and long lists have no more."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        lines = (json.dumps(each, allow_nan=False) for each in value)
        return "[\n    " + ",\n    ".join(lines) + "\n  ]"
    return json.dumps(value, allow_nan=False)


def _plain(value: Any) -> Any:
    """Returns nested arrays and numbers as what strict JSON knows."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


class _Found(NamedTuple):
    """The broken update, on the host; of every view by its name in `Views`.

    Attributes:
      metrics: scalars.
      gradients: nested as the parameters.
      labels: [batch].
      drawn: parameters of the views.
      views: what else is known of them: "finite" [images], "structure" by code or
        "targets".
    """

    metrics: Mapping[str, np.ndarray]
    gradients: dict
    labels: np.ndarray
    drawn: Mapping[str, Mapping]
    views: Mapping[str, dict]


def diagnose(
    plan: Plan, feed: Feed, state: TrainState, num_train: int
) -> dict[str, Any]:
    """Computes the update of `state.step` again and returns all there is to know of it.

    Args:
      plan: of the run.
      feed: its batches.
      state: from before the update.
      num_train: images in the training split.

    Returns:
      "step", "epoch"; "causes", sentences, the first cause first; "metrics", by name;
      "gradient", the norm of the whole; "layers", in the order of the computation, each
      with the norms of its parameters, their gradient and its running statistics; and
      of the batch "rows" in the training split, "labels" and "views", by name, with
      what was drawn.
    """
    step = int(state.step)
    found = _compute_again(plan, feed, state, step)
    layers = _layers(plan.method, jax.device_get(state), found.gradients)
    gradient = _norm([layer["gradient"] for layer in layers])
    epoch, batch = divmod(step, plan.steps_per_epoch)
    rows = TrainingRows(
        plan.seed, num_train, plan.steps_per_epoch, plan.batch_size, (0, 0)
    )
    views = {
        name: {**view, "drawn": found.drawn[name]} for name, view in found.views.items()
    }
    return {
        "step": step,
        "epoch": epoch,
        "causes": _causes(found, layers, gradient),
        "metrics": found.metrics,
        "gradient": gradient,
        "layers": layers,
        "rows": rows.epoch(epoch)[batch],
        "labels": found.labels,
        "views": views,
    }


def _compute_again(plan: Plan, feed: Feed, state: TrainState, step: int) -> _Found:
    def examine(state, *arguments):
        key = train_step.stream(np.uint32(plan.seed), train_step.TRAINING)
        key = jax.random.fold_in(key, state.step)
        images, labels = feed.pick_train(state.step, *arguments)
        views = plan.method.make_views(key, images, train=True)
        (_, (metrics, _)), gradients = train_step.differentiate(
            plan.method, plan.graphdef, state, views, labels
        )
        known = {
            name: {
                "finite": jnp.isfinite(view.images).all(axis=(1, 2, 3)),
                **{k: v for k, v in view._asdict().items() if k != "images"},
            }
            for name, view in views._asdict().items()
            if view is not None
        }
        drawn = plan.method.draws(key, len(images))
        return _Found(metrics, gradients, labels, drawn, known)

    first = step - step % plan.steps_per_call  # calls begin at their multiples
    with contextlib.closing(feed.training(first)) as calls, jax.set_mesh(plan.mesh):
        examine = jax.jit(examine, out_shardings=mesh.replicated(plan.mesh))
        return jax.device_get(examine(state, *next(calls)))


def _layers(method: Method, state: TrainState, gradients: dict) -> list[dict[str, Any]]:
    """Returns the norms of each layer; in float64, in which no square overflows."""
    trees = {
        "parameters": state.params,
        "gradient": gradients,
        "statistics": state.batch_stats,
    }
    layers = []
    for path in _order(method):
        layer = {"layer": ".".join(map(str, path))}
        for name, tree in trees.items():
            arrays = _arrays_at(tree, path)
            if arrays:
                layer[name] = _norm([_norm(array) for array in arrays])
        layers.append(layer)
    return layers


def _norm(values: np.ndarray | Sequence[float]) -> float:
    return float(np.sqrt(np.sum(np.square(np.asarray(values, np.float64)))))


def _arrays_at(tree: Mapping, path: Sequence) -> list[np.ndarray]:
    """Returns the arrays directly under `path`, none where it leads nowhere."""
    for name in path:
        tree = tree.get(name, {})
    return [array for array in tree.values() if not isinstance(array, Mapping)]


def _order(method: Method) -> list[tuple]:
    """Returns the paths of the layers in the order in which they are computed.

    Modules write their layers down in that order; a dict of arrays has the order of the
    alphabet.
    """
    paths = []

    def begin() -> None:
        paths.extend(_walk(method.init(nnx.Rngs(0)), ()))

    jax.eval_shape(begin)
    return list(dict.fromkeys(paths))


def _walk(module: nnx.Module, path: tuple) -> Iterator[tuple]:
    inside = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    for name, child in inside:
        if isinstance(child, nnx.Module):
            yield from _walk(child, (*path, name))
        elif isinstance(child, nnx.Variable):
            yield path


def _causes(found: _Found, layers: Sequence[Mapping], gradient: float) -> list[str]:
    """Says what is not finite, in the order in which one thing leads to another."""
    causes = []
    if broken := _not_finite(layers, "parameters"):
        causes.append(f"the parameters of {_name(broken)} were not finite before it")
    for name, view in found.views.items():
        if bad := np.sum(~view["finite"]):
            of = f"of {len(view['finite'])} images of the {name} view"
            causes.append(f"{bad} {of} are not finite")
    parts = {k: v for k, v in found.metrics.items() if not np.isfinite(v)}
    names = sorted(parts, key=lambda name: name == _TOTAL)  # stable
    if names:
        causes.append(", ".join(f"{name}={parts[name]:g}" for name in names))
    if broken := _not_finite(layers, "gradient"):
        # The gradient runs backwards: the last layer is where it breaks first.
        value = f"the gradient of {_name(broken[::-1])} is {broken[-1]['gradient']:g}"
        loss = found.metrics[_TOTAL]
        causes.append(value if names else f"{value} while the loss is {loss:g}")
    if not causes and gradient**2 > float(np.finfo(np.float32).max):
        causes.append(f"the norm of the gradient, {gradient:g}, overflows when squared")
    return causes or [
        "computed again it is finite, so it lies at the edge of the number format or "
        "a device has failed"
    ]


def _not_finite(layers: Sequence[Mapping], name: str) -> list[Mapping]:
    return [each for each in layers if not np.isfinite(each.get(name, 0.0))]


def _name(layers: Sequence[Mapping]) -> str:
    more = f" and {len(layers) - 1} more layers" if len(layers) > 1 else ""
    return f"{layers[0]['layer']}{more}"
