"""What a method is, and the parts that methods share.

A method makes views of a batch and scores the networks on them. It holds no arrays: the
networks are created by `init`, the trainer owns their parameters, and views are made
outside the differentiated function.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from duet_jax import losses
from duet_jax.augmentations import Stack, evaluation_view, normalise, to_float
from duet_jax.methods.networks import Networks
from duet_jax.models.heads import OnlineProbe, Projector
from duet_jax.models.resnet import make_encoder
from duet_jax.types import Array, View

Metrics = Mapping[str, Array]
# Parameters of a batch of views, by stage of the stack and name.
Draws = Mapping[str, Mapping[str, Array]]


class PredictionView(NamedTuple):
    """The view on which ESSL predicts the transformation.

    Attributes:
      images: half-size and normalised, [rows, side / 2, side / 2, channels]; rows is
        the batch times the members of the transformation's orbit.
      targets: int32 class or float32 value, [rows].
    """

    images: Array
    targets: Array


class Views(NamedTuple):
    """What a method's networks are shown of one batch."""

    first: View
    second: View
    prediction: PredictionView | None = None


@runtime_checkable
class Structured(Protocol):
    """What a method adds whose features hold the structure of a transformation.

    Its `representations` include "structure": distributions, [batch, num_bins].

    Attributes:
      learned: code of the augmentation whose parameter is the structure.
      num_bins: G.
      circular: whether the first bin follows the last.
    """

    learned: str
    num_bins: int

    @property
    def circular(self) -> bool:
        """Whether the first bin follows the last."""

    def targets(self, values: Array) -> Array:
        """Returns the prescribed distributions, [batch, num_bins].

        Args:
          values: structure values of the parameters that were drawn, [batch].
        """


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How the encoder is built; see `configs/base.py`."""

    name: str
    width_multiplier: float
    blocks: tuple[int, ...] | None
    widths: tuple[int, ...] | None
    channels: int
    dtype: jnp.dtype
    remat: bool = False

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a new encoder."""
        return make_encoder(
            self.name,
            in_channels=self.channels,
            width_multiplier=self.width_multiplier,
            blocks=self.blocks,
            widths=self.widths,
            dtype=self.dtype,
            remat=self.remat,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """The part that is the same in all three methods.

    Two views, an encoder, a projector whose outputs are contrasted, and the online
    probe on the features of the first view.

    Attributes:
      stack: the augmentations of the two views.
      encoder: how the encoder is built.
      projector_hidden: width of the projector's hidden layers.
      projector_output: dimensions of the embeddings.
      num_classes: of the online probe.
      temperature: of NT-Xent.
    """

    stack: Stack
    encoder: EncoderSettings
    projector_hidden: int
    projector_output: int
    num_classes: int
    temperature: float

    def networks(self, rngs: nnx.Rngs, *, share: int = 1) -> Networks:
        """Returns new networks.

        Args:
          rngs: for the initial parameters.
          share: the projector reads features / `share` inputs (DUET: the bins).
        """
        encoder = self.encoder.build(rngs)
        projector = Projector(
            encoder.num_features // share,
            hidden=self.projector_hidden,
            out_features=self.projector_output,
            dtype=self.encoder.dtype,
            rngs=rngs,
        )
        probe = OnlineProbe(encoder.num_features, self.num_classes, rngs=rngs)
        return Networks(encoder, projector, probe)

    def views(self, key: Array, images: Array, *, train: bool) -> Views:
        """Returns the two views of uint8 `images` [batch, side, side, channels].

        In evaluation the first is the centre crop as it is, with the structure value of
        the identity; the second is augmented as in training.
        """
        draws = self.draws(key, len(images))
        images = to_float(images)
        second = self._augmented(images, draws["second"])
        if train:
            return Views(self._augmented(images, draws["first"]), second)
        plain, structure = evaluation_view(images, self.stack)
        return Views(View(normalise(plain), structure), second)

    def draws(self, key: Array, n: int) -> dict[str, Draws]:
        """Returns the parameters of the views of `n` images, by view."""
        keys = jax.random.split(key)
        return {
            view: self.stack.draw(view_key, n)
            for view, view_key in zip(("first", "second"), keys, strict=True)
        }

    def _augmented(self, images: Array, params: Draws) -> View:
        return View(
            normalise(self.stack.apply(images, params)), self.stack.structure(params)
        )

    def loss(
        self,
        networks: Networks,
        features1: Array,
        inputs: tuple[Array, Array],
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, Metrics]:
        """Returns NT-Xent plus the online probe's cross-entropy, and their metrics.

        Args:
          networks: projector and online probe are run, the projector once per view, so
            that its batch statistics are those of one view.
          features1: of view 1, [batch, features], read by the online probe. Its
            gradient stops there: the probe never trains the encoder.
          inputs: what the projector reads of each view, [batch, dimensions].
          labels: int32, [batch].
          mask: the examples that count, bool [batch]; None when all do.
          train: batch statistics when true, running statistics otherwise.
        """
        embeddings = [networks.projector(x, train=train) for x in inputs]
        contrast = losses.nt_xent(*embeddings, self.temperature, mask)
        features1 = jax.lax.stop_gradient(features1)
        logits = networks.online_probe(features1)
        online = losses.masked_mean(losses.cross_entropy(logits, labels), mask)
        return contrast.loss + online, {
            "nt_xent": contrast.loss,
            "retrieval_top1": contrast.top1,
            "retrieval_top5": contrast.top5,
            "feature_spread": feature_spread(features1, mask),
            "online_loss": online,
            "online_top1": losses.masked_mean(losses.top_k(logits, labels, 1), mask),
            "online_top5": losses.masked_mean(losses.top_k(logits, labels, 5), mask),
        }


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """What the program asks of a method; by itself it learns from two views.

    A method writes its loss, and whatever else it does otherwise. If it makes other
    views it also says what it draws for them.
    """

    two_views: TwoViews

    def __init_subclass__(cls, **options):
        """Raises a TypeError where a method's draws would not be those of its views."""
        super().__init_subclass__(**options)
        own = [name for name in ("make_views", "draws") if name in vars(cls)]
        if len(own) == 1:
            raise TypeError(
                f"{cls.__name__} defines {own[0]} alone; make_views and draws are "
                "about the same parameters: define both."
            )

    def init(self, rngs: nnx.Rngs) -> Networks:
        """Returns freshly initialised networks."""
        return self.two_views.networks(rngs)

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns what an evaluation is given of the encoder's features.

        Args:
          features: [batch, features].

        Returns:
          "full", the features themselves, and what else the method reads in them, each
          [batch, dimensions].
        """
        return {"full": features}

    def make_views(self, key: Array, images: Array, *, train: bool) -> Views:
        """Returns the views of a batch.

        Args:
          key: decides every draw.
          images: uint8, [batch, side, side, channels].
          train: two augmented views; otherwise the first is the centre crop as it is.
        """
        return self.two_views.views(key, images, train=train)

    def draws(self, key: Array, n: int) -> dict[str, Draws]:
        """Returns the parameters that `make_views` draws, by field of `Views`.

        Args:
          key: the same as there.
          n: images in the batch.
        """
        return self.two_views.draws(key, n)

    @abc.abstractmethod
    def loss(
        self,
        networks: Networks,
        views: Views,
        labels: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> tuple[Array, Metrics]:
        """Returns the loss to minimise and what to report, means over the examples.

        Args:
          networks: updated in place (running statistics) when training.
          views: from `make_views`.
          labels: int32, [batch]; for the online probe alone.
          mask: bool, [batch], the examples that count; None when all do.
          train: batch statistics when true, running statistics otherwise.

        Returns:
          The loss; and as metrics "loss", the same, the metrics of `TwoViews.loss`,
          which the program reads, and those of the method's own.
        """


def encode_views(
    networks: Networks, views: Views, *, train: bool
) -> tuple[Array, Array]:
    """Features of each view, [batch, features], from one forward pass per view.

    Source: the reference; batch statistics are those of one view, and the running ones
    move twice per step.
    """
    return (
        networks.encoder(views.first.images, train=train),
        networks.encoder(views.second.images, train=train),
    )


def feature_spread(features: Array, mask: Array | None) -> Array:
    """How far the directions of the features of a batch lie apart; a scalar.

    About 1 where they are spread evenly, 0 where all are equal: collapsed.

    Args:
      features: [batch, dimensions].
      mask: the examples that count, bool [batch]; None when all do.

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning", the
    standard deviation of normalised outputs; we multiply it by sqrt(dimensions).
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    directions = features / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    average = jax.vmap(losses.masked_mean, in_axes=(1, None))  # over the batch
    deviations = directions - average(directions, mask)[None, :]
    variance = average(jnp.square(deviations), mask)
    return jnp.mean(jnp.sqrt(variance)) * features.shape[1] ** 0.5
