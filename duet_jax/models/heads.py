"""Heads on the encoder's features: projector, predictors, online probe."""

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.losses.precision import at_least_float32
from duet_jax.models.batch_norm import BatchNorm
from duet_jax.types import Array


class Projector(nnx.Module):
    """Projection head of the contrastive loss.

    Linear BN ReLU, Linear BN ReLU, Linear BN; with two layers one Linear BN ReLU less,
    and BN may be left out.

    Source: reference: projection head. Its Linear biases, which BN cancels, are kept so
    that weights and parameter counts correspond. Two layers without BN are the head of
    SimCLR (Chen et al. 2020) as much other code has it.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 2048,
        out_features: int = 128,
        layers: int = 3,
        norm: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          in_features: all features, of DUET the channels of the content, of SIE half.
          hidden: width of the hidden layers.
          out_features: dimensions of the embeddings.
          layers: Linear layers, 3 or 2.
          norm: False for no BN.
          dtype: compute type.
          rngs: source of the initial weights.
        """
        self.hidden1 = _linear(in_features, hidden, dtype, rngs)
        if norm:
            self.norm1 = BatchNorm(hidden, dtype=dtype)
        if layers == 3:
            self.hidden2 = _linear(hidden, hidden, dtype, rngs)
        if norm and layers == 3:
            self.norm2 = BatchNorm(hidden, dtype=dtype)
        self.output = _linear(hidden, out_features, dtype, rngs)
        if norm:
            self.norm3 = BatchNorm(
                out_features, dtype=jnp.promote_types(dtype, jnp.float32)
            )

    def __call__(self, content: Array, *, train: bool) -> Array:
        """Maps [batch, in_features] to float32 embeddings, [batch, out_features]."""

        def normalized(y: Array, norm: str) -> Array:
            norm = getattr(self, norm, None)
            return y if norm is None else norm(y, train=train)

        y = nnx.relu(normalized(self.hidden1(content), "norm1"))
        if hasattr(self, "hidden2"):
            y = nnx.relu(normalized(self.hidden2(y), "norm2"))
        return at_least_float32(normalized(self.output(y), "norm3"))


class Predictor(nnx.Module):
    """Predicts how an image was transformed, and other values.

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
          in_features: number of features of the encoder; of what else it reads.
          num_outputs: number of classes, or of values: 1 for ESSL's regression.
          hidden: width of the two hidden layers.
          dtype: compute type.
          rngs: source of the initial weights.
        """
        self.hidden1 = _linear(in_features, hidden, dtype, rngs)
        self.norm1 = _layer_norm(hidden, dtype, rngs)
        self.hidden2 = _linear(hidden, hidden, dtype, rngs)
        self.norm2 = _layer_norm(hidden, dtype, rngs)
        self.output = _linear(hidden, num_outputs, dtype, rngs)

    def __call__(self, features: Array) -> Array:
        """Maps [batch, in_features] to float32 logits, [batch, num_outputs]."""
        y = nnx.relu(self.norm1(self.hidden1(features)))
        y = nnx.relu(self.norm2(self.hidden2(y)))
        return at_least_float32(self.output(y))


class Hypernetwork(nnx.Module):
    """Moves embeddings by an affine map that is made from parameters; always float32.

    The map is the identity plus what two layers, Linear ReLU Linear, make of the
    parameters, over the root of the number of dimensions: at first it moves little.

    Source: the predictor of SIE (Garrido et al., 2023), which has one layer.
    """

    def __init__(
        self, num_parameters: int, dimensions: int, *, hidden: int, rngs: nnx.Rngs
    ):
        """Builds the two layers.

        Args:
          num_parameters: number of parameters.
          dimensions: of the embeddings.
          hidden: width of the hidden layer.
          rngs: source of the initial weights.
        """
        self.hidden = _linear(num_parameters, hidden, None, rngs)
        self.output = _linear(hidden, (dimensions + 1) * dimensions, None, rngs)

    def __call__(self, embeddings: Array, parameters: Array) -> Array:
        """Returns moved embeddings, [batch, dimensions].

        Args:
          embeddings: float32, [batch, dimensions].
          parameters: float32, [batch, num_parameters].
        """
        batch, dimensions = embeddings.shape
        made = self.output(nnx.relu(self.hidden(parameters)))
        made = made.reshape(batch, dimensions + 1, dimensions) * dimensions**-0.5
        moved = jnp.einsum("bi,bij->bj", embeddings, made[:, :-1])
        return embeddings + moved + made[:, -1]


class OnlineProbe(nnx.Module):
    """Linear classifier trained alongside the encoder to monitor it; always float32."""

    def __init__(self, in_features: int, num_classes: int, *, rngs: nnx.Rngs):
        """Builds the classifier."""
        self.linear = _linear(in_features, num_classes, None, rngs)

    def __call__(self, features: Array) -> Array:
        """Maps [batch, in_features] to float32 logits, [batch, num_classes].

        The caller stops the gradient of the features.
        """
        return self.linear(at_least_float32(features))


def _linear(
    in_features: int, out_features: int, dtype: jnp.dtype | None, rngs: nnx.Rngs
) -> nnx.Linear:
    """Returns a layer with initial weights and biases U(+-1/sqrt(in_features))."""
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
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )
