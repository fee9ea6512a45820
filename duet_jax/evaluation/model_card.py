"""The model card of exported files: Markdown, with what the Hugging Face hub reads."""

from collections.abc import Mapping
from typing import Any

import yaml

import duet_jax
from duet_jax.config.checks import fields
from duet_jax.data import FROM_PATHS
from duet_jax.evaluation import headlines, store
from duet_jax.evaluation.page import Headline
from duet_jax.runs.frozen_encoder import Representations
from duet_jax.runs.trained_run import Run

# Stored results whose numbers are told.
_RESULTS = ("linear_probe", "knn", "equivariance", "generation")
_ACCURACIES = {"linear_probe": "linear probe", "knn": "nearest neighbors"}
_FILES = {
    "encoder.safetensors": "The weights, by the names of this program.",
    "encoder_torch.safetensors": "The same weights by the names and in the layouts of "
    "the reference, for PyTorch: `found = model.load_state_dict("
    "safetensors.torch.load_file(...), strict=False)`, after which "
    "`found.unexpected_keys` has to be empty; what the model has besides "
    "`base_network.` is not in it.",
    "decoder.safetensors": "Weights of decoders, `decoders.<representation>.<array>`; "
    "`duet_jax.models.decoder.Decoder` is what they are of.",
    "encoder.onnx": "The computation with its weights, for ONNX Runtime and others: "
    "the full features alone.",
    "encoder.stablehlo": "The computation with its weights, for JAX on a CPU or a CUDA "
    "GPU; it needs none of this program.",
    "decoder.stablehlo": "The decoder of the full features, likewise.",
}
_LOAD = {
    "encoder.safetensors": """
import duet_jax

run = duet_jax.load_file("encoder.safetensors")
features = run(images)["full"]
""",
    "encoder.onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")
(features,) = session.run(None, {"images": images / np.float32(255)})
""",
    "encoder.stablehlo": """
import pathlib

import jax.export

program = bytearray(pathlib.Path("encoder.stablehlo").read_bytes())
encode = jax.export.deserialize(program).call
features = encode(images / np.float32(255))["full"]
""",
    "decoder.stablehlo": """
import pathlib

import jax.export

program = bytearray(pathlib.Path("decoder.stablehlo").read_bytes())
decoded = jax.export.deserialize(program).call(features)["images"]  # from 0 to 1
""",
}
_IMAGES = """
import numpy as np

images = np.zeros((4, {shape}), np.uint8)  # any number of yours
"""
# Settings that are told; the metadata of encoder.safetensors have all of them.
_SETTINGS = (
    "encoder.name",
    "encoder.width_multiplier",
    "encoder.blocks",
    "encoder.widths",
    "encoder.stem",
    "encoder.patch_size",
    "augmentation.stack",
    "learned",
    "epochs",
    "batch_size",
    "optimizer.learning_rate",
    "seed",
)
_CARD = """---
{front}---

# {title}

An encoder of images, trained without labels by {method}, with duet_jax {version}: the
weights of update {step:,}.

## Images

{images}

## Files

| file | bytes | difference | what it is |
|---|---|---|---|
{files}

A difference is the largest from what the training's own program computes for random
images.

## Load

Images are given as they are: their central crop, where there is one, and their
normalization are part of the files.

{load}

The representations are {representations}.

## Settings

| field | value |
|---|---|
{settings}

## Results

{results}
"""


def text(
    run: Run,
    written: Mapping[str, Mapping[str, float]],
    representations: Representations,
) -> str:
    """Returns the card.

    Args:
      run: that was exported.
      written: of each file by its name, `bytes` and `difference` from the run.
      representations: of some images.
    """
    results = _results(run)
    blocks = [_IMAGES.format(shape=", ".join(map(str, run.encoder.input_shape)))]
    blocks += [code for file, code in _LOAD.items() if file in written]
    values = dict(fields(run.config))
    return _CARD.format(
        front=yaml.safe_dump(_front(run, results), sort_keys=False, allow_unicode=True),
        title=_title(run),
        method=type(run.method).__name__,
        version=duet_jax.__version__,
        step=run.step,
        images=_images(run),
        files="\n".join(_file(name, each) for name, each in written.items()),
        load="\n\n".join(f"```python\n{code.strip()}\n```" for code in blocks),
        representations=", ".join(
            f"`{name}` [n, {rows.shape[1]}]" for name, rows in representations.items()
        ),
        settings="\n".join(
            f"| `{name}` | {_cell(values[name])} |"
            for name in _SETTINGS
            if name in values
        ),
        results=_table(results),
    )


def _front(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the hub reads."""
    front: dict[str, Any] = {
        "library_name": "duet_jax",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "equivariance", "jax", run.config.method],
    }
    name = run.facts.name
    if run.config.dataset.name not in FROM_PATHS:  # known to others by that name
        front["datasets"] = [name]
    scores = [
        {
            "type": "accuracy",
            "name": f"{known}, top-1, test split",
            "value": results[mode]["results"]["representations"]["full"]["top1"],
        }
        for mode, known in _ACCURACIES.items()
        if mode in results
    ]
    if scores:
        front["metrics"] = ["accuracy"]
        task = {"type": "image-classification"}
        measured = {"task": task, "dataset": {"name": name, "type": name}}
        model = {"name": _title(run), "results": [{**measured, "metrics": scores}]}
        front["model-index"] = [model]
    return front


def _title(run: Run) -> str:
    return f"{type(run.method).__name__} encoder, {run.facts.name}"


def _images(run: Run) -> str:
    facts = run.facts
    side, _, channels = run.encoder.input_shape
    classes = f", of {facts.num_classes} classes" if facts.num_classes else ""
    color = "gray" if channels == 1 else "color"
    return (
        f"{facts.name}: {facts.num_train:,} training and {facts.num_test:,} test "
        f"images{classes}, {color}, {side} x {side} pixels."
    )


def _file(name: str, about: Mapping[str, float]) -> str:
    size, difference = f"{about['bytes']:,}", f"{about['difference']:.2g}"
    return f"| `{name}` | {size} | {difference} | {_FILES[name]} |"


def _results(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the stored results that are of these weights."""
    found = {name: store.read(run.directory / "eval", name) for name in _RESULTS}
    return {
        name: each
        for name, each in found.items()
        if each and each.get("weights") == run.fingerprint
    }


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        f"| {each.name} | {each.number} | {_beside(each)} | {each.meaning} |"
        for each in headlines.headlines(results)
    ]
    if not lines:
        return "None are stored for these weights."
    header = "| measure | value | beside | what it is |\n|---|---|---|---|"
    return "\n".join([header, *lines])


def _beside(box: Headline) -> str:
    """Returns the yardsticks of a number."""
    others = [f"{bar.name} {bar.text}" for bar in box.bars if not bar.own]
    return ", ".join(others) or "-"


def _cell(value: Any) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    return " ".join(map(str, parts)).replace("|", "\\|")
