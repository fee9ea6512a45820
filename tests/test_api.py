"""The public API: what it consists of, and that it does what its docstrings say."""

import inspect
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import PATIENCE, changed

import duet_jax as dj
from duet_jax.augmentations import AUGMENTATIONS
from duet_jax.errors import UsageError

# A line for each public name: how it is called. A change of it is a change for users.
WRITTEN = pathlib.Path(__file__).with_name("public_api.txt")


class Long:
    """Stands for a default that would fill a line, or is a function."""

    def __repr__(self):
        return "..."


def described(name, value):
    """How a public name is used, without annotations."""
    if not callable(value):
        return name
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(value).parameters.values()
    ]
    parameters = [
        each.replace(default=Long()) if len(repr(each.default)) > 32 else each
        for each in parameters
    ]
    return f"{name}{inspect.Signature(parameters)}"


def public(module, name):
    """Yields the lines of a module, of what `__all__` names."""
    for each in sorted(module.__all__):
        value = getattr(module, each)
        if isinstance(value, types.ModuleType):
            yield from public(value, f"{name}.{each}")
        else:
            yield described(f"{name}.{each}", value)


def test_names_and_signatures_are_those_that_are_written_down():
    found = "\n".join(public(dj, "duet_jax"))
    assert found.splitlines() == WRITTEN.read_text().splitlines()


def test_what_is_public_is_documented():
    for line in WRITTEN.read_text().splitlines():
        _, *path = line.partition("(")[0].split(".")
        value = dj
        for each in path:
            value = getattr(value, each)
        if callable(value):
            assert len(inspect.getdoc(value)) > 60, line


def test_names_are_there_without_anything_slow():
    """All but `train`; also those of the modules."""
    script = """
import sys, duet_jax
assert {*duet_jax.__all__} <= {*dir(duet_jax)}
for name in duet_jax.__all__:
    value = None if name == "train" else getattr(duet_jax, name)
    for each in getattr(value, "__all__", ()) if name != "probes" else ():
        getattr(value, each)
print(*{"jax", "flax", "optax", "orbax", "matplotlib", "sklearn"} & {*sys.modules})
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=changed({}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "\n"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nt_xent'"):
        dj.nt_xent  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'svm'"):
        dj.probes.svm  # noqa: B018


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
KEY = jax.random.key(0)


def test_a_random_stack_says_what_it_drew():
    """The views are those that `rotate` makes with the degrees that it says."""
    stack = dj.augment.random_stack(("rot",), rotation_degrees=30.0)
    views, draws = stack(KEY, IMAGES)
    assert {*draws} == {"rot"}
    degrees = draws["rot"].parameter
    assert np.ptp(degrees) > 5
    assert np.abs(degrees).max() <= 30
    np.testing.assert_allclose(draws["rot"].structure, (degrees + 180) / 360, atol=1e-6)
    floats = jnp.asarray(IMAGES, jnp.float32) / 255
    rotated = dj.augment.rotate(floats, degrees)
    np.testing.assert_allclose(views, rotated, atol=1e-5)
    compiled, _ = jax.jit(stack)(KEY, floats)
    np.testing.assert_allclose(compiled, views, atol=1e-5)


@pytest.mark.parametrize("code", AUGMENTATIONS)
def test_every_augmentation_can_be_in_a_random_stack(code):
    record = AUGMENTATIONS[code]
    stack = dj.augment.random_stack((code,), image_size=8)
    for channels in record.channels:
        views, draws = stack(KEY, IMAGES[..., :channels])
        assert views.shape == (6, 8, 8, channels)
        assert views.dtype == jnp.float32
        assert views.min() >= -1e-5
        assert views.max() <= 1 + 1e-5
        assert [*draws] == ([code] if record.structure else [])
        for draw in draws.values():
            assert draw.structure.shape == draw.parameter.shape == (6,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dj.augment.random_stack(("rott",)), "Did you mean 'rot'?"),
        (
            lambda: dj.augment.random_stack(("rot",), degrees=30),
            "degrees is no option of an augmentation; choose from blur_probability",
        ),
        (
            lambda: dj.augment.random_stack(("rot",), rotation_degrees=0.0),
            "rotation_degrees=0.0 must lie in (0, 180]",
        ),
        (
            lambda: dj.augment.random_stack(("rot",))(KEY, IMAGES[0]),
            "images [12, 12, 3] must be [n, side, side, channels]",
        ),
        (
            lambda: dj.augment.random_stack(("rot",), image_size=16)(KEY, IMAGES),
            "image_size=16 must lie between 4 and 12, the side of the images.",
        ),
        (
            lambda: dj.augment.random_stack(("hue",))(KEY, IMAGES[..., :1]),
            "hue (shift of the hue) needs images with 3 channels",
        ),
        (lambda: dj.encoders.create("resnet"), "encoder='resnet' is not known"),
        (lambda: dj.encoders.create("resnet18", stem="7x7"), "stem='7x7' is not known"),
        (lambda: dj.encoders.create("vit_tiny", side=30), "patch_size=4 must divide"),
        (
            lambda: dj.load_config("smoke", {"epochs": 0}),
            "config.epochs=0 must be",
        ),
        (
            lambda: dj.load_config("smoke", {"epoch": 3}),
            "config.epoch is not a field. Did you mean 'config.epochs'?",
        ),
        (
            lambda: dj.load_config("smoke", {"epochs": "many"}),
            "config.epochs='many' must be",
        ),
        (lambda: dj.load_run("nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(UsageError) as error:
        call()
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_encoder_of_a_seed():
    make = dj.encoders.create
    narrow = {"blocks": (1, 1, 1), "widths": (8, 8, 8, 16), "channels": 1}
    one, other, same = (make("Cifar10_ResNet", **narrow, seed=s) for s in (0, 1, 0))
    images = dj.augment.normalize(jnp.asarray(IMAGES[..., :1], jnp.float32) / 255)
    features = one(images, train=False)
    assert features.shape == (6, one.num_features) == (6, 16)
    np.testing.assert_array_equal(features, same(images, train=False))
    assert not np.allclose(features, other(images, train=False))


def test_the_structure_loss_is_the_mean_divergence():
    """0 for the target itself, log 2 for what it excludes; padding is left out."""
    targets = jnp.array([[1.0, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1]])
    logits = jnp.log(jnp.maximum(targets, 1e-30)).at[2].set(jnp.array([60.0, 0, 0, 0]))
    loss = dj.losses.structure_loss(logits, targets)
    np.testing.assert_allclose(loss, np.log(2) / 3, rtol=1e-5)
    mask = jnp.array([True, True, False])
    assert abs(dj.losses.structure_loss(logits, targets, mask)) < 1e-6


def test_a_configuration_and_its_training(tmp_path):
    """From a name to features, in the way of the docstrings."""
    fields = {"steps_per_epoch": 1, "tensorboard": False, "batch_size": 16}
    config = dj.load_config("smoke", fields)
    dj.train(config, tmp_path / "run")
    run = dj.load_run(tmp_path / "run")
    assert isinstance(run, dj.Run)
    features = run(np.zeros((3, run.facts.side, run.facts.side, 1), np.uint8))
    assert {name: each.shape for name, each in features.items()} == {
        "full": (3, 32),
        "content": (3, 4),
        "structure": (3, 8),
    }
