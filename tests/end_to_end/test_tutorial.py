"""The tutorial from its first command to its last, at a tiny size."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from program import TINY
from readme import block, blocks
from sklearn import datasets

from duet_jax import cli
from duet_jax.evaluation import control

PAGE = "docs/tutorial.md"
COMMANDS = [
    shlex.split(line)
    for text in blocks(PAGE, "")
    for line in text.replace("\\\n", " ").splitlines()
]
# The tutorial's encoder in small.
SMALL = (
    "--config.encoder.widths=8,8,16,32",
    "--config.projector.hidden=32",
    "--config.projector.output=16",
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with photos: digits as files, of which one is called first.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    images = datasets.load_digits().images
    for number, pixels in enumerate(np.uint8(images[:60] * 255 / 16)):
        name = f"img_{number:03}" if number else "first"
        image = Image.fromarray(pixels).resize((16, 16))
        image.save(tmp_path / f"photos/{name}.png")
    monkeypatch.setattr(control, "STEPS", 3)
    return tmp_path


def tiny(words):
    """The command, and what makes a training tiny."""
    program, *arguments = words[1:]
    assert (words[0], program) == ("python", "main.py")
    if any(each.startswith("--config=") for each in arguments):
        arguments += [*TINY[1:], *SMALL]
    elif "generation" in shlex.join(arguments):
        arguments += ["--config.generation.epochs=1"]
    return [program, *arguments]


def test_the_tutorial(place):
    for words in COMMANDS:
        assert cli.main(tiny(words)) == 0
        if "--mode=generation,report" in words:
            names = {}
            exec(compile(block("## 3.", PAGE), PAGE, "exec"), names)
            assert names["degrees"].shape == (4,)
            assert np.abs(names["degrees"]).max() <= 180
            assert names["features"]["structure"].shape == (4, 8)
    run = place / "runs/photos"
    for name in ("figures/views.png", "figures/curves.png"):
        assert (run / name).exists()
    assert "control of rot" in (run / "report.html").read_text()
    facts = json.loads((run / "dataset.json").read_text())
    assert facts["num_train"] + facts["num_test"] == 60
    both = json.loads((place / "runs/photos-hue/config.json").read_text())
    assert both["learned"] == "rot,hue"
    assert "simclr" in (place / "compare.html").read_text()
