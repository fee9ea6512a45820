"""Checks of a configuration that need no data, and its resolved form.

Here are types, ranges and combinations of fields. What only one component knows is
checked by that component when it is built.
"""

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from duet_jax import optim
from duet_jax.augmentations import options_read, split_codes
from duet_jax.config import build
from duet_jax.errors import UsageError, lookup, suggestion
from duet_jax.losses import REDUCTIONS, TARGETS
from duet_jax.methods import METHODS
from duet_jax.models.encoders import ENCODERS, STEMS
from duet_jax.models.representation import MARGINALS
from duet_jax.runtime import files
from duet_jax.types import DatasetFacts


class Rule(NamedTuple):
    """A condition on the value of a field, and its wording."""

    holds: Callable[[Any], bool]
    says: str


def _between(low: int, high: int) -> Rule:
    return Rule(lambda x: low <= x <= high, f"must be from {low} to {high}")


def _at_least(low: int) -> Rule:
    return Rule(lambda x: x >= low, f"must be {low} or more")


def _one_of(*choices: str) -> Rule:
    return Rule(lambda x: x in choices, f"must be one of {', '.join(choices)}")


def _counts(length: int, most: int, of: str) -> Rule:
    return Rule(
        lambda x: len(x) == length and min(x) > 0 and max(x) <= most,
        f"must be {length} whole numbers above 0, up to {most}, the {of}",
    )


# Fields that name a directory -> what else they may say.
_DIRECTORIES = {"dataset.path": "", "dataset.cache_dir": "", "compilation_cache": "off"}

_LOCAL = Rule(lambda x: not files.is_address(x), files.NOT_LOCAL)
_POSITIVE = Rule(lambda x: x > 0, "must be above 0")
_DECAY = Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1")
_COUNT = _at_least(1)
# No machine has the memory for more, and XLA would end the process without an error.
_WIDTH = _between(1, 65_536)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_DIRECTORIES, _LOCAL),
    "seed": _between(0, 2**32 - 1),
    "device": _one_of("auto", "cpu", "gpu"),
    "epochs": _between(1, 1_000_000),  # steps are counted in 32 bits
    "warmup_epochs": _at_least(0),
    "steps_per_epoch": _at_least(0),
    "batch_size": _at_least(2),
    "steps_per_call": _at_least(0),
    "compute_dtype": _one_of("float32", "bfloat16"),
    "on_nonfinite": _one_of("stop", "skip"),
    "dataset.name": Rule(bool, "must name a data set"),
    "dataset.image_size": _between(8, 4096),
    "dataset.num_classes": _at_least(0),
    "dataset.channels": Rule(lambda x: x in (0, 1, 3), "must be 0, 1 or 3"),
    "dataset.holdout": Rule(lambda x: 0 < x < 1, "must be above 0, below 1"),
    "dataset.train_fraction": Rule(lambda x: 0 < x <= 1, "must be above 0, up to 1"),
    "dataset.placement": _one_of("auto", "device", "host"),
    "dataset.workers": _at_least(-1),
    "augmentation.jitter_strength": Rule(
        lambda x: len(x) == 4,
        "must be four numbers: brightness, contrast, saturation, hue",
    ),
    "encoder.blocks": _counts(3, 1000, "blocks of each stage"),
    "encoder.widths": _counts(4, 65_536, "channels of the stem and of each stage"),
    "encoder.width_multiplier": Rule(
        lambda x: 0 < x <= 64, "must be positive, up to 64; 1 keeps the widths"
    ),
    "encoder.stem": _one_of(*STEMS),
    "encoder.patch_size": _between(1, 256),
    "projector.layers": _between(2, 3),
    "projector.hidden": _WIDTH,
    "projector.output": _WIDTH,
    "temperature": _POSITIVE,
    "nt_xent.reduction": _one_of(*REDUCTIONS),
    "duet.structure_weight": _at_least(0),
    "duet.marginal": _one_of(*MARGINALS),
    "duet.sigma": _POSITIVE,
    "duet.concentration": _POSITIVE,
    "essl.prediction_weight": _at_least(0),
    "essl.hidden": _WIDTH,
    "augself.weight": _at_least(0),
    "augself.hidden": _WIDTH,
    "equimod.weight": _at_least(0),
    "care.weight": _at_least(0),
    "care.chunk": Rule(
        lambda x: 2 <= x <= 65_536,
        "must be from 2 to 65536: the angles between images of a chunk are compared",
    ),
    "sie.weight": _at_least(0),
    # It has as many weights as this times the square of projector.output.
    "sie.hidden": _between(1, 1024),
    "optimizer.name": _one_of(*optim.OPTIMIZERS),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.scale": _one_of(*optim.SCALES),
    "optimizer.schedule": _one_of("epoch", "step"),
    "optimizer.b1": _DECAY,
    "optimizer.b2": _DECAY,
    "optimizer.eps": _POSITIVE,
    "optimizer.momentum": _DECAY,
    "optimizer.trust_coefficient": _POSITIVE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.decay": _one_of(*optim.DECAYS),
    "evaluate_every": _COUNT,
    "knn.k": _COUNT,
    "knn.weights": _one_of("similarity", "uniform"),
    "knn.temperature": _POSITIVE,
    "knn.every": _at_least(0),
    # Pairs of them are compared on the host.
    "monitor.images": _between(0, 100_000),
    "linear_probe.epochs": _COUNT,
    "linear_probe.repeats": _COUNT,
    "linear_probe.learning_rate": _POSITIVE,
    "generation.epochs": _between(1, 1_000_000),
    "generation.batch_size": _at_least(2),
    "generation.learning_rate": _POSITIVE,
    "generation.width": _between(1, 1024),
    "checkpoint.every": _COUNT,
    "checkpoint.within_epoch": _between(0, 1000),
    "checkpoint.keep": _COUNT,
    "figures_every": _COUNT,
    "wandb.mode": _one_of("", "online", "offline", "disabled"),
}

