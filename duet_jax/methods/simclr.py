"""SimCLR: two views of an image agree, those of different images do not.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations".
"""

import dataclasses
from typing import Self

import ml_collections
from flax import nnx

from duet_jax.methods import base
from duet_jax.types import Array


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """NT-Xent on the full features. See `methods.base.Method`."""

    two_views: base.TwoViews

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, data: base.DataSpec
    ) -> Self:
        """Returns the method that `config` describes for `data`."""
        return cls(base.TwoViews.from_config(config, data))

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns freshly initialised networks."""
        return self.two_views.networks(rngs)

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns the features, [batch, features], as they are."""
        return {"full": features}

    def make_views(self, key: Array, images: Array, *, train: bool) -> base.Views:
        """Returns two augmented views; in evaluation the first is plain."""
        return self.two_views.views(key, images, train=train)

    def draws(self, key: Array, n: int) -> dict[str, base.Draws]:
        """Returns the parameters of the views of `n` images, by view."""
        return self.two_views.draws(key, n)

    def loss(
        self,
        networks: base.Networks,
        views: base.Views,
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, base.Metrics]:
        """Returns NT-Xent plus the online probe's loss, and the metrics."""
        features = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks, features[0], features, labels, mask, train=train
        )
        return loss, {"loss": loss, **metrics}
