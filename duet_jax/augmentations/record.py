"""What an augmentation is: the record, the settings, and what a stage knows.

Throughout this package images are NHWC float32 in [0, 1] (up to rounding), keys come
first, and one call handles a whole batch. Parameters are small dictionaries of arrays
with a leading batch axis; a leaf without axes (the order of the colour jitter) is
shared by the batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from duet_jax.errors import UsageError

Array = jax.Array
Params = Mapping[str, Array]

# Field of Options -> the interval that its pair of numbers has to lie in.
_PAIRS = {
    "crop_area": (0.0, 1.0),
    "crop_ratio": (0.0, math.inf),
    "blur_sigma": (0.0, math.inf),
    "solarize_threshold": (0.0, 1.0),
    "solarize_addition": (-1.0, 1.0),
}
# These pairs are divided by or have their logarithm taken.
_ABOVE_ZERO = ("crop_area", "crop_ratio", "blur_sigma")


@dataclasses.dataclass(frozen=True)
class Options:
    """Every number of the augmentations that a configuration can set.

    Pairs are the ends of a uniform distribution. The defaults are the reference's.

    Attributes:
      crop_area: area of the crop before rounding, as a share of the image.
      crop_ratio: width over height of the crop; uniform in its logarithm.
      rotation_degrees: largest angle of `rot` to either side, up to 180.
      flip_probability: share of the images that `fli` and `flv` mirror.
      grey_probability: share that `gra` turns grey.
      blur_probability: share that `blu` blurs.
      blur_sigma: standard deviation of the blur in pixels.
      jitter_probability: share that the colour jitter changes.
      jitter_strength: half-width s of the factors of brightness, contrast and
        saturation, U(1 - s, 1 + s), and of the hue shift in turns, U(-s, s).
      solarize_probability: share that `sol` solarizes.
      solarize_threshold: brightness from which a channel is inverted.
      solarize_addition: what is added before, for brightness in [0, 1].

    Raises:
      UsageError: a value lies outside the range in which it has a meaning.
    """

    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation_degrees: float = 180.0
    flip_probability: float = 0.5
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    jitter_probability: float = 0.8
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    solarize_probability: float = 0.2
    solarize_threshold: tuple[float, float] = (0.4, 0.6)
    solarize_addition: tuple[float, float] = (-0.1, 0.1)

    def __post_init__(self):
        for name in _PAIRS:
            self._check_pair(name)
        for field in dataclasses.fields(self):
            if field.name.endswith("_probability"):
                self._require(
                    field.name, 0 <= getattr(self, field.name) <= 1, "lie in [0, 1]"
                )
        self._require(
            "rotation_degrees", 0 < self.rotation_degrees <= 180, "lie in (0, 180]"
        )
        low, high = self.solarize_threshold
        self._require(
            "solarize_threshold",
            low < high,
            "be two different numbers, as the structure value is the place between",
        )
        *blends, hue = self.jitter_strength
        self._require(
            "jitter_strength",
            len(blends) == 3 and all(0 < s <= 1 for s in blends) and 0 < hue <= 0.5,
            "be brightness, contrast and saturation in (0, 1] and hue in (0, 0.5]; to "
            "leave a component out, list the others in config.augmentation.stack",
        )

    def _check_pair(self, name: str) -> None:
        lowest, highest = _PAIRS[name]
        pair = getattr(self, name)
        ordered = len(pair) == 2 and lowest <= pair[0] <= pair[1] <= highest
        if name in _ABOVE_ZERO:
            ordered = ordered and pair[0] > 0
            interval = f"above 0, up to {highest:g}"
        else:
            interval = f"in [{lowest:g}, {highest:g}]"
        self._require(name, ordered, f"be two numbers, the smaller first, {interval}")

    def _require(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise UsageError(
                f"config.augmentation.{name}={getattr(self, name)!r} must {rule}."
            )


@dataclasses.dataclass(frozen=True)
class Frame:
    """What one stage of a stack knows besides its parameters; all of it static.

    Attributes:
      options: the configuration's numbers.
      side: side in pixels of the square images that enter the stage.
      image_size: side of the finished view.
      crop_side: side of the square that a central cut leaves. It is `image_size`, for
        half-size views that of the full-size ones: they show the same scene.
      codes: the codes of the stack that this stage carries out: one, or those of
        the colour jitter.
    """

    options: Options
    side: int
    image_size: int
    crop_side: int
    codes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """How ESSL has an augmentation predicted from a transformed image.

    The transform either makes every member of a small group of each image, k = 2 or
    4, the members of one image in a row (reference: all images in their first state,
    then all in their second, ...; a batch that is split over devices would have to be
    dealt out anew), or draws one parameter for each image, k = 1.

    Attributes:
      num_outputs: outputs of the predictor: the classes, or 1 for a regression.
      classification: True for cross-entropy, False for squared error.
      draw: (key, batch) -> params with batch * k rows. A group ignores the key.
      transform: (images [batch, H, W, C] in [0, 1], params) -> [batch * k, H, W, C].
      targets: params -> [batch * k], int32 classes or float32 values.
    """

    num_outputs: int
    classification: bool
    draw: Callable[[Array, int], Params]
    transform: Callable[[Array, Params], Array]
    targets: Callable[[Params], Array]

    def make(self, key: Array, images: Array) -> tuple[Array, Array]:
        """Returns the transformed images and what is to be predicted from them.

        Args:
          key: a JAX random key.
          images: [batch, H, W, C] in [0, 1].

        Returns:
          Images [batch * k, H, W, C] in [0, 1], k for each image in turn; targets
          [batch * k].
        """
        params = self.draw(key, images.shape[0])
        return self.transform(images, params), self.targets(params)


def orbit(
    name: str, members: tuple, transform: Callable[[Array, Array], Array]
) -> Prediction:
    """Prediction of which member of a small group an image was transformed by.

    Args:
      name: key of the parameter in the params.
      members: its values; the class is the place among them.
      transform: (images [batch, H, W, C], values [batch]) -> images.

    Returns:
      The prediction; images and targets come image by image: where a batch is split
      over devices, each keeps its own.
    """

    def transform_all(images: Array, params: Params) -> Array:
        copies = params[name].shape[0] // images.shape[0]
        return transform(jnp.repeat(images, copies, axis=0), params[name])

    return Prediction(
        num_outputs=len(members),
        classification=True,
        draw=lambda key, n: {name: jnp.tile(jnp.array(members), n)},
        transform=transform_all,
        targets=lambda params: params[name].astype(jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """How structure values read in an augmentation's own units: the way back.

    Attributes:
      unit: of the parameter, in words that follow a number or stand at an axis.
      parameter: (structure values [n] in [0, 1], frame) -> [n] in own units. Linear,
        and the inverse of `Augmentation.structure` for images that are augmented.
      levels: the structure values that occur, ascending, if they are few.
      params: (structure values [n], frame) -> params of the augmentation that has
        them, for the circles, all of whose values can be asked for; None for lines.
        Between levels, the params of the nearest.
    """

    unit: str
    parameter: Callable[[Array, Frame], Array]
    levels: tuple[float, ...] | None = None
    params: Callable[[Array, Frame], Params] | None = None


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Everything there is to know about one augmentation.

    Attributes:
      code: its name in `config.augmentation.stack`.
      summary: what it does, in a few words.
      source: where it comes from and where we differ.
      draw: (key, batch, frame) -> params of images that are all augmented.
      identity: (batch, frame) -> params that change no pixel, except that an
        augmentation which `resizes` still resizes.
      apply: (images [batch, side, side, C], params, frame) -> images. Images with
        the identity's params come out bit for bit as they went in.
      structure: (params, frame) -> float32 [batch] in [0, 1], the place of the
        parameter in its range; None if there is nothing to be learnt.
      topology: whether 0 and 1 are the same structure value ("circle") or the ends
        of a range ("line"); None without a structure.
      scale: the structure in own units; None without a structure.
      channels: the numbers of image channels it works on.
      probability: field of Options with the share of images that are augmented; None
        for all of them. Only the stack reads it: the others get the identity's params.
      options: what other fields of Options decide which structure values are drawn. Not
        those that stretch the range of the parameter: its place there stays the same.
      resizes: True if images leave with side `frame.image_size`.
      stage: key of the params; records with the same stage are carried out together,
        in the place of the first.
      prediction: how ESSL predicts it; None if it does not.
    """

    code: str
    summary: str
    source: str
    draw: Callable[[Array, int, Frame], Params]
    identity: Callable[[int, Frame], Params]
    apply: Callable[[Array, Params, Frame], Array]
    stage: str
    structure: Callable[[Params, Frame], Array] | None = None
    topology: Literal["circle", "line"] | None = None
    scale: Scale | None = None
    channels: tuple[int, ...] = (1, 3)
    probability: str | None = None
    options: tuple[str, ...] = ()
    resizes: bool = False
    prediction: Prediction | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the configuration that decide which structure values are drawn."""
        names = (self.probability, *self.options)
        return tuple(f"config.augmentation.{name}" for name in names if name)

    @property
    def two_point(self) -> bool:
        """Whether the structure takes two values only."""
        levels = self.scale.levels if self.scale else None
        return levels is not None and len(levels) == 2


def per_image(values: Array) -> Array:
    """Returns one value per image, [batch], shaped to meet images: [batch, 1, 1, 1]."""
    return values[:, None, None, None]
