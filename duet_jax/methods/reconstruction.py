"""Reconstruction: decoders of the representations of a frozen encoder.

It is trained like a method: the same views, the same loop. Its encoder is the one of
another method, with weights that do not change.

Source: the reference's unused hooks, which give a decoder each augmented view's own
representation and score it by the squared error, on both views in training and on one
in evaluation. The decoder is ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax import losses
from duet_jax.methods import base
from duet_jax.models.decoder import Decoder
from duet_jax.types import Array


class Decoding(nnx.Module):
    """A frozen encoder, and a decoder for each of its representations.

    Attributes:
      encoder: images to features; all its weights count as running statistics, which
        no update changes.
      decoders: a decoder for each representation, by name.
    """

    def __init__(self, encoder: nnx.Module, decoders: dict[str, Decoder]):
        _freeze(encoder)
        self.encoder = encoder
        self.decoders = nnx.Dict(decoders)


def _freeze(encoder: nnx.Module) -> None:
    """Turns the parameters of a network into statistics."""
    for _, module in nnx.iter_modules(encoder):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param):
                setattr(module, name, nnx.BatchStat(value[...]))


@dataclasses.dataclass(frozen=True)
class Reconstruction(base.Method):
    """The squared error of decoded views, summed over the representations.

    `two_views` makes the views; of its encoder only the settings are used.

    Attributes:
      source: whose representations are decoded.
      width: see `Decoder`.
    """

    source: base.Method
    width: int

    def init(self, rngs: nnx.Rngs) -> Decoding:
        """Returns newly initialized decoders beside an encoder, to be replaced."""
        stack = self.two_views.stack
        encoder = self.source.init(rngs).encoder
        shapes = jax.eval_shape(
            self.source.representations,
            jax.ShapeDtypeStruct((1, encoder.num_features), jnp.float32),
        )
        decoders = {
            name: Decoder(
                shape.shape[1],
                side=stack.image_size,
                channels=stack.channels,
                width=self.width,
                rngs=rngs,
            )
            for name, shape in shapes.items()
        }
        return Decoding(encoder, decoders)

    def loss(
        self,
        networks: Decoding,
        views: base.Views,
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, base.Metrics]:
        """Returns the mean squared errors of all decoders, summed, and the metrics.

        Of both views in training, of the second, augmented one in evaluation. Metrics:
        "mse_<representation>", and "feature_spread" of the frozen features.
        """
        del labels
        counted = [views.first, views.second] if train else [views.second]
        errors: dict[str, list[Array]] = {}
        for view in counted:
            features = networks.encoder(view.images, train=False).astype(jnp.float32)
            for name, given in self.source.representations(features).items():
                decoded = networks.decoders[name](jax.lax.stop_gradient(given))
                error = jnp.mean(jnp.square(decoded - view.images), axis=(1, 2, 3))
                errors.setdefault(name, []).append(losses.masked_mean(error, mask))
        means = {f"mse_{name}": sum(e) / len(counted) for name, e in errors.items()}
        loss = sum(means.values())
        spread = base.feature_spread(features, mask)
        return loss, {"loss": loss, "feature_spread": spread, **means}
