"""Exported weights and programs: they compute what the run does, and say what it is."""

import importlib
import json
import pathlib
import re

import jax.export
import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.numpy
import untrained
import yaml
from program import snapshot

from duet_jax.errors import TrainingError, UsageError
from duet_jax.evaluation import EVALUATORS, export, options
from duet_jax.evaluation.base import Evaluation
from duet_jax.models import torch_weights
from duet_jax.runs.trained_run import Run, load_file

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
ALL = ",".join(options.FORMATS)
LIFTED = {
    "encoder__name": "lifted_cifar10_resnet20",
    "encoder__width_multiplier": 0.01,
}
# Of torchvision, with a stem that is pooled and without BN on the features.
RESNET = {
    "encoder__name": "resnet18",
    "encoder__stem": "imagenet",
    "encoder__width_multiplier": 0.01,
}
VIT = {"encoder__name": "vit_tiny", "encoder__width_multiplier": 0.01}
# Changes of the smallest configuration, the channels of the images, the formats.
RUNS = {
    "duet": ({}, 1, ALL),
    "crop": ({"method": "simclr", "dataset__center_crop": True}, 3, ALL),
    # Of 64 channels, for which there are other convolutions on a CPU.
    "wide": ({"method": "simclr", "encoder__widths": (64, 64, 64, 32)}, 1, ALL),
    "narrow type": ({"method": "sie", "learned": "rot"}, 1, "stablehlo"),
    "lifted": ({"method": "simclr", **LIFTED}, 3, "safetensors,stablehlo"),
    "torchvision": ({"method": "simclr", **RESNET}, 3, ALL),
    "transformer": ({"method": "simclr", **VIT}, 3, "safetensors,stablehlo"),
}


def a_run(directory: pathlib.Path, case: str = "duet") -> Run:
    changes, channels, _ = RUNS[case]
    return untrained.run(directory, channels, **changes)


def write(run: Run, format: str) -> dict:
    return Evaluation(run, EVALUATORS).evaluate("export", {"format": format})


def image_batch(run: Run, count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *run.encoder.input_shape), np.uint8)


@pytest.mark.parametrize("case", RUNS)
def test_files_compute_what_the_run_does(case, tmp_path):
    run, formats = a_run(tmp_path, case), RUNS[case][2]
    found = write(run, formats)["results"]
    images = image_batch(run, 3)
    floats, expected = images / np.float32(255), run(images)
    assert np.ptp(expected["full"], axis=0).max() > 0.1  # images have their features
    directory = tmp_path / "export"
    files = {path.name for path in directory.iterdir()}
    assert files == {*found["files"], "README.md"}
    # On random images features are large, and rounded accordingly.
    close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(expected["full"]).max()}
    if "safetensors" in formats:
        for name in ("encoder.safetensors", "encoder_torch.safetensors"):
            again = load_file(directory / name)
            assert (again.step, again.facts, again.fingerprint) == (
                *(7, run.facts),
                run.fingerprint,
            )
            for key, rows in again(images).items():
                np.testing.assert_array_equal(rows, expected[key])
    if "stablehlo" in formats:
        content = bytearray((directory / "encoder.stablehlo").read_bytes())
        program = jax.export.deserialize(content)
        assert program.platforms == ("cpu", "cuda")
        (taken,) = program.in_avals
        assert str(taken.shape[0]) == "n"
        called = program.call(floats)
        assert called.keys() == expected.keys()
        for key, rows in called.items():
            np.testing.assert_allclose(rows, expected[key], **close)
    if "onnx" in formats:
        session = onnxruntime.InferenceSession(str(directory / "encoder.onnx"))
        (rows,) = session.run(None, {"images": floats})
        np.testing.assert_allclose(rows, expected["full"], **close)
    for name, each in found["files"].items():
        assert each["bytes"] == (directory / name).stat().st_size
        assert 0 <= each["difference"] <= 1e-4 * max(1, each["largest_value"])


