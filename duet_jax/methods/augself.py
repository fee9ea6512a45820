"""AugSelf: SimCLR plus the prediction of how two views of an image differ.

Source: Lee et al. 2021, "Improving Transferability of Representations via
Augmentation-Aware Self-Supervision", on SimCLR. There the losses of the augmentations
are summed and the contrastive loss is the mean of both directions; here it is their
mean, as for DUET and ESSL, and NT-Xent is the sum. The paper predicts crops, mirrors,
the color jitter and blur; here whatever is learned. Its heads have three layers too,
with other normalization.
"""

from __future__ import annotations

import dataclasses

from etils import epy

from duet_jax import losses
from duet_jax.augmentations import AUGMENTATIONS, difference
from duet_jax.lazy import jax, jnp, nnx
from duet_jax.methods import base
from duet_jax.types import Array

with epy.lazy_imports():
    from duet_jax.models import heads


@dataclasses.dataclass(frozen=True)
class AugSelf(base.Method):
    """NT-Xent plus the mean of the losses of the predicted differences.

    Attributes:
      learned: codes of the augmentations whose differences are predicted.
      weight: lambda.
      hidden: width of the predictors' hidden layers.
    """

    learned: tuple[str, ...]
    weight: float
    hidden: int

    def init(self, rngs: nnx.Rngs) -> base.Networks:
        """Returns newly initialized networks, with a predictor for each code."""
        networks = self.two_views.networks(rngs)
        plain = jax.eval_shape(
            lambda: self.two_views.stack.parameters(self.two_views.stack.identity(1))
        )
        predictors = {}
        for code in self.learned:
            shape = jax.eval_shape(lambda p, c=code: difference(c, p, p), plain[code])
            # Of two levels: two classes, the same and another.
            outputs = 2 if AUGMENTATIONS[code].two_point else shape.shape[1]
            predictors[code] = heads.Predictor(
                2 * networks.encoder.num_features,
                outputs,
                hidden=self.hidden,
                dtype=jnp.dtype(self.two_views.encoder.dtype),
                rngs=rngs,
            )
        networks.predictor = nnx.Dict(predictors)
        return networks

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

        `prediction_loss`, the mean of all codes, is reported without its weight, with
        several codes also by code, `prediction_loss_<code>`. In evaluation the first
        view is plain: what is predicted is all that happened to the second.
        """
        features = base.encode_views(networks, views, train=train)
        loss, metrics = self.two_views.loss(
            networks, features[0], features, labels, mask, train=train
        )
        pair = jnp.concatenate(features, axis=1)
        by_code = {
            code: losses.masked_mean(
                _errors(code, networks.predictor[code](pair), views), mask
            )
            for code in self.learned
        }
        mean = sum(by_code.values()) / len(by_code)
        loss = loss + self.weight * mean
        own = {"prediction_loss": mean}
        if len(by_code) > 1:
            own |= {f"prediction_loss_{code}": x for code, x in by_code.items()}
        return loss, {"loss": loss, **own, **metrics}


def _errors(code: str, outputs: Array, views: base.Views) -> Array:
    """Returns each example's loss of a predicted difference, [batch].

    Args:
      code: of the augmentation.
      outputs: of its predictor, [batch, values or classes].
      views: hold the parameters.

    Returns:
      The cross-entropy of whether the views differ if there are two levels, else the
      squared error, the mean of the values.
    """
    first, second = (view.parameters[code] for view in views[:2])
    if AUGMENTATIONS[code].two_point:
        differ = jnp.any(first != second, axis=1).astype(jnp.int32)
        return losses.cross_entropy(outputs, differ)
    errors = losses.squared_error(outputs, difference(code, first, second))
    return jnp.mean(errors, axis=1)
