"""Actions: whether a representation can be moved like the image was transformed.

*Retrieval*: from the representation of a test image as it is and the parameter of a
transformation, that of the transformed image is predicted, and looked for among the
views of the image (MRR, H@k) and among those of all test images (PRE). *Geometry*: all
images are transformed alike; how far the representations are from having been rotated
(Procrustes), how much their distances change (gamma), and whether maps fitted to two
transformations make that of both (composition).

What is fitted is fitted to training images. Definitions: `metrics.actions`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code, spaced
from duet_jax.evaluation.readouts import PLUS_MINUS, plus_minus
from duet_jax.evaluation.result import Table
from duet_jax.methods.base import Predictive, group_of
from duet_jax.metrics import actions
from duet_jax.metrics import equivariance as measures
from duet_jax.models import representation
from duet_jax.probes import ridge

# Test images whose views are ranked, views of each, and the ranks that count as hits.
_IMAGES, _VIEWS, HITS = 500, 50, (1, 5, 10)
# Views of an image whose nearest neighbor among all views is looked for.
_QUERIES = 10
# Training images for a linear map, for each feature, and at most; and outputs that are
# fitted together, whose arrays must fit into memory.
_PER_FEATURE, _MOST_FITTED, _OUTPUTS = 4, 2000, 16_384
# Images of a split that are transformed alike, by so many parameters over the range.
_SHARED, _ACTIONS = 2000, 8
# Structure values that are nearer to each other are the same.
_SAME = 1e-5

SHIFT, MAPPED, OWN = "bins shifted", "linear map", "own predictor"
UNMOVED, CHANCE = "unmoved", "chance"


def measure(evaluation: Evaluation, code: Code) -> dict[str, Any]:
    """Returns "retrieval" and "geometry" of one augmentation; see `tables`.

    Args:
      evaluation: of a run.
      code: the augmentation. What else it draws has its neutral or middle value.
    """
    return {
        "retrieval": _retrieve(evaluation, code),
        "geometry": _compare(evaluation, code),
    }


# Retrieval.


def _retrieve(evaluation: Evaluation, code: Code) -> dict[str, Any]:
    images = spaced(evaluation.split("test").images, _IMAGES)
    values = _views(code)
    with evaluation.timed("encoding"):
        candidates = np.stack(
            [_encode_at(evaluation, code, images, value) for value in values], axis=1
        )
    predictions = _predict(evaluation, code, candidates[:, 0], values)
    predictions = {name: (each, candidates) for name, each in predictions.items()}
    predictions |= _predict_itself(evaluation, code, candidates, values)
    mrr, hits = actions.chance(len(values))
    scores: dict[str, Any] = {
        "images": len(images),
        "views": len(values),
        "predictors": {},
    }
    for name, (predicted, among) in predictions.items():
        with evaluation.timed("retrieval"):
            scores["predictors"][name] = _score(code, predicted, among, values)
    scores[CHANCE] = {
        "mrr": mrr,
        **{f"hits_{k}": hits(k) for k in HITS},
        "pre": _chance_pre(code, values),
    }
    return scores


def _views(code: Code) -> np.ndarray:
    """Returns the structure values of the views of every image, [views].

    View 0 is the image as it is; the others are evenly spread over what is drawn, and
    all different: a crop has a whole number of pixels, and so fewer views.
    """
    start = code.identity()
    if code.levels is not None:
        others = np.array([x for x in code.levels if abs(x - start) > _SAME])
        return np.array([start, *others])
    others = _distinct(code, np.quantile(code.drawn(), _places(_VIEWS)))
    apart = np.abs(measures.errors(start, others, circular=code.circular))
    # Of as many as there are views, that which is nearest to view 0 is not needed.
    nearest = np.argmin(apart) if len(others) == _VIEWS else -1
    kept = (apart > _SAME) & (np.arange(len(others)) != nearest)
    return np.array([start, *others[kept]])


def _places(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _distinct(code: Code, values: np.ndarray) -> np.ndarray:
    """Returns the structure values nearest to some that images can have, each once."""
    possible = np.asarray(code.values(code.draws_at(values)), np.float64)
    return np.unique(possible.round(6))


def _encode_at(
    evaluation: Evaluation, code: Code, images: np.ndarray, value: float
) -> np.ndarray:
    """Returns the full features of images at one structure value, [n, d]."""
    if abs(value - code.identity()) < _SAME:  # not solarized a little, say
        draws = code.stack.identity(len(images))
    else:
        draws = code.draws_at(np.full(len(images), value))
    return evaluation.run.encoder(images, code.stack, draws)["full"]


def _predict(
    evaluation: Evaluation, code: Code, start: np.ndarray, values: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the predicted features of every view, [n, views, d], by predictor.

    Args:
      evaluation: of a run.
      code: the augmentation.
      start: features of the images as they are, [n, d].
      values: structure values of the views, [views].
    """
    found = {}
    group = group_of(evaluation.run.method, code.name)
    if group is not None and code.circular and group.num_bins > 1:
        shifted = []
        for value in values:
            by = group.num_bins * (value - code.identity())
            matrix = representation.shift(group.matrix(start), by)
            shifted.append(np.asarray(group.replace(start, matrix)))
        found[SHIFT] = np.stack(shifted, axis=1)
    found[MAPPED] = _mapped(evaluation, code, start, values)
    found[UNMOVED] = np.repeat(start[:, None], len(values), axis=1)
    return found


