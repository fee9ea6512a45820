"""What an augmentation is: its record, its options, and the frame of a stage.

Throughout this package images are NHWC float32 in [0, 1] (up to rounding), random keys
come first, and one call handles a whole batch. Params are small dictionaries of arrays
with a leading batch axis; a scalar (the order of the color jitter) is shared by the
batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from duet_jax.errors import UsageError
from duet_jax.lazy import jax, jnp
from duet_jax.types import Array

Params = Mapping[str, Array]

# Field of Options -> the interval that both of its numbers must lie in.
_PAIRS = {
    "crop_area": (0.0, 1.0),
    "crop_ratio": (0.0, math.inf),
    "blur_sigma": (0.0, math.inf),
    "solarize_threshold": (0.0, 1.0),
    "solarize_addition": (-1.0, 1.0),
}
# Of these, zero itself is excluded: we divide by them or take their logarithm.
_ABOVE_ZERO = ("crop_area", "crop_ratio", "blur_sigma")


@dataclasses.dataclass(frozen=True)
class Options:
    """The numbers in `config.augmentation`.

    Pairs are the ends of a uniform distribution. The defaults are the reference's.

    Attributes:
      crop_area: area of the crop before rounding, as a share of the image.
      crop_ratio: width over height of the crop; uniform in its logarithm.
      rotation_degrees: largest angle of `rot` in either direction, up to 180.
      flip_probability: share of the images that `fli` and `flv` mirror.
      grey_probability: share that `gra` turns gray.
      blur_probability: share that `blu` blurs.
      blur_sigma: standard deviation of the blur in pixels.
      jitter_probability: share that the color jitter changes.
      jitter_strength: half-width s of the factors of brightness, contrast and
        saturation, U(1 - s, 1 + s), and of the hue shift in turns, U(-s, s).
      solarize_probability: share that `sol` solarizes.
      solarize_threshold: values from here on are inverted.
      solarize_addition: added to the image before the inversion.

    Raises:
      UsageError: a value is out of range.
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
        for name in vars(self):
            if name.endswith("_probability"):
                self._require(name, 0 <= getattr(self, name) <= 1, "lie in [0, 1]")
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
        valid = len(pair) == 2 and lowest <= pair[0] <= pair[1] <= highest
        interval = f"in [{lowest:g}, {highest:g}]"
        if name in _ABOVE_ZERO:
            valid = valid and pair[0] > 0
            interval = f"above 0, up to {highest:g}"
        self._require(name, valid, f"be two numbers, the smaller first, {interval}")

    def _require(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise UsageError(
                f"config.augmentation.{name}={getattr(self, name)!r} must {rule}."
            )


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a stage of a stack knows besides its params; static.

    Attributes:
      options: the numbers of the configuration.
      side: side in pixels of the square images that enter the stage.
      image_size: side of the finished view.
      crop_side: side of the square that a central crop keeps. Equal to `image_size`,
        except for half-size views, which show the scene of the full-size ones.
      codes: the codes that this stage carries out: one, or those of the color jitter.
    """

    options: Options
    side: int
    image_size: int
    crop_side: int
    codes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """How ESSL predicts an augmentation from a transformed image.

    Either every image is transformed by all members of a small group, k = 2 or 4, or
    one parameter is drawn per image, k = 1. The k copies of an image are consecutive,
    so that each device keeps its own images when a batch is sharded (reference: all
    images in their first state, then all in their second, ...).

    Attributes:
      num_outputs: outputs of the predictor: the number of classes, or 1 for regression.
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
        """Returns transformed images [batch * k, H, W, C] and targets [batch * k].

        Args:
          key: a JAX random key.
          images: [batch, H, W, C] in [0, 1].
        """
        params = self.draw(key, images.shape[0])
        return self.transform(images, params), self.targets(params)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Converts structure values to an augmentation's own units.

    Attributes:
      unit: of the parameter, as it follows a number or labels an axis.
      parameter: (structure values [n] in [0, 1], frame) -> [n] in own units. Linear,
        and the inverse of `Augmentation.structure` for augmented images.
      params: (structure values [n], frame) -> params with these values, or with the
        nearest that there are. What else is drawn has its neutral or middle value.
      levels: the possible structure values in ascending order, if they are few.
    """

    unit: str
    parameter: Callable[[Array, Frame], Array]
    params: Callable[[Array, Frame], Params]
    levels: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Everything there is to know about one augmentation.

    Attributes:
      code: its name in `config.augmentation.stack`.
      summary: what it does, in a few words.
      source: where it comes from and how we differ.
      draw: (key, batch, frame) -> params that augment every image.
      identity: (batch, frame) -> params that change no pixel, except that an
        augmentation which `resizes` still resizes.
      apply: (images [batch, side, side, C], params, frame) -> images. Images with
        the identity's params are returned bit for bit.
      structure: (params, frame) -> structure values, float32 [batch] in [0, 1]: the
        parameter's place in its range. None if there is nothing to learn.
      topology: "circle" if the structure values 0 and 1 are the same, "line" if they
        are the ends of a range; None without a structure.
      parameters: (params, frame) -> all that an image shows of the params, float32
        [batch, k] in [0, 1]; by default the structure value alone, k = 1.
      scale: the structure values in own units; None without a structure.
      channels: the numbers of image channels it supports.
      probability: field of Options with the share of images to augment; None to augment
        them all. The stack gives the other images the identity's params.
      options: other fields of Options that decide which structure values are drawn.
      stretched_by: the fields of Options that only stretch the ranges of parameters: a
        structure value, a place in the range, stays the same.
      resizes: True if the result has side `frame.image_size`.
      prediction: how ESSL predicts it; None if it cannot.
      stage: key of its params in a stack; by default the code. Codes of the same stage
        are carried out together, in the place of the first.
    """

    code: str
    summary: str
    source: str
    draw: Callable[[Array, int, Frame], Params]
    identity: Callable[[int, Frame], Params]
    apply: Callable[[Array, Params, Frame], Array]
    structure: Callable[[Params, Frame], Array] | None = None
    topology: Literal["circle", "line"] | None = None
    parameters: Callable[[Params, Frame], Array] | None = None
    scale: Scale | None = None
    channels: tuple[int, ...] = (1, 3)
    probability: str | None = None
    options: tuple[str, ...] = ()
    stretched_by: tuple[str, ...] = ()
    resizes: bool = False
    prediction: Prediction | None = None
    stage: str = ""

    def __post_init__(self):
        # It is frozen.
        object.__setattr__(self, "stage", self.stage or self.code)
        if self.parameters is None and self.structure is not None:
            object.__setattr__(self, "parameters", self._structure_alone)

    def _structure_alone(self, params: Params, frame: Frame) -> Array:
        return self.structure(params, frame)[:, None]

    @property
    def fields(self) -> tuple[str, ...]:
        """Configuration fields that decide which structure values are drawn."""
        names = (self.probability, *self.options)
        return tuple(f"config.augmentation.{name}" for name in names if name)

    @property
    def two_point(self) -> bool:
        """True if the structure takes only two values."""
        levels = self.scale.levels if self.scale else None
        return levels is not None and len(levels) == 2


# The parts that records are made of.


def per_image(values: Array) -> Array:
    """Reshapes one value per image, [batch], to [batch, 1, 1, 1]."""
    return values[:, None, None, None]


def between(share: Array, low: float, high: float) -> Array:
    """Returns the point at a share in [0, 1] of the way from `low` to `high`."""
    return low + (high - low) * share


def uniform(key: Array, n: int, low: float, high: float) -> Array:
    """Draws `n` values from U(low, high)."""
    return jax.random.uniform(key, (n,), minval=low, maxval=high)


def orbit(
    name: str, members: tuple, transform: Callable[[Array, Array], Array]
) -> Prediction:
    """Returns the prediction of which member of a group transformed an image.

    Args:
      name: key of the parameter in the params.
      members: its values; the class is the position among them.
      transform: (images [batch, H, W, C], values [batch]) -> images.
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


def on_or_off(name: str, change: Callable[[Array], Array]) -> dict[str, Any]:
    """Returns the fields of an augmentation that an image either has or has not.

    Args:
      name: key of the only parameter, bool [batch].
      change: images -> changed images.

    Returns:
      `draw`, `identity`, `apply` and `prediction`, by name.
    """

    def apply(images: Array, chosen: Array) -> Array:
        return jnp.where(per_image(chosen), change(images), images)

    return {
        "draw": lambda key, n, frame: {name: jnp.ones((n,), bool)},
        "identity": lambda n, frame: {name: jnp.zeros((n,), bool)},
        "apply": lambda images, params, frame: apply(images, params[name]),
        "prediction": orbit(name, (False, True), apply),
    }
