"""Diagnoses an update that was not finite by computing it again.

Under on_nonfinite=stop, the train step keeps the state before the broken update. Batch,
keys and draws follow from its step.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from duet_jax.errors import TrainingError
from duet_jax.methods import Method
from duet_jax.runtime import files, mesh, processes
from duet_jax.training import train_step
from duet_jax.training.batches import Feed
from duet_jax.training.plan import Plan
from duet_jax.types import TrainState

_log = logging.getLogger(__name__)

# The parts of the loss say more than the total, and come first.
_TOTAL = "loss"


def stop(
    plan: Plan,
    feed: Feed,
    state: TrainState,
    directory: pathlib.Path,
    last_good: int | None,
) -> TrainingError:
    """Diagnoses a broken update, writes a file and returns the error to raise.

    All processes of a job must call it: they compute together, the first one writes.

    Args:
      plan: of the run.
      feed: its batches.
      state: as the update left it; its step is that of the update.
      directory: of the run, receives nonfinite_step_<n>.json.
      last_good: step of the newest checkpoint; None if there is none.
    """
    _log.info("an update was not finite: computing it again ...")
    remedies = f"try {plan.remedy}"
    if not plan.of_decoders:
        remedies += ", or skip such updates with config.on_nonfinite=skip"
    step, kept = int(state.step), "there is no checkpoint yet"
    if last_good is not None:
        kept = f"the last good checkpoint is that of step {last_good}"
    try:
        diagnosis = diagnose(plan, feed, state)
    except Exception as error:  # say for lack of memory: not what ends the run
        reason = " ".join(str(error).split())[:200]
        return TrainingError(
            f"the update of step {step} is not finite; it was not applied, and cannot "
            f"be computed again ({reason}); {kept}; {remedies}."
        )
    path = directory / f"nonfinite_step_{step}.json"
    where = f"batch, draws and norms are in {path}"
    try:
        if processes.is_main_process():
            write(path, diagnosis)
    except OSError as error:  # the diagnosis matters more
        where = f"{path} could not be written ({error.strerror or error})"
    return TrainingError(
        f"the update of step {step} is not finite: {'; '.join(diagnosis['causes'])}. "
        f"It was not applied; {kept}; {where}; {remedies}."
    )


def write(path: str | os.PathLike, diagnosis: Mapping[str, Any]) -> None:
    """Writes a diagnosis as strict JSON, whole or not at all.

    Numbers that are not finite become "nan", "inf" or "-inf".
    """
    entries = ",\n".join(
        f"  {json.dumps(name)}: {_rows(_plain(value))}"
        for name, value in diagnosis.items()
    )
    with files.replacing(path) as partial:
        partial.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")


def _rows(value: Any) -> str:
    """Returns JSON with one line for each layer, and one for any other value."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        lines = (json.dumps(each, allow_nan=False) for each in value)
        return "[\n    " + ",\n    ".join(lines) + "\n  ]"
    return json.dumps(value, allow_nan=False)


