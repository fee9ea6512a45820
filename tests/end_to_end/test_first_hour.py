"""A flat folder of images without labels, from the first command to the page."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from duet_jax import cli
from duet_jax.evaluation import control
from duet_jax.evaluation.options import MEASURES
from duet_jax.loggers import read_rows
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.trained_run import load_run

SMOKE = "--config=smoke"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits as files in one folder, whose names say nothing."""
    root = tmp_path_factory.mktemp("photos")
    images = datasets.load_digits().images
    for number, pixels in enumerate(np.uint8(images[:300] * 255 / 16)):
        Image.fromarray(pixels).resize((16, 16)).save(root / f"img_{number:03}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run on them, and what the command line says."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    assert cli.main(["main.py", SMOKE, *own(photos), f"--workdir={run}"]) == 0
    return run


def own(photos):
    return ["--config.dataset.name=images", f"--config.dataset.path={photos}"]


def call(*arguments):
    return cli.main(["main.py", *arguments])


def test_training_without_labels(trained):
    rows = [
        row for row in read_rows(trained / "metrics.jsonl") if row["split"] == "test"
    ]
    assert rows[-1]["examples"] == 28
    assert not [name for name in rows[-1] if "online" in name]
    total = rows[-1]["nt_xent"] + 1000 * rows[-1]["structure_loss"]
    np.testing.assert_allclose(rows[-1]["loss"], total, rtol=1e-5)
    facts = json.loads((trained / "dataset.json").read_text())
    assert (facts["num_train"], facts["num_test"]) == (272, 28)
    assert facts["class_names"] == []
    best = min(rows, key=lambda row: row["augmented_nt_xent"])
    with Checkpoints(trained / "checkpoints", create=False) as saved:
        assert saved.best() == (
            best["step"],
            "augmented_nt_xent",
            best["augmented_nt_xent"],
        )
    assert load_run(trained, "best").step == best["step"]


def test_what_needs_no_labels_works(trained, capsys, monkeypatch):
    monkeypatch.setattr(control, "STEPS", 3)
    modes = "equivariance,generation,features,report"
    assert call(f"--workdir={trained}", f"--mode={modes}") == 0
    features = np.load(trained / "eval" / "features.npz")
    assert {*features} == {
        f"{split}_{name}"
        for split in ("train", "test")
        for name in ("full", "content", "structure", "paths")
    }
    assert features["train_full"].shape == (272, 32)
    assert "untrained encoder" in capsys.readouterr().out
    found = json.loads((trained / "eval" / "equivariance.json").read_text())
    assert {*found["results"]} == {"rot", "local", "matrix"}
    of_code = found["results"]["rot"]
    assert {"mlp", "relative", "retrieval", "geometry"} < {*of_code}
    assert "bins shifted" in of_code["retrieval"]["predictors"]
    assert "bins shifted" in found["results"]["local"]["rotation"]["full"]
    assert {*MEASURES} < {*found["seconds"]}
    page = (trained / "report.html").read_text()
    assert "equivariance to rot" in page
    assert "what each representation knows of every augmentation" in page
    assert "local equivariance error" in page
    assert 'alt="equivariance matrix"' in page
    assert "control of rot" in page
    assert "Linear probe" not in page


@pytest.mark.parametrize("mode", ["linear_probe", "knn"])
def test_what_needs_labels_is_refused(trained, photos, mode, tmp_path, capsys):
    assert call(f"--workdir={trained}", f"--mode={mode}") == 2
    expected = (
        f"error: --mode={mode} needs labels, and config.dataset.name='images' gives "
        "images without; choose from monitors, equivariance, generation, transfer, "
        "features, export, report.\n"
    )
    assert capsys.readouterr().err.endswith(expected)
    # Before the training, which would be lost time.
    place = f"--workdir={tmp_path / 'run'}"
    assert call(SMOKE, *own(photos), place, f"--mode=train,{mode}") == 2
    assert capsys.readouterr().err.endswith(expected)
    assert not (tmp_path / "run").exists()


def test_neighbors_while_training_are_refused(photos, tmp_path, capsys):
    place = f"--workdir={tmp_path / 'run'}"
    assert call(SMOKE, *own(photos), place, "--config.knn.every=1") == 2
    assert "config.knn.every=1 needs labels, and" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_transfer_needs_labels_of_the_other_set(trained, photos, capsys):
    command = f"--workdir={trained}", "--mode=transfer"
    assert call(*command, f"--datasets=images:{photos}") == 2
    assert "has no labels, which the linear probe needs" in capsys.readouterr().err
    assert call(*command, "--datasets=digits") == 0
    found = json.loads((trained / "eval" / "transfer.json").read_text())
    assert {*found["results"]["digits"]["yardsticks"]} == {
        "untrained encoder",
        "raw pixels",
        "chance",
    }


def test_the_same_command_continues(trained, photos, capsys):
    assert call(SMOKE, *own(photos), f"--workdir={trained}") == 0
    assert "finished at step 4 already" in capsys.readouterr().err


def test_a_run_says_what_it_does_and_what_is_next(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["main.py"])
    run = tmp_path / "a run"
    assert call(SMOKE, *own(photos), f"--workdir={run}") == 0
    lines = capsys.readouterr().err.splitlines()
    start = lines.index("compiling ...")
    assert start < 10
    heads = [line.split()[0] for line in lines[:start]]
    assert heads == ["data", "method", "networks", "schedule", "devices", "workdir"]
    tests = [line for line in lines if line.startswith("test ")]
    assert len(tests) == 2
    pattern = r"test         epoch 2  augmented_nt_xent [\d.]+  structure_loss [\d.]+"
    assert re.fullmatch(pattern, tests[1])
    assert re.fullmatch(
        r"finished     augmented_nt_xent [\d.]+ on test images after epoch 2.*",
        lines[-3],
    )
    assert lines[-1].endswith(
        f"main.py '--workdir={run}' --mode=equivariance,features,report"
    )


def test_labels_are_asked_for_again(photos, tmp_path, capsys):
    """A run without labels is not continued on images with labels, nor the reverse."""
    place = f"--workdir={tmp_path / 'run'}"
    assert call(SMOKE, *own(photos), place, "--config.epochs=1") == 0
    capsys.readouterr()
    table = photos.parent / "labels.csv"
    rows = [f"{photos / f'img_{n:03}.png'},{n % 2}" for n in range(300)]
    table.write_text("path,label\n" + "\n".join(rows))
    labeled = ["--config.dataset.name=csv", f"--config.dataset.path={table}"]
    assert call(SMOKE, *labeled, place, "--config.epochs=1") == 2
    assert "dataset.name: images -> csv" in capsys.readouterr().err
