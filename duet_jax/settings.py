"""Checks of a configuration that need no data, and its resolved form.

What a component alone can know, the component checks when it is built; here are types,
ranges and the combinations of fields.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ml_collections

from duet_jax.errors import UsageError
from duet_jax.methods import METHODS, DataSpec
from duet_jax.models.resnet import num_features
from duet_jax.registry import lookup, suggestion


class Rule(NamedTuple):
    """What a field's value must satisfy, and how that is said."""

    holds: Callable[[Any], bool]
    says: str


def _between(low: float, high: float) -> Rule:
    return Rule(lambda x: low <= x <= high, f"must be from {low:g} to {high:g}")


def _at_least(low: float) -> Rule:
    return Rule(lambda x: x >= low, f"must be {low:g} or more")


def _one_of(*choices: str) -> Rule:
    return Rule(lambda x: x in choices, f"must be one of {', '.join(choices)}")


_POSITIVE = Rule(lambda x: x > 0, "must be above 0")
_COUNT = _at_least(1)

RULES: dict[str, Rule] = {
    "seed": _between(0, 2**32 - 1),
    "device": _one_of("auto", "cpu", "gpu"),
    "epochs": _COUNT,
    "warmup_epochs": _at_least(0),
    "steps_per_epoch": _at_least(0),
    "batch_size": _at_least(2),
    "steps_per_call": _at_least(0),
    "compute_dtype": _one_of("float32", "bfloat16"),
    "dataset.name": Rule(bool, "must name a data set"),
    "dataset.image_size": _at_least(8),
    "dataset.num_classes": _at_least(0),
    "projector.hidden": _COUNT,
    "projector.output": _COUNT,
    "temperature": _POSITIVE,
    "duet.structure_weight": _at_least(0),
    "duet.sigma": _POSITIVE,
    "duet.concentration": _POSITIVE,
    "essl.prediction_weight": _at_least(0),
    "essl.hidden": _COUNT,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of("epoch", "step"),
    "optimizer.b1": Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1"),
    "optimizer.b2": Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1"),
    "optimizer.eps": _POSITIVE,
    "optimizer.weight_decay": _at_least(0),
    "evaluate_every": _COUNT,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "figures_every": _COUNT,
    "wandb.mode": _one_of("online", "offline"),
}

# Sections that only one method reads, by method.
_SECTIONS = {"duet": "duet", "essl": "essl"}

# Fields that may differ between a run and its continuation: they say where data and
# records are and how often something is written, not what is computed.
CHANGEABLE = frozenset(
    {
        "dataset.path",
        "dataset.cache_dir",
        "evaluate_every",
        "checkpoint.every",
        "checkpoint.keep",
        "tensorboard",
        "figures_every",
        "wandb.project",
        "wandb.entity",
        "wandb.mode",
        "compilation_cache",
        "device",
        "steps_per_call",
    }
)


def fields(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields every field of `config` as (dotted name, value), in order."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            for inner, leaf in fields(value):
                yield f"{name}.{inner}", leaf
        else:
            yield name, value


def check_names(config: ml_collections.ConfigDict, names: Iterable[str]) -> None:
    """Raises a UsageError for the first of the dotted `names` that is no field."""
    known = [name for name, _ in fields(config)]
    for name in names:
        if name in known:
            continue
        if any(field.startswith(f"{name}.") for field in known):
            inside = [f for f in known if f.startswith(f"{name}.")]
            raise UsageError(
                f"config.{name} is a section; set one of config."
                f"{', config.'.join(inside)}."
            )
        # A slip may be in the section, in the field, or in leaving out the section.
        section, _, leaf = name.rpartition(".")
        same_leaf = [field for field in known if field.rpartition(".")[2] == leaf]
        hint = (
            f" Did you mean 'config.{same_leaf[0]}'?"
            if same_leaf
            else suggestion(f"config.{name}", [f"config.{field}" for field in known])
        )
        siblings = [f for f in known if f.rpartition(".")[0] == section] or known
        raise UsageError(
            f"config.{name} is not a field.{hint} "
            f"Fields: {', '.join(f'config.{field}' for field in siblings)}."
        )


def _describe(value: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true/false",
    }
    if isinstance(value, tuple):
        return f"{names.get(type(value[0]), 'value')}s separated by commas"
    return names.get(type(value), type(value).__name__)


def bad_value(name: str, value: Any, default: Any) -> UsageError:
    """Returns the error for a `value` that is not of the type of its default."""
    return UsageError(
        f"config.{name}={value!r} must be {_describe(default)}, such as {default!r}."
    )


def _coerced(name: str, value: Any, default: Any) -> Any:
    """Returns a tuple with its default's element type, other values as they are."""
    if not isinstance(default, tuple):
        return value
    kind = type(default[0])
    if kind is str:  # "sca,rot" and "sca rot" arrive as a single element
        parts = [part for item in value for part in re.split(r"[,\s]+", str(item))]
        return tuple(part for part in parts if part)
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in value) or (
        kind is int and any(x != int(x) for x in value)
    ):
        raise bad_value(name, value, default)
    return tuple(kind(x) for x in value)


