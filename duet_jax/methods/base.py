"""What a method is, and the parts that methods share.

A method makes views of a batch and scores the networks on them. It holds no arrays:
`init` creates the networks, the trainer owns their parameters, and views are made
outside the differentiated function.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    runtime_checkable,
)

from etils import epy

from duet_jax import losses
from duet_jax.augmentations import Stack, normalize, to_float
from duet_jax.lazy import jax, jnp, nnx
from duet_jax.losses.precision import at_least_float32
from duet_jax.methods.groups import Group
from duet_jax.models.encoders import EncoderSettings
from duet_jax.types import Array, View

if TYPE_CHECKING:
    from duet_jax.methods.networks import Networks
else:
    Networks = Any

with epy.lazy_imports():
    from duet_jax.methods import networks as of_methods
    from duet_jax.models import heads

Metrics = Mapping[str, Array]
# Augmentation parameters of a batch of views, by stage of the stack and name.
Draws = Mapping[str, Mapping[str, Array]]


class PredictionView(NamedTuple):
    """The view from which ESSL predicts how it was transformed.

    Attributes:
      images: half-size and normalized, [rows, side / 2, side / 2, channels]; the rows
        are the batch times the number of copies of each image.
      targets: code of each transformation -> int32 class or float32 value, [rows].
    """

    images: Array
    targets: Mapping[str, Array]


class Views(NamedTuple):
    """The views of one batch.

    Attributes:
      first: augmented; in evaluation plain.
      second: augmented.
      prediction: what ESSL predicts from.
      plain: the images as they are, for a method that starts from them.
    """

    first: View
    second: View
    prediction: PredictionView | None = None
    plain: View | None = None


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A self-supervised method; by default it learns from two views.

    A method implements `loss` and overrides whatever else is different. One that makes
    other views also reports what it draws for them.

    Attributes:
      two_views: what it shares with the others.
      is_invariant: True if two views of an image are to have the same features, but for
        what is learned.
    """

    two_views: TwoViews

    is_invariant: ClassVar[bool] = True

    def __init_subclass__(cls, **options):
        """Raises a TypeError if only one of `make_views` and `draws` is overridden."""
        super().__init_subclass__(**options)
        own = [name for name in ("make_views", "draws") if name in vars(cls)]
        if len(own) == 1:
            raise TypeError(
                f"{cls.__name__} defines {own[0]} alone; make_views and draws are "
                "about the same parameters: define both."
            )

    def init(self, rngs: nnx.Rngs) -> Networks:
        """Returns newly initialized networks."""
        return self.two_views.networks(rngs)

    def describe(self) -> str:
        """Returns what it does with the views, for the start of a run; "" if nothing.

        By default the attributes that its class adds.
        """
        own = [f.name for f in dataclasses.fields(self) if f.name != "two_views"]
        values = {name: getattr(self, name) for name in own}
        return ", ".join(
            f"{name} {' '.join(value) if isinstance(value, tuple) else value}"
            for name, value in values.items()
        )

    def representations(self, features: Array) -> dict[str, Array]:
        """Returns the representations that are evaluated.

        Args:
          features: the encoder's, [batch, features].

        Returns:
          "full", the features themselves, and any others that the method derives from
          them, each [batch, dimensions].
        """
        return {"full": features}

    def make_views(self, key: Array, images: Array, *, train: bool) -> Views:
        """Returns the views of a batch.

        Args:
          key: a JAX random key, on which all draws depend.
          images: uint8, [batch, side, side, channels].
          train: if false, the first view is plain: the central crop.
        """
        return self.two_views.views(key, images, train=train)

    def draws(self, key: Array, n: int) -> dict[str, Draws]:
        """Returns the parameters that `make_views` draws, by field of `Views`.

        Args:
          key: the key given to `make_views`.
          n: number of images in the batch.
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
        """Returns the loss to minimize and the metrics, means over the examples.

        Args:
          networks: running statistics are updated in place when training.
          views: from `make_views`.
          labels: int32, [batch]; for the online probe only, if there is one.
          mask: the examples that count, bool [batch]; None for all.
          train: use batch statistics if true, else running statistics.

        Returns:
          The loss; and the metrics: "loss", the same value, all metrics of
          `TwoViews.loss`, and the method's own.
        """


@runtime_checkable
class Structured(Protocol):
    """A method whose features represent the structure of transformations.

    Its `representations` include the `structure` of every group, under its `name`.

    Attributes:
      groups: one for each transformation.
    """

    groups: tuple[Group, ...]


def groups_of(method: Method) -> tuple[Group, ...]:
    """Returns the groups of a method's features; () if they have no structure."""
    return method.groups if isinstance(method, Structured) else ()


