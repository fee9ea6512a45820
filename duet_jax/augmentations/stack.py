"""A stack of augmentations: checked, drawn, applied, and read out.

To add an augmentation, write its record in `geometric.py` or `photometric.py` and give
it a row in AUGMENTATIONS below.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from duet_jax import errors
from duet_jax.augmentations import geometric, photometric
from duet_jax.augmentations.record import (
    Array,
    Augmentation,
    Frame,
    Options,
    Params,
    Prediction,
)
from duet_jax.errors import UsageError

_STACK = "config.augmentation.stack"
_LEARNED = "config.learned"
_MEASURED = "--codes"


@dataclasses.dataclass(frozen=True)
class Stack:
    """Augmentations in the order in which they are carried out.

    Static and hashable: close over it, or pass it as a static argument. Use
    `make_stack`, which checks the codes.

    Attributes:
      codes: keys of AUGMENTATIONS; none for views without augmentation.
      input_side: side in pixels of the square images that come in.
      image_size: side of the finished views.
      crop_side: side of the central cut of stacks that cut, `Frame.crop_side`.
      channels: 1 for grey images, 3 for RGB.
      options: the numbers of the augmentations.
    """

    codes: tuple[str, ...]
    input_side: int
    image_size: int
    crop_side: int
    channels: int
    options: Options

    @functools.cached_property
    def stages(self) -> tuple[tuple[Augmentation, Frame], ...]:
        """One record and its frame per stage, in the order of the codes."""
        members = {}  # stage -> its codes; dictionaries keep the order of insertion
        for code in self.codes:
            members.setdefault(AUGMENTATIONS[code].stage, []).append(code)
        stages, side = [], self.input_side
        for codes in members.values():
            record = AUGMENTATIONS[codes[0]]
            stages.append((record, self._frame(side, tuple(codes))))
            side = self.image_size if record.resizes else side
        return tuple(stages)

    def _frame(self, side: int, codes: tuple[str, ...] = ()) -> Frame:
        return Frame(self.options, side, self.image_size, self.crop_side, codes)

    def half_size(self) -> "Stack":
        """Returns the stack that makes views of half the side and the same scene.

        A crop or a resize goes to the half size at once; a central cut, also the one
        at the end of a stack, takes the full-size square first and then resizes it.
        """
        return dataclasses.replace(self, image_size=self.image_size // 2)

    def draw(self, key: Array, n: int) -> dict[str, Params]:
        """Draws the parameters of a batch.

        Args:
          key: a JAX random key; every stage derives its own from it.
          n: the number of images.

        Returns:
          Parameters by stage. Images that a stage leaves alone have its identity's.
        """
        return {
            record.stage: _draw_stage(jax.random.fold_in(key, index), n, record, frame)
            for index, (record, frame) in enumerate(self.stages)
        }

    def identity(self, n: int) -> dict[str, Params]:
        """Returns the parameters by stage that leave `n` images as they are."""
        return {
            record.stage: record.identity(n, frame) for record, frame in self.stages
        }

    def apply(self, images: Array, params: dict[str, Params]) -> Array:
        """Carries the stack out.

        Args:
          images: float32 in [0, 1], [batch, input_side, input_side, channels].
          params: parameters by stage, from `draw` or `identity`.

        Returns:
          [batch, image_size, image_size, channels] in [0, 1], not normalised. What is
          larger at the end is cut (reference: it stays larger).
        """
        for record, frame in self.stages:
            images = record.apply(images, params[record.stage], frame)
        return self._finish(images)

    def _finish(self, images: Array) -> Array:
        return geometric.cut_and_resize(images, self._frame(images.shape[1]))

    def structure(self, params: dict[str, Params]) -> dict[str, Array]:
        """Returns the structure value of every code that has one.

        Args:
          params: parameters by stage, from `draw` or `identity`.

        Returns:
          Code -> float32 [batch] in [0, 1].
        """
        return {
            code: AUGMENTATIONS[code].structure(params[record.stage], frame)
            for record, frame in self.stages
            for code in frame.codes
            if AUGMENTATIONS[code].structure
        }


def _draw_stage(key: Array, n: int, record: Augmentation, frame: Frame) -> Params:
    """Draws one stage's parameters, with the identity's for images left alone."""
    draw_key, choice_key = jax.random.split(key)
    drawn = record.draw(draw_key, n, frame)
    if record.probability is None:
        return drawn
    probability = getattr(frame.options, record.probability)
    chosen = jax.random.bernoulli(choice_key, probability, (n,))

    def choose(drawn: Array, identity: Array) -> Array:
        return jnp.where(chosen, drawn, identity) if drawn.ndim else drawn

    return jax.tree.map(choose, drawn, record.identity(n, frame))


def make_stack(
    codes: tuple[str, ...],
    *,
    input_side: int,
    image_size: int,
    channels: int,
    options: Options,
    dataset_name: str = "",
) -> Stack:
    """Checks the codes of a stack and builds it.

    Args:
      codes: keys of AUGMENTATIONS in the order in which they are carried out. The
        components of the colour jitter are carried out together, in the place of the
        first. No codes: views without augmentation.
      input_side: side of the images that come in, at least `image_size`.
      image_size: side of the finished views, at least 4 (half-size views: 2).
      channels: 1 or 3.
      options: the numbers of the augmentations.
      dataset_name: how messages call the images.

    Returns:
      The stack.

    Raises:
      UsageError: unknown, repeated or redundant codes, or codes that cannot be
        applied to images with this number of channels.
      ValueError: the images are smaller than the views.
    """
    if input_side < image_size:
        raise ValueError(f"{input_side=} must not be smaller than {image_size=}")
    codes = tuple(codes)
    for code in codes:
        errors.lookup(AUGMENTATIONS, code, _STACK)
    shown = f"{_STACK}={' '.join(codes)!r}"
    for code in codes:
        if codes.count(code) > 1:
            raise UsageError(
                f"{shown} lists {code} {codes.count(code)} times; list it once, as "
                "only one draw could be reported."
            )
        _check_channels(code, channels, dataset_name, shown, AUGMENTATIONS)
    parts = [code for code in codes if code in _JITTER_PARTS]
    if "jit" in codes and parts:
        raise UsageError(
            f"{shown} lists jit and {' '.join(parts)}, which jit contains; leave out "
            f"one or the other, or write {' '.join(_JITTER_PARTS)} in place of jit."
        )
    return Stack(codes, input_side, image_size, image_size, channels, options)


def _check_channels(
    code: str, channels: int, dataset_name: str, shown: str, choices: Iterable[str]
) -> None:
    record = AUGMENTATIONS[code]
    if channels in record.channels:
        return
    fitting = [c for c in choices if channels in AUGMENTATIONS[c].channels]
    raise UsageError(
        f"{shown}: {code} ({record.summary}) needs images with "
        f"{' or '.join(map(str, record.channels))} channels, and those of "
        f"{dataset_name or 'this dataset'} have {channels}; choose among "
        f"{' '.join(fitting)}."
    )


def measuring_stack(code: str, like: Stack) -> Stack:
    """Returns the stack that carries out one augmentation alone, to measure it.

    Every structure value occurs: an augmentation with few levels is left out of half
    of the images where it is drawn by a probability, any other is never left out.

    Args:
      code: an augmentation with a structure; `like` need not contain it.
      like: gives the sides, the channels and the other options.

    Returns:
      A stack of `code` alone; its only stage has the frame that the scale asks for.

    Raises:
      UsageError: the code is unknown, has no structure, or cannot be applied to images
        with this number of channels.
    """
    shown = f"{_MEASURED}={code!r}"
    if code in AUGMENTATIONS and code not in LEARNABLE:
        raise UsageError(
            f"{shown} ({AUGMENTATIONS[code].summary}) has no parameter that could be "
            f"measured; choose among {' '.join(LEARNABLE)}."
        )
    measurable = {name: AUGMENTATIONS[name] for name in LEARNABLE}
    record = errors.lookup(measurable, code, _MEASURED)
    _check_channels(code, like.channels, "", shown, LEARNABLE)
    options = like.options
    if record.probability is not None:
        share = 1.0 if record.scale.levels is None else 0.5
        options = dataclasses.replace(options, **{record.probability: share})
    return dataclasses.replace(like, codes=(code,), options=options)


def evaluation_view(images: Array, stack: Stack) -> tuple[Array, dict[str, Array]]:
    """Makes the view that is not augmented.

    Args:
      images: float32 in [0, 1], [batch, input_side, input_side, channels].
      stack: the stack of the augmented views; one of half size gives the same scene
        at half the size (reference: the central cut of half the side).

    Returns:
      The central cut [batch, image_size, image_size, channels] in [0, 1], not
      normalised; the identity's structure values, code -> [batch]. For `sca` that is
      0, the whole image, also where the input is larger than the view.
    """
    structure = stack.structure(stack.identity(images.shape[0]))
    return stack._finish(images), structure


def to_float(images: Array) -> Array:
    """Returns uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalise(images: Array) -> Array:
    """Moves images from [0, 1] to [-0.5, 0.5]: the last thing done to a view."""
    return images - 0.5


