"""DUET: features that represent both content and how an image was transformed.

The features form a matrix, bins x channels, or several side by side, one for each
transformation. The sum over the bins is the content, which is contrasted; the mean over
the channels (or their sum) gives the logits of a structure, which is trained to match a
target distribution around the drawn parameter.

Source: Suau et al. 2023, "DUET: 2D Structured and Approximately Equivariant
Representations". The reference's layer is written for several groups, and its loss
refuses all but one; the mean of their divergences is the formula that it has there.
"""

from __future__ import annotations

import dataclasses

from duet_jax import losses
from duet_jax.lazy import nnx
from duet_jax.methods import base
from duet_jax.methods.groups import Group, content
from duet_jax.types import Array, View


@dataclasses.dataclass(frozen=True)
class DUET(base.Method):
    """NT-Xent on the content plus the structure loss.

    Attributes:
      groups: one for each transformation, in the order of the features.
      structure_weight: lambda.
    """

    groups: tuple[Group, ...]
    structure_weight: float

    @property
    def learned(self) -> tuple[str, ...]:
        """The codes of the augmentations whose parameters are structure."""
        return tuple(group.code for group in self.groups)

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks; the projector reads the content."""
        share = self.two_views.encoder.num_features // len(self.groups)
        channels = sum(share // group.num_bins for group in self.groups)
        return self.two_views.networks(rngs, channels)

    def describe(self) -> str:
        """Returns the structures and lambda."""
        structures = "; ".join(
            f"{group.code} is structure, {group.num_bins} bins, target {group.target}"
            for group in self.groups
        )
        return f"{structures}, weight {self.structure_weight:g}"

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns the features, the content and the structures.

        Args:
          features: [batch, features].

        Returns:
          "full", as given; "content", the sums over the bins, [batch, channels of all
          groups]; and the predicted distributions, [batch, bins], rows summing to 1:
          "structure", with several groups "structure_<code>".
        """
        return {
            "full": features,
            "content": content(features, self.groups),
            **{group.name: group.structure(features) for group in self.groups},
        }

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

        `structure_loss`, the mean of the groups, is reported without its weight, with
        several groups also by code: `structure_loss_<code>`. As in the reference, it is
        the mean of both views in training, and that of the augmented view in
        evaluation.
        """
        features1, features2 = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks,
            features1,
            (content(features1, self.groups), content(features2, self.groups)),
            labels,
            mask,
            train=train,
        )
        by_group = {}
        for group in self.groups:
            divergence = _structure_loss(group, features2, views.second, mask)
            if train:
                first = _structure_loss(group, features1, views.first, mask)
                divergence = (divergence + first) / 2
            by_group[f"structure_loss{group.suffix}"] = divergence
        structure = sum(by_group.values()) / len(by_group)
        loss = loss + self.structure_weight * structure
        total = {"loss": loss, "structure_loss": structure}
        return loss, {**total, **by_group, **metrics}


def _structure_loss(
    group: Group, features: Array, view: View, mask: Array | None
) -> Array:
    """Returns the mean divergence of a view from a group's targets, a scalar."""
    targets = group.targets(view.structure[group.code])
    return losses.structure_loss(group.logits(features), targets, mask)
