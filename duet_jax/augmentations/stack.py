"""Stacks of augmentations: check, draw, apply, and read out their structure.

To add an augmentation, write its record in `geometric.py` or `photometric.py` and add
it to AUGMENTATIONS.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from duet_jax import errors
from duet_jax.augmentations import geometric, photometric
from duet_jax.augmentations.record import (
    Augmentation,
    Frame,
    Options,
    Params,
    Scale,
)
from duet_jax.errors import UsageError
from duet_jax.lazy import jax, jnp
from duet_jax.types import Array

AUGMENTATIONS = {
    record.code: record
    for record in (
        geometric.RESIZED_CROP,
        geometric.ROTATION,
        geometric.QUARTER_TURN,
        geometric.MIRROR_LEFT_RIGHT,
        geometric.MIRROR_UP_DOWN,
        photometric.GRAY,
        photometric.BLUR,
        photometric.JITTER,
        photometric.BRIGHTNESS,
        photometric.CONTRAST,
        photometric.SATURATION,
        photometric.HUE,
        geometric.RESIZE,
        geometric.CENTER_CROP,
        photometric.SOLARIZE,
    )
}
LEARNABLE = tuple(code for code, a in AUGMENTATIONS.items() if a.structure)
PREDICTABLE = tuple(code for code, a in AUGMENTATIONS.items() if a.prediction)


def options_read(code: str) -> set[str]:
    """Returns the fields of Options that an augmentation reads."""
    record = AUGMENTATIONS[code]
    return {*record.options, *record.stretched_by, record.probability} - {None}


_JITTER_PARTS = tuple(
    code
    for code, a in AUGMENTATIONS.items()
    if a.stage == photometric.JITTER.stage and code != "jit"
)

# Codes that one image cannot tell apart if it has them all -> why.
_ALIKE = {
    ("rot", "ron"): "both turn the image",
    ("fli", "flv", "rot"): "two mirrors are half a turn",
    ("fli", "flv", "ron"): "two mirrors are half a turn",
}

_STACK = "config.augmentation.stack"
_LEARNED = "config.learned"
_PARTS_FOR_JIT = f"write {' '.join(_JITTER_PARTS)} in place of jit"


@dataclasses.dataclass(frozen=True)
class Stack:
    """Augmentations in the order in which they are applied.

    Static and hashable: close over it, or pass it as a static argument. Create it with
    `make_stack`, which checks the codes.

    Attributes:
      codes: keys of AUGMENTATIONS; may be empty.
      input_side: side in pixels of the square input images.
      image_size: side of the finished views.
      crop_side: side of central crops, see `Frame`.
      channels: 1 for gray images, 3 for RGB.
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
        """The stages in order: the record that draws and applies, and its frame."""
        members = {}  # stage -> its codes
        for code in self.codes:
            members.setdefault(AUGMENTATIONS[code].stage, []).append(code)
        stages, side = [], self.input_side
        for codes in members.values():
            record = AUGMENTATIONS[codes[0]]
            stages.append((record, self._frame(side, tuple(codes))))
            side = self.image_size if record.resizes else side
        return tuple(stages)

    @property
    def scales(self) -> dict[str, tuple[Scale, Frame]]:
        """The scale of every code that has one, and the frame that it takes."""
        return {
            code: (AUGMENTATIONS[code].scale, frame)
            for _, frame in self.stages
            for code in frame.codes
            if AUGMENTATIONS[code].scale
        }

    def _frame(self, side: int, codes: tuple[str, ...] = ()) -> Frame:
        return Frame(self.options, side, self.image_size, self.crop_side, codes)

    def half_size(self) -> "Stack":
        """Returns the stack whose views show the same scene at half the size.

        A resized crop or a resize produces the half size directly; a central crop,
        also the final one, first crops the full-size square and then resizes it.
        """
        return dataclasses.replace(self, image_size=self.image_size // 2)

    def draw(self, key: Array, n: int) -> dict[str, Params]:
        """Draws the params of a batch.

        Args:
          key: a JAX random key, from which every stage derives its own.
          n: number of images.

        Returns:
          Params by stage; the identity's for images that a stage does not augment.
        """
        return {
            record.stage: _draw_stage(jax.random.fold_in(key, index), n, record, frame)
            for index, (record, frame) in enumerate(self.stages)
        }

    def identity(self, n: int) -> dict[str, Params]:
        """Returns the params by stage that leave `n` images unchanged."""
        return {
            record.stage: record.identity(n, frame) for record, frame in self.stages
        }

    def params_at(self, values: Mapping[str, Array]) -> dict[str, Params]:
        """Returns params by stage with given structure values.

        What else an augmentation draws has its neutral or middle value; see `Scale`.

        Args:
          values: code of the stack -> its structure values, [n], at least one. Other
            codes leave the images unchanged.
        """
        n = len(next(iter(values.values())))
        return {
            record.stage: _stage_at(values, n, record, frame)
            for record, frame in self.stages
        }

    def only(
        self, params: dict[str, Params], codes: Iterable[str]
    ) -> dict[str, Params]:
        """Returns params by stage that do of `params` what some of the codes do.

        Args:
          params: of the n images, from `draw`.
          codes: the codes of the stack that are left to act.
        """
        kept, found = {*codes}, {}
        n = next(x.shape[0] for x in jax.tree.leaves(params) if x.ndim)
        for record, frame in self.stages:
            none, drawn = record.identity(n, frame), params[record.stage]
            left_out = {*frame.codes} - kept
            # Those that share a stage have a param of their own name each.
            found[record.stage] = (
                {name: (none if name in left_out else drawn)[name] for name in drawn}
                if kept & {*frame.codes}
                else none
            )
        return found

    def apply(self, images: Array, params: dict[str, Params] | None) -> Array:
        """Makes the views.

        Args:
          images: float32 in [0, 1], [batch, input_side, input_side, channels].
          params: params by stage, from `draw` or `identity`; None for the plain view,
            the central crop of the images themselves.

        Returns:
          [batch, image_size, image_size, channels] in [0, 1], not normalized. Images
          that are still larger at the end are cropped (reference: they stay larger).
        """
        if params is not None:
            for record, frame in self.stages:
                images = record.apply(images, params[record.stage], frame)
        return geometric.center_crop_and_resize(images, self._frame(images.shape[1]))

    def structure(self, params: dict[str, Params]) -> dict[str, Array]:
        """Returns the structure values of all codes that have them.

        Args:
          params: params by stage, from `draw` or `identity`.

        Returns:
          Code -> float32 [batch] in [0, 1].
        """
        return {
            code: AUGMENTATIONS[code].structure(params[record.stage], frame)
            for record, frame in self.stages
            for code in frame.codes
            if AUGMENTATIONS[code].structure
        }

    def parameters(self, params: dict[str, Params]) -> dict[str, Array]:
        """Returns the parameters of all codes that have a structure.

        Args:
          params: params by stage, from `draw` or `identity`.

        Returns:
          Code -> float32 [batch, k] in [0, 1]; see `Augmentation.parameters`.
        """
        return {
            code: AUGMENTATIONS[code].parameters(params[record.stage], frame)
            for record, frame in self.stages
            for code in frame.codes
            if AUGMENTATIONS[code].structure
        }


def points(code: str, parameters: Array) -> Array:
    """Returns parameters as points: near each other if the augmentations are alike.

    Args:
      code: of the augmentation.
      parameters: from `Stack.parameters`, [batch, k].

    Returns:
      On a circle cosine and sine of the angle, [batch, 2]; else the parameters.
    """
    if AUGMENTATIONS[code].topology != "circle":
        return parameters
    angle = 2 * jnp.pi * parameters
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


def difference(code: str, first: Array, second: Array) -> Array:
    """Returns what leads from the parameters of one view to those of another.

    Args:
      code: of the augmentation.
      first: parameters of the one, from `Stack.parameters`, [batch, k].
      second: those of the other, [batch, k].

    Returns:
      On a circle cosine and sine of the angle between, [batch, 2]; else the second
      minus the first, [batch, k], in [-1, 1].
    """
    return points(code, second - first)


def _draw_stage(key: Array, n: int, record: Augmentation, frame: Frame) -> Params:
    """Draws one stage's params; the identity's for images it does not augment."""
    draw_key, choice_key = jax.random.split(key)
    drawn = record.draw(draw_key, n, frame)
    if record.probability is None:
        return drawn
    probability = getattr(frame.options, record.probability)
    chosen = jax.random.bernoulli(choice_key, probability, (n,))

    def choose(drawn: Array, identity: Array) -> Array:
        return jnp.where(chosen, drawn, identity) if drawn.ndim else drawn

    return jax.tree.map(choose, drawn, record.identity(n, frame))


def _stage_at(
    values: Mapping[str, Array], n: int, record: Augmentation, frame: Frame
) -> Params:
    """Returns one stage's params with given structure values of its codes."""
    found = None
    for code in frame.codes:
        if code in values:
            made = AUGMENTATIONS[code].scale.params(values[code], frame)
            found = made if found is None else {**found, code: made[code]}
    return record.identity(n, frame) if found is None else found


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
      codes: keys of AUGMENTATIONS in the order in which they are applied. The
        components of the color jitter are applied together, in the place of the first.
        Without codes the views are plain.
      input_side: side of the input images, at least `image_size`.
      image_size: side of the finished views, at least 4 (half-size views: 2).
      channels: 1 or 3.
      options: the numbers of the augmentations.
      dataset_name: name of the data set, for messages.

    Raises:
      UsageError: a code is unknown, repeated, redundant, or does not support this
        number of channels.
      ValueError: the images are smaller than the views.
    """
    if input_side < image_size:
        raise ValueError(f"{input_side=} must not be smaller than {image_size=}")
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
            f"one or the other, or {_PARTS_FOR_JIT}."
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


def measuring_stack(codes: Sequence[str], like: Stack) -> Stack:
    """Returns the stack that applies the given augmentations only, to measure them.

    All structure values occur: an augmentation with a probability is applied to half of
    the images if it has levels, otherwise to all of them.

    Args:
      codes: of LEARNABLE; `like` need not contain them. Those that it contains come
        first, in its order.
      like: gives the sides, the channels and the other options.

    Raises:
      UsageError: a code is not in LEARNABLE, or does not support this number of
        channels.
    """
    options = like.options
    for code in codes:
        errors.lookup(dict.fromkeys(LEARNABLE), code, "--codes")
        _check_channels(code, like.channels, "", f"--codes={code!r}", LEARNABLE)
        record = AUGMENTATIONS[code]
        if record.probability is not None:
            share = 1.0 if record.scale.levels is None else 0.5
            options = dataclasses.replace(options, **{record.probability: share})
    ordered = [*like.codes, *codes]
    return dataclasses.replace(
        like, codes=tuple(sorted({*codes}, key=ordered.index)), options=options
    )


def to_float(images: Array) -> Array:
    """Converts uint8 images to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalize(images: Array) -> Array:
    """Shifts images from [0, 1] to [-0.5, 0.5]: the last step of every view."""
    return images - 0.5


def split_codes(text: str) -> tuple[str, ...]:
    """Returns the codes that a text names, separated by commas or spaces."""
    return tuple(code for code in re.split(r"[,\s]+", text) if code)


def check_learned(learned: str, stack_codes: tuple[str, ...]) -> tuple[str, ...]:
    """Checks that structures can be learned from the views of a stack.

    Args:
      learned: the value of `config.learned`: one code, or several separated by commas.
      stack_codes: codes of the stack that makes the views.

    Returns:
      The codes that are learned.

    Raises:
      UsageError: a code is unknown, has no structure, or is not in the stack; or the
        codes do not go together.
    """
    codes = split_codes(learned) or (learned,)
    for code in codes:
        record = errors.lookup(AUGMENTATIONS, code, _LEARNED)
        shown = f"{_LEARNED}={learned!r}"
        about = shown if len(codes) == 1 else f"{shown}: {code}"
        if not record.structure:
            remedy = f"choose one of {' '.join(LEARNABLE)}"
            if code == "jit":
                remedy = (
                    f"{_PARTS_FOR_JIT} in {_STACK} and learn one of these, or {remedy}"
                )
            raise UsageError(
                f"{about} ({record.summary}) has no structure of its own; {remedy}."
            )
        if code not in stack_codes:
            there = " ".join(c for c in stack_codes if c in LEARNABLE) or "none so far"
            remedy = f"add it, or learn a code that is there ({there})"
            if code in _JITTER_PARTS and "jit" in stack_codes:
                remedy = _PARTS_FOR_JIT
            raise UsageError(
                f"{about} is not in {_STACK}={' '.join(stack_codes)!r}; {remedy}."
            )
    return _check_together(codes)


def _check_together(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the codes; a UsageError if they cannot be learned at once."""
    shown = f"{_LEARNED}={','.join(codes)!r}"
    for code in codes:
        if codes.count(code) > 1:
            raise UsageError(
                f"{shown} names {code} {codes.count(code)} times; name it once."
            )
    for alike, why in _ALIKE.items():
        if {*alike} <= {*codes}:
            names = f"{', '.join(alike[:-1])} and {alike[-1]}"
            raise UsageError(
                f"{shown}: an image does not show how much {names} did each, as {why}; "
                "leave out one of them."
            )
    return codes


def check_predicted(
    learned: str, *, channels: int, dataset_name: str
) -> tuple[str, ...]:
    """Checks that ESSL can predict augmentations; they need not be in the stack.

    Args:
      learned: the value of `config.learned`: one code, or several separated by commas.
      channels: 1 for gray images, 3 for RGB.
      dataset_name: name of the data set, for messages.

    Returns:
      The codes that are predicted.

    Raises:
      UsageError: a code is unknown, cannot be predicted, or does not support this
        number of channels; or the codes do not go together.
    """
    codes = split_codes(learned) or (learned,)
    for code in codes:
        record = errors.lookup(AUGMENTATIONS, code, _LEARNED)
        shown = f"{_LEARNED}={learned!r}"
        if record.prediction is None:
            about = shown if len(codes) == 1 else f"{shown}: {code}"
            raise UsageError(
                f"{about} ({record.summary}) cannot be predicted by ESSL; choose one "
                f"of {' '.join(PREDICTABLE)}."
            )
        _check_channels(code, channels, dataset_name, shown, PREDICTABLE)
    return _check_together(codes)


def without(codes: tuple[str, ...], others: Sequence[str]) -> tuple[str, ...]:
    """Returns `codes` without `others`, in their order.

    Raises:
      UsageError: one of the others is a component of `jit`, which would still draw it.
    """
    for code in others:
        if code in _JITTER_PARTS and "jit" in codes:
            raise UsageError(
                f"{_LEARNED}={code!r} is a part of jit in {_STACK}={' '.join(codes)!r} "
                f"and cannot be taken out; {_PARTS_FOR_JIT}."
            )
    return tuple(code for code in codes if code not in others)
