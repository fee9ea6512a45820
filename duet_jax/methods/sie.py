"""SIE: one half of the features ignores augmentations, a predictor moves the other.

A method in the style of its source: a split of the features, and a predictor whose
weights are made from what leads from one view to the other.

Source: Garrido et al. 2023, "Self-supervised learning of Split Invariant Equivariant
representations". There VICReg trains the invariant half too, NT-Xent here, and the
weights of the terms are others. Ours are the projector, with the layers of ESSL's
predictor, and the hypernetwork's hidden layer: features may turn at several frequencies
of an angle, which are no linear function of its cosine and sine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from etils import epy

from duet_jax import losses
from duet_jax.augmentations import difference
from duet_jax.errors import UsageError
from duet_jax.lazy import jax, jnp, nnx
from duet_jax.methods import base
from duet_jax.types import Array

with epy.lazy_imports():
    from duet_jax.models import heads

# VICReg's 25 : 25 : 1 of squared error, variance and covariance.
_VARIANCE, _COVARIANCE = 1.0, 0.04


@dataclasses.dataclass(frozen=True)
class SIE(base.Method):
    """NT-Xent on the first half of the features, a prediction in the second.

    Attributes:
      learned: codes of the augmentations that the predictor is told.
      weight: of the second loss.
      hidden: width of the hypernetwork's hidden layer.

    Raises:
      UsageError: the features have no halves.
    """

    learned: tuple[str, ...]
    weight: float
    hidden: int

    predictive_parts: ClassVar[tuple[str, ...]] = ("equivariant_projector", "predictor")

    def __post_init__(self):
        encoder = self.two_views.encoder
        if encoder.num_features % 2:
            raise UsageError(
                f"config.encoder.widths={encoder.widths} makes "
                f"{encoder.num_features} features, which sie cannot split in halves; "
                f"use an even last width, such as {encoder.num_features + 1}."
            )

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks, with the two `predictive_parts`."""
        stack, half = self.two_views.stack, self.two_views.encoder.num_features // 2
        networks = self.two_views.networks(rngs, half)
        plain = jax.eval_shape(lambda: stack.parameters(stack.identity(1)))
        told = jax.eval_shape(self._told, plain, plain)
        # Its last layer is linear: behind a normalization the variance is kept anyway.
        networks.equivariant_projector = heads.Predictor(
            half,
            self.two_views.projector_output,
            hidden=self.two_views.projector_hidden,
            dtype=jnp.dtype(self.two_views.encoder.dtype),
            rngs=rngs,
        )
        networks.predictor = heads.Hypernetwork(
            told.shape[1],
            self.two_views.projector_output,
            hidden=self.hidden,
            rngs=rngs,
        )
        return networks

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns "full", as given, and the halves, "invariant" and "equivariant"."""
        invariant, equivariant = jnp.split(features, 2, axis=1)
        return {"full": features, "invariant": invariant, "equivariant": equivariant}

    def _told(self, first: Mapping[str, Array], second: Mapping[str, Array]) -> Array:
        """Returns what leads from the parameters of a view to others, [batch, values].

        For a crop, the difference of two boxes says not quite how to get from one to
        the other; the paper's augmentations are turns and hues.
        """
        told = [difference(code, first[code], second[code]) for code in self.learned]
        return jnp.concatenate(told, axis=1)

    def embed(self, networks: base.Networks, features: Array) -> Array:
        """Returns the embeddings of the equivariant half; see `Predictive`."""
        equivariant = self.representations(features)["equivariant"]
        return networks.equivariant_projector(equivariant)

    def predict(
        self,
        networks: base.Networks,
        embedded: Array,
        parameters: Mapping[str, Array],
    ) -> Array:
        """Returns the predicted embeddings of augmented images; see `Predictive`."""
        stack = self.two_views.stack
        plain = stack.parameters(stack.identity(len(embedded)))
        return networks.predictor(embedded, self._told(plain, parameters))

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

        `equivariance_loss` is reported without its weight: the squared error of the
        prediction of view 2 from view 1, plus the variance and covariance terms of both
        views. `prediction_loss` is the squared error alone.
        """
        features = base.encode_views(networks, views, train=train)
        halves = [self.representations(each) for each in features]
        loss, metrics = self.two_views.loss(
            networks,
            features[0],
            (halves[0]["invariant"], halves[1]["invariant"]),
            labels,
            mask,
            train=train,
        )
        one, other = (
            networks.equivariant_projector(half["equivariant"]) for half in halves
        )
        told = self._told(views.first.parameters, views.second.parameters)
        errors = losses.squared_error(networks.predictor(one, told), other)
        error = losses.masked_mean(jnp.mean(errors, axis=1), mask)
        own = error + sum(
            _VARIANCE * losses.variance_hinge(each, mask) / 2
            + _COVARIANCE * losses.covariance(each, mask)
            for each in (one, other)
        )
        loss = loss + self.weight * own
        own = {"equivariance_loss": own, "prediction_loss": error}
        return loss, {"loss": loss, **own, **metrics}