def _predict_itself(
    evaluation: Evaluation, code: Code, views: np.ndarray, values: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns what a method's own predictor predicts, and what it should.

    Args:
      evaluation: of a run.
      code: the augmentation.
      views: features of the views, the images as they are first, [n, views, d].
      values: their structure values, [views].

    Returns:
      Predicted and true embeddings, [n, views, dimensions]; {} for a method without a
      predictor, or one that is not told of the augmentation.
    """
    method = evaluation.run.method
    if not isinstance(method, Predictive) or code.name not in method.learned:
        return {}
    networks = evaluation.run.networks(*method.predictive_parts)
    n, stack = len(views), method.two_views.stack
    true = np.asarray(
        method.embed(networks, jnp.asarray(views.reshape(-1, views.shape[2])))
    )
    true = true.reshape(*views.shape[:2], -1)
    plain, predicted = stack.parameters(stack.identity(n)), []
    for value in values:
        told = code.stack.parameters(code.draws_at(np.full(n, value)))
        predicted.append(method.predict(networks, true[:, 0], plain | told))
    return {OWN: (np.stack(predicted, axis=1), true)}


def _mapped(
    evaluation: Evaluation, code: Code, start: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Returns what a linear map for each view makes of features, [n, views, d]."""
    features = start.shape[1]
    count = min(_PER_FEATURE * features, _MOST_FITTED)
    images = spaced(evaluation.split("train").images, count)

    def encode(value: float) -> np.ndarray:
        with evaluation.timed("encoding"):
            return _encode_at(evaluation, code, images, value)

    base, together, found = encode(code.identity()), max(1, _OUTPUTS // features), []
    for first in range(0, len(values), together):
        moved = [encode(value) for value in values[first : first + together]]
        with evaluation.timed("regression"):
            # Side by side: they share the decomposition, and a strength.
            fit = ridge.fit_with_selection(base, np.concatenate(moved, axis=1))
            made = np.float32(fit.predict(start))
        found.append(made.reshape(len(start), len(moved), -1))
    return np.concatenate(found, axis=1)


def _score(
    code: Code, predicted: np.ndarray, candidates: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    """Returns MRR, H@k, and PRE of one predictor, with intervals over images."""
    ranks = actions.ranks(predicted, candidates)
    by_image = {"mrr": ranks.reciprocal()}
    by_image |= {f"hits_{k}": ranks.hits(k) for k in HITS}
    _, views, features = candidates.shape
    chosen = np.linspace(0, views - 1, min(views, _QUERIES)).astype(int)
    near = actions.nearest(
        predicted[:, chosen].reshape(-1, features), candidates.reshape(-1, features)
    )
    found = values[near % views].reshape(-1, len(chosen))
    by_image["pre"] = actions.parameter_distance(
        values[None, chosen], found, circular=code.circular
    )
    return {
        key: each
        for name, rows in by_image.items()
        for key, each in _with_interval(name, rows.mean(axis=1)).items()
    }


def _with_interval(name: str, rows: np.ndarray) -> dict[str, Any]:
    """Returns the mean of one value for each image, and its interval."""
    interval = measures.bootstrap(rows)
    return {name: float(rows.mean()), f"{name}_interval": interval}


def _chance_pre(code: Code, values: np.ndarray) -> float:
    """Returns the PRE of a view at random."""
    apart = actions.parameter_distance(
        values[:, None], values[None, :], circular=code.circular
    )
    return float(apart.mean())


# Geometry.


def _compare(evaluation: Evaluation, code: Code) -> dict[str, Any]:
    """Returns Procrustes error, gamma and composition error, over shared actions."""
    values = _shared_actions(code)
    if not len(values):  # every image is left as it is
        return {}
    start = {
        split: spaced(evaluation.split(split).images, _SHARED)
        for split in ("train", "test")
    }
    with evaluation.timed("encoding"):
        plain = {
            split: _encode_at(evaluation, code, each, code.identity())
            for split, each in start.items()
        }
        moved = {
            split: [_encode_at(evaluation, code, each, value) for value in values]
            for split, each in start.items()
        }
    with evaluation.timed("geometry"):
        return {
            "images": len(plain["test"]),
            "actions": code.parameter(values).tolist(),
            **_geometry(plain, moved),
            **_composition(code, values, plain, moved),
        }


def _shared_actions(code: Code) -> np.ndarray:
    """Returns structure values that are drawn, without that of the image as it is.

    On a circle they are evenly spaced, on both sides if only a part of it is drawn; on
    a line quantiles of what is drawn.
    """
    start = code.identity()
    if code.levels is not None:
        values = np.asarray(code.levels)
    elif not code.circular:
        values = _distinct(code, np.quantile(code.drawn(), _places(_ACTIONS)))
    else:
        reach = np.abs(measures.errors(start, code.drawn(), circular=True)).max()
        whole = code.reached([start + 0.5])[0]
        step = 1 / _ACTIONS if whole else 2 * reach / _ACTIONS
        values = (start + step * np.arange(-_ACTIONS // 2, _ACTIONS // 2 + 1)) % 1
        values = np.unique(values.round(6))
    apart = np.abs(measures.errors(start, values, circular=code.circular))
    return values[apart > _SAME]


def _geometry(
    plain: Mapping[str, np.ndarray], moved: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Returns the means over actions, with intervals over test images."""
    base, residuals, unmoved, gammas = plain["test"], [], [], []
    for train, test in zip(moved["train"], moved["test"], strict=True):
        rotation = actions.rotation(plain["train"], train)
        residuals.append(actions.residuals(base, test, rotation))
        unmoved.append(actions.residuals(base, test))
        gammas.append(actions.gamma(base, test))
    defined = np.isfinite(gammas).any(axis=0)
    gamma = np.nanmean(np.array(gammas)[:, defined], axis=0)
    return {
        **_relative("procrustes", np.mean(residuals, axis=0)),
        **_relative("unmoved", np.mean(unmoved, axis=0)),
        **(_with_interval("gamma", gamma) if len(gamma) else {"gamma": None}),
    }


def _relative(name: str, columns: np.ndarray) -> dict[str, Any]:
    """Returns the relative error of residuals [n, 2], and its interval."""
    return {
        name: float(actions.relative_error(columns.mean(axis=0))),
        f"{name}_interval": measures.bootstrap(columns, actions.relative_error),
    }


def _composition(
    code: Code,
    values: np.ndarray,
    plain: Mapping[str, np.ndarray],
    moved: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """Returns the composition error over all pairs of actions that make a third.

    On a circle only: there it is known which action two of them make.
    """
    if not code.circular:
        return {}
    maps = [actions.linear_map(plain["train"], each) for each in moved["train"]]
    turns = (values - code.identity()) % 1
    found = []
    for first, by in zip(maps, turns, strict=True):
        for second, also in zip(maps, turns, strict=True):
            apart = np.abs(measures.errors(turns, (by + also) % 1, circular=True))
            if apart.min() < _SAME:
                both = maps[int(np.argmin(apart))]
                found.append(
                    actions.composition_residuals(plain["test"], both, first, second)
                )
    return _relative("composition", np.mean(found, axis=0)) if found else {}


# Tables.


def tables(code: Code, found: Mapping[str, Any]) -> list[Table]:
    """Returns a table of the retrieval and one of the geometry."""
    retrieval = _retrieval_table(code, found["retrieval"])
    return [retrieval, *([_geometry_table(code, found)] if found["geometry"] else [])]


def _retrieval_table(code: Code, found: Mapping[str, Any]) -> Table:
    names = ("mrr", *(f"hits_{k}" for k in HITS), "pre")
    rows = [
        (name, *(plus_minus(scores, each, ".3f") for each in names))
        for name, scores in found["predictors"].items()
    ]
    rows.append((CHANCE, *(f"{found[CHANCE][each]:.3f}" for each in names)))
    return Table(
        f"{code.name}: the transformed image's representation, predicted and found",
        ("predictor", "MRR", *(f"H@{k}" for k in HITS), "PRE"),
        tuple(rows),
        f"Over {found['images']} test images of {found['views']} views each, from the "
        "image as it is and the parameter. MRR, H@k: rank of the right view among "
        "those of the image by cosine, higher is better. PRE: distance of the "
        "parameter of the nearest view of all images from the wanted one, lower is "
        f"better. {PLUS_MINUS}",
        code.name,
    )


def _geometry_table(code: Code, found: Mapping[str, Any]) -> Table:
    scores = found["geometry"]
    names = {
        "procrustes": "Procrustes error",
        "unmoved": "the same without a rotation",
        "gamma": "gamma",
        "composition": "composition error",
    }
    rows = tuple(
        (title, plus_minus(scores, name, ".3f"))
        for name, title in names.items()
        if name in scores
    )
    return Table(
        f"{code.name}: geometry of shared transformations",
        ("measure", "lower is better"),
        rows,
        f"Over {scores['images']} test images, all transformed alike, and "
        f"{len(scores['actions'])} transformations. {PLUS_MINUS}",
        code.name,
    )
