"""Local equivariance: how fast representations change as a transformation sets in.

The derivative d/dt of rho(-t) f(T(t) x) at t = 0, by one `jax.jvp` through T and the
encoder f, which needs no second image and no finite step. rho is the action on
representations: none at all, so that the derivative says how far f is from invariant;
and for a group of DUET's that represents turns of the image, the shift of its bins.

Source: the Lie derivative of Gruver et al. 2023, "The Lie Derivative for Measuring
Learned Equivariance". Theirs is a squared length of logits; ours is a root mean square,
relative to how far representations of different images are apart. Of the layers we take
the mean over the pixels, which stays the same where a layer moves with the image.
Images are sampled bilinearly: their slopes are differences of neighboring pixels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.augmentations import geometric, normalize, photometric, to_float
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import spaced
from duet_jax.evaluation.readouts import PLUS_MINUS, plus_minus
from duet_jax.evaluation.result import Table
from duet_jax.methods.base import groups_of
from duet_jax.methods.groups import Group
from duet_jax.metrics import actions
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.types import Array

_IMAGES, _BATCH = 512, 128
# A variance below this share of the mean square is rounding: there is no distance.
_CONSTANT = 1e-12
INVARIANT, SHIFTED = "invariant", "bins shifted"


class Flow(NamedTuple):
    """A transformation that sets in at t = 0.

    Attributes:
      unit: of t.
      apply: (images [n, side, side, channels] in [0, 1], t) -> images.
      turn: t of a full turn of the image; 0 if it does not turn it.
      channels: numbers of image channels that it can take.
    """

    unit: str
    apply: Callable[[Array, Array], Array]
    turn: float = 0.0
    channels: tuple[int, ...] = (1, 3)


def _rotate(images: Array, degrees: Array) -> Array:
    return geometric.rotate(images, jnp.full(len(images), degrees))


def _sample(images: Array, place: Callable[[Array], tuple[Array, Array]]) -> Array:
    """Samples images at the rows and columns that `place` makes of 0 ... side - 1."""
    rows, columns = place(jnp.arange(images.shape[1], dtype=jnp.float32))
    return jax.vmap(geometric.sample_bilinear, in_axes=(0, None, None))(
        images, rows[:, None], columns[None, :]
    )


def _translate(images: Array, pixels: Array) -> Array:
    return _sample(images, lambda at: (at, at - pixels))


def _zoom(images: Array, percent: Array) -> Array:
    center = (images.shape[1] - 1) / 2

    def place(at: Array) -> tuple[Array, Array]:
        at = center + (at - center) / (1 + percent / 100)
        return at, at

    return _sample(images, place)


def _brighten(images: Array, percent: Array) -> Array:
    factor = jnp.full(len(images), 1 + percent / 100)
    return photometric.adjust_brightness(images, factor)


def _shift_hue(images: Array, degrees: Array) -> Array:
    return photometric.adjust_hue(images, jnp.full(len(images), degrees / 360))


FLOWS = {
    "rotation": Flow("degree", _rotate, turn=360.0),
    "translation": Flow("pixel", _translate),
    "scale": Flow("percent", _zoom),
    "brightness": Flow("percent", _brighten),
    "hue": Flow("degree", _shift_hue, channels=(3,)),
}
# Codes whose structure is the angle of a turned image.
_TURNS = ("rot", "ron")


def possible(evaluation: Evaluation) -> bool:
    """Returns whether the encoder has derivatives."""
    return hasattr(evaluation.run.encoder, "differentiable")


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the local equivariance errors of every flow; {} without derivatives.

    Args:
      evaluation: of a run whose encoder has a `differentiable` form.

    Returns:
      Flow -> "unit"; "full", by action rho: "error", the root mean square change per
      unit over the root mean square distance of representations from their mean, and
      its interval over images, nan if all are equal; and "layers", the same of each
      layer, invariant.
    """
    encoder = evaluation.run.encoder
    if not possible(evaluation):
        return {}
    images = spaced(evaluation.split("test").images, _IMAGES)
    stack = evaluation.run.method.two_views.stack
    views = np.asarray(jax.jit(lambda x: stack.apply(to_float(x), None))(images))
    function = encoder.differentiable()
    groups = [g for g in groups_of(evaluation.run.method) if g.code in _TURNS]
    found = {}
    for name, flow in FLOWS.items():
        if views.shape[3] in flow.channels:
            turned = groups[:1] if flow.turn else []
            parts = _derivatives(function, encoder.state, flow, turned, views)
            found[name] = {"unit": flow.unit, **_scores(parts)}
    return found


def _derivatives(
    function: Callable, state: tuple, flow: Flow, groups: list[Group], views: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns representations and their derivatives, each [n, d], by name."""

    @jax.jit
    def differentiate(state: tuple, views: Array) -> tuple[dict, dict]:
        def moved(t: Array) -> dict[str, Array]:
            found = function(state, normalize(flow.apply(views, t)))
            found = {
                name: each
                for name, each in found.items()
                if name == "full" or name.startswith("layer ")
            }
            for group in groups:
                back = -t * group.num_bins / flow.turn
                matrix = representation.shift(group.matrix(found["full"]), back)
                found[SHIFTED] = group.replace(found["full"], matrix)
            return found

        return jax.jvp(moved, (0.0,), (1.0,))

    size = min(_BATCH, len(views))
    parts = []
    for start in range(0, len(views), size):
        batch = views[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
        made = jax.device_get(differentiate(state, padded))
        parts.append(made)
    values, changes = jax.tree.map(lambda *x: np.concatenate(x)[: len(views)], *parts)
    return {name: (values[name], changes[name]) for name in values}


def _scores(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    full, layers = {}, {}
    in_order = sorted(parts, key=lambda name: (name != "layer stem", name))
    for name in in_order:
        values, changes = parts[name]
        score = _error(values, changes)
        if name.startswith("layer "):
            layers[name.removeprefix("layer ")] = score
        else:
            full[INVARIANT if name == "full" else name] = score
    return {"full": full, "layers": layers}


def _error(values: np.ndarray, changes: np.ndarray) -> dict[str, Any]:
    """Returns the relative root mean square of derivatives, with its interval."""
    centered = values - values.mean(axis=0, dtype=np.float64)[None, :]
    change, spread, size = (
        np.square(x).sum(axis=1, dtype=np.float64) for x in (changes, centered, values)
    )
    if spread.sum() <= _CONSTANT * size.sum():
        spread = np.zeros_like(spread)
    columns = np.stack([change, spread], axis=1)
    return {
        "error": float(actions.relative_error(columns.mean(axis=0))),
        "error_interval": measures.bootstrap(columns, actions.relative_error),
    }


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Returns a table with a row for each flow; none if nothing was measured."""
    if not found:
        return []
    first = next(iter(found.values()))
    rhos = [*dict.fromkeys(rho for each in found.values() for rho in each["full"])]
    rows = tuple(
        (
            f"{name}, {each['unit']}",
            *(
                plus_minus(each["full"].get(rho, {"error": None}), "error", ".3g")
                for rho in rhos
            ),
            *(f"{layer['error']:.2g}" for layer in each["layers"].values()),
        )
        for name, each in found.items()
    )
    note = (
        "Root mean square of d/dt rho(-t) f(T(t) x) at t = 0, relative to the distance "
        "of test images' representations from their mean; lower is better. Columns: "
        "full features under each action rho, then the layers' means over pixels, "
        f"invariant. {PLUS_MINUS}"
    )
    header = ("per", *rhos, *first["layers"])
    return [Table("local equivariance error", header, rows, note)]
