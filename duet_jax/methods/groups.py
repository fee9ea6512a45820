"""Groups: the blocks of the features, one for each transformation they represent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from duet_jax import losses
from duet_jax.lazy import jnp
from duet_jax.models import representation
from duet_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Group:
    """A block of the features that is a matrix, bins of one parameter by channels.

    Source: the reference's layer, whose features are [batch, K groups, G bins, C
    channels]. Here the groups may differ in bins, and then in channels: each has an
    equal share of the features.

    Attributes:
      code: of the augmentation whose parameter it represents.
      num_bins: number of bins G.
      target: key of `losses.TARGETS`.
      target_width: sigma of the Gaussian or concentration of the von Mises density.
      marginal: one of `representation.MARGINALS`.
      place: of its block among those of all groups, from 0.
      of: number of groups K.
    """

    code: str
    num_bins: int
    target: str
    target_width: float
    marginal: str = "mean"
    place: int = 0
    of: int = 1

    @property
    def suffix(self) -> str:
        """What tells names of this group from those of others; "" if it is alone."""
        return f"_{self.code}" if self.of > 1 else ""

    @property
    def name(self) -> str:
        """Of its structure among the representations."""
        return f"structure{self.suffix}"

    @property
    def circular(self) -> bool:
        """True if the bins wrap around."""
        return losses.TARGETS[self.target].circular

    def targets(self, values: Array) -> Array:
        """Returns the target distributions, [batch, bins].

        Args:
          values: structure values of the drawn parameters, [batch].
        """
        distribution = losses.TARGETS[self.target].distribution
        return distribution(values, self.num_bins, self.target_width)

    def block(self, features: Array) -> Array:
        """Returns its part of features [batch, features], [batch, features / K]."""
        share = features.shape[1] // self.of
        return features[:, self.place * share : (self.place + 1) * share]

    def matrix(self, features: Array) -> Array:
        """Returns its part of features [batch, features], [batch, bins, channels]."""
        return representation.as_matrix(self.block(features), self.num_bins)

    def replace(self, features: Array, matrix: Array) -> Array:
        """Returns features whose part of this group is another matrix.

        Args:
          features: [batch, features].
          matrix: [batch, bins, channels].
        """
        share = features.shape[1] // self.of
        start, flat = self.place * share, matrix.reshape(len(matrix), -1)
        return jnp.concatenate(
            [features[:, :start], flat, features[:, start + share :]], axis=1
        )

    def logits(self, features: Array) -> Array:
        """Returns the logits of its structure, [batch, bins]."""
        return representation.structure_logits(self.matrix(features), self.marginal)

    def structure(self, features: Array) -> Array:
        """Returns the predicted distributions, [batch, bins], rows summing to 1."""
        return representation.structure(self.matrix(features), self.marginal)


def content(features: Array, groups: Sequence[Group]) -> Array:
    """Returns the content of all groups, side by side: their sums over the bins.

    Args:
      features: [batch, features].
      groups: all of them.

    Returns:
      [batch, channels of the groups together].
    """
    sums = [representation.content(each.matrix(features)) for each in groups]
    return jnp.concatenate(sums, axis=1) if len(sums) > 1 else sums[0]
