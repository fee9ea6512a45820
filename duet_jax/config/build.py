"""Builds the method that a configuration describes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections

from duet_jax.augmentations import (
    AUGMENTATIONS,
    Options,
    check_learned,
    check_predicted,
    make_stack,
    split_codes,
    without,
)
from duet_jax.errors import UsageError, lookup
from duet_jax.losses import TARGETS
from duet_jax.methods import DUET, ESSL, METHODS, EncoderSettings, Method, TwoViews
from duet_jax.methods.groups import Group
from duet_jax.models.encoders import ENCODERS
from duet_jax.types import DatasetFacts


def make_method(config: ml_collections.ConfigDict, images: DatasetFacts) -> Method:
    """Returns the method that `config` describes for a set of images.

    The attributes of a method's class are the fields of the section with the method's
    name, and `learned`, the codes in `config.learned`, which must be in the stack and
    have a structure; `_BUILDERS` has the exceptions.

    Raises:
      UsageError: the method is unknown, or cannot be trained like that.
    """
    cls = lookup(METHODS, config.method, "config.method")
    return _BUILDERS.get(config.method, _build)(cls, config, images)


def reads_learned(method: str) -> bool:
    """Returns True if a method has a use for `config.learned`."""
    cls = METHODS[method]
    return hasattr(cls, "learned") or "learned" in own_fields(cls)


def own_fields(cls: type[Method]) -> set[str]:
    """Returns the attributes that a method's class adds to those of `Method`."""
    return {field.name for field in dataclasses.fields(cls)} - {"two_views"}


def _build(
    cls: type[Method], config: ml_collections.ConfigDict, images: DatasetFacts
) -> Method:
    views, own = two_views(config, images), own_fields(cls)
    fields: dict[str, Any] = {
        name: config[config.method][name] for name in own - {"learned"}
    }
    if "learned" in own:
        fields["learned"] = check_learned(config.learned, views.stack.codes)
    return cls(views, **fields)


def _build_duet(
    cls: type[DUET], config: ml_collections.ConfigDict, images: DatasetFacts
) -> DUET:
    views = two_views(config, images)
    codes = check_learned(config.learned, views.stack.codes)
    targets = choose_targets(config.duet.target, codes)
    bins = _per_code(config, "num_bins", codes)
    _check_bins(config, views.encoder.num_features, bins)
    widths = {
        name: _per_code(config, name, codes)
        for name in {TARGETS[target].width for target in targets}
    }
    groups = [
        Group(
            code=code,
            num_bins=bins[place],
            target=target,
            target_width=widths[TARGETS[target].width][place],
            marginal=config.duet.marginal,
            place=place,
            of=len(codes),
        )
        for place, (code, target) in enumerate(zip(codes, targets, strict=True))
    ]
    return cls(views, tuple(groups), config.duet.structure_weight)


def _build_essl(
    cls: type[ESSL], config: ml_collections.ConfigDict, images: DatasetFacts
) -> ESSL:
    learned = check_predicted(
        config.learned, channels=images.channels, dataset_name=images.name
    )
    codes = without(tuple(config.augmentation.stack), learned)
    views = two_views(config, images, codes)
    views.encoder.check_side(
        views.stack.half_size().image_size, "essl's view of half the size"
    )
    return cls(
        two_views=views,
        learned=learned,
        prediction_weight=config.essl.prediction_weight,
        predictor_hidden=config.essl.hidden,
    )


# Methods with a check or a derived attribute.
_BUILDERS: dict[str, Callable[..., Method]] = {
    "duet": _build_duet,
    "essl": _build_essl,
}


def two_views(
    config: ml_collections.ConfigDict,
    images: DatasetFacts,
    codes: tuple[str, ...] | None = None,
) -> TwoViews:
    """Returns what all methods share: stack, encoder, projector, temperature.

    Args:
      config: see `configs/base.py`.
      images: of which the views are made.
      codes: the stack, if it is not `config.augmentation.stack`.

    Raises:
      UsageError: a code is unknown, repeated or not applicable to these images.
    """
    options = dict(config.augmentation)
    configured = tuple(options.pop("stack"))
    return TwoViews(
        stack=make_stack(
            configured if codes is None else codes,
            input_side=images.side,
            image_size=config.dataset.image_size,
            channels=images.channels,
            options=Options(**options),
            dataset_name=images.name,
        ),
        encoder=encoder_settings(config, images.channels),
        projector_hidden=config.projector.hidden,
        projector_output=config.projector.output,
        num_classes=images.num_classes,
        temperature=config.temperature,
        projector_layers=config.projector.layers,
        projector_norm=config.projector.norm,
        reduction=config.nt_xent.reduction,
    )


