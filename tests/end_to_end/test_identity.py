"""Which images a run, a result and a sweep are of, and what is told of others."""

import argparse
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import program
import pytest
import tiny
from PIL import Image

from duet_jax import cli, data
from duet_jax.data import (
    cache,
    count_copies,
    identify,
    image_files,
    load_dataset,
)
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.base import Evaluation
from duet_jax.runs import trained_run
from duet_jax.sweeps import cli as sweep_cli
from duet_jax.sweeps import trial
from duet_jax.types import same_images

ROOT = pathlib.Path(__file__).parents[2]
FIGURE4 = str(ROOT / "configs" / "figure4.py")
FIELDS = (
    "--config.batch_size=8",
    "--config.encoder.widths=8,8,8,16",
    "--config.figures_every=9",
    "--noconfig.tensorboard",
)


@pytest.fixture(autouse=True)
def _anew(monkeypatch):
    """A sweep is a process that lasts for a sweep."""
    monkeypatch.setattr(trial, "_identities", {})


@pytest.fixture
def images(tmp_path):
    return tiny.folder(tmp_path / "images")


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def paint(path, value=200):
    """Another image of the same size in bytes, in the place of one."""
    size = path.stat().st_size
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)
    assert path.stat().st_size == size


# --- of a data set --------------------------------------------------------------------


