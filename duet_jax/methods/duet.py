"""DUET: features that know what a thing is and how it was transformed.

The features are read as a matrix, bins x channels. Summed over the bins they are the
content, which is contrasted; averaged over the channels they are the logits of the
structure marginal, which is pulled to a target around the drawn parameter.

Source: Suau et al. 2023, "DUET: 2D Structured and Approximately Equivariant
Representations".
"""

import dataclasses
from typing import Self

import ml_collections
from flax import nnx

from duet_jax import losses
from duet_jax.augmentations import AUGMENTATIONS, check_learned
from duet_jax.errors import UsageError
from duet_jax.methods import base
from duet_jax.models import representation
from duet_jax.models.resnet import num_features
from duet_jax.registry import lookup
from duet_jax.targets import TARGETS
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

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, data: base.DataSpec
    ) -> Self:
        """Returns the method that `config` describes for `data`.

        Raises:
          UsageError: the learned code has no structure or is not in the stack, the
            target cannot tell its values apart, or the bins do not divide the features.
        """
        two_views = base.TwoViews.from_config(config, data)
        check_learned(config.learned, two_views.stack.codes)
        check_bins(config)
        target = choose_target(config.duet.target, config.learned)
        return cls(
            two_views=two_views,
            learned=config.learned,
            num_bins=config.duet.num_bins,
            structure_weight=config.duet.structure_weight,
            target=target,
            target_width=config.duet[WIDTH_FIELDS[target]],
        )

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
        return self.target in CIRCULAR

    def targets(self, values: Array) -> Array:
        """Returns the distributions that the structure is pulled to, [batch, bins].

        Args:
          values: structure values of the parameters that were drawn, [batch].
        """
        return TARGETS[self.target](values, self.num_bins, self.target_width)

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


# The field of config.duet that holds the width of a target.
WIDTH_FIELDS = {"gaussian": "sigma", "von_mises": "concentration"}
# The targets for which 0 and 1 are one point.
CIRCULAR = ("von_mises",)


def choose_target(target: str, learned: str) -> str:
    """Returns the target distribution for the structure of `learned`.

    Args:
      target: "auto" or a name in TARGETS.
      learned: code of the augmentation.

    Raises:
      UsageError: an unknown name, or a circle's for a structure that takes the two ends
        of a line: on a circle they are one point, and the two targets coincide.
    """
    record = AUGMENTATIONS[learned]
    if target == "auto":
        return "von_mises" if record.topology == "circle" else "gaussian"
    lookup({**TARGETS, "auto": None}, target, "config.duet.target")
    if target in CIRCULAR and record.topology == "line" and record.two_point:
        raise UsageError(
            f"config.duet.target={target!r} cannot learn {learned!r}: its structure "
            "is 0 or 1, one point on a circle; use 'gaussian' or 'auto'."
        )
    return target


def check_bins(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError unless the bins divide the encoder's features."""
    bins, encoder = config.duet.num_bins, config.encoder
    features = num_features(
        encoder.name, encoder.width_multiplier, encoder.get("widths")
    )
    if bins < 2 or features % bins:
        choices = [str(n) for n in range(2, features + 1) if features % n == 0]
        raise UsageError(
            f"config.duet.num_bins={bins} must divide the encoder's {features} "
            f"features; use {', '.join(choices)}."
        )