def test_names_and_metadata(tmp_path):
    run = a_run(tmp_path)
    run.config.dataset.path = "somewhere"
    write(run, "safetensors")
    directory = tmp_path / "export"
    arrays = safetensors.numpy.load_file(directory / "encoder.safetensors")
    params, stats = run.encoder.state
    kernel = params["stage2"][0]["conv1"]["kernel"]
    np.testing.assert_array_equal(arrays["encoder.stage2.0.conv1.kernel"], kernel)
    variance = stats["final_norm"]["var"]
    np.testing.assert_array_equal(arrays["encoder.final_norm.var"], variance)
    of_torch = safetensors.numpy.load_file(directory / "encoder_torch.safetensors")
    expected = torch_weights.export_network("encoder", params, stats)
    assert of_torch.keys() == {f"base_network.{name}" for name in expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(of_torch[f"base_network.{name}"], array)
    with safetensors.safe_open(directory / "encoder.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert (metadata["method"], metadata["step"]) == ("duet", "7")
    assert metadata["weights"] == run.fingerprint
    config = json.loads(metadata["config"])
    assert config["duet"]["num_bins"] == run.config.duet.num_bins
    assert not {"path", "cache_dir"} & {*config["dataset"]}
    assert "somewhere" not in str(metadata)


def test_pytorch_takes_the_file(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("kornia")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peer = importlib.import_module("torch_peer")
    run = a_run(tmp_path)
    write(run, "safetensors")
    path = tmp_path / "export" / "encoder_torch.safetensors"
    arrays = safetensors.numpy.load_file(path)
    encoder = run.config.encoder
    network = peer.Encoder(1, tuple(encoder.widths), tuple(encoder.blocks))
    tensors = {
        name.removeprefix("base_network."): torch.from_numpy(array)
        for name, array in arrays.items()
    }
    network.load_state_dict(tensors, strict=True)
    network.eval()
    images = image_batch(run, 3)
    views = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255) - 0.5)
    with torch.no_grad():
        found = network(views).numpy()
    np.testing.assert_allclose(found, run(images)["full"], rtol=1e-3, atol=1e-4)


def test_the_card(tmp_path, monkeypatch):
    """The hub can read its head, and what it shows can be run."""
    run = a_run(tmp_path)
    stored = {"full": {"top1": 0.75, "top5": 1.0}}
    write(run, ALL)
    about = json.loads((tmp_path / "eval" / "export.json").read_text())
    for weights in ("others", run.fingerprint):
        result = {**about, "mode": "knn", "weights": weights}
        result["results"] = {"representations": stored}
        (tmp_path / "eval" / "knn.json").write_text(json.dumps(result))
        write(run, ALL)
        text = (tmp_path / "export" / "README.md").read_text()
        assert ("| 75.0 % |" in text) == (weights == run.fingerprint)
    _, front, body = text.split("---\n", 2)
    read = yaml.safe_load(front)
    assert "license" not in read  # that of weights is their owner's to choose
    assert read["datasets"] == ["digits"]
    (model,) = read["model-index"]
    (measured,) = model["results"]
    assert measured["dataset"] == {"name": "digits", "type": "digits"}
    (metric,) = measured["metrics"]
    assert metric["value"] == 0.75
    for name, each in about["results"]["files"].items():
        assert f"| `{name}` | {each['bytes']:,} |" in body
    assert "`structure` [n, 8]" in body
    monkeypatch.chdir(tmp_path / "export")
    names, seen = {}, []
    for block in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
        if "features" in names:
            seen.append(np.asarray(names.pop("features")))
    assert len(seen) == 3
    expected = run(names["images"])["full"]
    for features in seen:
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_an_export_replaces_the_one_before(tmp_path):
    run = a_run(tmp_path)
    write(run, "onnx")
    (tmp_path / "export" / "mine.txt").write_text("kept")
    write(run, "stablehlo")
    files = {path.name for path in (tmp_path / "export").iterdir()}
    assert files == {"encoder.stablehlo", "README.md", "mine.txt"}


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    write(run, "onnx")
    before = snapshot(tmp_path)
    monkeypatch.setattr(export, "_TOLERANCE", {"float32": 1e-9})
    with pytest.raises(TrainingError) as refused:
        write(run, "onnx")
    assert re.match(
        r"encoder\.onnx differs from the run by .* not kept", str(refused.value)
    )
    assert {k: v for k, v in snapshot(tmp_path).items() if k in before} == before
    assert snapshot(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("case", ["lifted", "transformer"])
def test_only_a_plain_resnet_is_onnx(case, tmp_path):
    with pytest.raises(UsageError) as refused:
        write(a_run(tmp_path, case), ALL)
    line = str(refused.value)
    name = RUNS[case][0]["encoder__name"]
    assert f"--format=onnx: config.encoder.name={name!r} is no plain ResNet" in line
    assert line.endswith("choose from safetensors, stablehlo.")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onx", r"--format='onx' is not known; .* Did you mean 'onnx'\?"),
        ("", r"--format='' is not known; choose one of safetensors, onnx, stablehlo"),
        ("onnx,onnx", r"--format=onnx,onnx names onnx twice"),
    ],
)
def test_formats_that_are_not(text, message):
    with pytest.raises(UsageError, match=message):
        options.check_format(text)


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    options.check_format("stablehlo")
    with pytest.raises(UsageError, match=r"--format=onnx needs a .*pip install onnx$"):
        options.check_format("onnx")
