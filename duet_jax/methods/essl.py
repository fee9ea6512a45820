"""ESSL: SimCLR plus the prediction of how a third view was transformed.

Several augmentations are predicted from one view, which has them all; each has its own
predictor. The reference predicts one.

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
    """NT-Xent plus the mean of the prediction losses.

    Attributes:
      two_views: its stack is the configured one without the predicted augmentations.
      learned: codes of the augmentations that are predicted.
      prediction_weight: lambda.
      predictor_hidden: width of the predictors' hidden layers.
    """

    learned: tuple[str, ...]
    prediction_weight: float
    predictor_hidden: int

    @property
    def predictions(self) -> dict[str, Prediction]:
        """How the learned augmentations are applied and predicted, by code."""
        return {code: AUGMENTATIONS[code].prediction for code in self.learned}

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks, with a predictor for each code."""
        networks = self.two_views.networks(rngs)
        predictors = {
            code: heads.Predictor(
                networks.encoder.num_features,
                prediction.num_outputs,
                hidden=self.predictor_hidden,
                dtype=jnp.dtype(self.two_views.encoder.dtype),
                rngs=rngs,
            )
            for code, prediction in self.predictions.items()
        }
        # One alone is where the reference has it.
        alone = len(predictors) == 1
        networks.predictor = (
            predictors[self.learned[0]] if alone else nnx.Dict(predictors)
        )
        return networks

    def describe(self) -> str:
        """Returns what is predicted, and lambda."""
        codes = " and ".join(self.learned)
        return f"predicts {codes}, weight {self.prediction_weight:g}"

    def make_views(self, key: Array, images: Array, *, train: bool) -> base.Views:
        """Returns the two main views and the half-size view for the predictions.

        In evaluation, the half-size view is plain before it is transformed.
        """
        main_key, stack_key, prediction_key = jax.random.split(key, 3)
        views = self.two_views.views(main_key, images, train=train)
        stack = self.two_views.stack.half_size()
        draws = stack.draw(stack_key, len(images)) if train else None
        half = stack.apply(to_float(images), draws)
        return views._replace(prediction=self._transform(prediction_key, half))

    def _transform(self, key: Array, images: Array) -> base.PredictionView:
        """Applies the predicted augmentations one after the other.

        Each copy that one of them makes of an image is transformed by the next; all
        copies of an image stay together.
        """
        targets: dict[str, Array] = {}
        for number, (code, prediction) in enumerate(self.predictions.items()):
            own_key = jax.random.fold_in(key, number) if number else key
            before = len(images)
            images, own = prediction.make(own_key, images)
            copies = len(images) // before
            targets = {k: jnp.repeat(each, copies) for k, each in targets.items()}
            targets[code] = own
        return base.PredictionView(normalize(images), targets)

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

        `prediction_loss`, the mean of all codes, is reported without its weight; with
        several codes also by code, `prediction_loss_<code>`. Accuracies of classes
        are `prediction_top1`, or `prediction_top1_<code>`.
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
        features = networks.encoder(view.images, train=train)
        if mask is not None:  # the copies of an image are consecutive
            mask = jnp.repeat(mask, len(view.images) // len(mask))
        alone = len(self.learned) == 1
        loss, metrics = 0.0, {}
        for code, prediction in self.predictions.items():
            predictor = networks.predictor if alone else networks.predictor[code]
            suffix = "" if alone else f"_{code}"
            own = _scores(prediction, predictor(features), view.targets[code], mask)
            loss = loss + own["prediction_loss"] / len(self.learned)
            metrics |= {f"{name}{suffix}": value for name, value in own.items()}
        return {"prediction_loss": loss, **metrics}


def _scores(
    prediction: Prediction, outputs: Array, targets: Array, mask: Array | None
) -> base.Metrics:
    """Returns the loss of a predictor, and its accuracy if it names classes."""
    if not prediction.classification:
        errors = losses.squared_error(outputs[:, 0], targets)
        return {"prediction_loss": losses.masked_mean(errors, mask)}
    entropy = losses.cross_entropy(outputs, targets)
    hits = losses.top_k(outputs, targets, 1)
    return {
        "prediction_loss": losses.masked_mean(entropy, mask),
        "prediction_top1": losses.masked_mean(hits, mask),
    }