def encoder_settings(
    config: ml_collections.ConfigDict, channels: int
) -> EncoderSettings:
    """Returns what `config` says of its encoder, for images of `channels`.

    Raises:
      UsageError: the encoder is unknown, or cannot take views of that size.
    """
    given, side = config.encoder, config.dataset.image_size
    read = lookup(ENCODERS, given.name, "config.encoder.name").fields
    settings = EncoderSettings(
        name=given.name,
        in_channels=channels,
        width_multiplier=given.width_multiplier,
        side=side,
        dtype=config.compute_dtype,
        remat=given.remat,
        **{name: given[name] for name in read},
    )
    settings.check_side(side)
    return settings


def choose_targets(target: str, codes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of the target distributions for the structures of `codes`.

    Args:
      target: "auto" or a name in TARGETS; or one for each code, separated by commas.
      codes: of the augmentations.

    Raises:
      UsageError: a name is unknown, or their number is another; or a target is circular
        and the structure takes only the two ends of a line, which are the same point
        on a circle.
    """
    names = split_codes(target) or (target,)
    names = _one_each("target", target, names, codes)
    return tuple(map(_choose_target, names, codes))


def _choose_target(target: str, learned: str) -> str:
    """Returns the name of the target distribution for the structure of one code."""
    record = AUGMENTATIONS[learned]
    if target == "auto":
        return "von_mises" if record.topology == "circle" else "gaussian"
    lookup({**TARGETS, "auto": None}, target, "config.duet.target")
    if TARGETS[target].circular and record.topology == "line" and record.two_point:
        raise UsageError(
            f"config.duet.target={target!r} cannot learn {learned!r}: its structure "
            "is 0 or 1, one point on a circle; use 'gaussian' or 'auto'."
        )
    return target


def _per_code(
    config: ml_collections.ConfigDict, name: str, codes: tuple[str, ...]
) -> tuple:
    """Returns the values of a field of `config.duet`, one for each code."""
    given = config.duet[name]
    values = given if isinstance(given, tuple) else (given,)
    return _one_each(name, given, values, codes)


def _one_each(name: str, given: Any, values: tuple, codes: tuple[str, ...]) -> tuple:
    """Returns one value for each code; a single one is that of all."""
    if len(values) == 1:
        return values * len(codes)
    if len(values) != len(codes):
        text = given if isinstance(given, str) else ",".join(map(str, given))
        raise UsageError(
            f"config.duet.{name}={text} has {len(values)} values for the {len(codes)} "
            f"of config.learned={','.join(codes)!r}; give one for all, or one for each."
        )
    return values


def _check_bins(
    config: ml_collections.ConfigDict, features: int, bins: tuple[int, ...]
) -> None:
    """Raises a UsageError unless the groups and bins divide the encoder's features."""
    groups = len(bins)
    share = features // groups
    fitting = [n for n in range(2, share + 1) if features % (groups * n) == 0]
    if not fitting:
        # Widths are multiples of 8 unless they are given one by one.
        near = 8 * groups * max(1, round(features / (8 * groups)))
        raise UsageError(
            f"config.learned={config.learned!r} makes {groups} groups, which do not "
            f"divide the encoder's {features} features; learn another number of "
            f"augmentations, or set the widths of the encoder for {near} features, say."
        )
    for each in bins:
        if each not in fitting:
            _refuse_bins(each, groups, features, fitting)


def _refuse_bins(bins: int, groups: int, features: int, fitting: list[int]) -> None:
    """Raises the UsageError for a number of bins that does not fit."""
    shown = f"config.duet.num_bins={bins}"
    if groups == 1:
        raise UsageError(
            f"{shown} must divide the encoder's {features} features; use "
            f"{', '.join(map(str, fitting))}."
        )
    nearest = sorted(sorted(fitting, key=lambda n: abs(n - bins))[:2])
    raise UsageError(
        f"{shown} must divide each of the {groups} groups of {features // groups} of "
        f"the encoder's {features} features; use {' or '.join(map(str, nearest))}."
    )
