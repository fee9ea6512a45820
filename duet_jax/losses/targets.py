"""Target distributions over the structure bins.

A target centers a density at the drawn structure value and integrates it over the
bins: a von Mises density for periodic parameters, such as angles, a Gaussian for the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from duet_jax.lazy import jax, jnp
from duet_jax.types import Array

# Quadrature points per bin; the reference's resolution, both ends included.
_POINTS_PER_BIN = 100


def _integrate(log_density: Array, num_bins: int) -> Array:
    """Sums exp(`log_density`) [batch, points] over each bin; rows sum to 1."""
    # softmax subtracts the maximum of each row, so a narrow density cannot underflow.
    density = jax.nn.softmax(log_density, axis=1)
    return jnp.sum(density.reshape(len(density), num_bins, _POINTS_PER_BIN), axis=2)


def _grid(num_bins: int, dtype: jnp.dtype) -> Array:
    return jnp.linspace(0, 1, num_bins * _POINTS_PER_BIN, dtype=dtype)[None, :]


def gaussian(values: Array, num_bins: int, sigma: float) -> Array:
    """Gaussian target on the line [0, 1].

    Args:
      values: structure values, [batch].
      num_bins: number of bins G, which divide [0, 1].
      sigma: standard deviation, as a share of the whole range.

    Returns:
      Probabilities, [batch, num_bins], rows summing to 1.

    Source: DUET paper, section 3, with the reference's grid (100 points per bin, both
    ends included).
    """
    distance = (_grid(num_bins, values.dtype) - values[:, None]) / sigma
    return _integrate(-jnp.square(distance) / 2, num_bins)


def von_mises(values: Array, num_bins: int, concentration: float) -> Array:
    """Von Mises target on the circle.

    Args:
      values: structure values, [batch]; 0 and 1 are the same point.
      num_bins: number of bins G, which divide the circle.
      concentration: kappa; about 1 / sigma² with sigma in radians.

    Returns:
      Probabilities, [batch, num_bins], rows summing to 1.

    Source: as for `gaussian`. The reference calls the concentration sigma.
    """
    turns = _grid(num_bins, values.dtype) - values[:, None]
    return _integrate(concentration * jnp.cos(2 * jnp.pi * turns), num_bins)


class Target(NamedTuple):
    """A kind of target.

    Attributes:
      distribution: (values [batch], number of bins, width) -> probabilities, [batch,
        bins].
      width: field of `config.duet` with its width.
      circular: True if the structure values 0 and 1 are the same point.
    """

    distribution: Callable[[Array, int, float], Array]
    width: str
    circular: bool


TARGETS: dict[str, Target] = {
    "gaussian": Target(gaussian, "sigma", circular=False),
    "von_mises": Target(von_mises, "concentration", circular=True),
}