def check_learned(code: str, stack_codes: tuple[str, ...]) -> Augmentation:
    """Checks that the structure of `code` can be learnt from the views of a stack.

    Args:
      code: what is to be learnt.
      stack_codes: codes of the stack that makes the views.

    Returns:
      The augmentation's record.

    Raises:
      UsageError: the code is unknown, has no structure, or is not in the stack.
    """
    record = errors.lookup(AUGMENTATIONS, code, _LEARNED)
    shown = f"{_LEARNED}={code!r}"
    if code == "jit":
        raise UsageError(
            f"{shown} has no structure of its own; learn one of its parts, "
            f"{' '.join(_JITTER_PARTS)}, and write these in place of jit in {_STACK}, "
            f"or choose one of {' '.join(LEARNABLE)}."
        )
    if not record.structure:
        raise UsageError(
            f"{shown} ({record.summary}) draws nothing that could be learnt; choose "
            f"one of {' '.join(LEARNABLE)}."
        )
    if code not in stack_codes:
        remedy = f"add it, or learn a code that is there ({_learnable_in(stack_codes)})"
        if code in _JITTER_PARTS and "jit" in stack_codes:
            remedy = f"write {' '.join(_JITTER_PARTS)} in place of jit"
        raise UsageError(
            f"{shown} is not in {_STACK}={' '.join(stack_codes)!r}; {remedy}."
        )
    return record


