"""--mode=monitors: the numbers of a training's rows, and its yardsticks."""

import json
import pathlib

import pytest

from duet_jax import cli
from duet_jax.loggers import read_rows
from duet_jax.metrics.monitors import MONITORS

SMOKE = pathlib.Path(__file__).parents[2] / "configs" / "smoke.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smoke run, on fewer test images than there are, and in whole batches."""
    directory = tmp_path_factory.mktemp("runs") / "duet"
    command = [f"--config={SMOKE}", f"--workdir={directory}"]
    options = ["--config.tensorboard=False", "--config.monitor.images=100"]
    assert cli.main(["main.py", *command, *options]) == 0
    return directory


def measured(directory, *options):
    command = ["main.py", f"--workdir={directory}", "--mode=monitors", *options]
    assert cli.main(command) == 0
    return json.loads((directory / "eval" / "monitors.json").read_text())["results"]


def test_they_are_those_of_the_row(trained, capsys):
    found = measured(trained)
    printed = capsys.readouterr().out
    assert (found["images"], found["views"]) == (100, 4)
    row = read_rows(trained / "metrics.jsonl")[-1]
    full = found["representations"]["full"]
    assert set(full) == {"dimensions", *MONITORS}
    for name in MONITORS:
        # Float32, in which other batches are summed up in another order.
        assert full[name] == pytest.approx(row[name], rel=1e-3), name
        assert MONITORS[name].title in printed
    dimensions = {k: x["dimensions"] for k, x in found["representations"].items()}
    assert dimensions == {"full": 32, "content": 4, "structure": 8}
    assert {k: x["dimensions"] for k, x in found["yardsticks"].items()} == {
        "untrained encoder": 32,
        "raw pixels": 256,
    }
    for name in found["yardsticks"]:
        assert name in printed


def test_other_images(trained):
    assert measured(trained, "--config.monitor.images=30")["images"] == 30


@pytest.mark.parametrize("images", [0, 1])
def test_no_pair_of_images(trained, images, capsys):
    before = (trained / "eval").exists()
    options = [f"--workdir={trained}", f"--config.monitor.images={images}"]
    assert cli.main(["main.py", "--mode=monitors", *options]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"config.monitor.images={images} leaves no two of the 355" in message
    assert "set it to 2 or more" in message
    assert (trained / "eval").exists() == before