def group_of(method: Method, code: str) -> Group | None:
    """Returns the group of a method's features that represents an augmentation.

    None if there is none: the method has no structure, or that of others.
    """
    return next((each for each in groups_of(method) if each.code == code), None)


@runtime_checkable
class Predictive(Protocol):
    """A method that predicts how an augmentation moves the embedding of an image.

    An augmentation is told by what it does to the image as it is: by the parameters of
    a view, from `Stack.parameters`. Both functions return float32 embeddings of one
    space, [n, dimensions], not normalized: `predict` those that `embed` would return
    for the augmented images.

    Attributes:
      learned: codes of the augmentations that the predictor is told.
      predictive_parts: names of the networks that the two functions use. They read no
        others, and not the encoder.
    """

    learned: tuple[str, ...]
    predictive_parts: tuple[str, ...]

    def embed(self, networks: Networks, features: Array) -> Array:
        """Returns the embeddings of images, with running statistics.

        Args:
          networks: anything with `predictive_parts` as attributes.
          features: the encoder's, [n, features].
        """

    def predict(
        self, networks: Networks, embedded: Array, parameters: Mapping[str, Array]
    ) -> Array:
        """Returns the predicted embeddings of augmented images.

        Args:
          networks: anything with `predictive_parts` as attributes.
          embedded: from `embed`, of the images as they are, [n, dimensions].
          parameters: for each learned code, those of the augmentation, [n, k] in
            [0, 1], from `Stack.parameters`; other codes are not read.
        """


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """What all methods share.

    Two views, an encoder, a projector whose outputs are contrasted, and the online
    probe on the features of the first view.

    Attributes:
      stack: the augmentations of the two views.
      encoder: settings of the encoder.
      projector_hidden: width of the projector's hidden layers.
      projector_output: dimensions of the embeddings.
      num_classes: number of classes of the online probe; 0 without labels.
      temperature: of NT-Xent.
      projector_layers: of the projector, 3 or 2.
      projector_norm: whether it has batch normalization.
      reduction: of NT-Xent: "sum" or "mean" of its two directions.
    """

    stack: Stack
    encoder: EncoderSettings
    projector_hidden: int
    projector_output: int
    num_classes: int
    temperature: float
    projector_layers: int = 3
    projector_norm: bool = True
    reduction: str = "sum"

    def networks(self, rngs: nnx.Rngs, projected: int | None = None) -> Networks:
        """Returns newly initialized networks.

        Args:
          rngs: source of the initial weights.
          projected: number of the projector's inputs; by default all features.
        """
        encoder = self.encoder.spec.make(self.encoder, rngs)
        projector = self.projector(projected or encoder.num_features, rngs)
        probe = None
        if self.num_classes:
            probe = heads.OnlineProbe(encoder.num_features, self.num_classes, rngs=rngs)
        return of_methods.Networks(encoder, projector, probe)

    def projector(self, in_features: int, rngs: nnx.Rngs) -> heads.Projector:
        """Returns a newly initialized projector."""
        return heads.Projector(
            in_features,
            hidden=self.projector_hidden,
            out_features=self.projector_output,
            layers=self.projector_layers,
            norm=self.projector_norm,
            dtype=jnp.dtype(self.encoder.dtype),
            rngs=rngs,
        )

    def views(self, key: Array, images: Array, *, train: bool) -> Views:
        """Returns the two views of a batch; see `Method.make_views`."""
        return self.views_of(self.draws(key, len(images)), images, train=train)

    def views_of(
        self, draws: Mapping[str, Draws], images: Array, *, train: bool
    ) -> Views:
        """Returns the two views of a batch that are made with given parameters.

        Args:
          draws: of "first" and "second", for these images.
          images: uint8, [batch, side, side, channels].
          train: if false, the first view is plain.
        """
        images = to_float(images)
        second = self._view(images, draws["second"])
        first = self._view(images, draws["first"] if train else None)
        return Views(first, second)

    def plain(self, images: Array) -> View:
        """Returns the plain view, the central crop, of uint8 images."""
        return self._view(to_float(images), None)

    def draws(self, key: Array, n: int) -> dict[str, Draws]:
        """Returns the parameters of both views of `n` images, by view."""
        keys = jax.random.split(key)
        return {
            view: self.stack.draw(view_key, n)
            for view, view_key in zip(("first", "second"), keys, strict=True)
        }

    def _view(self, images: Array, draws: Draws | None) -> View:
        """Returns a view; the plain one has the identity's values."""
        view = normalize(self.stack.apply(images, draws))
        if draws is None:
            draws = self.stack.identity(len(images))
        return View(view, self.stack.structure(draws), self.stack.parameters(draws))

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
        """Returns NT-Xent plus the online probe's cross-entropy, and the metrics.

        Args:
          networks: of these, the projector and the online probe are run. The projector
            runs once per view, so its batch statistics are those of one view.
          features1: of view 1, [batch, features], for the online probe.
          inputs: the projector's inputs for each view, [batch, dimensions].
          labels: int32, [batch].
          mask: the examples that count, bool [batch]; None for all.
          train: use batch statistics if true, else running statistics.
        """
        one, other = (networks.projector(x, train=train) for x in inputs)
        return self.contrast(networks, features1, (one, other), labels, mask)

    def nt_xent(
        self, embeddings1: Array, embeddings2: Array, mask: Array | None
    ) -> losses.Contrast:
        """Returns NT-Xent with the temperature and the reduction of the method."""
        return losses.nt_xent(
            embeddings1, embeddings2, self.temperature, mask, reduction=self.reduction
        )

    def contrast(
        self,
        networks: Networks,
        features1: Array,
        embeddings: tuple[Array, Array],
        labels: Array,
        mask: Array | None,
    ) -> tuple[Array, Metrics]:
        """Returns what `loss` does, for a method that uses the embeddings itself.

        Without labels there is no probe, and its loss and metrics are left out.

        Args:
          networks: of these, the online probe is run.
          features1: of view 1, [batch, features], for the online probe. Their gradient
            is stopped: the probe never trains the encoder.
          embeddings: the projector's outputs for each view, [batch, dimensions].
          labels: int32, [batch].
          mask: the examples that count, bool [batch]; None for all.
        """
        contrast = self.nt_xent(*embeddings, mask)
        features1 = jax.lax.stop_gradient(features1)
        metrics = {
            "nt_xent": contrast.loss,
            "retrieval_top1": contrast.top1,
            "retrieval_top5": contrast.top5,
            "feature_spread": feature_spread(features1, mask),
        }
        if networks.online_probe is None:
            return contrast.loss, metrics
        logits = networks.online_probe(features1)
        online = losses.masked_mean(losses.cross_entropy(logits, labels), mask)
        return contrast.loss + online, {
            **metrics,
            "online_loss": online,
            "online_top1": losses.masked_mean(losses.top_k(logits, labels, 1), mask),
            "online_top5": losses.masked_mean(losses.top_k(logits, labels, 5), mask),
        }


def encode_views(
    networks: Networks, views: Views, *, train: bool
) -> tuple[Array, Array]:
    """Returns the features of both views, each [batch, features].

    Source: as in the reference there is one forward pass per view: batch statistics are
    those of one view, and running statistics are updated twice per step.
    """
    return (
        networks.encoder(views.first.images, train=train),
        networks.encoder(views.second.images, train=train),
    )


def feature_spread(features: Array, mask: Array | None) -> Array:
    """Returns how widely the directions of a batch's features are spread, a scalar.

    About 1 if they are spread evenly, 0 if all are equal (collapse).

    Args:
      features: [batch, dimensions].
      mask: the examples that count, bool [batch]; None for all.

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning": the
    standard deviation of normalized outputs; we multiply it by sqrt(dimensions).
    """
    features = at_least_float32(features)
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    directions = features / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    average = jax.vmap(losses.masked_mean, in_axes=(1, None))  # over the batch
    deviations = directions - average(directions, mask)[None, :]
    variance = average(jnp.square(deviations), mask)
    return jnp.mean(jnp.sqrt(variance)) * features.shape[1] ** 0.5
