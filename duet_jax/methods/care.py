"""CARE: SimCLR plus augmentations that turn all embeddings alike.

Images of a chunk share their augmentations. What one of these does to their embeddings
should be a rotation: it keeps the angles between them.

Source: Gupta et al. 2023, "Structuring Representation Geometry with Rotationally
Equivariant Contrastive Learning", whose first loss is InfoNCE or its alignment and
uniformity. Here NT-Xent has both directions added, and the same shared views.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from duet_jax.lazy import jax, jnp
from duet_jax.losses.precision import at_least_float32
from duet_jax.methods import base
from duet_jax.types import Array


@dataclasses.dataclass(frozen=True)
class CARE(base.Method):
    """NT-Xent plus the change of the angles between the images of a chunk.

    Attributes:
      weight: lambda.
      chunk: consecutive images of a batch that share the augmentations of view 1, and
        those of view 2. The last chunk of a batch may be smaller.
    """

    weight: float
    chunk: int

    is_invariant: ClassVar[bool] = False  # augmentations turn them

    def make_views(self, key: Array, images: Array, *, train: bool) -> base.Views:
        """Returns the two views of a batch, whose parameters are shared by chunks."""
        draws = self.draws(key, len(images))
        return self.two_views.views_of(draws, images, train=train)

    def draws(self, key: Array, n: int) -> dict[str, base.Draws]:
        """Returns the parameters of both views of `n` images, by view."""
        chunks = -(-n // self.chunk)

        def spread(drawn: Array) -> Array:
            # A scalar is shared by the whole batch as it is.
            return jnp.repeat(drawn, self.chunk, axis=0)[:n] if drawn.ndim else drawn

        return jax.tree.map(spread, self.two_views.draws(key, chunks))

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

        `equivariance_loss`, the mean over all pairs of images of a chunk, is reported
        without its weight. In evaluation the first view is plain.
        """
        features = base.encode_views(networks, views, train=train)
        one, other = (networks.projector(x, train=train) for x in features)
        loss, metrics = self.two_views.contrast(
            networks, features[0], (one, other), labels, mask
        )
        own = angle_change(one, other, self.chunk, mask)
        loss = loss + self.weight * own
        return loss, {"loss": loss, "equivariance_loss": own, **metrics}


def angle_change(
    embeddings1: Array, embeddings2: Array, chunk: int, mask: Array | None
) -> Array:
    """Returns how much the cosines between images differ from view to view, a scalar.

    The mean of (f(ax) . f(ax') - f(a'x) . f(a'x'))^2 over all pairs x, x' of different
    images of a chunk, from 0 to 4; 0 if there are none.

    Args:
      embeddings1: of view 1, f(ax), any scale, [batch, dimensions].
      embeddings2: of view 2, f(a'x), [batch, dimensions].
      chunk: number of consecutive images that share a and a'.
      mask: the examples that count, bool [batch]; None for all.

    Source: CARE, the equivariance loss; unit embeddings. The pairs of an image with
    itself, which are always 0, are not counted.
    """
    count = len(embeddings1)
    missing = -count % chunk

    def in_chunks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    def cosines(x: Array) -> Array:
        x = at_least_float32(x)
        # Not a norm: that of padding has no slope at 0.
        squares = jnp.sum(jnp.square(x), axis=1, keepdims=True)
        unit = x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
        precision = jax.lax.Precision.HIGHEST
        chunks = in_chunks(unit)
        return jnp.einsum("nid,njd->nij", chunks, chunks, precision=precision)

    present = in_chunks(jnp.ones(count, bool) if mask is None else mask)
    pairs = (
        present[:, :, None] & present[:, None, :] & ~jnp.eye(chunk, dtype=bool)[None]
    )
    changes = jnp.square(cosines(embeddings1) - cosines(embeddings2))
    return jnp.sum(jnp.where(pairs, changes, 0)) / jnp.maximum(jnp.sum(pairs), 1)
