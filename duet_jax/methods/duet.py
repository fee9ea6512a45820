"""DUET: features that represent both content and how an image was transformed.

The features form a matrix, bins x channels. Its sum over the bins is the content, which
is contrasted; its mean over the channels (or their sum) gives the logits of the
structure, which is trained to match a target distribution around the drawn parameter.

Source: Suau et al. 2023, "DUET: 2D Structured and Approximately Equivariant
Representations".
"""

from __future__ import annotations

import dataclasses

from duet_jax import losses
from duet_jax.lazy import nnx
from duet_jax.methods import base
from duet_jax.models import representation
from duet_jax.types import Array, View


@dataclasses.dataclass(frozen=True)
class DUET(base.Method):
    """NT-Xent on the content plus the structure loss.

    Attributes:
      learned: code of the augmentation whose parameter is the structure.
      num_bins: number of bins G.
      structure_weight: lambda.
      target: key of `losses.TARGETS`.
      target_width: sigma of the Gaussian or concentration of the von Mises density.
      marginal: one of `representation.MARGINALS`.
    """

    learned: str
    num_bins: int
    structure_weight: float
    target: str
    target_width: float
    marginal: str = "mean"

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks; the projector reads the content."""
        return self.two_views.networks(rngs, share=self.num_bins)

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns the features, the content and the structure.

        Args:
          features: [batch, bins * channels].

        Returns:
          "full", as given; "content", [batch, channels]; "structure", the predicted
          distributions, [batch, bins], rows summing to 1.
        """
        matrix = representation.as_matrix(features, self.num_bins)
        return {
            "full": features,
            "content": representation.content(matrix),
            "structure": representation.structure(matrix, self.marginal),
        }

    @property
    def circular(self) -> bool:
        """True if the bins wrap around."""
        return losses.TARGETS[self.target].circular

    def targets(self, values: Array) -> Array:
        """Returns the target distributions, [batch, bins].

        Args:
          values: structure values of the drawn parameters, [batch].
        """
        target = losses.TARGETS[self.target].distribution
        return target(values, self.num_bins, self.target_width)

    def structure_loss(self, matrix: Array, view: View) -> Array:
        """Returns each example's divergence from its target, [batch].

        Args:
          matrix: the view's features, [batch, bins, channels].
          view: holds the structure values.
        """
        targets = self.targets(view.structure[self.learned])
        logits = representation.structure_logits(matrix, self.marginal)
        return losses.jensen_shannon(logits, targets)

    def loss(
        self,
        networks: base.Networks,
        views: base.Views,
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, base.Metrics]:
        """Returns the total loss and the metrics.

        `structure_loss` is reported without its weight. As in the reference, it is the
        mean of both views in training, and that of the augmented view in evaluation.
        """
        features = base.encode_views(networks, views, train=train)
        matrix1, matrix2 = (
            representation.as_matrix(x, self.num_bins) for x in features
        )
        loss, metrics = self.two_views.loss(
            networks,
            features[0],
            (representation.content(matrix1), representation.content(matrix2)),
            labels,
            mask,
            train=train,
        )
        divergence = self.structure_loss(matrix2, views.second)
        if train:
            divergence = (divergence + self.structure_loss(matrix1, views.first)) / 2
        structure = losses.masked_mean(divergence, mask)
        loss = loss + self.structure_weight * structure
        return loss, {"loss": loss, "structure_loss": structure, **metrics}