def check(
    config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Checks types, ranges and combinations, and returns the resolved configuration.

    Args:
      config: what the user asks for.
      defaults: the same before any override; its types are the right ones.

    Returns:
      A copy without the sections of other methods.

    Raises:
      UsageError: the first thing that is wrong.
    """
    config = config.copy_and_resolve_references()
    known = dict(fields(defaults))
    for name, value in fields(config):
        value = _coerced(name, value, known[name])
        config.update_from_flattened_dict({name: value})
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"config.{name}={value!r} must be finite.")
        rule = RULES.get(name)
        if rule is not None and not rule.holds(value):
            raise UsageError(f"config.{name}={value!r} {rule.says}.")
    _check_combinations(config)
    # A rehearsal on colour images: it finds what is wrong before any data are read.
    side = config.dataset.image_size
    rehearsal = DataSpec("rehearsal", side, channels=3, num_classes=2)
    lookup(METHODS, config.method, "config.method").from_config(config, rehearsal)
    encoder = config.encoder
    num_features(encoder.name, encoder.width_multiplier, encoder.widths)
    with config.unlocked():
        for method, section in _SECTIONS.items():
            if method != config.method:
                del config[section]
        if config.method == "simclr":
            del config.learned
        if config.encoder.name != "Cifar10_ResNet":
            del config.encoder.blocks, config.encoder.widths
    return config


def _check_combinations(config: ml_collections.ConfigDict) -> None:
    if config.warmup_epochs > config.epochs:
        raise UsageError(
            f"config.warmup_epochs={config.warmup_epochs} is more than config.epochs="
            f"{config.epochs}; use at most {config.epochs}."
        )
    if config.method == "essl" and config.dataset.image_size % 2:
        raise UsageError(
            f"config.dataset.image_size={config.dataset.image_size} must be even for "
            "essl, which predicts from a view of half the size; use "
            f"{config.dataset.image_size + 1}."
        )
    parts = ("bri", "con", "sat", "hue")
    if config.method == "duet" and config.learned in parts:
        part = parts.index(config.learned)
        if config.augmentation.jitter_strength[part] == 0:
            raise UsageError(
                f"config.augmentation.jitter_strength[{part}]=0.0 leaves nothing of "
                f"config.learned={config.learned!r} to learn; use a strength above 0."
            )


def check_unused(method: str, names: Iterable[str]) -> None:
    """Raises a UsageError where the user sets a field that `method` does not read."""
    for name in names:
        section = name.partition(".")[0]
        owner = next((m for m, s in _SECTIONS.items() if s == section), method)
        if owner != method or (method == "simclr" and name == "learned"):
            raise UsageError(
                f"config.{name} has no effect with config.method={method!r}; leave it "
                "out or choose another method."
            )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the fields that alter a run, as "name: old -> new".

    Args:
      old: a resolved configuration as read from `config.json`.
      new: likewise, of this run.
    """
    flat_old = dict(fields(ml_collections.ConfigDict(old)))
    flat_new = dict(fields(ml_collections.ConfigDict(new)))
    return [
        f"{name}: {flat_old.get(name)} -> {flat_new.get(name)}"
        for name in {**flat_old, **flat_new}
        if name not in CHANGEABLE and flat_old.get(name) != flat_new.get(name)
    ]