# Fields that take one value, or a tuple of one for each code in config.learned.
PER_CODE = {"duet.num_bins": int, "duet.sigma": float, "duet.concentration": float}

# Fields that may change when a run is resumed: where data and records are, how often
# something is written, and what to do where the run would have ended. They do not alter
# what is computed.
CHANGEABLE = frozenset(
    {
        "dataset.path",
        "dataset.cache_dir",
        "dataset.placement",
        "dataset.workers",
        "encoder.remat",
        "evaluate_every",
        "knn.k",
        "knn.weights",
        "knn.temperature",
        "knn.every",
        "monitor.images",
        "linear_probe.epochs",
        "linear_probe.repeats",
        "linear_probe.learning_rate",
        "generation.epochs",
        "generation.batch_size",
        "generation.learning_rate",
        "generation.width",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.within_epoch",
        "tensorboard",
        "figures_every",
        "wandb.project",
        "wandb.entity",
        "wandb.mode",
        "compilation_cache",
        "device",
        "steps_per_call",
        "on_nonfinite",
    }
)

# Fields that were added later -> their value in older runs.
_BEFORE = {
    "dataset.channels": 0,
    "dataset.holdout": 0.1,
    "dataset.train_fraction": 1.0,
    "duet.marginal": "mean",
    "monitor.images": 0,
    "projector.layers": 3,
    "projector.norm": True,
    "nt_xent.reduction": "sum",
    "optimizer.name": "adamw",
    "optimizer.scale": "none",
    "optimizer.decay": "all",
    "knn.weights": "similarity",
}

# Fields that may be set for any evaluation of a run, besides those of the evaluator.
EVALUATION = frozenset(
    {"dataset.path", "dataset.cache_dir", "batch_size", "device", "compilation_cache"}
)

# Sections and fields that an encoder from elsewhere is measured with.
OF_EXTERNAL = (
    "method",
    "seed",
    "device",
    "batch_size",
    "compilation_cache",
    "dataset",
    "augmentation",
    "knn",
    "monitor",
    "linear_probe",
)
# Of these, besides the augmentations, what decides which images and views it is given.
_ALTER_EXTERNAL = frozenset(
    {
        "seed",
        "dataset.name",
        "dataset.image_size",
        "dataset.center_crop",
        "dataset.num_classes",
        "dataset.train_fraction",
        "dataset.holdout",
        "dataset.channels",
    }
)


def alters_external(name: str) -> bool:
    """Returns whether a field decides what an encoder from elsewhere is given."""
    return name in _ALTER_EXTERNAL or name.startswith("augmentation.")


