"""ESSL: SimCLR plus the prediction of how a third view was transformed.

Source: Dangovski et al. 2022, "Equivariant Self-Supervised Learning: Encouraging
Equivariance in Representations".
"""

from __future__ import annotations

import dataclasses

from etils import epy

from duet_jax import losses
from duet_jax.augmentations import AUGMENTATIONS, Prediction, normalize, to_float
from duet_jax.lazy import jax, jnp, nnx
from duet_jax.methods import base
from duet_jax.types import Array

with epy.lazy_imports():
    from duet_jax.models import heads


@dataclasses.dataclass(frozen=True)
class ESSL(base.Method):
    """NT-Xent plus the prediction loss.

    Attributes:
      two_views: its stack is the configured one without the predicted augmentation.
      learned: code of the augmentation that is predicted.
      prediction_weight: lambda.
      predictor_hidden: width of the predictor's hidden layers.
    """

    learned: str
    prediction_weight: float
    predictor_hidden: int

    @property
    def prediction(self) -> Prediction:
        """How the learned augmentation is applied and predicted."""
        return AUGMENTATIONS[self.learned].prediction

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks, with a predictor."""
        networks = self.two_views.networks(rngs)
        networks.predictor = heads.Predictor(
            networks.encoder.num_features,
            self.prediction.num_outputs,
            hidden=self.predictor_hidden,
            dtype=jnp.dtype(self.two_views.encoder.dtype),
            rngs=rngs,
        )
        return networks

    def make_views(self, key: Array, images: Array, *, train: bool) -> base.Views:
        """Returns the two main views and the half-size view for the prediction.

        In evaluation, the half-size view is plain before it is transformed.
        """
        main_key, stack_key, prediction_key = jax.random.split(key, 3)
        views = self.two_views.views(main_key, images, train=train)
        stack = self.two_views.stack.half_size()
        draws = stack.draw(stack_key, len(images)) if train else None
        half = stack.apply(to_float(images), draws)
        transformed, targets = self.prediction.make(prediction_key, half)
        return views._replace(
            prediction=base.PredictionView(normalize(transformed), targets)
        )

    def draws(self, key: Array, n: int) -> dict[str, base.Draws]:
        """Returns the parameters of the views of `n` images, by view.

        For the half-size view, those of its stack; its transformation is given by the
        targets.
        """
        main_key, stack_key, _ = jax.random.split(key, 3)
        half_size = self.two_views.stack.half_size().draw(stack_key, n)
        return {**self.two_views.draws(main_key, n), "prediction": half_size}

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

        `prediction_loss` is reported without its weight.
        """
        features = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks, features[0], features, labels, mask, train=train
        )
        prediction = self._predict(networks, views.prediction, mask, train=train)
        loss = loss + self.prediction_weight * prediction["prediction_loss"]
        return loss, {"loss": loss, **prediction, **metrics}

    def _predict(
        self,
        networks: base.Networks,
        view: base.PredictionView,
        mask: Array | None,
        *,
        train: bool,
    ) -> base.Metrics:
        outputs = networks.predictor(networks.encoder(view.images, train=train))
        if mask is not None:  # the copies of an image are consecutive
            mask = jnp.repeat(mask, len(view.targets) // len(mask))
        if not self.prediction.classification:
            errors = losses.squared_error(outputs[:, 0], view.targets)
            return {"prediction_loss": losses.masked_mean(errors, mask)}
        entropy = losses.cross_entropy(outputs, view.targets)
        hits = losses.top_k(outputs, view.targets, 1)
        return {
            "prediction_loss": losses.masked_mean(entropy, mask),
            "prediction_top1": losses.masked_mean(hits, mask),
        }
