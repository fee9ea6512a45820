"""DUET: features that know what a thing is and how it was transformed.

The features are read as a matrix, bins x channels. Summed over the bins they are the
content, which is contrasted; averaged over the channels they are the logits of the
structure marginal, which is pulled to a target around the drawn parameter.

Source: Suau et al. 2023, "DUET: 2D Structured and Approximately Equivariant
Representations".
"""

import dataclasses

from flax import nnx

from duet_jax import losses
from duet_jax.methods import base
from duet_jax.models import representation
from duet_jax.types import Array, View


@dataclasses.dataclass(frozen=True)
class DUET(base.Method):
    """NT-Xent on content plus the structure loss. See `methods.base.Method`.

    Attributes:
      learned: code of the augmentation whose parameter becomes structure.
      num_bins: G.
      structure_weight: lambda.
      target: "gaussian" or "von_mises".
      target_width: sigma of the Gaussian or concentration of the von Mises.
    """

    learned: str
    num_bins: int
    structure_weight: float
    target: str
    target_width: float

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns freshly initialised networks; the projector reads the content."""
        return self.two_views.networks(rngs, share=self.num_bins)

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns the features, the content and the structure marginal.

        Args:
          features: [batch, bins * channels].

        Returns:
          `full` as given, `content` [batch, channels], `structure` [batch, bins]: the
          predicted distribution, rows summing to 1.
        """
        matrix = representation.as_matrix(features, self.num_bins)
        return {
            "full": features,
            "content": representation.content(matrix),
            "structure": representation.structure(matrix),
        }

    @property
    def circular(self) -> bool:
        """Whether the first bin follows the last: whether the target is a circle's."""
        return losses.TARGETS[self.target].circular

    def targets(self, values: Array) -> Array:
        """Returns the distributions that the structure is pulled to, [batch, bins].

        Args:
          values: structure values of the parameters that were drawn, [batch].
        """
        target = losses.TARGETS[self.target].distribution
        return target(values, self.num_bins, self.target_width)

    def structure_loss(self, matrix: Array, view: View) -> Array:
        """Divergence of a view's structure from its target, per example, [batch].

        Args:
          matrix: the view's features, [batch, bins, channels].
          view: holds the parameter that was drawn.
        """
        targets = self.targets(view.structure[self.learned])
        return losses.jensen_shannon(representation.structure_logits(matrix), targets)

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

        `structure_loss` is reported without its weight. It is the mean over both views
        in training and over the augmented one in evaluation, as in the reference.
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
