"""Multinomial logistic regression, solved to convergence.

Minimises, on standardised features, the mean cross-entropy plus l2/2 times the squared
norm of the weights; the bias is not penalised. This is scikit-learn's
`LogisticRegression` with C = 1 / (l2 n) on the same standardised features.

Three things make it fast. All strengths are fitted at once, so that the features are
read once for all of them. The weights are searched for in the eigenvectors of the
features' second moment, each scaled by the curvature there: W = V S U, where S^2 =
1 / (eigenvalue / classes + l2), an exact change of variables. And every strength has
its own line search, whose trials all go into one evaluation.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from duet_jax.errors import UsageError
from duet_jax.metrics import classification
from duet_jax.probes import inputs
from duet_jax.types import Array

STRENGTHS = tuple(float(10.0**-exponent) for exponent in np.arange(0, 5.5, 0.5))
"""Weights of the penalty that are tried, from the strongest to the weakest."""

# Largest absolute gradient of the objective, with respect to the weights of the
# standardised features and the bias, at which a fit counts as converged.
TOLERANCE = 1e-5
MAX_EVALUATIONS = 500

_PRECISION = jax.lax.Precision.HIGHEST
_MEMORY = 10  # pairs of L-BFGS
_ARMIJO = 1e-4
# What float32 does not resolve of the objective, see `_accepts`: a share of it, and
# an amount, because the logarithm of a probability near 1 is that of 1 rounded.
_RELATIVE_NOISE = 1e-6
_ABSOLUTE_NOISE = 1e-7
_SMALLEST_STEP = 1e-6
# What the states of the strengths that are searched together may take.
_STATE_BYTES = 2**30
# Logits in one block of examples: small enough for a cache, large enough for speed.
_BLOCK_LOGITS = 2**19
# Each block also reads the weights and adds to their gradient once.
_BLOCK_ROWS = (512, 8192)


class Linear(NamedTuple):
    """Weights of a linear layer; a leading axis of fits may precede the shapes.

    Attributes:
      kernel: float32 [d, classes].
      bias: float32 [classes].
    """

    kernel: Array
    bias: Array


class Classifier(NamedTuple):
    """A fitted classifier of raw features.

    Attributes:
      standardisation: of the examples it was fitted on.
      linear: weights on standardised features.
    """

    standardisation: inputs.Standardisation
    linear: Linear

    def logits(self, features) -> Array:
        """Logits [n, classes] of raw `features` [n, d]."""
        return _logits(self, jnp.asarray(features, jnp.float32))


class Solution(NamedTuple):
    """One fitted strength.

    Attributes:
      classifier: the solution.
      l2: weight of the penalty.
      loss: the minimised objective in nats, with the penalty.
      gradient_norm: largest absolute gradient of the objective there.
      iterations: of L-BFGS.
      converged: whether the gradient fell to the tolerance.
    """

    classifier: Classifier
    l2: float
    loss: float
    gradient_norm: float
    iterations: int
    converged: bool


class LogisticFit(NamedTuple):
    """What `fit_with_selection` returns.

    Attributes:
      solution: fitted on all examples with the selected strength.
      held_out: top-1 accuracy on the held-out tenth by strength, in [0, 1].
      all_converged: whether the fits that were compared converged as well.
    """

    solution: Solution
    held_out: dict[float, float]
    all_converged: bool

    def logits(self, features) -> Array:
        """Logits [n, classes] of raw `features` [n, d]."""
        return self.solution.classifier.logits(features)


class _Blocks(NamedTuple):
    """Standardised examples in equal blocks.

    Attributes:
      features: float32 [blocks, rows, d].
      labels: int32 [blocks, rows].
      weights: [blocks, rows], one over the number of examples; 0 for padding.
    """

    features: Array
    labels: Array
    weights: Array


class _Search(NamedTuple):
    """L-BFGS at one strength, in scaled coordinates.

    Attributes:
      point: where it stands.
      value: objective there.
      gradient: with respect to `point`.
      norm: largest absolute gradient with respect to the weights themselves.
      direction: in which it looks for the next point.
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
def _logits(classifier: Classifier, features: Array) -> Array:
    z = classifier.standardisation.apply(features)
    product = jnp.matmul(z, classifier.linear.kernel, precision=_PRECISION)
    return product + classifier.linear.bias[None, :]


