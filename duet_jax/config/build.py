"""Builds the method that a configuration describes."""

import dataclasses
from collections.abc import Callable

import ml_collections

from duet_jax.augmentations import (
    AUGMENTATIONS,
    Options,
    check_learned,
    check_predicted,
    make_stack,
    without,
)
from duet_jax.errors import UsageError, lookup
from duet_jax.losses import TARGETS
from duet_jax.methods import DUET, ESSL, METHODS, EncoderSettings, Method, TwoViews
from duet_jax.models.encoders import num_features
from duet_jax.types import DatasetFacts


def make_method(config: ml_collections.ConfigDict, images: DatasetFacts) -> Method:
    """Returns the method that `config` describes for a set of images.

    The attributes of a method's class are the fields of the section with the method's
    name, and `config.learned`; `_BUILDERS` has the exceptions.

    Raises:
      UsageError: the method is unknown, or cannot be trained like that.
    """
    cls = lookup(METHODS, config.method, "config.method")
    return _BUILDERS.get(config.method, _build)(cls, config, images)


def own_fields(cls: type[Method]) -> set[str]:
    """Returns the attributes that a method's class adds to those of `Method`."""
    return {field.name for field in dataclasses.fields(cls)} - {"two_views"}


def _build(
    cls: type[Method], config: ml_collections.ConfigDict, images: DatasetFacts
) -> Method:
    own = {
        name: config.learned if name == "learned" else config[config.method][name]
        for name in own_fields(cls)
    }
    return cls(two_views(config, images), **own)


def _build_duet(
    cls: type[DUET], config: ml_collections.ConfigDict, images: DatasetFacts
) -> DUET:
    views = two_views(config, images)
    check_learned(config.learned, views.stack.codes)
    _check_bins(config)
    target = choose_target(config.duet.target, config.learned)
    return cls(
        two_views=views,
        learned=config.learned,
        num_bins=config.duet.num_bins,
        structure_weight=config.duet.structure_weight,
        target=target,
        target_width=config.duet[TARGETS[target].width],
        marginal=config.duet.marginal,
    )


def _build_essl(
    cls: type[ESSL], config: ml_collections.ConfigDict, images: DatasetFacts
) -> ESSL:
    check_predicted(config.learned, channels=images.channels, dataset_name=images.name)
    codes = without(tuple(config.augmentation.stack), config.learned)
    return cls(
        two_views=two_views(config, images, codes),
        learned=config.learned,
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
        encoder=EncoderSettings(
            name=config.encoder.name,
            width_multiplier=config.encoder.width_multiplier,
            blocks=config.encoder.get("blocks"),
            widths=config.encoder.get("widths"),
            in_channels=images.channels,
            dtype=config.compute_dtype,
            remat=config.encoder.remat,
        ),
        projector_hidden=config.projector.hidden,
        projector_output=config.projector.output,
        num_classes=images.num_classes,
        temperature=config.temperature,
    )


def choose_target(target: str, learned: str) -> str:
    """Returns the name of the target distribution for the structure of `learned`.

    Args:
      target: "auto" or a name in TARGETS.
      learned: code of the augmentation.

    Raises:
      UsageError: the name is unknown, or the target is circular and the structure takes
        only the two ends of a line, which are the same point on a circle.
    """
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


def _check_bins(config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError unless the bins divide the encoder's features."""
    bins, encoder = config.duet.num_bins, config.encoder
    features = num_features(
        encoder.name, encoder.width_multiplier, encoder.get("widths")
    )
    if bins < 2 or features % bins:
        choices = [str(n) for n in range(2, features + 1) if features % n == 0]
        raise UsageError(
            f"config.duet.num_bins={bins} must divide the encoder's {features} "
            f"features; use {', '.join(choices)}."
        )
