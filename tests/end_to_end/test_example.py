"""The trained encoder in examples/, and what its card and docs/export.md show."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest
import untrained
import yaml

from duet_jax.data import load_dataset
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.base import Evaluation
from duet_jax.runs.trained_run import load_file

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits_duet_rot.safetensors"


@pytest.fixture(scope="module")
def example():
    return load_file(EXAMPLE)


def blocks(path: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def test_it_reads_the_angle(example):
    """With 28.5 degrees of error where it was measured; a guess errs by 90."""
    images = load_dataset("digits", image_size=16).test.images
    own = example.method.two_views.stack
    stack = dataclasses.replace(own, codes=("rot",))
    draws = stack.draw(jax.random.key(0), len(images))
    turns = np.asarray(stack.structure(draws)["rot"])
    structure = example.encoder(images, stack, draws)["structure"]
    bins = structure.shape[1]
    mean = structure @ np.exp(2j * np.pi * (np.arange(bins) + 0.5) / bins)

    def error(turns):
        return np.degrees(np.abs(np.angle(mean * np.exp(-2j * np.pi * turns)))).mean()

    assert error(turns) < 35
    assert error(np.roll(turns, 1)) > 80  # of other images


def test_its_card(example, monkeypatch):
    card = EXAMPLE.with_suffix(".md")
    _, front, body = card.read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "duet_jax"
    size = EXAMPLE.stat().st_size
    assert size < 2e6
    assert f"| `{EXAMPLE.name}` | {size:,} |" in body
    monkeypatch.chdir(EXAMPLE.parent)
    names = {}
    for block in blocks(card):
        exec(compile(block, card.name, "exec"), names)
    assert names["features"].shape == (4, 128)


def test_what_the_page_shows(example, tmp_path, monkeypatch):
    """Its blocks in order, beside files that were exported."""
    directory = tmp_path / "runs" / "digits"
    images = load_dataset("digits", image_size=16).test.images
    run = dataclasses.replace(untrained.run(directory), directory=directory)
    Evaluation(run, EVALUATORS).evaluate("export", {"format": "onnx,stablehlo"})
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    monkeypatch.chdir(tmp_path)
    names = {"images": images[:7]}
    for block in blocks(ROOT / "docs" / "export.md"):
        exec(compile(block, "docs/export.md", "exec"), names)
    expected = run(images[:7])
    for name in ("from_onnx", "from_stablehlo"):
        np.testing.assert_allclose(names[name], expected["full"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(names["features"], example(images[:7])["full"])
    assert names["structure"].shape == (7, 8)
