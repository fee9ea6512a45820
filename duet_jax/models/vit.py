"""Vision transformers.

Source: Dosovitskiy et al. (2021), as timm has them: pre-norm, biases everywhere,
learned positions, and a token for the class, whose last state is the features.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax.types import Array

_EPSILON = 1e-6
_MLP_RATIO = 4


class ViT(nnx.Module):
    """Vision transformer: a token for each patch and one for the class, and blocks.

    Attributes:
      num_features: dimensions of the features.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_features: int,
        heads: int,
        patch_size: int,
        side: int,
        in_channels: int,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network; see also `encoders.make_encoder`.

        Args:
          depth: number of blocks.
          num_features: dimensions of a token, a multiple of `heads`.
          heads: of the attention.
          patch_size: side of a patch in pixels.
          side: of the images that it learns positions for, a multiple of `patch_size`.
          in_channels: of the images.
          dtype: compute type.
          remat: recompute blocks for the backward pass.
          rngs: source of the initial weights.
        """
        self.num_features = num_features
        self.remat = remat
        self.tokens = Tokens(
            num_features, patch_size, side // patch_size, in_channels, dtype, rngs
        )
        self.blocks = nnx.List(
            [Block(num_features, heads, dtype=dtype, rngs=rngs) for _ in range(depth)]
        )
        wide = jnp.promote_types(dtype, jnp.float32)
        self.final_norm = _norm(num_features, wide, rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes features.

        Args:
          images: [batch, side, side, in_channels], normalized; any side that is a
            multiple of the patch's, for which positions are interpolated.
          train: not used: there are no statistics of batches.

        Returns:
          float32 features, [batch, num_features].
        """
        del train
        *_, (_, x) = self._states(images)
        return self.final_norm(x[:, 0])

    def maps(self, images: Array, *, train: bool) -> Iterator[tuple[str, Array]]:
        """Yields what the patches are made of, and what each block makes, by name.

        Args:
          images: as for a call.
          train: likewise.

        Yields:
          "stem", "block01" and so on, [batch, rows, columns, num_features].
        """
        del train
        for name, x in self._states(images):
            side = round((x.shape[1] - 1) ** 0.5)
            yield name, x[:, 1:].reshape(x.shape[0], side, side, x.shape[2])

    def _states(self, images: Array) -> Iterator[tuple[str, Array]]:
        """Yields the tokens, the one for the class first, after each part."""
        x = self.tokens(images)
        yield "stem", x
        run = nnx.remat(_run) if self.remat else _run
        for i, block in enumerate(self.blocks, 1):
            x = run(block, x)
            yield f"block{i:02}", x


class Tokens(nnx.Module):
    """Makes tokens of images: a linear map of each patch, and its position added.

    Attributes:
      class_token: [1, 1, features].
      positions: [1, 1 + grid * grid, features], the class token's first.
    """

    def __init__(
        self,
        num_features: int,
        patch_size: int,
        grid: int,
        in_channels: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer for images of `grid` patches in a row."""
        bound = (in_channels * patch_size**2) ** -0.5
        self.dtype, self.grid = dtype, grid
        self.patches = nnx.Conv(
            in_channels,
            num_features,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            # PyTorch's, which timm leaves as they are.
            kernel_init=_uniform(bound),
            bias_init=_uniform(bound),
            dtype=dtype,
            rngs=rngs,
        )
        normal, shape = nnx.initializers.normal, (1, 1 + grid**2, num_features)
        self.class_token = nnx.Param(normal(1e-6)(rngs.params(), (1, 1, num_features)))
        self.positions = nnx.Param(normal(0.02)(rngs.params(), shape))

    def __call__(self, images: Array) -> Array:
        """Maps [batch, side, side, in_channels] to [batch, tokens, features]."""
        x = self.patches(images)
        n, rows, columns, features = x.shape
        x = x.reshape(n, rows * columns, features)
        first = jnp.broadcast_to(self.class_token[...], (n, 1, features))
        x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
        return x + self._positions_of(rows).astype(self.dtype)

    def _positions_of(self, grid: int) -> Array:
        """Returns the positions, bicubically interpolated for another grid.

        Source: timm, `resample_abs_pos_embed`.
        """
        learned = self.positions[...]
        if grid == self.grid:
            return learned
        first, rest = learned[:, :1], learned[:, 1:]
        rest = rest.reshape(1, self.grid, self.grid, -1)
        shape = (1, grid, grid, rest.shape[-1])
        rest = jax.image.resize(rest, shape, "cubic", antialias=True)
        return jnp.concatenate([first, rest.reshape(1, grid**2, -1)], axis=1)


class Block(nnx.Module):
    """LN, attention, add; LN, Linear, GELU, Linear, add."""

    def __init__(
        self, num_features: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        """Builds a block."""
        hidden = _MLP_RATIO * num_features
        self.heads = heads
        self.norm1 = _norm(num_features, dtype, rngs)
        self.qkv = _linear(num_features, 3 * num_features, dtype, rngs)
        self.projection = _linear(num_features, num_features, dtype, rngs)
        self.norm2 = _norm(num_features, dtype, rngs)
        self.hidden = _linear(num_features, hidden, dtype, rngs)
        self.output = _linear(hidden, num_features, dtype, rngs)

    def __call__(self, x: Array) -> Array:
        """Maps [batch, tokens, features] to the block's output."""
        x = x + self._attention(self.norm1(x))
        return x + self.output(nnx.gelu(self.hidden(self.norm2(x)), approximate=False))

    def _attention(self, x: Array) -> Array:
        n, tokens, features = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, features // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        # JAX's own function has its softmax in float32 where all else is in float64.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide)
        weights = nnx.softmax(logits * q.shape[3] ** -0.5).astype(v.dtype)
        x = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
        return self.projection(x.reshape(n, tokens, features))


def _run(block: Block, x: Array) -> Array:
    return block(x)


def _uniform(bound: float) -> nnx.Initializer:
    def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


def _linear(
    in_features: int, out_features: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    normal = nnx.initializers.normal(0.02)
    return nnx.Linear(
        in_features, out_features, kernel_init=normal, dtype=dtype, rngs=rngs
    )


def _norm(num_features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        num_features,
        epsilon=_EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )
