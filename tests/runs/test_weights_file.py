"""Files of weights, of ours and of the reference; those that do not fit are refused."""

import collections
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch_files
from flax import nnx

from duet_jax.config import build
from duet_jax.errors import UsageError
from duet_jax.methods.networks import split
from duet_jax.models import torch_weights
from duet_jax.models.encoders import make_encoder
from duet_jax.runs import weights_file
from duet_jax.runs.trained_run import load_file
from duet_jax.types import DatasetFacts

FACTS = DatasetFacts("digits", 16, 1, tuple("0123456789"), 1442, 355)
CONFIG = tiny.config(method="essl", learned="ron")


@pytest.fixture(scope="module")
def whole():
    """Parameters and running statistics of all networks of ESSL."""
    method = build.make_method(CONFIG, FACTS)
    return split(method.init(nnx.Rngs(1)))[1:]


@pytest.fixture
def state(whole):
    """Its state dict in the reference."""
    params, stats = whole
    return {
        torch_weights.PREFIXES[network] + name: array
        for network in params
        for name, array in torch_weights.export_network(
            network, params[network], stats.get(network, {})
        ).items()
    }


@pytest.fixture
def ours(whole):
    """The arrays of a file of ours, and its metadata."""
    params, stats = (each["encoder"] for each in whole)
    arrays = weights_file.named("encoder", params, stats)
    return arrays, weights_file.describe(CONFIG, FACTS, 5, "abc")


def shapes(whole):
    return jax.eval_shape(lambda: whole)


def equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def bare(state):
    prefix = torch_weights.PREFIXES["encoder"]
    return {k.removeprefix(prefix): a for k, a in state.items() if prefix in k}


FORMS = {
    "plain": lambda state: state,
    "module": lambda state: {f"module.{k}": a for k, a in state.items()},
    "nested": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "twice": lambda state: {
        "state_dict": {"model": {f"net.{k}": a for k, a in state.items()}}
    },
    "ordered": lambda state: collections.OrderedDict(state, other=np.zeros(3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_networks_of_a_state_dict(form, state, whole, tmp_path):
    torch_files.save(tmp_path / "a.ckpt", FORMS[form](state))
    found = weights_file.read(tmp_path / "a.ckpt")
    assert weights_file.about(tmp_path / "a.ckpt") is None
    equal(found.networks(*shapes(whole)), whole)


def test_a_state_dict_as_safetensors(state, whole, tmp_path):
    path = tmp_path / "a.safetensors"
    contiguous = {k: np.ascontiguousarray(a) for k, a in state.items()}
    safetensors.numpy.save_file(contiguous, path)
    equal(weights_file.read(path).networks(*shapes(whole)), whole)
    with pytest.raises(UsageError, match=r"a\.safetensors does not say what its enc"):
        load_file(path)


def test_only_what_fits(state, whole, tmp_path):
    """Heads may be missing or others; the encoder may not."""
    state["head.0.weight"] = np.zeros((5, 64), np.float32)
    del state["heads.linear_classifier.bias"]
    torch_files.save(tmp_path / "a.pt", state)
    params, stats = weights_file.read(tmp_path / "a.pt").networks(*shapes(whole))
    assert {*params} == {"encoder", "predictor"}
    assert {*stats} == {*params} & {*whole[1]}
    torch_files.save(tmp_path / "b.pt", bare(state))
    params, stats = weights_file.read(tmp_path / "b.pt").networks(*shapes(whole))
    assert {*params} == {"encoder"}
    equal(params["encoder"], whole[0]["encoder"])


def test_predictors_of_ours_have_no_counterpart(state, tmp_path):
    """Several, or those of other methods, are drawn."""
    color = FACTS._replace(channels=3)
    state["base_network.conv1.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    torch_files.save(tmp_path / "a.pt", state)
    codes = {"augmentation__stack": ("sca", "ron", "hue")}
    for changes in (
        {"method": "essl", "learned": "ron,hue"},
        {"method": "equimod", "learned": "ron"},
    ):
        changes |= codes
        method = build.make_method(tiny.config(**changes), color)
        like = jax.eval_shape(lambda m=method: split(m.init(nnx.Rngs(0)))[1:])
        params, _ = weights_file.read(tmp_path / "a.pt").networks(*like)
        assert "encoder" in params
        assert "predictor" not in params


def test_a_file_of_ours(ours, whole, tmp_path):
    path = tmp_path / "a.safetensors"
    weights_file.write(path, *ours)
    params, stats = weights_file.read(path).networks(*shapes(whole))
    equal((params, stats), tuple({"encoder": each["encoder"]} for each in whole))
    about = weights_file.about(path)
    assert (about.facts, about.step) == (FACTS, 5)
    assert about.config.method == "essl"
    assert about.config.encoder.widths == CONFIG.encoder.widths
    run = load_file(path)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    encoder = nnx.merge(
        split(run.method.init(nnx.Rngs(0)).encoder)[0],
        *(each["encoder"] for each in whole),
    )
    expected = encoder(images / np.float32(255) - 0.5, train=False)
    np.testing.assert_allclose(run(images)["full"], expected, rtol=1e-4, atol=1e-4)


def changed(name, array):
    return lambda arrays, about: arrays.update({name: np.zeros(array, np.float32)})


def dropped(name):
    return lambda arrays, about: arrays.pop(name)


def told(name, value):
    return lambda arrays, about: about.update({name: value})


def config_with(**values):
    record = {**json.loads(CONFIG.to_json()), **values}
    return told("config", json.dumps(record))


STEM = "encoder.stem.kernel"
OURS = {
    "shape": (changed(STEM, (3, 3, 3, 8)), r"stem\.kernel is \(3, 3, 3, 8\) there and"),
    "missing": (
        dropped(STEM),
        r"stem\.kernel is missing there and \(3, 3, 1, 8\) here",
    ),
    "more": (
        changed("encoder.stage9.kernel", (1,)),
        r"stage9\.kernel is \(1,\) there and missing here",
    ),
    "no JSON": (told("config", "{"), r"is damaged \(its metadata: JSONDecodeError"),
    "no section": (told("config", "{}"), "it has no method, dataset"),
    "no object": (told("config", "[]"), "is damaged"),
    "unknown": (config_with(colour=1), "colour is not a field"),
    "value": (config_with(batch_size="a"), "config.batch_size='a' must be a whole"),
    "method": (config_with(method="own"), r"config\.method='own' is not known"),
    "images": (told("dataset", '{"name": "a"}'), r"its metadata: .* entries are name"),
    "step": (told("step", "last"), r"is damaged \(its metadata: ValueError"),
    "no step": (lambda arrays, about: about.pop("step"), "KeyError: 'step'"),
}


@pytest.mark.parametrize("fault", OURS)
def test_refusals_of_ours(fault, ours, tmp_path):
    damage, message = OURS[fault]
    damage(*ours)
    path = tmp_path / "a.safetensors"
    weights_file.write(path, *ours)
    with pytest.raises(UsageError, match=message) as refused:
        load_file(path)
    assert "\n" not in str(refused.value)


REFERENCE = {
    "encoder": (
        "base_network.bn1.weight",
        (4,),
        r"a\.pt: weight .* has shap",
    ),
    "deeper": (
        "base_network.layer1.7.bn1.weight",
        (8,),
        "has no counterpart in the e",
    ),
}


@pytest.mark.parametrize("fault", REFERENCE)
def test_refusals_of_the_reference(fault, state, whole, tmp_path):
    name, shape, message = REFERENCE[fault]
    state[name] = np.zeros(shape, np.float32)
    torch_files.save(tmp_path / "a.pt", state)
    with pytest.raises(UsageError, match=message) as refused:
        weights_file.read(tmp_path / "a.pt").networks(*shapes(whole))
    assert "\n" not in str(refused.value)


def test_what_holds_no_encoder(tmp_path):
    torch_files.save(tmp_path / "a.pt", {"fc.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(UsageError, match=r"a\.pt holds no encoder: .* but fc\.weight"):
        weights_file.read(tmp_path / "a.pt")
    torch_files.save(tmp_path / "b.pt", {"epoch": 3})
    with pytest.raises(UsageError, match=r"b\.pt holds no encoder: .* but no arrays"):
        weights_file.read(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100])
def test_what_is_no_safetensors(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (weights_file.about, weights_file.read, load_file):
        with pytest.raises(UsageError, match=r"a\.safetensors cannot be read as saf"):
            read(path)


def test_a_torn_file(ours, tmp_path):
    path = tmp_path / "a.safetensors"
    weights_file.write(path, *ours)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load_file(path)


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"b\.pt is not a file; name a file"):
        weights_file.read(tmp_path / "b.pt")
    path = tmp_path / "a.safetensors"
    path.touch()
    monkeypatch.setattr(weights_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"a\.safetensors needs .*install safet"):
        weights_file.about(path)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny"])
def test_a_state_dict_of_torchvision_or_timm(name, tmp_path):
    """Without a prefix of the encoder, with one of a wrapper, and with a classifier."""
    shapes = nnx.eval_shape(
        lambda: make_encoder(
            name, in_channels=3, width_multiplier=0.01, rngs=nnx.Rngs(0)
        )
    )
    _, params, stats = split(shapes)
    rng = np.random.default_rng(0)
    expected = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), (params, stats)
    )
    state = torch_weights.export_network("encoder", *expected)
    classifier = "head" if name == "vit_tiny" else "fc"
    state |= {f"{classifier}.weight": np.ones((5, 3)), f"{classifier}.bias": np.ones(5)}
    path = tmp_path / "theirs.pth"
    torch_files.save(path, {"model": {f"module.{k}": a for k, a in state.items()}})
    statistics = {"encoder": stats} if stats else {}
    found = weights_file.read(path).networks({"encoder": params}, statistics)
    for part, wanted in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, part.get("encoder", {}), wanted)