def cross_entropy(linear: Linear, blocks: _Blocks) -> tuple[Array, Linear]:
    """Mean cross-entropy of several linear layers, and its gradient.

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
        logits = jnp.einsum(
            "nd,sdc->nsc", features, linear.kernel, precision=_PRECISION
        )
        log_p = jax.nn.log_softmax(logits + linear.bias[None, :, :], axis=2)
        truth = jax.nn.one_hot(labels, num_classes)[:, None, :]
        weights = weights[:, None, None]
        error = (jnp.exp(log_p) - truth) * weights
        # Not a product: a class may be so improbable that its logarithm is -inf.
        chosen = jnp.where(truth > 0, log_p * weights, 0)
        kernel = jnp.einsum("nd,nsc->sdc", features, error, precision=_PRECISION)
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
        kernel = jnp.einsum(
            "de,sec->sdc",
            self.basis,
            self.scales[:, :, None] * point.kernel,
            precision=_PRECISION,
        )
        return Linear(kernel, self.bias_scale * point.bias)

    def gradient(self, gradient: Linear) -> Linear:
        """The gradient with respect to the point, from that to the weights."""
        kernel = jnp.einsum(
            "de,sdc->sec", self.basis, gradient.kernel, precision=_PRECISION
        )
        return Linear(self.scales[:, :, None] * kernel, self.bias_scale * gradient.bias)

    def point(self, linear: Linear) -> Linear:
        kernel = jnp.einsum(
            "de,sdc->sec", self.basis, linear.kernel, precision=_PRECISION
        )
        return Linear(kernel / self.scales[:, :, None], linear.bias / self.bias_scale)


def _objective(
    point: Linear, coordinates: _Coordinates, l2: Array, blocks: _Blocks
) -> tuple[Array, Linear, Array]:
    """Objective [fits], gradient with respect to the point, norm of that to weights."""
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


_LBFGS = optax.scale_by_lbfgs(memory_size=_MEMORY)


def _aimed(search: _Search) -> _Search:
    """The search with a direction from its new point and gradient."""
    update, memory = _LBFGS.update(search.gradient, search.memory, search.point)
    slope = -optax.tree.vdot(update, search.gradient)
    # Rounding may bend the direction upwards once nearly nothing is left to gain.
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
    """Whether a trial decreases the objective enough.

    The condition of Armijo; or, where the decrease drowns in the rounding of the
    objective, that of Hager and Zhang (2005), which judges it by the slopes.
    """
    armijo = value <= search.value + _ARMIJO * search.step * search.slope
    noise = _RELATIVE_NOISE * jnp.abs(search.value) + _ABSOLUTE_NOISE
    near = value <= search.value + noise
    return armijo | (near & (slope <= (2 * _ARMIJO - 1) * search.slope))


def _advance(
    search: _Search, value: Array, gradient: Linear, norm: Array, tolerance: Array
) -> _Search:
    """The search after the trial of its step; unchanged once it has ended."""
    slope = optax.tree.vdot(gradient, search.direction)
    accepted = _aimed(
        search._replace(point=_trial(search), value=value, gradient=gradient, norm=norm)
    )
    # The objective is convex: the secant of the slopes finds the minimum on the line.
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
    """Weights, objectives, gradient norms and iterations of all strengths."""
    point = coordinates.point(start)

    def first(point, value, gradient, norm):
        zero, memory = jnp.zeros_like(value), _LBFGS.init(point)
        # Aiming counts an iteration; the first one has not moved yet.
        before = jnp.int32(-1)
        return _aimed(
            _Search(point, value, gradient, norm, gradient, zero, zero, memory, before)
        )

    def unfinished(carry):
        searches, trials = carry
        return jnp.any(_is_active(searches, tolerance)) & (trials < max_evaluations)

    def advance(carry):
        searches, trials = carry
        outcome = _objective(jax.vmap(_trial)(searches), coordinates, l2, blocks)
        step = functools.partial(_advance, tolerance=tolerance)
        return jax.vmap(step)(searches, *outcome), trials + 1

    searches = jax.vmap(first)(point, *_objective(point, coordinates, l2, blocks))
    searches, _ = jax.lax.while_loop(unfinished, advance, (searches, jnp.int32(0)))
    linear = coordinates.linear(searches.point)
    return linear, searches.value, searches.norm, searches.iterations


def _blocks(
    standard: inputs.Standardisation,
    features: np.ndarray,
    labels: np.ndarray,
    logits: int,
) -> _Blocks:
    """Standardised examples in blocks; `logits` is the number of them per example."""
    n, d = features.shape
    rows = min(n, int(np.clip(_BLOCK_LOGITS // logits, *_BLOCK_ROWS)))
    count = -(-n // rows)
    padding = (0, count * rows - n)
    padded = np.zeros((count * rows, d), np.float32)
    for first in range(0, n, rows):
        block = features[first : first + rows]
        padded[first : first + len(block)] = standard.apply(block)
    return _Blocks(
        jnp.asarray(padded.reshape(count, rows, d)),
        jnp.asarray(np.pad(labels, padding).reshape(count, rows)),
        jnp.asarray(
            np.pad(np.full(n, 1 / n, np.float32), padding).reshape(count, rows)
        ),
    )


@jax.jit
def _second_moment(blocks: _Blocks) -> Array:
    def add(total, block):
        weighted = block.features * block.weights[:, None]
        product = jnp.matmul(weighted.T, block.features, precision=_PRECISION)
        return total + product, None

    d = blocks.features.shape[-1]
    return jax.lax.scan(add, jnp.zeros((d, d)), blocks)[0]


def _fits_at_once(num_features: int, num_classes: int) -> int:
    # Two memories, and about ten arrays that live during an update.
    bytes_each = 4 * (2 * _MEMORY + 10) * num_features * num_classes
    return max(1, _STATE_BYTES // bytes_each)


def fit(
    features,
    labels,
    *,
    num_classes: int,
    l2: Sequence[float],
    start: Classifier | None = None,
    tolerance: float = TOLERANCE,
    max_evaluations: int = MAX_EVALUATIONS,
) -> tuple[Solution, ...]:
    """Multinomial logistic regression at every strength in `l2`.

    Args:
      features: raw, [n, d], finite.
      labels: int [n], from 0 to `num_classes` - 1.
      num_classes: of the classifier.
      l2: weights of the penalty, positive. They are fitted together.
      start: where the search begins, a fit on other examples, say; zero if None.
      tolerance: of the largest absolute gradient. Below about 1e-7 float32 decides.
      max_evaluations: bounds the evaluations of the objective. A solution that does not
        reach the tolerance says so, and how far it came.

    Returns:
      One solution per strength, in their order.

    Raises:
      UsageError: a strength is not positive, or the examples do not fit.
    """
    features, labels = inputs.examples(features, labels, num_classes)
    if not l2 or min(l2) <= 0:
        raise UsageError(f"l2={tuple(l2)} must be positive; use {STRENGTHS[4]}, say.")
    standard = inputs.standardisation(features)
    together = min(len(l2), _fits_at_once(features.shape[1], num_classes))
    blocks = _blocks(standard, features, labels, together * num_classes)
    moment = np.asarray(_second_moment(blocks), np.float64)
    eigenvalues, basis = np.linalg.eigh(moment)
    solutions = []
    for first in range(0, len(l2), together):
        strengths = np.asarray(l2[first : first + together])
        curvature = np.maximum(eigenvalues, 0)[None, :] / num_classes
        coordinates = _Coordinates(
            jnp.asarray(basis, jnp.float32),
            jnp.asarray((curvature + strengths[:, None]) ** -0.5, jnp.float32),
            jnp.sqrt(jnp.float32(num_classes)),
        )
        linear, *facts = _solve(
            _start(start, standard, len(strengths), num_classes),
            coordinates,
            jnp.asarray(strengths, jnp.float32),
            blocks,
            jnp.float32(tolerance),
            jnp.int32(max_evaluations),
        )
        solutions += _solutions(standard, linear, strengths, facts, tolerance)
    return tuple(solutions)


def _start(
    classifier: Classifier | None,
    standard: inputs.Standardisation,
    fits: int,
    num_classes: int,
) -> Linear:
    """The same decision on features that are standardised otherwise, for every fit."""
    if classifier is None:
        shape = (fits, len(standard.mean), num_classes)
        return Linear(jnp.zeros(shape), jnp.zeros((fits, num_classes)))
    old, (kernel, bias) = classifier.standardisation, classifier.linear
    varies = standard.scale > 0
    ratio = np.where(varies, old.scale / np.where(varies, standard.scale, 1), 0)
    shift = ((standard.mean - old.mean) * old.scale).astype(np.float32)
    bias = bias + jnp.matmul(shift, kernel, precision=_PRECISION)
    linear = Linear(ratio.astype(np.float32)[:, None] * kernel, bias)
    return jax.tree.map(lambda x: jnp.repeat(x[None], fits, axis=0), linear)


def _solutions(standard, linear, strengths, facts, tolerance) -> list[Solution]:
    values, norms, iterations = map(np.asarray, facts)
    return [
        Solution(
            classifier=Classifier(standard, jax.tree.map(lambda x, i=i: x[i], linear)),
            l2=float(strengths[i]),
            loss=float(values[i]),
            gradient_norm=float(norms[i]),
            iterations=int(iterations[i]),
            converged=bool(norms[i] <= tolerance),
        )
        for i in range(len(strengths))
    ]


def fit_with_selection(
    features,
    labels,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    tolerance: float = TOLERANCE,
    max_evaluations: int = MAX_EVALUATIONS,
) -> LogisticFit:
    """Logistic regression whose strength is chosen on a tenth of the examples.

    All strengths are fitted on nine tenths, the one with the best top-1 accuracy on
    the held-out tenth is selected, of equals the strongest, and fitted on everything
    from where it stands. Nothing in it is random.

    Args:
      features: raw, [n, d], finite. Each fit standardises by the examples it is fitted
        on; a constant feature counts for nothing.
      labels: int [n], from 0 to `num_classes` - 1. `inputs.held_out_tenth` says which
        are held out.
      num_classes: of the classifier.
      strengths: candidates for `l2`.
      tolerance: see `fit`.
      max_evaluations: see `fit`.

    Raises:
      UsageError: as `fit`, or no class has two examples.
    """
    features, labels = inputs.examples(features, labels, num_classes)
    held_out = inputs.held_out_tenth(labels)
    search = functools.partial(
        fit,
        num_classes=num_classes,
        tolerance=tolerance,
        max_evaluations=max_evaluations,
    )
    ordered = sorted(strengths, reverse=True)
    candidates = search(features[~held_out], labels[~held_out], l2=ordered)
    accuracies = {
        candidate.l2: _accuracy(candidate, features[held_out], labels[held_out])
        for candidate in candidates
    }
    best = max(candidates, key=lambda c: (accuracies[c.l2], c.l2))
    (solution,) = search(features, labels, l2=[best.l2], start=best.classifier)
    return LogisticFit(
        solution=solution,
        held_out=accuracies,
        all_converged=all(candidate.converged for candidate in candidates),
    )


def _accuracy(solution: Solution, features: np.ndarray, labels: np.ndarray) -> float:
    logits = np.asarray(solution.classifier.logits(features))
    return classification.classification(logits, labels).top1
