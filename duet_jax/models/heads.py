"""Heads on the encoder's features: projector, ESSL predictor, online probe."""

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.models.batch_norm import BatchNorm
from duet_jax.types import Array

LAYER_NORM_EPSILON = 1e-5


class Projector(nnx.Module):
    """Maps content to the space of the contrastive loss.

    Linear BN ReLU, Linear BN ReLU, Linear BN.

    Source: reference: projection head; the Linear biases, which the BN behind them
    cancels, are kept so that parameter counts and weights correspond.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 2048,
        out_features: int = 128,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          in_features: channels of the content, or all features for SimCLR and ESSL.
          hidden: width of the two hidden layers.
          out_features: size of the embedding.
          dtype: type of the arithmetic.
          rngs: source of the initial weights.
        """
        self.hidden1 = _linear(in_features, hidden, dtype, rngs)
        self.norm1 = BatchNorm(hidden, dtype=dtype)
        self.hidden2 = _linear(hidden, hidden, dtype, rngs)
        self.norm2 = BatchNorm(hidden, dtype=dtype)
        self.output = _linear(hidden, out_features, dtype, rngs)
        self.norm3 = BatchNorm(out_features, dtype=_at_least_float32(dtype))

    def __call__(self, content: Array, *, train: bool) -> Array:
        """Maps [batch, in_features] to float32 embeddings, [batch, out_features]."""
        y = nnx.relu(self.norm1(self.hidden1(content), train=train))
        y = nnx.relu(self.norm2(self.hidden2(y), train=train))
        return self.norm3(self.output(y), train=train)


class Predictor(nnx.Module):
    """Predicts which transformation an image has undergone.

    Linear LN ReLU, Linear LN ReLU, Linear.

    Source: ESSL (Dangovski et al., 2022), predictor; widths as in the reference.
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        *,
        hidden: int = 2048,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          in_features: the encoder's features.
          num_outputs: classes of the prediction task, or 1 for a regression.
          hidden: width of the two hidden layers.
          dtype: type of the arithmetic.
          rngs: source of the initial weights.
        """
        self.dtype = dtype
        self.hidden1 = _linear(in_features, hidden, dtype, rngs)
        self.norm1 = _layer_norm(hidden, dtype, rngs)
        self.hidden2 = _linear(hidden, hidden, dtype, rngs)
        self.norm2 = _layer_norm(hidden, dtype, rngs)
        self.output = _linear(hidden, num_outputs, dtype, rngs)

    def __call__(self, features: Array) -> Array:
        """Maps [batch, in_features] to float32 logits, [batch, num_outputs]."""
        y = nnx.relu(self.norm1(self.hidden1(features)))
        y = nnx.relu(self.norm2(self.hidden2(y)))
        return self.output(y).astype(_at_least_float32(self.dtype))


class OnlineProbe(nnx.Module):
    """Linear classifier that is trained along, on detached features.

    Always float32: it is a measuring instrument, and it is small.
    """

    def __init__(self, in_features: int, num_classes: int, *, rngs: nnx.Rngs):
        """Builds the classifier from `in_features` to `num_classes`."""
        self.linear = _linear(in_features, num_classes, None, rngs)

    def __call__(self, features: Array) -> Array:
        """Maps [batch, in_features] to float32 logits, [batch, num_classes].

        Detaching the features is left to the caller.
        """
        return self.linear(features.astype(_at_least_float32(features.dtype)))


def _linear(
    in_features: int, out_features: int, dtype: jnp.dtype | None, rngs: nnx.Rngs
) -> nnx.Linear:
    """A Linear layer whose weights and biases start at U(+-1/sqrt(in_features))."""
    bound = in_features**-0.5

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=uniform,
        bias_init=uniform,
        dtype=dtype,
        rngs=rngs,
    )


def _layer_norm(num_features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        num_features,
        epsilon=LAYER_NORM_EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
