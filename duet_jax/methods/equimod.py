"""EquiMod: SimCLR plus the prediction of where an augmentation moves an embedding.

Source: Devillers & Lefort 2023, "EquiMod: An Equivariance Module to Improve Visual
Instance Discrimination", on SimCLR. Here the predictions of one view are contrasted
with the embeddings of that view; the paper has those of both views as negatives.
Its predictor is one layer behind a projection of the parameters; ours has the three of
ESSL's. Both losses are sums of two directions, as NT-Xent is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from etils import epy

from duet_jax.augmentations import points
from duet_jax.lazy import jax, jnp, nnx
from duet_jax.methods import base
from duet_jax.types import Array, View

with epy.lazy_imports():
    from duet_jax.models import heads


@dataclasses.dataclass(frozen=True)
class EquiMod(base.Method):
    """NT-Xent plus the contrast of predicted with true embeddings.

    The embeddings that are predicted come from a projector of their own; it and the
    predictor are as wide as the other projector.

    Attributes:
      learned: codes of the augmentations that the predictor is told.
      weight: lambda.
    """

    learned: tuple[str, ...]
    weight: float

    predictive_parts: ClassVar[tuple[str, ...]] = ("equivariant_projector", "predictor")

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks, with the two `predictive_parts`."""
        networks, stack = self.two_views.networks(rngs), self.two_views.stack
        told = jax.eval_shape(lambda: self._told(stack.parameters(stack.identity(1))))
        embedding = self.two_views.projector_output
        networks.equivariant_projector = self.two_views.projector(
            networks.encoder.num_features, rngs
        )
        networks.predictor = heads.Predictor(
            embedding + told.shape[1],
            embedding,
            hidden=self.two_views.projector_hidden,
            dtype=jnp.dtype(self.two_views.encoder.dtype),
            rngs=rngs,
        )
        return networks

    def make_views(self, key: Array, images: Array, *, train: bool) -> base.Views:
        """Returns the two views, and the plain one from which they are predicted."""
        views = self.two_views.views(key, images, train=train)
        return views._replace(plain=self.two_views.plain(images))

    def draws(self, key: Array, n: int) -> dict[str, base.Draws]:
        """Returns the parameters of the views of `n` images, by view."""
        plain = self.two_views.stack.identity(n)
        return {**self.two_views.draws(key, n), "plain": plain}

    def _told(self, parameters: Mapping[str, Array]) -> Array:
        """Returns what the predictor is told, [batch, values]."""
        return jnp.concatenate([points(c, parameters[c]) for c in self.learned], axis=1)

    def embed(self, networks: base.Networks, features: Array) -> Array:
        """Returns the embeddings that are predicted; see `Predictive`."""
        return networks.equivariant_projector(features, train=False)

    def predict(
        self,
        networks: base.Networks,
        embedded: Array,
        parameters: Mapping[str, Array],
    ) -> Array:
        """Returns the predicted embeddings of augmented images; see `Predictive`.

        They are trained to have the true ones' directions, not their lengths.
        """
        told = self._told(parameters).astype(embedded.dtype)
        return networks.predictor(jnp.concatenate([embedded, told], axis=1))

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

        `equivariance_loss` is reported without its weight. It is the mean of both views
        in training, and that of the augmented view in evaluation.
        """
        features = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks, features[0], features, labels, mask, train=train
        )
        plain = networks.encoder(views.plain.images, train=train)
        embedded = networks.equivariant_projector(plain, train=train)

        def contrast(view: View, features: Array) -> Array:
            true = networks.equivariant_projector(features, train=train)
            predicted = self.predict(networks, embedded, view.parameters)
            return self.two_views.nt_xent(predicted, true, mask).loss

        own = contrast(views.second, features[1])
        if train:
            own = (own + contrast(views.first, features[0])) / 2
        loss = loss + self.weight * own
        return loss, {"loss": loss, "equivariance_loss": own, **metrics}