def _learnable_in(codes: tuple[str, ...]) -> str:
    return " ".join(code for code in codes if code in LEARNABLE) or "none so far"


def check_predicted(
    code: str, *, channels: int = 3, dataset_name: str = ""
) -> Prediction:
    """Checks that ESSL can predict `code`; it need not be in the stack.

    Args:
      code: what is to be predicted.
      channels: 1 for grey images, 3 for RGB.
      dataset_name: how messages call the images.

    Returns:
      How it is predicted.

    Raises:
      UsageError: the code is unknown, cannot be predicted, or cannot be applied to
        images with this number of channels.
    """
    record = errors.lookup(AUGMENTATIONS, code, _LEARNED)
    shown = f"{_LEARNED}={code!r}"
    if record.prediction is None:
        raise UsageError(
            f"{shown} ({record.summary}) cannot be predicted by ESSL; choose one of "
            f"{' '.join(PREDICTABLE)}."
        )
    _check_channels(code, channels, dataset_name, shown, PREDICTABLE)
    return record.prediction


def without(codes: tuple[str, ...], code: str) -> tuple[str, ...]:
    """Returns the codes but for `code`, in their order.

    Raises:
      UsageError: the code is a part of `jit`, which would go on drawing it.
    """
    if code in _JITTER_PARTS and "jit" in codes:
        raise UsageError(
            f"{_LEARNED}={code!r} is a part of jit in {_STACK}={' '.join(codes)!r} "
            "and cannot be taken out; write "
            f"{' '.join(_JITTER_PARTS)} in place of jit."
        )
    return tuple(other for other in codes if other != code)


AUGMENTATIONS: dict[str, Augmentation] = {
    "sca": geometric.RESIZED_CROP,
    "rot": geometric.ROTATION,
    "ron": geometric.QUARTER_TURN,
    "fli": geometric.MIRROR_LEFT_RIGHT,
    "flv": geometric.MIRROR_UP_DOWN,
    "gra": photometric.GREY,
    "blu": photometric.BLUR,
    "jit": photometric.JITTER,
    "bri": photometric.BRIGHTNESS,
    "con": photometric.CONTRAST,
    "sat": photometric.SATURATION,
    "hue": photometric.HUE,
    "res": geometric.RESIZE,
    "ccr": geometric.CENTRE_CROP,
    "sol": photometric.SOLARIZE,
}
LEARNABLE = tuple(code for code, a in AUGMENTATIONS.items() if a.structure)
PREDICTABLE = tuple(code for code, a in AUGMENTATIONS.items() if a.prediction)
_JITTER_PARTS = tuple(
    code
    for code, a in AUGMENTATIONS.items()
    if a.stage == AUGMENTATIONS["jit"].stage and code != "jit"
)
