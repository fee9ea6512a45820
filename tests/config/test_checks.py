"""The checks of a configuration, and what they make of it."""

import dataclasses
import json
import re

import ml_collections
import pytest

from configs import base, smoke
from duet_jax import optim
from duet_jax.augmentations import Options
from duet_jax.config import checks
from duet_jax.errors import UsageError
from duet_jax.methods import METHODS


def build(changes: dict) -> ml_collections.ConfigDict:
    """`base` with changes by dotted name."""
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    return config


def resolve(**changes) -> ml_collections.ConfigDict:
    """The resolved `base` with changes; names with __ for dots."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return checks.check(build(changes), base.get_config())


def flat(config: ml_collections.ConfigDict) -> dict:
    return dict(checks.fields(config))


def refusal(changes: dict) -> str:
    """The one line with which `changes` are refused."""
    with pytest.raises(UsageError) as caught:
        checks.check(build(changes), base.get_config())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- fields ---------------------------------------------------------------------------


def test_fields_are_dotted_leaves():
    config = ml_collections.ConfigDict(
        {"b": 1, "a": {"y": (1, 2), "x": {"deep": "text"}}, "c": {}}
    )
    assert list(checks.fields(config)) == [
        ("a.x.deep", "text"),
        ("a.y", (1, 2)),
        ("b", 1),
    ]


# --- what is left of a configuration --------------------------------------------------

ESSL = {"essl.prediction_weight", "essl.hidden"}
# Sections of the methods that are in none of the cases.
OTHERS = {
    name
    for name, _ in checks.fields(base.get_config())
    if name.partition(".")[0] in {*METHODS} - {"duet", "essl"}
}
DUET = {"duet.num_bins", "duet.structure_weight", "duet.target", "duet.marginal"}
SIGMA, CONCENTRATION = {"duet.sigma"}, {"duet.concentration"}
TUPLES = {"encoder.blocks", "encoder.widths"}
# Of other optimizers than AdamW.
OTHERS |= {f"optimizer.{x}" for x in ("momentum", "nesterov", "trust_coefficient")}
ADAM = {"optimizer.b1", "optimizer.b2", "optimizer.eps"}
OTHER_ENCODERS = {"encoder.stem", "encoder.patch_size"}


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({}, ESSL | SIGMA | TUPLES),
        ({"learned": "sca"}, ESSL | CONCENTRATION | TUPLES),
        ({"duet__target": "gaussian"}, ESSL | CONCENTRATION | TUPLES),
        ({"encoder__name": "Cifar10_ResNet"}, ESSL | SIGMA),
        ({"method": "essl"}, DUET | SIGMA | CONCENTRATION | TUPLES),
        (
            {"method": "simclr"},
            DUET | SIGMA | CONCENTRATION | ESSL | TUPLES | {"learned"},
        ),
        (
            {"method": "simclr", "encoder__name": "Cifar10_ResNet"},
            DUET | SIGMA | CONCENTRATION | ESSL | {"learned"},
        ),
    ],
)
def test_what_nothing_reads_is_dropped(changes, dropped):
    config = resolve(**changes)
    asked = flat(build({n.replace("__", "."): v for n, v in changes.items()}))
    assert set(asked) - set(flat(config)) == dropped | OTHERS | OTHER_ENCODERS
    # What is left is as it was, and no empty section remains.
    assert flat(config).items() <= asked.items()
    assert all(len(config[name]) for name in config if hasattr(config[name], "keys"))


@pytest.mark.parametrize(
    ("changes", "names", "reason"),
    [
        ({"method": "simclr"}, ["duet.num_bins"], "config.method='simclr'"),
        ({"method": "essl"}, ["epochs", "duet.sigma"], "config.method='essl'"),
        ({"method": "simclr"}, ["learned"], "config.method='simclr'"),
        (
            {},
            ["optimizer.momentum", "optimizer.nesterov"],
            "config.optimizer.name='adamw'",
        ),
        ({"optimizer.name": "lars"}, sorted(ADAM), "config.optimizer.name='lars'"),
        (
            {"optimizer.name": "sgd"},
            [*sorted(ADAM), "optimizer.trust_coefficient"],
            "config.optimizer.name='sgd'",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.momentum": 0.0},
            ["optimizer.nesterov"],
            "config.optimizer.momentum=0",
        ),
        (
            {"knn.weights": "uniform"},
            ["knn.temperature"],
            "config.knn.weights='uniform'",
        ),
        ({}, ["essl.hidden"], "config.method='duet'"),
        ({}, ["duet.sigma"], "config.duet.target='von_mises'"),
        ({"learned": "sca"}, ["duet.concentration"], "config.duet.target='gaussian'"),
        ({}, ["encoder.blocks"], "config.encoder.name='cifar10_resnet32'"),
        ({}, ["encoder.widths"], "config.encoder.name='cifar10_resnet32'"),
        ({}, ["encoder.stem"], "config.encoder.name='cifar10_resnet32'"),
        (
            {"encoder.name": "resnet18"},
            ["encoder.stem", "encoder.patch_size"],
            "config.encoder.name='resnet18'",
        ),
        (
            {"encoder.name": "vit_tiny"},
            ["encoder.patch_size", "encoder.stem"],
            "config.encoder.name='vit_tiny'",
        ),
    ],
)
def test_what_nothing_reads_is_known(changes, names, reason):
    unused = checks.unused(build(changes), names)
    assert unused[names[-1]] == reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder__patch_size": 5},
            "config.encoder.patch_size=5 must divide the side of the views, 32 pixels; "
            "use 1, 2, 4, 8, 16, or another config.dataset.image_size.",
        ),
        (
            {"encoder__patch_size": 8, "dataset__image_size": 40, "method": "essl"},
            "config.encoder.patch_size=8 must divide the side of essl's view of half "
            "the size, 20 pixels; use 1, 2, 4, 5, 10, or another",
        ),
    ],
)
def test_patches_fill_the_images(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve(encoder__name="vit_tiny", **changes)
    fitting = {**changes, "encoder__patch_size": 4}
    assert resolve(encoder__name="vit_tiny", **fitting).encoder.patch_size == 4


def test_setting_what_is_read_is_fine():
    for changes in ({"method": method} for method in METHODS):
        named = [
            name
            for name in flat(resolve(**changes))
            # Of the strengths only those of the stack, sca and rot, are read.
            if not name.startswith("augmentation.")
            or name.endswith(("stack", "crop_area", "crop_ratio", "rotation_degrees"))
        ]
        assert len(named) > 30
        assert checks.unused(build(changes), named) == {}


@pytest.mark.parametrize(
    ("name", "given", "resolved"),
    [
        ("augmentation.stack", ("sca,rot",), ("sca", "rot")),
        ("augmentation.stack", ("sca rot",), ("sca", "rot")),
        ("augmentation.stack", (" sca , rot", "fli"), ("sca", "rot", "fli")),
        ("augmentation.stack", ("rot",), ("rot",)),
        ("augmentation.crop_area", (0.5, 1), (0.5, 1.0)),
        ("augmentation.jitter_strength", (1, 1, 1, 0.5), (1.0, 1.0, 1.0, 0.5)),
        ("encoder.widths", (8, 8.0, 16, 32), (8, 8, 16, 32)),
        ("encoder.blocks", (1.0, 2, 3), (1, 2, 3)),
    ],
)
def test_tuples_are_normalised(name, given, resolved):
    changes = {"encoder.name": "Cifar10_ResNet", name: given}
    config = checks.check(build({**changes, "duet.num_bins": 2}), base.get_config())
    found = flat(config)[name]
    assert found == resolved
    assert [type(x) for x in found] == [type(x) for x in resolved]


def test_the_question_is_not_changed():
    config = build({"augmentation.stack": ("sca,rot",), "method": "essl"})
    before = config.to_json()
    checks.check(config, base.get_config())
    assert config.to_json() == before


def test_no_augmentation_at_all():
    assert resolve(method="simclr", augmentation__stack=()).augmentation.stack == ()
    # The same where the experiment itself starts from nothing.
    nothing = build({"method": "simclr", "augmentation.stack": ()})
    asked = build({"method": "simclr", "augmentation.stack": ("fli,rot",)})
    assert checks.check(asked, nothing).augmentation.stack == ("fli", "rot")


@pytest.mark.parametrize("method", METHODS)
def test_resolving_again_changes_nothing(method):
    config = resolve(method=method)
    text = config.to_json()
    restored = json.loads(text)
    assert checks.differences(restored, json.loads(text)) == []
    tuples = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in checks.fields(ml_collections.ConfigDict(restored))
    }
    assert tuples == flat(config)


# --- ranges ---------------------------------------------------------------------------


def numeric(config: ml_collections.ConfigDict) -> set[str]:
    """Names of the fields that hold numbers or tuples of numbers."""
    return {
        name
        for name, value in checks.fields(config)
        for first in (value[:1] if isinstance(value, tuple) else (value,))
        if isinstance(first, int | float) and not isinstance(first, bool)
    }


# Numbers without a rule are checked by what reads them; such a value is refused there.
CHECKED_ELSEWHERE = {
    "augmentation.crop_area": (0.0, 1.0),
    "augmentation.crop_ratio": (2.0, 1.0),
    "augmentation.rotation_degrees": 181.0,
    "augmentation.flip_probability": 1.1,
    "augmentation.grey_probability": -0.1,
    "augmentation.blur_probability": 2.0,
    "augmentation.blur_sigma": (0.0, 1.0),
    "augmentation.jitter_probability": 1.5,
    "augmentation.solarize_probability": -1.0,
    "augmentation.solarize_threshold": (0.5, 0.5),
    "augmentation.solarize_addition": (-2.0, 0.0),
    "duet.num_bins": 7,
}


def test_every_number_has_its_range():
    """A new field needs a rule here, or a check of its own and a row above."""
    names = numeric(base.get_config())
    assert names - set(checks.RULES) == set(CHECKED_ELSEWHERE)
    assert set(checks.RULES) <= set(flat(base.get_config()))


def test_augmentation_is_exactly_its_options():
    config = base.get_config().augmentation
    options = {f.name: f.default for f in dataclasses.fields(Options)}
    assert dict(config) == {"stack": ("sca", "rot"), **options}


@pytest.mark.parametrize("name", CHECKED_ELSEWHERE)
def test_ranges_checked_elsewhere(name):
    value = CHECKED_ELSEWHERE[name]
    message = refusal({name: value})
    assert message.startswith(f"config.{name}={value!r} must ")


# Field: values that are just within its range, values that are just outside.
EDGES = {
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "epochs": ([10, 1_000_000], [0, 1_000_001]),
    "warmup_epochs": ([0, 800], [-1, 801]),
    "steps_per_epoch": ([0, 1], [-1]),
    "batch_size": ([2], [1, 0]),
    "steps_per_call": ([0, 1], [-1]),
    "compute_dtype": (["float32", "bfloat16"], ["float16", "", "Float32"]),
    "on_nonfinite": (["stop", "skip"], ["raise", "", "Stop"]),
    "device": (["auto", "cpu", "gpu"], ["tpu", "", "cuda:0"]),
    "compilation_cache": (["", "off", "/x", "/a:b"], ["gs://b/x", "s3://b"]),
    "dataset.path": (["", "/x", "/run[1]"], ["gs://b/x", "file:///x"]),
    "dataset.cache_dir": (["", "/x"], ["gs://b/x", "HDFS://x"]),
    "dataset.image_size": ([8, 4096], [7, 4097]),
    "dataset.num_classes": ([0, 2], [-1]),
    "dataset.train_fraction": ([1e-6, 1.0], [0.0, 1.001]),
    "dataset.holdout": ([1e-6, 0.999], [0.0, 1.0]),
    "dataset.channels": ([0, 1, 3], [2, -1, 4]),
    "dataset.placement": (["auto", "device", "host"], ["disk", ""]),
    "dataset.workers": ([-1, 0, 64], [-2]),
    "dataset.name": (["folder"], [""]),
    "augmentation.jitter_strength": ([(1.0, 1.0, 1.0, 0.5)], [(), (0.4, 0.4, 0.4)]),
    "encoder.blocks": (
        [(1, 1, 1)],
        [(1, 1), (1, 0, 1), (1, 1, 1, 1), (), (1, 1001, 1)],
    ),
    "encoder.widths": (
        [(8, 8, 8, 8)],
        [(8, 8, 8), (8, 8, 8, -8), (), (8, 8, 8, 65537)],
    ),
    "encoder.width_multiplier": ([1e-3, 64.0], [0.0, -1.0, 65.0]),
    "encoder.stem": (["cifar", "imagenet"], ["", "torchvision"]),
    "encoder.patch_size": ([1, 256], [0, 257]),
    "projector.layers": ([2, 3], [1, 4]),
    "projector.hidden": ([1, 65_536], [0, 65_537]),
    "projector.output": ([1], [0, -1, 65_537]),
    "temperature": ([1e-3], [0.0, -0.1]),
    "nt_xent.reduction": (["sum", "mean"], ["none", ""]),
    "duet.structure_weight": ([0.0], [-1e-9]),
    "duet.marginal": (["mean", "sum"], ["max", ""]),
    "duet.sigma": ([1e-3], [0.0]),
    "duet.concentration": ([1e-3], [0.0, -1.0]),
    "essl.prediction_weight": ([0.0], [-0.1]),
    "essl.hidden": ([1], [0, 65_537]),
    "augself.weight": ([0.0], [-0.1]),
    "augself.hidden": ([1], [0, 65_537]),
    "equimod.weight": ([0.0], [-0.1]),
    "care.weight": ([0.0], [-0.1]),
    "care.chunk": ([2, 65_536], [1, 0, 65_537]),
    "sie.weight": ([0.0], [-0.1]),
    "sie.hidden": ([1, 1024], [0, 1025]),
    "optimizer.name": (["adamw", "sgd", "lars"], ["adam", "", "SGD"]),
    "optimizer.learning_rate": ([1e-9], [0.0]),
    "optimizer.scale": (["none", "linear", "sqrt"], ["batch", ""]),
    "optimizer.schedule": (["epoch", "step"], ["cosine", ""]),
    "optimizer.b1": ([0.0, 0.999], [1.0, -0.1]),
    "optimizer.b2": ([0.0, 0.999], [1.0, -0.1]),
    "optimizer.eps": ([1e-12], [0.0]),
    "optimizer.momentum": ([0.0, 0.999], [1.0, -0.1]),
    "optimizer.trust_coefficient": ([1e-9], [0.0]),
    "optimizer.weight_decay": ([0.0], [-1e-9]),
    "optimizer.decay": (["all", "weights"], ["none", ""]),
    "evaluate_every": ([1], [0]),
    "knn.k": ([1, 10**6], [0]),
    "knn.weights": (["similarity", "uniform"], ["distance", ""]),
    "knn.temperature": ([1e-3], [0.0, -0.1]),
    "knn.every": ([0, 1], [-1]),
    "monitor.images": ([0, 1, 100_000], [-1, 100_001]),
    "linear_probe.epochs": ([1], [0]),
    "linear_probe.repeats": ([1], [0]),
    "linear_probe.learning_rate": ([1e-9], [0.0]),
    "generation.epochs": ([1, 1_000_000], [0, 1_000_001]),
    "generation.batch_size": ([2], [1]),
    "generation.learning_rate": ([1e-9], [0.0]),
    "generation.width": ([1, 1024], [0, 1025]),
    "checkpoint.every": ([1], [0]),
    "checkpoint.within_epoch": ([0, 1000], [-1, 1001]),
    "checkpoint.keep": ([1], [0]),
    "figures_every": ([1], [0]),
    "wandb.mode": (["", "online", "offline", "disabled"], ["off"]),
}


def test_every_rule_has_edges():
    assert set(EDGES) == set(checks.RULES)


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_ranges(name):
    inside, outside = EDGES[name]
    for value in inside:
        config = checks.check(build({name: value}), base.get_config())
        assert flat(config).get(name, value) == value
    for value in outside:
        assert f"config.{name}={value!r} " in refusal({name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value):
    for name, default in checks.fields(base.get_config()):
        if isinstance(default, float):
            changed = value
        elif isinstance(default, tuple) and not isinstance(default[0], str):
            changed = (value, *default[1:])
        else:
            continue
        assert refusal({name: changed}).startswith(f"config.{name}=")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"epochs": 5},
            [
                "config.warmup_epochs=10",
                "config.epochs=5",
                "set config.warmup_epochs=0",
            ],
        ),
        (
            {"method": "essl", "dataset.image_size": 33},
            ["config.dataset.image_size=33", "even", "use 34"],
        ),
        ({"encoder.name": "resnet101"}, ["config.encoder.name='resnet101'", "choose"]),
        (
            {"method": "simclr", "encoder.name": "resnet101"},
            ["config.encoder.name='resnet101'", "cifar10_resnet20"],
        ),
        (
            {"method": "byol"},
            ["config.method='byol'", "simclr, essl, duet, augself, equimod, care, sie"],
        ),
        ({"learned": "ccr"}, ["config.learned='ccr'", "choose one of"]),
        ({"duet.target": "cauchy"}, ["config.duet.target='cauchy'", "gaussian"]),
        (
            {"encoder.blocks": (1, 1.5, 1)},
            ["config.encoder.blocks='1,1.5,1'", "whole numbers", "'3,3,3'"],
        ),
        (
            {"augmentation.crop_area": ("a", 1.0)},
            ["config.augmentation.crop_area='a,1.0'", "numbers", "'0.2,1.0'"],
        ),
        (
            {"encoder.blocks": (True, 1, 1)},
            ["config.encoder.blocks='True,1,1'", "whole numbers"],
        ),
    ],
)
def test_what_does_not_go_together(changes, parts):
    message = refusal(changes)
    assert all(part in message for part in parts), message


# --- names and types ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        (
            "epoch",
            "config.epoch is not a field. Did you mean 'config.epochs'? Fields: ",
            "config.warmup_epochs.",
        ),
        (
            "num_bins",
            "config.num_bins is not a field. Did you mean 'config.duet.num_bins'? ",
            "config.warmup_epochs.",
        ),
        (
            "duet.bins",
            "config.duet.bins is not a field. Did you mean 'config.duet.num_bins'? "
            "Fields: config.duet.concentration, config.duet.marginal, ",
            "config.duet.target.",
        ),
        (
            "optimiser.learning_rate",
            "config.optimiser.learning_rate is not a field. Did you mean "
            "'config.optimizer.learning_rate'? Sections: config.augmentation, ",
            "config.wandb.",
        ),
        (
            "encoder",
            "config.encoder is a section; set one of config.encoder.blocks, ",
            "config.encoder.widths.",
        ),
        ("", "config. is not a field.", "."),
        ("epochs.more", "config.epochs.more is not a field.", "."),
        ("xyzzy", "config.xyzzy is not a field. Fields: config.batch_size, ", "."),
    ],
)
def test_unknown_names(name, start, end):
    with pytest.raises(UsageError) as caught:
        checks.check_names(base.get_config(), ["seed", name, "also_wrong"])
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


def test_known_names():
    config = base.get_config()
    checks.check_names(config, flat(config))
    checks.check_names(config, [])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", True, "config.epochs=True must be a whole number, such as 800."),
        ("epochs", None, "config.epochs=None must be a whole number, such as 800."),
        ("learned", 3, "config.learned=3 must be a text, such as 'rot'."),
        ("temperature", "hot", "config.temperature='hot' must be a number, such as "),
        ("tensorboard", 1, "config.tensorboard=1 must be true or false, such as True."),
        (
            "encoder.blocks",
            "1,1,1",
            "config.encoder.blocks='1,1,1' must be whole numbers separated by commas, "
            "such as '3,3,3'.",
        ),
    ],
)
def test_types_of_a_file(name, value, message):
    config = base.get_config()
    section, _, leaf = name.rpartition(".")
    parent = config[section] if section else config
    with parent.ignore_type():
        parent[leaf] = value
    with pytest.raises(UsageError) as caught:
        checks.check_schema(config, base.get_config())
    assert str(caught.value).startswith(message)


def test_fields_of_a_file():
    config = base.get_config()
    del config.duet.sigma
    with pytest.raises(
        UsageError, match=r"^config\.duet\.sigma is missing; .* to 0\.2"
    ):
        checks.check_schema(config, base.get_config())
    config = base.get_config()
    config.epoch = 3
    with pytest.raises(UsageError, match=r"Did you mean 'config\.epochs'"):
        checks.check_schema(config, base.get_config())
    checks.check_schema(smoke.get_config(), base.get_config())


# --- two runs -------------------------------------------------------------------------


def stored(**changes) -> dict:
    return json.loads(resolve(**changes).to_json())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({}, {"batch_size": 512}, ["batch_size: 1024 -> 512"]),
        (
            {"seed": 1, "temperature": 0.2},
            {"seed": 2},
            ["seed: 1 -> 2", "temperature: 0.2 -> 0.1"],
        ),
        (
            {"augmentation__stack": ("sca", "rot")},
            {"augmentation__stack": ("rot", "sca")},
            ["augmentation.stack: ['sca', 'rot'] -> ['rot', 'sca']"],
        ),
        (
            {},
            {"duet__target": "gaussian"},
            [
                "duet.concentration: 3.0 -> None",
                "duet.sigma: None -> 0.2",
                "duet.target: auto -> gaussian",
            ],
        ),
        (
            {"method": "simclr"},
            {"method": "essl"},
            [
                "essl.hidden: None -> 2048",
                "essl.prediction_weight: None -> 0.4",
                "learned: None -> rot",
                "method: simclr -> essl",
            ],
        ),
    ],
)
def test_differences(old, new, expected):
    assert sorted(checks.differences(stored(**old), stored(**new))) == expected


def test_a_run_of_an_older_version_goes_on():
    """Without the fields that came later, with their values of before."""
    old = stored()
    for section, leaf in (name.split(".") for name in checks._BEFORE):
        del old[section][leaf]
    assert checks.differences(old, stored()) == []
    assert checks.changes(old, stored()) == ["monitor.images: 0 -> 1024"]
    changed = stored(
        **{"optimizer.name": "sgd", "nt_xent.reduction": "mean", "projector.layers": 2}
    )
    told = checks.differences(old, changed)
    assert "optimizer.name: adamw -> sgd" in told
    assert "nt_xent.reduction: sum -> mean" in told
    assert "projector.layers: 3 -> 2" in told


# Another value for each field that may change when a run goes on.
HARMLESS = {
    "dataset.path": "/elsewhere",
    "dataset.cache_dir": "/elsewhere",
    "dataset.placement": "host",
    "dataset.workers": 3,
    "encoder.remat": True,
    "evaluate_every": 3,
    "knn.k": 3,
    "knn.weights": "uniform",
    "knn.temperature": 0.3,
    "knn.every": 3,
    "monitor.images": 3,
    "linear_probe.epochs": 3,
    "linear_probe.repeats": 3,
    "linear_probe.learning_rate": 0.3,
    "generation.epochs": 3,
    "generation.batch_size": 64,
    "generation.learning_rate": 0.3,
    "generation.width": 8,
    "checkpoint.every": 3,
    "checkpoint.keep": 3,
    "checkpoint.within_epoch": 3,
    "tensorboard": False,
    "figures_every": 3,
    "wandb.project": "mine",
    "wandb.entity": "me",
    "wandb.mode": "offline",
    "compilation_cache": "off",
    "device": "cpu",
    "steps_per_call": 3,
    "on_nonfinite": "skip",
}


@pytest.mark.parametrize("epochs", [1, 2, 9, 15, 99])
def test_advice_on_the_warm_up_trains(epochs):
    """What is proposed is taken, and the learning rate reaches its full height."""
    message = refusal({"epochs": epochs, "warmup_epochs": 100})
    advice = int(re.search(r"set config\.warmup_epochs=(\d+),", message)[1])
    config = checks.check(
        build({"epochs": epochs, "warmup_epochs": advice}), base.get_config()
    )
    rate = optim.learning_rate(
        config.optimizer.learning_rate,
        epochs=epochs,
        warmup_epochs=advice,
        steps_per_epoch=4,
    )
    highest = max(float(rate(step)) for step in range(4 * epochs))
    assert highest == pytest.approx(config.optimizer.learning_rate, rel=1e-6)


def test_harmless_differences():
    assert set(HARMLESS) == set(checks.CHANGEABLE)
    changed = checks.check(build(HARMLESS), base.get_config())
    assert {n: flat(changed)[n] for n in HARMLESS} == HARMLESS
    assert checks.differences(stored(), json.loads(changed.to_json())) == []


def test_every_other_field_is_a_difference():
    """Nothing that alters the numbers may change unnoticed."""
    old = stored()
    names = dict(checks.fields(ml_collections.ConfigDict(old)))
    for name, value in names.items():
        if name in checks.CHANGEABLE:
            continue
        new = ml_collections.ConfigDict(json.loads(json.dumps(old)))
        other = not value if isinstance(value, bool) else "other"
        with new.ignore_type():
            *sections, leaf = name.split(".")
            (new[sections[0]] if sections else new)[leaf] = other
        found = checks.differences(old, json.loads(new.to_json()))
        assert found == [f"{name}: {value} -> {other}"]


def test_runs_from_before_a_field_go_on():
    """A field that came later has the value that runs of before had without it."""
    new = json.loads(resolve().to_json())
    old = json.loads(resolve().to_json())
    del old["dataset"]["train_fraction"]
    assert checks.differences(old, new) == []
    new["dataset"]["train_fraction"] = 0.5
    assert checks.differences(old, new) == ["dataset.train_fraction: 1.0 -> 0.5"]