def fields(config: ml_collections.ConfigDict | dict) -> Iterator[tuple[str, Any]]:
    """Yields every field as (dotted name, value), in alphabetical order.

    Args:
      config: a configuration, or a dict read from a `config.json`.
    """
    for name, value in sorted(config.items(), key=lambda item: item[0]):
        if isinstance(value, ml_collections.ConfigDict | dict):
            for inner, leaf in fields(value):
                yield f"{name}.{inner}", leaf
        else:
            yield name, value


def check_names(config: ml_collections.ConfigDict, names: Iterable[str]) -> None:
    """Raises a UsageError for the first of the dotted `names` that is not a field."""
    known = [name for name, _ in fields(config)]
    for name in names:
        if name in known:
            continue
        inside = [field for field in known if field.startswith(f"{name}.")]
        if inside:
            raise UsageError(
                f"config.{name} is a section; set one of config."
                f"{', config.'.join(inside)}."
            )
        raise UsageError(f"config.{name} is not a field.{_hint(name, known)}")


def _hint(name: str, known: list[str]) -> str:
    """Returns the closest field, and the fields or sections in the place of `name`."""
    # The mistake may be in the section, in the field, or a section left out.
    section, _, leaf = name.rpartition(".")
    same_leaf = [field for field in known if field.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(name, same_leaf, n=1, cutoff=0)
    close = close or difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean 'config.{close[0]}'?" if close else ""
    siblings = [field for field in known if field.rpartition(".")[0] == section]
    sections = dict.fromkeys(f.rpartition(".")[0] for f in known if "." in f)
    there = {"Fields": siblings}
    if not siblings or not (section or close):
        there["Sections"] = [*sections]
    return guess + "".join(
        f" {kind}: {', '.join(f'config.{each}' for each in each_kind)}."
        for kind, each_kind in there.items()
        if each_kind
    )


def check_schema(
    config: ml_collections.ConfigDict, schema: ml_collections.ConfigDict
) -> None:
    """Raises a UsageError unless both have the same fields, of the same types."""
    given, known = dict(fields(config)), dict(fields(schema))
    check_names(schema, given)
    for name, default in known.items():
        if name not in given:
            raise UsageError(
                f"config.{name} is missing; start from base.get_config(), which sets "
                f"it to {default!r}."
            )
        if name in PER_CODE:
            _coerced(name, given[name], default)
        elif type(given[name]) is not type(default):
            raise bad_value(name, given[name], default)


def open_fields(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy in which the fields in PER_CODE take a value or a tuple."""
    config = config.copy_and_resolve_references()
    for name in PER_CODE:
        section, _, leaf = name.rpartition(".")
        if leaf in config.get(section, {}):
            value = config[section][leaf]
            config[section][leaf] = ml_collections.FieldReference(
                value, field_type=object
            )
    return config


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    (int,): "whole numbers separated by commas",
    (float,): "numbers separated by commas",
    (str,): "words separated by commas",
}


def bad_value(name: str, value: Any, default: Any) -> UsageError:
    """Returns the error for a `value` that is not of the type of its default."""
    kind = type(default)
    if kind is tuple:
        kind = (type(default[0]),)
        default = ",".join(map(str, default))
        value = ",".join(map(str, value)) if isinstance(value, tuple) else value
    several = ", or one for each of config.learned" if name in PER_CODE else ""
    return UsageError(
        f"config.{name}={value!r} must be {_KINDS[kind]}{several}, such as {default!r}."
    )


def _coerced(name: str, value: Any, default: Any) -> Any:
    """Returns a tuple with its default's element type, other values as they are."""
    if name in PER_CODE:
        parts = tuple(value) if isinstance(value, tuple | list) else (value,)
        parts = _numbers(name, parts or (value,), PER_CODE[name], default)
        return parts if len(parts) > 1 else parts[0]
    if name == "learned" and isinstance(value, str):
        return ",".join(split_codes(value))
    if not isinstance(default, tuple):
        return value
    # The stack is the only tuple that may be empty.
    kind = type(default[0]) if default else str
    if kind is str:  # "sca,rot" arrives as a single element
        return tuple(part for item in value for part in split_codes(str(item)))
    return _numbers(name, value, kind, default)


def _numbers(name: str, values: tuple, kind: type, default: Any) -> tuple:
    """Returns numbers of one type; a UsageError for anything else."""
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in values) or (
        kind is int and any(x % 1 for x in values)
    ):
        given = values[0] if len(values) == 1 and name in PER_CODE else values
        raise bad_value(name, given, default)
    return tuple(kind(x) for x in values)


def with_fields(
    defaults: ml_collections.ConfigDict, given: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a configuration with other values for some fields, checked and resolved.

    Args:
      defaults: the configuration.
      given: values by dotted field, such as {"optimizer.learning_rate": 1e-3}.

    Raises:
      UsageError: a field or a value is wrong.
    """
    check_names(defaults, given)
    known = dict(fields(defaults))
    config = open_fields(defaults)
    for name, value in given.items():
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise bad_value(name, value, known[name]) from error
    return check(config, defaults)


def check(
    config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Checks types, ranges and combinations, and returns the resolved configuration.

    Args:
      config: with the user's changes.
      defaults: before these changes; its types are the right ones.

    Returns:
      A copy without the fields that have no effect.

    Raises:
      UsageError: the first mistake.
    """
    config = open_fields(config)
    known = dict(fields(defaults))
    for name, value in fields(config):
        value = _coerced(name, value, known[name])
        _check_value(name, value)
        if name in _DIRECTORIES and value not in ("", _DIRECTORIES[name]):
            # The run may be evaluated from another current directory.
            value = os.path.abspath(os.path.expanduser(value))
        config.update_from_flattened_dict({name: value})
    _check_combinations(config)
    # Built for color images, to find mistakes before any data are read.
    images = DatasetFacts("rehearsal", config.dataset.image_size, 3, ("0", "1"), 0, 0)
    build.make_method(config, images)
    with config.unlocked():
        for name in _unread(config):
            section, _, leaf = name.rpartition(".")
            del (config[section] if section else config)[leaf]
    return config


def _check_value(name: str, value: Any) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(x, float) and not math.isfinite(x) for x in parts):
        raise UsageError(f"config.{name}={value!r} must be finite.")
    if any(isinstance(x, str) and "\0" in x for x in parts):
        raise UsageError(f"config.{name}={value!r} holds a zero byte; take it out.")
    rule = RULES.get(name)
    each = parts if name in PER_CODE else (value,)
    if rule is not None and not all(map(rule.holds, each)):
        raise UsageError(f"config.{name}={value!r} {rule.says}.")


def _check_combinations(config: ml_collections.ConfigDict) -> None:
    warmup, epochs = config.warmup_epochs, config.epochs
    if warmup > epochs:
        raise UsageError(
            f"config.warmup_epochs={warmup} is more than config.epochs={epochs}; set "
            f"config.warmup_epochs={epochs // 10}, or more epochs."
        )
    side = config.dataset.image_size
    if config.method == "essl" and side % 2:
        raise UsageError(
            f"config.dataset.image_size={side} must be even for essl, which predicts "
            f"from a view of half the size; use {side + 1}."
        )


def _unread(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the reason for each field or section that has no effect."""
    method, encoder = config.method, config.encoder.name
    others = [m for m in METHODS if m != method and m in config]
    unread = dict.fromkeys(others, f"config.method={method!r}")
    if not build.reads_learned(method):
        unread["learned"] = f"config.method={method!r}"
    if method == "duet":
        codes = split_codes(config.learned)
        targets = build.choose_targets(config.duet.target, codes)
        widths = {each.width for each in TARGETS.values()}
        shown = ",".join(dict.fromkeys(targets))
        for width in widths - {TARGETS[target].width for target in targets}:
            unread[f"duet.{width}"] = f"config.duet.target={shown!r}"
    read = lookup(ENCODERS, encoder, "config.encoder.name").fields
    for name in (each for spec in ENCODERS.values() for each in spec.fields):
        if name not in read:
            unread[f"encoder.{name}"] = f"config.encoder.name={encoder!r}"
    idle = optim.unread(config.optimizer).items()
    return unread | {f"optimizer.{name}": reason for name, reason in idle}


def _idle_options(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the reason for each field that has no effect on a training like this.

    They stay in the configuration: an evaluation may measure an augmentation that views
    are not made with, and count votes in another way.
    """
    stack = _coerced("augmentation.stack", config.augmentation.stack, ("sca",))
    predicted = split_codes(config.learned) if config.method == "essl" else ()
    codes = {*stack, *predicted}
    read = {name for code in codes for name in options_read(code)}
    reason = f"config.augmentation.stack={','.join(stack)!r}"
    idle = {
        f"augmentation.{name}": reason
        for name in config.augmentation
        if name != "stack" and name not in read
    }
    if config.knn.weights == "uniform":
        idle["knn.temperature"] = "config.knn.weights='uniform'"
    return idle


def check_evaluation(names: Iterable[str], measured: Iterable[str]) -> None:
    """Raises a UsageError for a field that an evaluation does not read.

    Args:
      names: dotted names of the fields that the user sets.
      measured: those that the evaluators read.
    """
    allowed = sorted(EVALUATION | set(measured))
    for name in names:
        if name not in allowed:
            raise UsageError(
                f"config.{name} cannot be set here: it was decided by the training, or "
                f"this evaluation does not read it; only {', '.join(allowed)} can."
            )


def check_external(names: Iterable[str], measured: Iterable[str]) -> None:
    """Raises a UsageError for a field that does not concern an encoder from elsewhere.

    Args:
      names: dotted names of the fields that the user sets.
      measured: those that the evaluators read.
    """
    allowed = {*EVALUATION, *measured, *_ALTER_EXTERNAL}
    for name in names:
        if name not in allowed and not alters_external(name):
            raise UsageError(
                f"config.{name} has no effect with --encoder, or this evaluation does "
                f"not read it; only {', '.join(sorted(allowed))} and "
                "config.augmentation.* can be set."
            )


def completed(
    saved: ml_collections.ConfigDict, schema: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Returns the configuration of a run with every field of the schema.

    Args:
      saved: as resolved for the training: without the fields that had no effect or were
        added to the schema later.
      schema: every field with its default.

    Raises:
      UsageError: a field is unknown, or its value is of another type or out of range.
    """
    config = open_fields(schema)
    known = dict(fields(schema))
    for name, value in fields(saved):
        if name not in known:
            raise UsageError(
                f"config.json: {name} is not a field.{suggestion(name, known)} "
                "Restore the file the run was trained with."
            )
        value = _coerced(name, value, known[name]) if name in PER_CODE else value
        if not (name in PER_CODE or _is_like(value, known[name])):
            raise bad_value(name, value, known[name])
        _check_value(name, value)
        config.update_from_flattened_dict({name: value})
    return config


def _is_like(value: Any, default: Any) -> bool:
    """Returns True if a value read from a file has the type of its default."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(x, default[0]) for x in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)


def unused(config: ml_collections.ConfigDict, names: Iterable[str]) -> dict[str, str]:
    """Returns the reason for each of the dotted `names` that has no effect.

    Args:
      config: with the user's changes, accepted by `check`.
      names: of the fields that the user sets.
    """
    unread = _idle_options(config) | _unread(config)
    reasons = {
        name: unread.get(name) or unread.get(name.partition(".")[0]) for name in names
    }
    return {name: reason for name, reason in reasons.items() if reason}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the fields that alter a run, as "name: old -> new".

    Args:
      old: a resolved configuration, as read from `config.json`.
      new: likewise, of this run.
    """
    changed = _changed(old, new).items()
    return [_told(name, *values) for name, values in changed if name not in CHANGEABLE]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the other fields that differ; see `differences`."""
    changed = _changed(old, new).items()
    return [_told(name, *values) for name, values in changed if name in CHANGEABLE]


def altered(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the new values of the fields that alter a run, differ, and are in `new`.

    Args:
      old: as `fields` takes it.
      new: likewise; without the fields that a run does not read, if it is one.
    """
    there = {name for name, _ in fields(new)} - CHANGEABLE
    changed = _changed(old, new).items()
    return {name: after for name, (_, after) in changed if name in there}


def _told(name: str, before: Any, after: Any) -> str:
    return f"{name}: {before} -> {after}"


def _changed(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Returns the values of the fields that differ, before and after."""
    after = dict(fields(new))
    earlier = {name: value for name, value in _BEFORE.items() if name in after}
    before = earlier | dict(fields(old))
    return {
        name: (before.get(name), after.get(name))
        for name in before | after
        if before.get(name) != after.get(name)
    }