def _plain(value: Any) -> Any:
    """Returns nested arrays and numbers as types that strict JSON has."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def diagnose(plan: Plan, feed: Feed, state: TrainState) -> dict[str, Any]:
    """Computes the update of `state.step` again and returns all that is known of it.

    Args:
      plan: of the run.
      feed: its batches.
      state: from before the update.

    Returns:
      "step", "epoch"; "causes", sentences, the first cause first; "metrics", by name;
      "gradient", the norm of the whole; "layers", in the order of the computation, each
      with the norms of its parameters, their gradient and its running statistics; and
      of the batch "rows" in the training split, "labels" and "views", by name, with
      what was drawn.
    """
    step = int(state.step)
    metrics, gradients, labels, views = _compute_again(plan, feed, state, step)
    layers = _layers(plan.method, jax.device_get(state), gradients)
    # A frozen layer has none.
    gradient = _norm([each["gradient"] for each in layers if "gradient" in each])
    epoch, batch = divmod(step, plan.steps_per_epoch)
    return {
        "step": step,
        "epoch": epoch,
        "causes": _causes(metrics, views, layers, gradient),
        "metrics": metrics,
        "gradient": gradient,
        "layers": layers,
        "rows": feed.rows.epoch(epoch)[batch],
        "labels": labels,
        "views": views,
    }


def _compute_again(
    plan: Plan, feed: Feed, state: TrainState, step: int
) -> tuple[dict[str, np.ndarray], dict, np.ndarray, dict[str, dict]]:
    """Returns metrics, gradients, labels and views of an update, on the host.

    Of each view: "finite" [images], "structure" by code or "targets", and "drawn", its
    random parameters.
    """

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
                # What is drawn says all that `parameters` does.
                **{
                    k: v
                    for k, v in view._asdict().items()
                    if k not in ("images", "parameters")
                },
            }
            for name, view in views._asdict().items()
            if view is not None
        }
        drawn = plan.method.draws(key, len(images))
        return metrics, gradients, labels, known, drawn

    first = step - step % plan.steps_per_call  # calls begin at multiples of it
    with contextlib.closing(feed.training(first)) as calls, jax.set_mesh(plan.mesh):
        examine = jax.jit(examine, out_shardings=mesh.replicated(plan.mesh))
        found = jax.device_get(examine(state, *next(calls)))
    metrics, gradients, labels, views, drawn = found
    for name, view in views.items():
        view["drawn"] = drawn[name]
    return metrics, gradients, labels, views


def _layers(method: Method, state: TrainState, gradients: dict) -> list[dict[str, Any]]:
    """Returns the norms of each layer, in float64, where no square overflows."""
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
    """Returns the arrays directly under `path`; [] if there is no such path."""
    for name in path:
        tree = tree.get(name, {})
    return [array for array in tree.values() if not isinstance(array, Mapping)]


def _order(method: Method) -> list[tuple]:
    """Returns the paths of the layers in the order in which they are computed.

    Modules define their layers in that order, while dicts of arrays are sorted by name.
    """
    paths: dict[tuple, None] = {}

    def walk(module: nnx.Module, path: tuple) -> None:
        is_list = isinstance(module, nnx.List)
        for name, child in enumerate(module) if is_list else vars(module).items():
            if isinstance(child, nnx.Module):
                walk(child, (*path, name))
            elif isinstance(child, nnx.Variable):
                paths[path] = None

    jax.eval_shape(lambda: walk(method.init(nnx.Rngs(0)), ()))
    return list(paths)


def _causes(
    metrics: Mapping[str, np.ndarray],
    views: Mapping[str, Mapping],
    layers: Sequence[Mapping],
    gradient: float,
) -> list[str]:
    """Returns what is not finite, in causal order."""
    causes = []
    if broken := _not_finite(layers, "parameters"):
        causes.append(f"the parameters of {_name(broken)} were not finite before it")
    for name, view in views.items():
        if bad := np.sum(~view["finite"]):
            of = f"of {len(view['finite'])} images of the {name} view"
            causes.append(f"{bad} {of} are not finite")
    parts = {k: v for k, v in metrics.items() if not np.isfinite(v)}
    names = sorted(parts, key=lambda name: name == _TOTAL)  # stable
    if names:
        causes.append(", ".join(f"{name}={parts[name]:g}" for name in names))
    if broken := _not_finite(layers, "gradient"):
        # Gradients are computed backwards: the last broken layer was the first one.
        value = f"the gradient of {_name(broken[::-1])} is {broken[-1]['gradient']:g}"
        loss = metrics[_TOTAL]
        causes.append(value if names else f"{value} while the loss is {loss:g}")
    if not causes and gradient**2 > float(np.finfo(np.float32).max):
        causes.append(f"the norm of the gradient, {gradient:g}, overflows when squared")
    return causes or [
        "computed again it is finite, so it is at the limit of the number format or a "
        "device has failed"
    ]


def _not_finite(layers: Sequence[Mapping], name: str) -> list[Mapping]:
    return [each for each in layers if not np.isfinite(each.get(name, 0.0))]


def _name(layers: Sequence[Mapping]) -> str:
    more = f" and {len(layers) - 1} more layers" if len(layers) > 1 else ""
    return f"{layers[0]['layer']}{more}"
