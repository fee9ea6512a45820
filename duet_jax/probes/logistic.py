"""Multinomial logistic regression, solved to convergence.

Minimizes, on standardized features, the mean cross-entropy plus l2/2 times the squared
norm of the weights; the bias is not penalized. This is scikit-learn's
`LogisticRegression` with C = 1 / (l2 n) on the same standardized features.

Three things make it fast. All strengths are fitted at once, so that the features are
read once for all of them. The weights are optimized in the eigenvectors of the
features' second moment, each scaled by the curvature there: W = V S U, where S^2 =
1 / (eigenvalue / classes + l2), an exact change of variables. And every strength has
its own line search; the trials of all of them are evaluated together.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from duet_jax.errors import UsageError
from duet_jax.metrics.classification import classification
from duet_jax.probes import inputs
from duet_jax.types import Array

__all__ = ["LogisticFit", "fit", "fit_with_selection"]

STRENGTHS = tuple(float(10.0**-exponent) for exponent in np.arange(0, 5.5, 0.5))
"""L2 strengths to choose from, from the strongest to the weakest."""

# A fit has converged if no absolute gradient of the objective, with respect to the
# weights of the standardized features and the bias, is larger.
TOLERANCE = 1e-5
MAX_EVALUATIONS = 500

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_MEMORY = 10  # pairs of L-BFGS
_LBFGS = optax.scale_by_lbfgs(memory_size=_MEMORY)
_ARMIJO = 1e-4
# Rounding of the objective in float32, see `_accepts`: relative, and absolute because
# the logarithm of a probability near 1 is that of 1 rounded.
_RELATIVE_NOISE = 1e-6
_ABSOLUTE_NOISE = 1e-7
_SMALLEST_STEP = 1e-6
# Memory for the states of the strengths that are fitted together, and the arrays in the
# state of one strength: two memories of L-BFGS, and about ten that an update needs.
_STATE_BYTES = 2**30
_STATE_ARRAYS = 2 * _MEMORY + 10
# Logits in one block of examples: small enough for a cache, large enough for speed.
_BLOCK_LOGITS = 2**19
# Fewest and most examples in a block, which also reads the weights once.
_BLOCK_ROWS = (512, 8192)
# Fewer columns are filled up with zeros, and rows to a multiple, as long as the filled
# matrix is no larger than the last: to compile for another shape takes longer.
_COLUMNS, _ROWS, _SMALL = 128, 512, 2**20


class Linear(NamedTuple):
    """Weights of a linear layer; a leading axis of fits may precede the shapes.

    Attributes:
      kernel: float32 [d, classes].
      bias: float32 [classes].
    """

    kernel: Array
    bias: Array


class LogisticFit(NamedTuple):
    """A fitted classifier of raw features.

    Attributes:
      standardization: of the examples it was fitted on.
      linear: weights on standardized features.
      l2: strength of the penalty.
      loss: the minimized objective in nats, with the penalty.
      gradient_norm: largest absolute gradient of the objective.
      iterations: of L-BFGS.
      converged: True if the gradient fell to the tolerance; after a selection, in all
        the fits that were compared as well.
      held_out: top-1 accuracy on the held-out tenth by strength, in [0, 1]; empty
        without a selection.
    """

    standardization: inputs.Standardization
    linear: Linear
    l2: float
    loss: float
    gradient_norm: float
    iterations: int
    converged: bool
    held_out: dict[float, float]

    def logits(self, features) -> Array:
        """Returns the logits [n, classes] of raw `features` [n, d]."""
        features = jnp.asarray(features, jnp.float32)
        return _logits(self.standardization, self.linear, features)


class _Blocks(NamedTuple):
    """Standardized examples in equal blocks.

    Attributes:
      features: float32 [blocks, rows, d].
      labels: int32 [blocks, rows].
      weights: [blocks, rows], one over the number of examples; 0 for padding.
    """

    features: Array
    labels: Array
    weights: Array


class _Search(NamedTuple):
    """State of L-BFGS at one strength, in scaled coordinates.

    Attributes:
      point: the current point.
      value: its objective.
      gradient: with respect to `point`.
      norm: largest absolute gradient with respect to the weights themselves.
      direction: of the line search.
      slope: derivative of the objective along `direction`, negative.
      step: along `direction`, to be tried next.
      memory: of L-BFGS.
      iterations: steps accepted.
    """

    point: Linear
    value: Array
    gradient: Linear
    norm: Array
    direction: Linear
    slope: Array
    step: Array
    memory: optax.OptState
    iterations: Array


@jax.jit
def _logits(
    standardization: inputs.Standardization, linear: Linear, features: Array
) -> Array:
    z = standardization.apply(features)
    return _matmul(z, linear.kernel) + linear.bias[None, :]


def cross_entropy(linear: Linear, blocks: _Blocks) -> tuple[Array, Linear]:
    """Returns the mean cross-entropy of several linear layers, and its gradient.

    The gradient is written out because differentiating the scan would store the
    probabilities of all examples.

    Args:
      linear: with a leading axis of fits.
      blocks: the examples.

    Returns:
      Losses in nats [fits], and gradients in the shapes of `linear`.
    """
    num_classes = linear.bias.shape[-1]

    def add(total, block):
        features, labels, weights = block
        logits = _einsum("nd,sdc->nsc", features, linear.kernel)
        log_p = jax.nn.log_softmax(logits + linear.bias[None, :, :], axis=2)
        truth = jax.nn.one_hot(labels, num_classes)[:, None, :]
        weights = weights[:, None, None]
        error = (jnp.exp(log_p) - truth) * weights
        # Not a product with `truth`: an improbable class may have logarithm -inf.
        chosen = jnp.where(truth > 0, log_p * weights, 0)
        kernel = _einsum("nd,nsc->sdc", features, error)
        part = (-jnp.sum(chosen, axis=(0, 2)), Linear(kernel, jnp.sum(error, axis=0)))
        return jax.tree.map(jnp.add, total, part), None

    zero = (jnp.zeros(len(linear.bias)), jax.tree.map(jnp.zeros_like, linear))
    return jax.lax.scan(add, zero, blocks)[0]


class _Coordinates(NamedTuple):
    """The change of variables: kernel = basis @ (scales * point.kernel).

    Attributes:
      basis: eigenvectors of the second moment, [d, d].
      scales: [fits, d].
      bias_scale: scalar.
    """

    basis: Array
    scales: Array
    bias_scale: Array

    def linear(self, point: Linear) -> Linear:
        scaled = self.scales[:, :, None] * point.kernel
        kernel = _einsum("de,sec->sdc", self.basis, scaled)
        return Linear(kernel, self.bias_scale * point.bias)

    def gradient(self, gradient: Linear) -> Linear:
        """Converts a gradient with respect to the weights to one of the point."""
        kernel = _einsum("de,sdc->sec", self.basis, gradient.kernel)
        return Linear(self.scales[:, :, None] * kernel, self.bias_scale * gradient.bias)

    def point(self, linear: Linear) -> Linear:
        kernel = _einsum("de,sdc->sec", self.basis, linear.kernel)
        return Linear(kernel / self.scales[:, :, None], linear.bias / self.bias_scale)


def _objective(
    point: Linear, coordinates: _Coordinates, l2: Array, blocks: _Blocks
) -> tuple[Array, Linear, Array]:
    """Returns objectives [fits], gradients of the points, norms of those of weights."""
    linear = coordinates.linear(point)
    loss, gradient = cross_entropy(linear, blocks)
    loss += l2 / 2 * jnp.sum(jnp.square(linear.kernel), axis=(1, 2))
    gradient = gradient._replace(
        kernel=gradient.kernel + l2[:, None, None] * linear.kernel
    )
    norm = jnp.maximum(
        jnp.max(jnp.abs(gradient.kernel), axis=(1, 2)),
        jnp.max(jnp.abs(gradient.bias), axis=1),
    )
    return loss, coordinates.gradient(gradient), norm


def _aimed(search: _Search) -> _Search:
    """Returns the search with the direction for its new point and gradient."""
    update, memory = _LBFGS.update(search.gradient, search.memory, search.point)
    slope = -optax.tree.vdot(update, search.gradient)
    # Close to the minimum, rounding may make the direction ascend.
    usable = slope < 0
    direction = jax.tree.map(
        lambda u, g: jnp.where(usable, -u, -g), update, search.gradient
    )
    slope = jnp.where(usable, slope, -optax.tree.norm(search.gradient, squared=True))
    return search._replace(
        direction=direction,
        slope=slope,
        step=jnp.ones_like(slope),
        memory=memory,
        iterations=search.iterations + 1,
    )


def _accepts(search: _Search, value: Array, slope: Array) -> Array:
    """Returns True if a trial decreases the objective enough.

    Armijo's condition; or, if the decrease is within the rounding of the objective,
    that of Hager and Zhang (2005), which uses the slopes.
    """
    armijo = value <= search.value + _ARMIJO * search.step * search.slope
    noise = _RELATIVE_NOISE * jnp.abs(search.value) + _ABSOLUTE_NOISE
    near = value <= search.value + noise
    return armijo | (near & (slope <= (2 * _ARMIJO - 1) * search.slope))


def _advance(
    search: _Search, value: Array, gradient: Linear, norm: Array, tolerance: Array
) -> _Search:
    """Returns the search after the trial of its step; unchanged once it has ended."""
    slope = optax.tree.vdot(gradient, search.direction)
    accepted = _aimed(
        search._replace(point=_trial(search), value=value, gradient=gradient, norm=norm)
    )
    # The objective is convex: the secant of the slopes estimates the minimum.
    secant = search.slope / (search.slope - slope)
    shrink = jnp.where(jnp.isfinite(secant), jnp.clip(secant, 0.1, 0.5), 0.1)
    rejected = search._replace(step=search.step * shrink)
    is_accepted = _accepts(search, value, slope)
    is_active = _is_active(search, tolerance)
    return jax.tree.map(
        lambda yes, no, old: jnp.where(is_active, jnp.where(is_accepted, yes, no), old),
        accepted,
        rejected,
        search,
    )


def _trial(search: _Search) -> Linear:
    return optax.tree.add_scale(search.point, search.step, search.direction)


def _is_active(search: _Search, tolerance: Array) -> Array:
    return (search.norm > tolerance) & (search.step > _SMALLEST_STEP)


@jax.jit
def _solve(
    start: Linear,
    coordinates: _Coordinates,
    l2: Array,
    blocks: _Blocks,
    tolerance: Array,
    max_evaluations: Array,
) -> tuple[Linear, Array, Array, Array]:
    """Returns weights, objectives, gradient norms and iterations of all strengths."""

    def first(point):
        """A search whose first trial is its start, and is accepted."""
        nowhere = jax.tree.map(jnp.zeros_like, point)
        return _Search(
            point=point,
            value=jnp.float32(jnp.inf),
            gradient=nowhere,
            norm=jnp.float32(jnp.inf),
            direction=nowhere,
            slope=jnp.float32(0),
            step=jnp.float32(1),
            memory=_LBFGS.init(point),
            iterations=jnp.int32(-1),  # no step is made then
        )

    def unfinished(carry):
        searches, trials = carry
        return jnp.any(_is_active(searches, tolerance)) & (trials < max_evaluations)

    def advance(carry):
        searches, trials = carry
        outcome = _objective(jax.vmap(_trial)(searches), coordinates, l2, blocks)
        step = functools.partial(_advance, tolerance=tolerance)
        return jax.vmap(step)(searches, *outcome), trials + 1

    searches = jax.vmap(first)(coordinates.point(start))
    searches, _ = jax.lax.while_loop(unfinished, advance, (searches, jnp.int32(-1)))
    linear = coordinates.linear(searches.point)
    return linear, searches.value, searches.norm, searches.iterations


def _filled(features: np.ndarray) -> np.ndarray:
    """Adds constant columns to a few examples with fewer, which changes no fit."""
    n, d = features.shape
    missing = max(0, _COLUMNS - d) if n * _COLUMNS <= _SMALL else 0
    return np.pad(features, ((0, 0), (0, missing)))


def _blocks(
    standard: inputs.Standardization,
    features: np.ndarray,
    labels: np.ndarray,
    logits: int,
) -> _Blocks:
    """Returns standardized examples in blocks; `logits` is the number per example."""
    n, d = features.shape
    few = n if n * d > _SMALL else -(-n // _ROWS) * _ROWS
    rows = min(few, int(np.clip(_BLOCK_LOGITS // logits, *_BLOCK_ROWS)))
    count = -(-n // rows)
    padding = (0, count * rows - n)
    padded = np.zeros((count * rows, d), np.float32)
    for first in range(0, n, rows):
        block = features[first : first + rows]
        padded[first : first + len(block)] = standard.apply(block)
    weights = np.full(n, 1 / n, np.float32)
    return _Blocks(
        jnp.asarray(padded.reshape(count, rows, d)),
        jnp.asarray(np.pad(labels, padding).reshape(count, rows)),
        jnp.asarray(np.pad(weights, padding).reshape(count, rows)),
    )


@jax.jit
def _second_moment(blocks: _Blocks) -> Array:
    def add(total, block):
        weighted = block.features * block.weights[:, None]
        return total + _matmul(weighted.T, block.features), None

    d = blocks.features.shape[-1]
    return jax.lax.scan(add, jnp.zeros((d, d)), blocks)[0]


def fit(
    features,
    labels,
    *,
    num_classes: int,
    l2: Sequence[float],
    start: LogisticFit | None = None,
    tolerance: float = TOLERANCE,
    max_evaluations: int = MAX_EVALUATIONS,
) -> tuple[LogisticFit, ...]:
    """Fits multinomial logistic regression at every strength in `l2`.

    Args:
      features: raw, [n, d], finite.
      labels: int [n], from 0 to `num_classes` - 1.
      num_classes: of the classifier.
      l2: strengths of the penalty, positive. They are fitted together.
      start: a fit on other examples to start from; zero weights if None.
      tolerance: of the largest absolute gradient. Below about 1e-7 float32 decides.
      max_evaluations: of the objective. Fits that do not reach the tolerance by then
        are not `converged`.

    Returns:
      One fit per strength, in their order.

    Raises:
      UsageError: a strength is not positive, or the examples do not fit.
    """
    features, labels = inputs.examples(features, labels, num_classes)
    if not l2 or min(l2) <= 0:
        raise UsageError(f"l2={tuple(l2)} must be positive; use {STRENGTHS[4]}, say.")
    standard = inputs.standardization(features)
    state_bytes = 4 * _STATE_ARRAYS * features.shape[1] * num_classes
    together = min(len(l2), max(1, _STATE_BYTES // state_bytes))
    blocks = _blocks(standard, features, labels, together * num_classes)
    moment = np.asarray(_second_moment(blocks), np.float64)
    eigenvalues, basis = np.linalg.eigh(moment)
    curvature = np.maximum(eigenvalues, 0)[None, :] / num_classes
    fits = []
    for first in range(0, len(l2), together):
        strengths = np.asarray(l2[first : first + together])
        coordinates = _Coordinates(
            jnp.asarray(basis, jnp.float32),
            jnp.asarray((curvature + strengths[:, None]) ** -0.5, jnp.float32),
            jnp.sqrt(jnp.float32(num_classes)),
        )
        solved = _solve(
            _start(start, standard, len(strengths), num_classes),
            coordinates,
            jnp.asarray(strengths, jnp.float32),
            blocks,
            jnp.float32(tolerance),
            jnp.int32(max_evaluations),
        )
        fits += _fits(standard, strengths, tolerance, solved)
    return tuple(fits)


def _fits(
    standard: inputs.Standardization,
    strengths: np.ndarray,
    tolerance: float,
    solved: tuple[Linear, Array, Array, Array],
) -> list[LogisticFit]:
    """Returns what `_solve` has found as one fit per strength."""
    linear, *facts = solved
    losses, norms, iterations = map(np.asarray, facts)
    return [
        LogisticFit(
            standardization=standard,
            linear=Linear(linear.kernel[i], linear.bias[i]),
            l2=float(strengths[i]),
            loss=float(losses[i]),
            gradient_norm=float(norms[i]),
            iterations=int(iterations[i]),
            converged=bool(norms[i] <= tolerance),
            held_out={},
        )
        for i in range(len(strengths))
    ]


def _start(
    start: LogisticFit | None,
    standard: inputs.Standardization,
    fits: int,
    num_classes: int,
) -> Linear:
    """Converts `start` to features that are standardized otherwise, for every fit."""
    if start is None:
        shape = (fits, len(standard.mean), num_classes)
        return Linear(jnp.zeros(shape), jnp.zeros((fits, num_classes)))
    old, (kernel, bias) = start.standardization, start.linear
    varies = standard.scale > 0
    ratio = np.where(varies, old.scale / np.where(varies, standard.scale, 1), 0)
    shift = ((standard.mean - old.mean) * old.scale).astype(np.float32)
    bias = bias + _matmul(shift, kernel)
    linear = Linear(jnp.asarray(ratio, jnp.float32)[:, None] * kernel, bias)
    return jax.tree.map(lambda x: jnp.repeat(x[None], fits, axis=0), linear)


def fit_with_selection(
    features,
    labels,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    max_evaluations: int = MAX_EVALUATIONS,
) -> LogisticFit:
    """Fits logistic regression with a strength chosen on a tenth of the examples.

    All strengths are fitted on nine tenths. The one with the best top-1 accuracy on the
    held-out tenth, among equals the strongest, is selected and fitted on everything,
    starting from its weights. Deterministic.

    Args:
      features: raw, [n, d], finite. Each fit standardizes by the examples it is fitted
        on; constant features are ignored.
      labels: int [n], from 0 to `num_classes` - 1. `inputs.held_out_tenth` says which
        are held out.
      num_classes: of the classifier.
      strengths: candidates for `l2`.
      max_evaluations: see `fit`.

    Raises:
      UsageError: as `fit`, or no class has two examples.
    """
    features, labels = inputs.examples(features, labels, num_classes)
    d = features.shape[1]
    features = _filled(features)
    held_out = inputs.held_out_tenth(labels)
    search = functools.partial(
        fit, num_classes=num_classes, max_evaluations=max_evaluations
    )
    ordered = sorted(strengths, reverse=True)
    candidates = search(features[~held_out], labels[~held_out], l2=ordered)
    queries, accuracies = jnp.asarray(features[held_out]), {}
    for each in candidates:
        logits = np.asarray(each.logits(queries))
        accuracies[each.l2] = classification(logits, labels[held_out]).top1
    best = max(candidates, key=lambda each: (accuracies[each.l2], each.l2))
    (chosen,) = search(features, labels, l2=[best.l2], start=best)
    converged = all(each.converged for each in (chosen, *candidates))
    mean, scale = chosen.standardization
    return chosen._replace(
        standardization=inputs.Standardization(mean[:d], scale[:d]),
        linear=chosen.linear._replace(kernel=chosen.linear.kernel[:d]),
        converged=converged,
        held_out=accuracies,
    )