def test_a_copy_elsewhere_is_the_same(images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    found = identify("folder", path=str(images))
    assert found == identify("folder", path=str(tmp_path / "copy"))
    assert found == load_dataset("folder", path=str(images)).facts.identity
    found = data.stream_dataset("folder", path=str(images)).facts
    assert found.identity == identify("folder", path=str(images))


def test_other_pixels_in_files_of_the_same_size_are_others(images):
    before = identify("folder", path=str(images))
    paint(images / "test" / "red" / "000.bmp")
    after = identify("folder", path=str(images))
    assert not same_images(before, after)
    # Names and sizes are the same, and so are the training images.
    assert before[:2] == after[:2]
    assert before[2] != after[2]


def test_an_image_of_another_class_is_another(images):
    before = identify("folder", path=str(images))
    os.rename(images / "test/red/000.bmp", images / "test/blue/000.bmp")
    assert not same_images(before, identify("folder", path=str(images)))


def test_what_is_not_known_of_both_is_not_compared():
    assert same_images(("a",), ("a", "b", "c"))
    assert same_images(("a", "b", "c"), ("a",))
    assert not same_images(("a",), ("b", "b", "c"))
    assert not same_images(("a", "b", "c"), ("a", "b", "d"))


def test_digests_are_read_once(images, monkeypatch, tmp_path):
    options = {"path": str(images), "cache_dir": str(tmp_path / "cache")}
    first = identify("folder", **options)
    monkeypatch.setattr(image_files, "digest_of", None)
    assert identify("folder", **options) == first
    (entry,) = (tmp_path / "cache").glob("digests-*.json")
    entry.write_text('{"not": "a list"}')  # is read again, not believed
    with pytest.raises(TypeError):
        identify("folder", **options)
    monkeypatch.undo()
    assert identify("folder", **options) == first


def test_a_large_set_is_told_by_names_and_sizes(images, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_READ", 10_000)
    assert len(identify("folder", path=str(images))) == 1
    assert load_dataset("folder", path=str(images)).facts.digests == ()


def test_digits_are_always_the_same(monkeypatch):
    monkeypatch.setattr(cache, "files", None)
    assert identify("digits") == ("",)


def test_a_pipe_is_not_waited_for(images):
    os.mkfifo(images / "train" / "red" / "pipe.bmp")
    identify("folder", path=str(images))


def test_copies_are_counted():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    assert count_copies(train, test) == 0
    test[[3, 4, 17]] = train[[59, 59, 0]]
    assert count_copies(train, test) == 3
    # Equal where images are compared first, and in one pixel only different.
    test[4, 1, 1, 1] += 1
    assert count_copies(train, test) == 2


def test_copies_are_told(images, caplog):
    for name in ("000.bmp", "003.bmp"):
        shutil.copy(images / "train" / "red" / name, images / "test" / "red" / name)
    with caplog.at_level(logging.INFO, "duet_jax"):
        load_dataset("folder", path=str(images), image_size=16)
    (told,) = warnings(caplog)
    assert "2 of 12 test images have the same pixels as a training image" in told


# --- of a result ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run on such images, with its nearest neighbours."""
    place = tmp_path_factory.mktemp("original")
    done = program.run(
        program.SMOKE,
        *FIELDS,
        "--workdir=run",
        "--config.dataset.name=folder",
        f"--config.dataset.path={tiny.folder(place / 'images')}",
        "--mode=train,knn",
        cwd=place,
    )
    assert done.status == 0, done.lines
    return place / "run"


@pytest.fixture
def trained(original, images, tmp_path):
    """A copy of the run, whose images are those of the test."""
    directory = shutil.copytree(original, tmp_path / "run")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["path"] = str(images)
    path.write_text(json.dumps(config))
    return directory


def evaluation(directory):
    run = trained_run.load_run(directory)
    return Evaluation(run, EVALUATORS)


def neighbours(directory):
    return json.loads((directory / "eval" / "knn.json").read_text())


def test_a_result_counts_for_the_same_images_only(trained, images, tmp_path, capsys):
    first = neighbours(trained)
    assert evaluation(trained).load_valid("knn") == first
    # As many of each class, in files of the same names and sizes.
    shutil.copytree(images / "test", tmp_path / "before")
    for index, path in enumerate(sorted((images / "test").rglob("*.bmp"))):
        paint(path, 20 * index)
    assert evaluation(trained).load_valid("knn") is None
    capsys.readouterr()
    command = ["main.py", f"--workdir={trained}", "--mode=knn,features"]
    assert cli.main(command) == 0
    told = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert len(told) == 1
    assert "the test images of folder have changed since the training" in told[0]
    second = neighbours(trained)
    assert second["images"] != first["images"]
    assert second["results"] != first["results"]
    assert evaluation(trained).load_valid("knn") == second
    # What was there before is what was measured before.
    shutil.rmtree(images / "test")
    (tmp_path / "before").rename(images / "test")
    assert evaluation(trained).load_valid("knn") is None
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "warning" not in capsys.readouterr().err
    assert neighbours(trained)["results"] == first["results"]


def test_a_copy_of_the_images_needs_no_measuring(trained, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    moved = evaluation(trained)
    moved.run.config.dataset.path = str(tmp_path / "copy")
    assert moved.load_valid("knn") == neighbours(trained)


def test_training_images_that_have_changed(trained, images, caplog):
    paint(images / "train" / "red" / "000.bmp")
    with caplog.at_level(logging.INFO, "duet_jax"):
        assert evaluation(trained).load_valid("knn") is None
    (told,) = warnings(caplog)
    assert "the training images of folder have changed since the training" in told


def test_a_transfer_is_of_its_own_images(trained, images, tmp_path):
    """The path has a comma, and the images may change or be gone."""
    other = tiny.folder(tmp_path / "a, b", seed=1)
    command = ["main.py", f"--workdir={trained}", "--mode=transfer"]
    escaped = str(other).replace(",", r"\,")
    assert cli.main([*command, f"--datasets=folder:{escaped}"]) == 0
    found = json.loads((trained / "eval" / "transfer.json").read_text())
    assert [*found["results"]] == [f"folder:{other}"]
    assert evaluation(trained).load_valid("transfer") == found
    paint(images / "test" / "red" / "000.bmp")  # not of this result
    assert evaluation(trained).load_valid("transfer") == found
    paint(other / "test" / "red" / "000.bmp")
    assert evaluation(trained).load_valid("transfer") is None
    shutil.rmtree(other)
    assert evaluation(trained).load_valid("transfer") is None


def test_a_run_may_be_evaluated_from_elsewhere(monkeypatch, tmp_path):
    """Paths that were relative are stored as they were meant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    fields = ["dataset.path=images", "dataset.cache_dir=~/cache"]
    for cache_of_programs in ("", "off", "xla"):
        last = f"compilation_cache={cache_of_programs}"
        arguments = (f"--config.{each}" for each in (*fields, last))
        config = cli.parse(["main.py", program.SMOKE, *arguments]).config
        assert config.dataset.path == str(tmp_path / "images")
        assert config.dataset.cache_dir == "/home/me/cache"
        expected = {"xla": str(tmp_path / "xla")}
        found = config.compilation_cache
        assert found == expected.get(cache_of_programs, cache_of_programs)


# --- of a sweep -----------------------------------------------------------------------


def plan(images, workdir):
    options = {
        "experiment": FIGURE4,
        "rows": "simclr",
        "seeds": "1",
        "scale": "tiny",
        "workdir": str(workdir),
        "out": None,
    }
    fields = ["--config.dataset.name=folder", f"--config.dataset.path={images}"]
    override = [*fields, "--config.batch_size=8", "--config.figures_every=99"]
    override += ["--config.dataset.train_fraction=1.0"]
    (trial,) = sweep_cli.plan(argparse.Namespace(**options), override)
    return trial


def test_what_is_done_is_done_for_the_same_images(images, tmp_path):
    trial = plan(images, tmp_path / "runs")
    trial.check_images()
    assert cli.main(["main.py", *trial.arguments]) == 0
    assert trial.finished
    found = trial.found()
    # The same elsewhere; others; none at all.
    shutil.copytree(images, tmp_path / "copy")
    copied = plan(tmp_path / "copy", tmp_path / "runs")
    copied.check_images()
    assert copied.finished
    others = plan(tiny.folder(tmp_path / "others", seed=1), tmp_path / "runs")
    assert not others.finished
    with pytest.raises(UsageError, match="holds a run on other images"):
        others.check_images()
    none = plan(tmp_path / "none", tmp_path / "runs")
    assert not none.finished
    with pytest.raises(UsageError, match="none' does not exist"):
        none.check_images()
    # Measured on others, it is to be measured again.
    command = ["main.py", f"--workdir={trial.directory}", "--mode=knn"]
    assert cli.main([*command, f"--config.dataset.path={tmp_path / 'others'}"]) == 0
    assert not trial.finished
    assert cli.main(["main.py", *trial.arguments]) == 0
    assert trial.finished
    assert trial.found() == found


def test_a_sweep_on_other_images_is_refused(images, tmp_path):
    """Before anything is run, and with the tables as they were."""
    trial = plan(images, tmp_path / "runs")
    assert cli.main(["main.py", *trial.arguments]) == 0
    sweeping = [
        f"--experiment={FIGURE4}",
        "--rows=simclr",
        "--scale=tiny",
        f"--workdir={tmp_path / 'runs'}",
        *(x for x in trial.arguments if x.startswith("--config.") and "path" not in x),
    ]
    sweeping = [x for x in sweeping if not x.startswith("--config.seed")]
    others = tiny.folder(tmp_path / "others", seed=1)
    for path, words in ((others, "on other images"), ("/none", "does not exist")):
        line = program.refusal(
            *sweeping,
            f"--config.dataset.path={path}",
            cwd=tmp_path,
            script=str(ROOT / "sweep.py"),
        )
        assert line.startswith("simclr: ")
        assert words in line
