"""Every mode on real checkpoints, through the command line."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import html.parser
import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import program
import pytest
import tiny
from flax import nnx
from pictures import encoded
from PIL import Image
from program import snapshot

from duet_jax import cli
from duet_jax.data import load_dataset
from duet_jax.errors import UsageError
from duet_jax.evaluation import (
    EVALUATORS,
    compare,
    export_features,
    foot,
    generation,
    headlines,
    html_report,
    page,
    store,
)
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.result import Table
from duet_jax.loggers import read_rows
from duet_jax.losses import top_k
from duet_jax.losses.targets import von_mises
from duet_jax.methods import networks as of_methods
from duet_jax.runs import trained_run
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runtime import files, processes

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"
METHODS = ("duet", "simclr", "essl")
PNG = encoded(np.zeros((8, 8), np.uint8))
REPRESENTATIONS = {
    "duet": {"full": 32, "content": 4, "structure": 8},
    "simclr": {"full": 32},
    "essl": {"full": 32},
}


pytestmark = pytest.mark.usefixtures("quick_measures")


def train(directory: pathlib.Path, *arguments: str) -> None:
    assert cli.main(["main.py", SMOKE, f"--workdir={directory}", *arguments]) == 0


def call(directory: pathlib.Path, mode: str, *arguments: str) -> dict:
    """Runs a mode and returns what it has stored."""
    command = ["main.py", f"--workdir={directory}", f"--mode={mode}", *arguments]
    if mode == "equivariance":  # the rest is the matter of test_measures.py
        command.append("--measures=basic")
    assert cli.main(command) == 0
    name = f"{mode}_sgd" if "--protocol=sgd" in arguments else mode
    return json.loads((directory / "eval" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, pathlib.Path]:
    """One smoke run a method, with kNN watched in that of DUET."""
    directories = {}
    for method in METHODS:
        directories[method] = tmp_path_factory.mktemp("runs") / method
        watched = ["--config.knn.every=1"] if method == "duet" else []
        train(
            directories[method],
            f"--config.method={method}",
            "--config.tensorboard=False",
            *watched,
        )
    return directories


@pytest.fixture
def copied(trained, tmp_path):
    """The same runs, for tests that write; without results."""

    def copy(method: str) -> pathlib.Path:
        ignored = shutil.ignore_patterns("eval", "export", "report.html", "generation")
        return shutil.copytree(trained[method], tmp_path / method, ignore=ignored)

    return copy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", EVALUATORS)
def test_every_mode_of_every_method(method, mode, trained, capsys, tmp_path):
    directory = trained[method]
    before = snapshot(directory)
    options = {
        "transfer": ["--datasets=digits"],
        "features": [f"--out={tmp_path / 'found.npz'}"],
    }
    found = call(directory, mode, *options.get(mode, []))
    assert found["mode"] == mode
    assert found["step"] == 4
    assert found["method"] == method
    assert found["dataset"]["name"] == "digits"
    assert found["provenance"]["versions"]["jax"] == jax.__version__
    assert found["seconds"]["total"] > 0
    printed = capsys.readouterr().out
    for table in found["tables"]:
        assert table["title"] in printed
        assert {len(row) for row in table["rows"]} == {len(table["header"])}
    for picture in found["pictures"]:
        with Image.open(directory / "eval" / picture) as image:
            image.load()
    # Nothing but results, decoders and exported files has come into being or changed.
    for path, content in snapshot(directory).items():
        if path.parts[0] not in ("eval", "report.html", "generation", "export"):
            assert before.get(path) == content or content is None, path


PREDICTIONS = ("linear map", "oracle", "unchanged", "another image", "real image")


def check_control(found: dict, *, learned: bool) -> None:
    """Checks the keys and numbers of one augmentation in a result of generation."""
    about = {"unit", "topology", "levels", "parameters", "images", "steerable"}
    assert set(found) == about | {"chance", "predictions"}
    knobs = ("shift",) if found["topology"] == "circle" else ()
    knobs = ("steer", *knobs, "steer to target", "steer to true") if learned else knobs
    assert {*found["predictions"]} == {*knobs, *PREDICTIONS}
    readings = ("regression", "structure") if learned else ("regression",)
    size = len(found["parameters"])
    for name, each in found["predictions"].items():
        assert {*each} == {"mse", "mse_interval", "mse_by_parameter", *readings}
        for mean, prefix in [(each, "mse"), *((each[r], "error") for r in readings)]:
            low, high = mean[f"{prefix}_interval"]
            # The mean of equal numbers may be another one by rounding.
            assert low * (1 - 1e-9) <= mean[prefix] <= high * (1 + 1e-9)
            assert np.shape(mean[f"{prefix}_by_parameter"]) == (3, size)
            mid = np.mean(mean[f"{prefix}_by_parameter"][0])
            assert mean[prefix] == pytest.approx(mid)
        assert (each["mse"] == 0) == (name == "real image")


@pytest.fixture(scope="module")
def generations(trained) -> dict[str, dict]:
    """What is stored of the control of rotations, by method."""
    return {each: call(trained[each], "generation", "--codes=rot") for each in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_results_of_generation(method, generations):
    found = generations[method]
    results, (decoded, control_of_rot, read) = found["results"], found["tables"]
    assert set(results) == {"reconstruction", "rot"}
    names = {*REPRESENTATIONS[method], "mean image"}
    assert set(results["reconstruction"]) == names
    for scores in results["reconstruction"].values():
        assert set(scores) == {"mse", "psnr", "ssim"}
        for score in scores.values():
            low, high = score["interval"]
            assert low <= score["mean"] <= high
    check_control(results["rot"], learned=method == "duet")
    assert results["rot"]["images"] == 30
    asked = np.mod(results["rot"]["parameters"], 360)
    np.testing.assert_allclose(asked, [0, 90, 180, 270], atol=1e-3)
    assert results["rot"]["chance"]["error"] == pytest.approx(90)
    assert results["rot"]["predictions"]["shift"]["mse"] > 0
    assert ("No steer: these" in control_of_rot["note"]) == (method != "duet")
    assert {row[0] for row in decoded["rows"]} == names
    assert [row[0] for row in read["rows"]][-2:] == ["real image", "chance"]
    assert len(found["pictures"]) == 3
    assert found["settings"] == {
        "generation.epochs": 1,
        "generation.batch_size": 128,
        "generation.learning_rate": 2e-3,
        "generation.width": 16,
    }


@pytest.mark.parametrize(("full", "told"), [(0.4, False), (0.6, True)])
def test_decoders_that_have_learned_nothing(full, told, caplog):
    def score(mean):
        return {"mse": {"mean": mean, "interval": (mean - 0.05, mean + 0.05)}}

    found = {"full": score(full), "mean image": score(0.6)}
    generation._warn_if_untrained(found)
    assert ("with more config.generation.epochs" in caplog.text) == told


@pytest.mark.usefixtures("generations")
def test_other_augmentations_are_controlled(trained, tmp_path, capsys):
    """On lines nothing can be shifted, and only the learned code can be steered."""
    directory = shutil.copytree(trained["duet"], tmp_path / "run")
    capsys.readouterr()
    results = call(directory, "generation", "--codes=sca,fli")["results"]
    assert "compiling" not in capsys.readouterr().err
    assert list(results) == ["reconstruction", "sca", "fli"]
    assert (results["sca"]["topology"], results["sca"]["levels"]) == ("line", None)
    assert results["fli"]["levels"] == [0.25, 0.75]
    assert results["sca"]["steerable"] is None
    for code in ("sca", "fli"):
        check_control(results[code], learned=False)
    for each in results["fli"]["predictions"].values():
        assert 0 <= each["regression"]["error"] <= 1  # the share of wrong levels


@pytest.mark.parametrize("method", METHODS)
def test_what_is_in_the_results(method, trained):
    directory = trained[method]
    probe = call(directory, "linear_probe")["results"]["representations"]
    neighbours = call(directory, "knn")["results"]["representations"]
    assert set(probe) == set(neighbours) == set(REPRESENTATIONS[method])
    for scores in (*probe.values(), *neighbours.values()):
        assert 0.1 < scores["top1"] <= scores["top5"] <= 1
        assert np.sum(scores["confusion"]) == 355
        assert np.trace(scores["confusion"]) == round(355 * scores["top1"])
    # Even a hardly trained encoder keeps what digits look like.
    assert probe["full"]["top1"] > 0.5
    assert neighbours["full"]["top1"] > 0.5


def test_the_encoder_is_the_one_that_was_trained(trained):
    """The stored online probe on our features has the accuracy of the training."""
    directory = trained["duet"]
    run = trained_run.load_run(directory)
    networks = nnx.eval_shape(lambda: run.method.init(nnx.Rngs(0)))
    _, params, _ = of_methods.split(networks)
    with Checkpoints(directory / "checkpoints", create=False) as saved:
        only = {"online_probe": params["online_probe"]}
        probe = saved.restore_model(only, {})[1]["online_probe"]["linear"]
    test = load_dataset("digits", image_size=16).test
    logits = run(test.images)["full"] @ probe["kernel"] + probe["bias"][None, :]
    accuracy = float(top_k(logits, test.labels, 1).mean())
    rows = [r for r in read_rows(directory / "metrics.jsonl") if r["split"] == "test"]
    assert accuracy == pytest.approx(rows[-1]["online_top1"], abs=1e-6)
    # And so is the watch on the neighbours.
    watched = call(directory, "knn")["results"]["representations"]["full"]["top1"]
    assert watched == pytest.approx(rows[-1]["knn_top1"], abs=1e-6)


def test_several_modes_share_an_encoder(copied, capsys):
    directory = copied("duet")
    one_by_one = [call(directory, mode)["results"] for mode in ("knn", "equivariance")]
    shutil.rmtree(directory / "eval")
    capsys.readouterr()
    options = ["--mode=knn,equivariance", "--codes=rot", "--config.knn.k=200"]
    options.append("--measures=basic")
    assert cli.main(["main.py", f"--workdir={directory}", *options]) == 0
    found = [
        json.loads((directory / "eval" / f"{mode}.json").read_text())
        for mode in ("knn", "equivariance")
    ]
    assert [each["results"] for each in found] == one_by_one
    assert [each["options"] for each in found] == [
        {},
        {"codes": "rot", "measures": "basic"},
    ]
    printed = capsys.readouterr().out
    assert printed.index("k nearest neighbors") < printed.index("equivariance to rot")


def test_training_and_then_measuring(trained, tmp_path):
    directory = tmp_path / "run"
    arguments = [SMOKE, "--config.knn.every=1", "--config.tensorboard=False"]
    modes = "--mode=train,linear_probe,features"
    command = ["main.py", f"--workdir={directory}", *arguments, modes, "--out=f.npz"]
    with contextlib.chdir(tmp_path):
        assert cli.main(command) == 0
        assert cli.main(command) == 0  # nothing to train, measured again
    assert (tmp_path / "f.npz").exists()
    apart = call(trained["duet"], "linear_probe")
    found = json.loads((directory / "eval/linear_probe.json").read_text())
    for name in ("step", "weights", "settings", "results"):
        assert found[name] == apart[name]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--mode=train,equivariance", "--codes=rto"], "--codes='rto' is not known"),
        (["--mode=train,generation", "--codes=jit"], "--codes='jit' is not known"),
        (["--mode=train,transfer"], "needs --datasets"),
        (["--mode=train,linear_probe", "--protocol=adam"], "lbfgs, sgd"),
        (["--mode=train,features", "--out="], "must name a file"),
        (["--mode=train,knn", "--num_processes=2"], "evaluations use one process"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_said_before_the_training(
    arguments, part, tmp_path, capsys
):
    message = refusal(capsys, SMOKE, f"--workdir={tmp_path / 'run'}", *arguments)
    assert part in message
    assert not any(tmp_path.iterdir())


def test_several_processes_do_not_evaluate(trained, capsys, monkeypatch):
    monkeypatch.setattr(processes, "are_several", lambda: True)
    message = refusal(capsys, "--mode=knn", f"--workdir={trained['duet']}")
    assert "--mode=knn takes one process" in message


def test_the_watch_is_only_in_the_rows_it_is_asked_for(trained):
    rows = read_rows(trained["simclr"] / "metrics.jsonl")
    assert not any("knn_top1" in row for row in rows)


def test_load_run(trained):
    run = trained_run.load_run(trained["duet"], batch_size=32)
    images = load_dataset("digits", image_size=16).test.images
    features = run(images)
    assert {n: x.shape for n, x in features.items()} == {
        n: (355, d) for n, d in REPRESENTATIONS["duet"].items()
    }
    assert all(x.dtype == np.float32 for x in features.values())
    matrix = features["full"].reshape(355, 8, 4)
    np.testing.assert_allclose(features["content"], matrix.sum(1), rtol=1e-5, atol=1e-5)
    logits = matrix.mean(2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(features["structure"], weights, rtol=1e-5)
    # Padding and the size of a batch leave no trace.
    np.testing.assert_allclose(run(images[:5])["full"], features["full"][:5], atol=1e-5)
    with pytest.raises(UsageError, match="batch_size=-3 must be"):
        trained_run.load_run(trained["duet"], batch_size=-3)
    with pytest.raises(ValueError, match=r"uint8 \[n, 16, 16, 1\]"):
        run(images.astype(np.float32))
    with pytest.raises(ValueError, match=r"not uint8 \[355, 16, 16\]"):
        run(images[..., 0])


def test_steps(trained):
    assert trained_run.load_run(trained["duet"], 2).step == 2
    assert trained_run.load_run(trained["duet"], "2").step == 2
    assert trained_run.load_run(trained["duet"], "best").step in (2, 4)
    assert call(trained["simclr"], "knn", "--step=2")["step"] == 2
    first = trained_run.load_run(trained["duet"], 2)
    images = load_dataset("digits", image_size=16).test.images[:8]
    newest = trained_run.load_run(trained["duet"])
    assert np.any(first(images)["full"] != newest(images)["full"])


def test_nothing_but_the_encoder_is_read(copied):
    directory = copied("essl")
    for item in directory.glob("checkpoints/*/train"):
        shutil.rmtree(item)
    assert call(directory, "knn")["step"] == 4


def test_features(trained, tmp_path):
    out = tmp_path / "deeper" / "features.npz"
    call(trained["duet"], "features", f"--out={out}", "--config.batch_size=50")
    data = load_dataset("digits", image_size=16)
    run = trained_run.load_run(trained["duet"])
    with np.load(out, allow_pickle=False) as found:
        assert set(found.files) == {"class_names"} | {
            f"{split}_{name}"
            for split in ("train", "test")
            for name in ("full", "content", "structure", "labels", "indices")
        }
        assert found["class_names"].tolist() == [str(i) for i in range(10)]
        for split, own in (("train", data.train), ("test", data.test)):
            np.testing.assert_array_equal(found[f"{split}_labels"], own.labels)
            np.testing.assert_array_equal(
                found[f"{split}_indices"], np.arange(len(own.labels))
            )
            for name, rows in run(own.images).items():
                assert found[f"{split}_{name}"].dtype == np.float32
                np.testing.assert_allclose(found[f"{split}_{name}"], rows, atol=1e-5)
    assert [p.name for p in out.parent.iterdir()] == ["features.npz"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """A folder of colour images of another size, in two classes with odd names."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in (("<b>dark", 40), ("bright & $x$", 200)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-30, 30, (20, 30, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_transfer(trained, pictures):
    names = f"digits,folder:{pictures}"
    found = call(trained["duet"], "transfer", f"--datasets={names}")["results"]
    assert list(found) == ["digits", f"folder:{pictures}"]
    own = call(trained["duet"], "linear_probe")["results"]["representations"]
    # Its own data set is not another one.
    assert found["digits"]["representations"]["full"]["top1"] == own["full"]["top1"]
    other = found[f"folder:{pictures}"]
    assert (other["classes"], other["train"], other["test"]) == (2, 24, 8)
    assert other["representations"]["full"]["top1"] == 1


def test_a_run_on_a_folder(pictures, tmp_path):
    """Colour, odd class names, paths in the features, and an encoder fed with grey."""
    train(
        tmp_path,
        "--config.dataset.name=folder",
        f"--config.dataset.path={pictures}",
        f"--config.dataset.cache_dir={tmp_path / 'cache'}",
        "--config.batch_size=8",
        "--config.tensorboard=False",
    )
    call(tmp_path, "features")
    with np.load(tmp_path / "eval" / "features.npz", allow_pickle=False) as found:
        assert found["test_paths"][0] == "test/<b>dark/0.png"
        assert len(found["train_paths"]) == 24
    found = call(tmp_path, "transfer", "--datasets=digits")["results"]
    assert found["digits"]["representations"]["full"]["top1"] > 0.5
    call(tmp_path, "report")
    assert "<b>dark" not in (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;dark" in (tmp_path / "report.html").read_text()


def test_one_test_image_a_class(pictures, tmp_path):
    """Too few for a map; everything else is there."""
    data = shutil.copytree(pictures, tmp_path / "data")
    for image in (data / "test").rglob("[!0].png"):
        image.unlink()
    train(
        tmp_path / "run",
        "--config.dataset.name=folder",
        f"--config.dataset.path={data}",
        f"--config.dataset.cache_dir={tmp_path / 'cache'}",
        "--config.batch_size=8",
        "--config.tensorboard=False",
    )
    call(tmp_path / "run", "report")
    found = call(tmp_path / "run", "equivariance")["results"]["rot"]
    assert found["images"] == 2
    assert {"marginal", "shift"} <= set(found)
    assert not (tmp_path / "run" / "eval" / "report_map.png").exists()


def test_the_sgd_protocol(copied):
    directory = copied("duet")
    shorter = ["--config.linear_probe.epochs=12", "--config.linear_probe.repeats=2"]
    kept = call(directory, "linear_probe")
    # The rate of 30 is for a hundred epochs of thousands of images.
    shorter.append("--config.linear_probe.learning_rate=1")
    found = call(directory, "linear_probe", "--protocol=sgd", *shorter)
    for name, scores in found["results"]["representations"].items():
        assert len(scores["top1"]) == 2, name
        assert scores["top1_mean"] == pytest.approx(np.mean(scores["top1"]))
        assert scores["top1_std"] == pytest.approx(np.std(scores["top1"]))
    assert found["results"]["representations"]["full"]["top1_mean"] > 0.2
    again = call(directory, "linear_probe", "--protocol=sgd", *shorter)
    assert again["results"] == found["results"]
    stored = (directory / "eval" / "linear_probe.json").read_text()
    assert json.loads(stored) == kept


CODES = ["rot", "ron", "sca", "fli"]


@pytest.fixture(scope="module")
def equivariances(trained) -> dict[str, dict]:
    """What is stored of four codes, by method."""
    codes = f"--codes={','.join(CODES)}"
    return {each: call(trained[each], "equivariance", codes) for each in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_equivariance(method, equivariances):
    found = equivariances[method]["results"]
    assert list(found) == CODES
    for code, each in found.items():
        learned = method == "duet" and code == "rot"
        assert ("marginal" in each) == ("divergence" in each) == learned
        assert set(each["regression"]) == set(REPRESENTATIONS[method])
        assert ("shift" in each) == (code != "sca")  # the only line
        assert code == "sca" or each["shift"]["learned"] == learned
    # Two epochs of two steps do not tell angles; quarter turns, size and side are seen.
    angle = found["rot"]["regression"]["full"]
    assert 0 < angle["error_interval"][0] < angle["error"] < angle["error_interval"][1]
    assert found["ron"]["regression"]["full"]["accuracy"] > 0.4
    assert found["sca"]["regression"]["full"]["r_squared"] > 0.2
    assert found["fli"]["regression"]["full"]["accuracy"] > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_shifts_of_the_bins(method, equivariances):
    found = dict(equivariances[method]["results"])
    del found["sca"]  # a line
    shifts = {code: list(each["shift"]["by_shift"]) for code, each in found.items()}
    # Quarter turns are two bins of eight apart; a mirror is half of the circle.
    assert shifts == {
        "rot": list(map(str, range(8))),
        "ron": ["0", "2", "4", "6"],
        "fli": ["0", "4"],
    }
    for each in found.values():
        assert each["shift"]["bins"] == 8
        by_shift = each["shift"]["by_shift"]
        assert set(by_shift["0"]) == set(REPRESENTATIONS[method]) - {"content"}
        nothing = by_shift["0"]["full"]["relative_error"]
        assert nothing["shifted"] == pytest.approx(0, abs=1e-5)
        assert nothing["random"] > 0.1
        others = [by_shift[shift]["full"] for shift in by_shift if shift != "0"]
        for measure in ("relative_error", "cosine"):
            mean = np.mean([other[measure]["shifted"] for other in others])
            found_mean = each["shift"]["mean"]["full"][measure]["shifted"]
            assert found_mean == pytest.approx(mean)
    printed = equivariances[method]["tables"]
    notes = {t["title"]: t["note"] for t in printed if t["title"].endswith("cosine")}
    assert notes
    learned = [title[:3] for title, note in notes.items() if "Control" not in note]
    assert learned == (["rot"] if method == "duet" else [])


class Constructed:
    """Stands in for an encoder: features that follow the angle in a known way."""

    def __init__(self, method, features):
        self.method, self.features = method, features

    def __call__(self, images, stack=None, draws=None):
        degrees = np.asarray(draws["rot"]["degrees"], np.float64)
        content = images.reshape(len(images), -1)[:, 100:104] / 255 + 0.1
        return self.method.representations(
            jax.numpy.asarray(self.features(degrees, content), np.float32)
        )


def rotating(degrees, content):
    """The logarithm of the target, whose bins turn with the angle, in every channel."""
    values = jax.numpy.asarray((degrees + 180) / 360, np.float32)
    logits = np.log(von_mises(values, 8, 3.0))
    return (logits[:, :, None] * np.ones(4)[None, None, :]).reshape(len(degrees), 32)


def invariant(degrees, content):
    return np.tile(content, (1, 8))


def measured(trained, features) -> dict:
    run = trained_run.load_run(trained["duet"])
    run = dataclasses.replace(run, encoder=Constructed(run.method, features))
    evaluation = Evaluation(run, EVALUATORS)
    return (
        EVALUATORS["equivariance"]
        .measure(evaluation, codes="rot", measures="basic")
        .values["rot"]
    )


def test_representations_that_turn_have_no_error(trained):
    found = measured(trained, rotating)
    assert found["divergence"]["mean"] == pytest.approx(0, abs=1e-6)
    for scores in found["marginal"].values():
        assert scores["error"] < 1  # degrees
        assert scores["r_squared"] > 0.999
    regression = found["regression"]
    for name in ("full", "structure"):
        assert regression[name]["error"] < 5
        assert regression[name]["r_squared"] > 0.98
    for name in ("full", "structure"):
        means = found["shift"]["mean"][name]
        # The grid of the targets holds both ends: its bins are not quite even.
        assert means["relative_error"]["shifted"] < 0.02
        assert means["cosine"]["shifted"] > 0.9998
        assert means["relative_error"]["unshifted"] > 0.3


def test_representations_that_stay_have_no_angle(trained):
    found = measured(trained, invariant)
    for scores in found["marginal"].values():
        assert scores["error"] == pytest.approx(90, abs=10)
        assert scores["r_squared"] == pytest.approx(0, abs=0.02)
    for scores in found["regression"].values():
        assert scores["error"] == pytest.approx(90, abs=10)
        assert scores["r_squared"] == pytest.approx(0, abs=0.05)
    uniform = found["divergence"]["of_a_constant"]
    assert found["divergence"]["mean"] == pytest.approx(uniform, rel=0.02)
    means = found["shift"]["mean"]["full"]
    assert means["relative_error"]["unshifted"] == pytest.approx(0, abs=1e-6)
    assert means["cosine"]["unshifted"] == pytest.approx(1)
    assert means["relative_error"]["random"] > 0.1


def test_a_method_without_learned_code_measures_its_stack(trained):
    assert set(call(trained["simclr"], "equivariance")["results"]) == {"sca", "rot"}


class Outward(html.parser.HTMLParser):
    """Collects what a page would read from elsewhere, and its structure."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not value.startswith(("#", "data:")):
                self.sources.append(value)


def test_the_report_needs_nothing_else(copied):
    directory = copied("duet")
    found = call(directory, "report")
    parts = {"linear_probe", "knn", "monitors", "equivariance"}
    assert set(found["results"]["parts"]) == parts
    text = (directory / "report.html").read_text()
    parser = Outward()
    parser.feed(text)
    assert parser.sources == []
    assert_policy(text)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text).replace("http-equiv", "")
    # Curves, views, confusion, marginals, turned, polar, shift, readout, map.
    assert parser.tags.count("img") == 9
    assert len(re.findall(r'src="data:[^"]*"', text)) == 9
    assert len(text) < 5e6
    for part in ("linear probe", "k nearest", "equivariance to rot", "duet.num_bins"):
        assert part in text
    # What is asked for first: the numbers, then pictures before tables.
    first, *sections = text.split("<details")
    top1 = json.loads((directory / "eval/linear_probe.json").read_text())
    top1 = top1["results"]["representations"]["full"]["top1"]
    assert f"<h3>Linear probe, top-1</h3><b>{100 * top1:.1f} %</b>" in first
    assert "rot, read off the structure" in first
    (equivariance,) = [s for s in sections if "<h2>Equivariance</h2>" in s]
    assert equivariance.rindex("<img") < equivariance.index("<table")
    headings = re.findall("<h2>([^<]*)</h2>", text)
    assert headings == [
        "Linear probe",
        "Nearest neighbors",
        "Spread of the features",
        "Equivariance",
        "Map of the test features",
        "Training",
        "Configuration",
    ]


def assert_policy(text: str) -> None:
    """The page's policy allows its one script and its style, and nothing else."""
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("img-src") == "data:"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert {*rules.values()} == {"'none'"}
    assert set(rules) == {"default-src", "base-uri", "form-action"}
    assert not re.search(r"<[^>]* (style|on\w+)=", text)


def boxes(headlines) -> dict[str, tuple[str, list[tuple[str, str, bool]]]]:
    return {
        box.name: (box.number, [(bar.name, bar.text, bar.own) for bar in box.bars])
        for box in headlines
    }


def test_headlines_stand_beside_their_yardsticks():
    """The best first; a number without yardsticks stands alone."""
    probe = {
        "representations": {"full": {"top1": 0.848}, "content": {"top1": 0.7}},
        "yardsticks": {
            "untrained encoder": {"top1": 0.752, "top5": 0.9},
            "raw pixels": {"top1": 0.921},
            "chance": {"top1": 0.101},
        },
    }
    rot = {
        "unit": "degrees",
        "marginal": {"mean": {"error": 27.24, "r_squared": 0.6}},
        "regression": {"full": {"error": 31.26, "r_squared": 0.5}},
        "yardsticks": {
            "untrained encoder": {"error": 60.2, "r_squared": 0.2},
            "chance": {"error": 90.0},
        },
    }
    fli = {
        "unit": "mirrored",
        "regression": {"full": {"accuracy": 0.75}},
        "yardsticks": {"chance": {"accuracy": 0.5}},
    }
    found = headlines.headlines(
        {
            "knn": {"results": probe},
            "equivariance": {"results": {"rot": rot, "fli": fli}},
        }
    )
    assert boxes(found) == {
        "Nearest neighbors, top-1": (
            "84.8 %",
            [
                ("raw pixels", "92.1 %", False),
                ("this encoder", "84.8 %", True),
                ("untrained encoder", "75.2 %", False),
                ("chance", "10.1 %", False),
            ],
        ),
        "rot, read off the structure": (
            "27.2°",
            [("this encoder", "27.2°", True), ("chance", "90°", False)],
        ),
        "rot, read off the features": (
            "31.3°",
            [
                ("this encoder", "31.3°", True),
                ("untrained encoder", "60.2°", False),
                ("chance", "90°", False),
            ],
        ),
        "fli, read off the features": (
            "75.0 %",
            [("this encoder", "75.0 %", True), ("chance", "50.0 %", False)],
        ),
    }
    assert [bar.share for bar in found[2].bars] == [31.26 / 90, 60.2 / 90, 1]
    assert all(box.meaning.endswith("is better.") for box in found)
    del probe["yardsticks"]
    (alone,) = headlines.headlines({"knn": {"results": probe}})
    assert (alone.number, alone.bars) == ("84.8 %", ())


def predicted(mse, error):
    return {"mse": mse, "regression": {"error": error}, "structure": {"error": 1.0}}


def generated(**predictions):
    """Stored results of controlled generation; "_" stands for a blank."""
    named = {name.replace("_", " "): each for name, each in predictions.items()}
    found = {"unit": "degrees", "levels": None, "chance": {"error": 90.0}}
    reconstruction = {"full": {"mse": {"mean": 0.01}}}
    return {"reconstruction": reconstruction, "rot": {**found, "predictions": named}}


def test_headlines_of_generation_are_of_the_best_knob():
    """That with the smallest squared error; what is edited or missing is left out."""
    results = generated(
        steer=predicted(0.03, 20.0),
        shift=predicted(0.02, 30.26),
        linear_map=predicted(None, 10.0),
        oracle=predicted(0.01, 5.0),
        unchanged=predicted(0.05, None),
        another_image={},
        real_image=predicted(0.0, 4.0),
    )
    (found,) = headlines.headlines({"generation": {"results": results}})
    assert boxes([found]) == {
        "rot, controlled": (
            "30.3°",
            [
                ("real image", "4°", False),
                ("oracle", "5°", False),
                ("linear map", "10°", False),
                ("steer", "20°", False),
                ("shift", "30.3°", True),
                ("chance", "90°", False),
            ],
        )
    }
    assert "rot (rotation by any angle)" in found.meaning
    assert found.meaning.endswith("Smaller is better.")
    results["rot"] |= {"unit": "quarter turns", "levels": [0, 1, 2, 3]}
    levels = {"steer": predicted(0.03, 0.25), "oracle": predicted(0.01, 0.125)}
    results["rot"] |= {"predictions": levels, "chance": {"error": 0.75}}
    (found,) = headlines.headlines({"generation": {"results": results}})
    bars = [("oracle", "87.5 %", False), ("steer", "75.0 %", True)]
    bars.append(("chance", "25.0 %", False))
    assert boxes([found]) == {"rot, controlled": ("75.0 %", bars)}
    assert found.meaning.endswith("Larger is better.")


@pytest.mark.parametrize(
    "predictions",
    [
        {},
        {"oracle": predicted(0.1, 1.0)},
        {"steer": predicted(None, 1.0)},
        {"steer": predicted(0.1, None)},
        {"steer": {"mse": 0.1, "regression": None}},
    ],
)
def test_without_a_measured_knob_there_is_no_headline(predictions):
    assert not headlines.headlines(
        {"generation": {"results": generated(**predictions)}}
    )


def test_runs_with_generation_share_a_box():
    """Beside a guess, which is the same for all; a run's predictions are its own."""
    runs = {
        name: {"generation": {"results": generated(**{knob: predicted(0.1, error)})}}
        for name, knob, error in (("a", "shift", 40.0), ("b", "linear_map", 20.0))
    }
    assert boxes(headlines.together(runs)) == {
        "rot, controlled": (
            "40°",
            [("b", "20°", True), ("a", "40°", True), ("chance", "90°", False)],
        )
    }


def test_the_foot_says_where_everything_comes_from(tmp_path):
    record = {
        "commit": "abc",
        "clean": False,
        "date": "2026-11-29",
        "device": "cpu",
        "versions": {"jax": "1"},
        "command": "python main.py",
    }
    results = {"knn": {"provenance": record}, "old": {"device": "gpu", "versions": {}}}
    text = "abc with changes · 2026-11-29 · cpu · jax 1 · python main.py"
    assert foot.lines(tmp_path, results) == [
        ("knn", f"commit {text}"),
        ("old", "gpu"),
    ]
    lines = ['{"commit": "old"}', json.dumps(record | {"clean": True})]
    (tmp_path / "provenance.jsonl").write_text("\n".join(lines) + "\n")
    first = foot.lines(tmp_path, results)[0]
    assert first == ("training", f"commit {text}".replace(" with changes", ""))
    for damaged in ("", "[", "3", '{"versions": 3, "command": ["a", "b"]}'):
        (tmp_path / "provenance.jsonl").write_text(damaged)
        training = dict(foot.lines(tmp_path, {})).get("training")
        assert training == ("a b" if "command" in damaged else None)


def test_a_report_of_a_run_without_labels(pictures, tmp_path):
    """It begins with what can be said, and has no empty parts."""
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(pictures.rglob("*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    fields = ["--config.dataset.name=images", "--config.batch_size=8"]
    fields += [f"--config.dataset.path={tmp_path / 'flat'}"]
    fields += [f"--config.dataset.cache_dir={tmp_path / 'cache'}"]
    train(tmp_path / "run", *fields, "--config.tensorboard=False")
    found = call(tmp_path / "run", "report")
    assert set(found["results"]["parts"]) == {"monitors", "equivariance"}
    text = (tmp_path / "run" / "report.html").read_text()
    boxes = re.findall("<li><h3>(.*?)</h3><b>(.*?)</b>", text)
    assert [name for name, _ in boxes] == [
        "rot, read off the structure",
        "rot, read off the features",
        "rot, bins shifted",
    ]
    assert all(float(number.removesuffix("°")) > 0 for _, number in boxes)
    headings = re.findall("<h2>([^<]*)</h2>", text)
    assert headings == [
        "Spread of the features",
        "Equivariance",
        "Map of the test features",
        "Training",
        "Configuration",
    ]
    for absent in ("top-1", "Linear probe"):
        assert absent not in re.sub(r'src="data:[^"]*"|<details>.*', "", text)


def test_a_report_measures_what_is_missing_only(copied):
    directory = copied("simclr")
    call(directory, "knn")
    before = snapshot(directory / "eval")
    call(directory, "report")
    after = snapshot(directory / "eval")
    assert before[pathlib.Path("knn.json")] == after[pathlib.Path("knn.json")]
    assert pathlib.Path("linear_probe.json") in after
    # Other settings and other checkpoints are other results.
    call(directory, "report", "--config.knn.k=3")
    stored = json.loads((directory / "eval" / "knn.json").read_text())
    assert stored["results"]["k"] == 3
    call(directory, "report", "--step=2")
    stored = json.loads((directory / "eval" / "linear_probe.json").read_text())
    assert stored["step"] == 2


def test_a_report_does_not_take_what_is_of_other_weights(copied):
    """Not even where step and settings are the same."""
    directory = copied("simclr")
    call(directory, "knn")
    path = directory / "eval" / "knn.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"weights": "0" * 16, "results": {"no": 1}}))
    (directory / "eval" / "transfer.json").write_text('{"step": 4}')
    call(directory, "report")
    again = json.loads(path.read_text())
    assert again["results"] == found["results"]
    assert again["weights"] == found["weights"]


def test_a_part_of_the_circle(copied):
    """Nothing is said of angles that are never drawn."""
    directory = copied("duet")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["augmentation"]["rotation_degrees"] = 100.0
    path.write_text(json.dumps(config))
    found = call(directory, "equivariance")["results"]["rot"]
    assert list(found["shift"]["by_shift"]) == ["0", "1", "2", "6", "7"]


def test_pictures_of_the_last_result_do_not_stay(copied, capsys):
    directory = copied("duet")
    before = call(directory, "equivariance", "--codes=rot")["pictures"]
    after = call(directory, "equivariance", "--codes=sca")["pictures"]
    told = f"replaced     an earlier equivariance with {', '.join(sorted(before))}"
    assert told in capsys.readouterr().err
    there = {path.name for path in (directory / "eval").glob("*.png")}
    assert there == set(after) != set(before)
    vectors = {path.stem for path in (directory / "eval").glob("*.svg")}
    assert vectors == {pathlib.Path(name).stem for name in after}


def test_a_report_adds_to_the_codes_that_were_measured(copied):
    directory = copied("duet")
    call(directory, "equivariance", "--codes=fli")
    call(directory, "report")
    found = json.loads((directory / "eval" / "equivariance.json").read_text())
    assert set(found["results"]) == {"rot", "fli"}
    text = (directory / "report.html").read_text()
    assert "equivariance to rot" in text
    assert "equivariance to fli" in text


def test_a_page_escapes_everything():
    evil = '"><script>alert(1)</script>'
    table = Table(evil, (evil, evil), ((evil, evil),), evil)
    picture = page.Picture(evil, PNG, evil)
    section = page.Section(evil, (table,), (picture,), evil)
    box = page.Headline(evil, evil, evil, [page.Bar(evil, evil, 7.0)])
    text = page.build(
        [section], title=evil, subtitle=evil, headlines=[box], foot=[(evil, evil)]
    )
    parser = Outward()
    parser.feed(text)
    assert parser.tags.count("script") == 1
    assert parser.tags.count("img") == 1
    assert_policy(text)
    assert 'width="100.0"' in text  # no bar is longer than its box


def test_long_tables_are_folded_but_for_the_first():
    rows = tuple((str(n), "1") for n in range(13))
    tables = [Table(f"table {n}", ("a", "b"), rows[: 13 - n]) for n in range(3)]
    section = page.Section("s", (tables[0], tables[0], tables[1]), folded=True)
    text = page.build([section], title="t", subtitle="")
    assert text.count('<details class="table">') == 1
    assert "<summary>table 0, 13 rows</summary>" in text
    assert "<details><summary><h2>s</h2>" in text


def test_a_table_as_text():
    table = Table("title", ("a", "long b"), (("xx", "1"), ("y", "22")), "note")
    assert table.as_text().splitlines() == [
        "title",
        "a   long b",
        "--  ------",
        "xx       1",
        "y       22",
        "note",
    ]


def test_a_table_that_is_too_wide_has_its_rows_below_each_other():
    rows = (("x" * 30, "1", "2"), ("y", "", "22"))
    table = Table("title", ("a", "long b", "c"), rows, "A note of some words.")
    assert table.as_text(30).splitlines() == [
        "title",
        f"a {'x' * 30}",
        "  long b  1",
        "  c       2",
        "a y",
        "  long b",
        "  c       22",
        "A note of some words.",
    ]
    assert len(table.as_text(80).splitlines()) == 6
    assert table.as_text(12).splitlines()[-2:] == ["A note of", "some words."]


# --- several runs on one page --------------------------------------------------------


@pytest.fixture(scope="module")
def measured_runs(trained, tmp_path_factory) -> pathlib.Path:
    """Runs a and b with results; only a has a linear probe."""
    place = tmp_path_factory.mktemp("compared")
    ignored = shutil.ignore_patterns("eval", "export", "report.html", "generation")
    for name, method in (("a", "duet"), ("b", "simclr")):
        shutil.copytree(trained[method], place / name, ignore=ignored)
        call(place / name, "knn")
        call(place / name, "equivariance", "--codes=rot")
    call(place / "a", "linear_probe")
    return place


def comparison(place: pathlib.Path, workdirs: str = "a,b") -> str:
    """Writes a page on runs in `place` and returns it."""
    with contextlib.chdir(place):
        assert cli.main(["main.py", "--mode=compare", f"--workdirs={workdirs}"]) == 0
    return (place / "compare.html").read_text()


@pytest.mark.usefixtures("generations")
def test_the_report_takes_in_generation_that_was_measured(
    measured_runs, trained, tmp_path
):
    directory = shutil.copytree(measured_runs / "a", tmp_path / "run")
    stored = json.loads((trained["duet"] / "eval/generation.json").read_text())
    stored["settings"]["generation.epochs"] = 7  # whatever the decoders were
    (directory / "eval/generation.json").write_text(json.dumps(stored))
    found = call(directory, "report")
    assert "generation" in found["results"]["parts"]
    page_of_run = (directory / "report.html").read_text()
    assert "<h2>Controlled generation</h2>" in page_of_run
    assert "control of rot (rotation" in page_of_run
    assert "Measured with config.generation.epochs=7." in page_of_run
    assert page_of_run.count('<script type="application/json">') == 1  # the knob


def cells(text: str, first: str) -> list[str]:
    """The last row of a page's tables that begins with `first`."""
    rows = re.findall(f"<tr><td>{re.escape(first)}</td>(.*?)</tr>", text)
    return re.findall("<td>(.*?)</td>", rows[-1])


def test_a_comparison(measured_runs, capsys):
    before = snapshot(measured_runs / "a"), snapshot(measured_runs / "b")
    text = comparison(measured_runs)
    told = capsys.readouterr().err
    assert "warning: linear_probe has no stored result of b" in told
    assert "comparison in compare.html" in told
    parser = Outward()
    parser.feed(text)
    assert parser.sources == []
    assert_policy(text)
    assert len(text) < 5e6
    top1 = [
        100 * json.loads(path.read_text())["results"]["representations"]["full"]["top1"]
        for path in (measured_runs / name / "eval/knn.json" for name in "ab")
    ]
    a, b, difference = cells(text, "full: top-1")[:3]
    assert [a, b] == [f"{each:.1f}" for each in top1]
    expected = f"{float(b) - float(a):+.1f}".replace("-", "\N{MINUS SIGN}")
    assert difference == expected.replace("+0.0", "0.0")
    error = cells(text, "regression on full: error [degrees]")
    assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", error[0])
    assert cells(text, "structure, mean: R²")[1:] == ["-", ""]
    assert "Not measured: b; --mode=linear_probe does it." in text
    assert cells(text, "method") == ["duet", "simclr"]
    # Curves; confusion, marginals and polar of a; turned as it is; shift and readout of
    # both in one picture each; views of each.
    assert parser.tags.count("img") == 1 + 3 + 1 + 2 + 2
    assert text.count("One scale for all.") == 2
    assert "other images" not in text
    # Nothing was measured, trained or changed.
    assert (snapshot(measured_runs / "a"), snapshot(measured_runs / "b")) == before


def test_a_comparison_of_runs_on_other_images(measured_runs, tmp_path):
    shutil.copytree(measured_runs, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "b" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content": "other"}))
    text = comparison(tmp_path)
    assert "b: other images than those of a." in text


def test_a_comparison_of_runs_without_results(measured_runs, tmp_path):
    """Their curves are still to be seen, and names with commas are names."""
    for name in ("a", "b, c"):
        ignored = shutil.ignore_patterns("eval")
        shutil.copytree(measured_runs / name[0], tmp_path / name, ignore=ignored)
    text = comparison(tmp_path, r"a,b\, c")
    assert "<h2>Training</h2>" in text
    assert cells(text, "b, c")[-1] == "no results"
    assert "<h2>Nearest neighbors</h2>" not in text


@pytest.mark.parametrize(
    "drawings",
    [{}, [], {"rot_shift": 3}, {"rot_shift": {"kind": "shift", "summary": {}}}],
)
def test_a_picture_that_was_not_kept_as_data_is_shown_as_it_is(
    drawings, measured_runs, tmp_path
):
    shutil.copytree(measured_runs, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "b" / "eval" / "equivariance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"drawings": drawings}))
    text = comparison(tmp_path)
    assert text.count("One scale for all.") == 0
    assert text.count("b, as drawn.") == 3  # shift, readout, views


def test_an_edited_picture_is_not_drawn(measured_runs, tmp_path, capsys):
    shutil.copytree(measured_runs, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "b" / "eval" / "equivariance.json"
    found = json.loads(path.read_text())
    found["drawings"]["rot_shift"]["summary"]["shifts"] = [1, 2, 3]
    path.write_text(json.dumps(found))
    text = comparison(tmp_path)
    assert "equivariance_rot_shift.png cannot be drawn" in capsys.readouterr().err
    assert text.count("One scale for all.") == 1  # the readout
    assert {"a, as drawn.", "b, as drawn."} <= {*re.findall(r"[ab], as drawn\.", text)}


@pytest.mark.parametrize(
    ("first", "other", "difference"),
    [
        ("98.3", "97.5", "\N{MINUS SIGN}0.8"),
        ("27.2 (23 to 32)", "31.25 (27 to 35)", "+4.05"),
        ("0.5", "0.5", "0.0"),
        ("-0.011", "0.02", "+0.031"),
        ("1e-03", "1e-02", ""),
        ("128", "16", "\N{MINUS SIGN}112"),
        ("-", "3", ""),
        ("yes", "no", ""),
        ("3.1 ± 0.2", "4.1 ± 0.2", "+1.0"),
    ],
)
def test_differences(first, other, difference):
    assert compare._difference(first, other) == difference


def test_tables_of_other_settings_are_one_table():
    """A row that one run lacks stays, and titles that differ are told."""
    tables = {
        "a": Table("k = 3 [%]", ("name", "top-1", "95 %"), (("x", "50", "4 to 6"),)),
        "b": Table(
            "k = 4 [%]",
            ("name", "top-1"),
            (("x", "60"), ("y", "1"), ("z", "-")),
            "note",
        ),
    }
    assert compare._merged(tables) == Table(
        "k = 3 [%]",
        ("name", "a", "b", "vs. a"),
        (("x: top-1", "50 (4 to 6)", "60", "+10"), ("y: top-1", "-", "1", "")),
        "a: k = 3 [%]. b: k = 4 [%].",
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--workdirs= names no runs", "takes two or more"]),
        (["--workdirs=a"], ["--workdirs=a names 1 run,", "--workdirs=runs/a,runs/b"]),
        (["--workdirs=a,a/"], ["names a twice; name it once"]),
        (["--workdirs=a,nowhere"], ["nowhere holds no run (no config.json)", "\\,"]),
        (["--workdirs=a,gs://b"], ["--workdirs=gs://b", "is an address"]),
        (["--workdirs=a,b", "--out="], ["--out= must name a file"]),
        (["--workdirs=a,b", "--out=a"], ["--out=a must name a file"]),
        (["--workdirs=a,b", "--out=a/config.json/x"], ["--out", "is a file"]),
        (["--workdirs=a,b", "--workdir=a"], ["leave out --config, --workdir and"]),
        (["--workdirs=a,b", "--config.knn.k=3"], ["leave out --config, --workdir"]),
        (["--workdirs=a,b", "--step=2"], ["--step has no effect with --mode=compare"]),
    ],
)
def test_what_cannot_be_compared(arguments, parts, measured_runs, capsys):
    (measured_runs / "compare.html").unlink(missing_ok=True)
    with contextlib.chdir(measured_runs):
        message = refusal(capsys, "--mode=compare", *arguments)
    assert all(part in message for part in parts), message
    assert {path.name for path in measured_runs.iterdir()} == {"a", "b"}


def test_a_comparison_stands_alone(capsys):
    for modes in ("compare,knn", "train,compare", "knn,compare"):
        assert "cannot come after" in refusal(capsys, f"--mode={modes}")


# --- what is refused -----------------------------------------------------------------


def refusal(capsys, *arguments: str) -> str:
    assert cli.main(["main.py", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


REFUSED = {
    "no workdir": (["--mode=knn"], "--mode=knn needs --workdir"),
    "unknown mode": (
        ["--mode=linear-prob", "--workdir={run}"],
        "Did you mean 'linear_probe'?",
    ),
    "a configuration as well": (
        ["--mode=knn", "--workdir={run}", SMOKE],
        "has no effect with --mode=knn",
    ),
    "no run": (["--mode=knn", "--workdir={empty}"], "holds no run"),
    "no such directory": (["--mode=knn", "--workdir={empty}/x"], "holds no run"),
    "no such step": (
        ["--mode=knn", "--workdir={run}", "--step=3"],
        "--step=3 is not a checkpoint of",
    ),
    "no step": (["--mode=knn", "--workdir={run}", "--step=last"], "2, 4, newest, best"),
    "a step for training": (
        [SMOKE, "--step=3"],
        "--step has no effect with --mode=train",
    ),
    "a protocol for kNN": (
        ["--mode=knn", "--workdir={run}", "--protocol=sgd"],
        "belongs to --mode=linear_probe",
    ),
    "unknown protocol": (
        ["--mode=linear_probe", "--workdir={run}", "--protocol=adam"],
        "choose one of lbfgs, sgd",
    ),
    "another architecture by hand": (
        ["--mode=knn", "--workdir={run}", "--config.encoder.widths=8,8,16,64"],
        "was decided by the training",
    ),
    "unknown field": (
        ["--mode=knn", "--workdir={run}", "--config.knn.n=3"],
        "config.knn.n is not a field",
    ),
    "no neighbours": (
        ["--mode=knn", "--workdir={run}", "--config.knn.k=0"],
        "config.knn.k=0 must be 1 or more",
    ),
    "train after an evaluation": (
        ["--mode=knn,train", "--workdir={run}"],
        "train cannot come after knn",
    ),
    "evaluate a benchmark": ([SMOKE, "--mode=benchmark,knn"], "cannot come after"),
    "a mode twice": (["--mode=knn,knn", "--workdir={run}"], "names a mode twice"),
    "a mode too few": (["--mode=knn,", "--workdir={run}"], "--mode='' is not known"),
    "a protocol for two that take none": (
        ["--mode=knn,equivariance", "--workdir={run}", "--protocol=sgd"],
        "belongs to --mode=linear_probe",
    ),
    "no data sets": (["--mode=transfer", "--workdir={run}"], "needs --datasets"),
    "a folder without a path": (
        ["--mode=transfer", "--workdir={run}", "--datasets=folder"],
        "--datasets=folder has no path; write folder:<path>",
    ),
    "one missing data set of two": (
        ["--mode=transfer", "--workdir={run}", "--datasets=digits,folder:{empty}"],
        "no images in <class>/",
    ),
    "an unknown code": (
        ["--mode=equivariance", "--workdir={run}", "--codes=rto"],
        "'rto' is not known",
    ),
    "a code without structure": (
        ["--mode=equivariance", "--workdir={run}", "--codes=jit"],
        "jit",
    ),
    "a code for colours": (
        ["--mode=equivariance", "--workdir={run}", "--codes=hue"],
        "3 channels",
    ),
    "no code": (
        ["--mode=equivariance", "--workdir={run}", "--codes="],
        "names no augmentation; choose some of sca",
    ),
    "controlled, a code without structure": (
        ["--mode=generation", "--workdir={run}", "--codes=rot,jit"],
        "--codes='jit' is not known; choose one of",
    ),
    "controlled, a code for colors": (
        ["--mode=generation", "--workdir={run}", "--codes=gra"],
        "3 channels",
    ),
    "decoders without channels": (
        ["--mode=generation", "--workdir={run}", "--config.generation.width=0"],
        "config.generation.width=0 must be from 1 to 1024",
    ),
    "decoders for kNN": (
        ["--mode=knn", "--workdir={run}", "--config.generation.epochs=3"],
        "this evaluation does not read it",
    ),
    "no file": (["--mode=features", "--workdir={run}", "--out="], "must name a file"),
    "up": (["--mode=features", "--workdir={run}", "--out=.."], "must name a file"),
    "a directory": (
        ["--mode=features", "--workdir={run}", "--out={empty}.npz/"],
        "must name a file",
    ),
    "a directory of that name": (
        ["--mode=features", "--workdir={run}", "--out={npz}"],
        "x.npz in it is a directory",
    ),
    "a name that is too long": (
        ["--mode=features", "--workdir={run}", f"--out={'x' * 300}.npz"],
        "File name too long",
    ),
    "a workdir that is too long": (
        ["--mode=knn", f"--workdir={'x' * 300}"],
        "cannot be used (File name too long)",
    ),
    "a field of another evaluation": (
        ["--mode=equivariance", "--workdir={run}", "--config.knn.k=3"],
        "this evaluation does not read it",
    ),
    "a directory as a file": (
        ["--mode=features", "--workdir={run}", "--out={file}/x.npz"],
        "--out: ",
    ),
    "a bucket": (
        ["--mode=features", "--workdir={run}", "--out=gs://b/x.npz"],
        "--out=gs://b/x.npz is an address",
    ),
    "a bucket of images": (
        ["--mode=transfer", "--workdir={run}", "--datasets=digits,folder:gs://b"],
        "--datasets: folder=gs://b is an address",
    ),
    "an unknown flag": (["--mode=knn", "--workdir={run}", "--kk=3"], "the flags are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, trained, tmp_path, capsys):
    arguments, part = REFUSED[case]
    places = {"run": trained["duet"], "empty": tmp_path / "e", "file": tmp_path / "f"}
    places["npz"] = tmp_path / "x.npz"
    for name in ("empty", "npz"):
        places[name].mkdir()
    places["file"].write_text("somebody's")
    before = snapshot(trained["duet"]), snapshot(tmp_path)
    arguments = [each.format(**places) for each in arguments]
    assert part in refusal(capsys, *arguments)
    assert (snapshot(trained["duet"]), snapshot(tmp_path)) == before


@pytest.mark.parametrize("stack", [[], ["res", "ccr"]])
def test_nothing_to_control(stack, copied, capsys):
    """Said before decoders are trained."""
    directory = copied("simclr")
    config = json.loads((directory / "config.json").read_text())
    config["augmentation"]["stack"] = stack
    (directory / "config.json").write_text(json.dumps(config))
    message = refusal(capsys, "--mode=generation", f"--workdir={directory}")
    assert "--codes is missing: this run has no augmentation with a param" in message
    assert not (directory / "generation").exists()


def test_a_run_without_checkpoints(copied, capsys):
    directory = copied("duet")
    shutil.rmtree(directory / "checkpoints")
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert "checkpoints does not exist" in message
    (directory / "checkpoints").mkdir()
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert "holds no checkpoint" in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"encoder": {"widths": [8, 8, 16, 64]}}, "of another architecture"),
        ({"encoder": {"blocks": [1, 2, 1]}}, "stage2.1"),
        ({"encoder": {"blocks": [1, 1, 2]}}, "stage3.1"),
        ({"method": "byol"}, "config.method='byol' is not known"),
        ({"colour": 3}, "colour is not a field"),
        ({"batch_size": "many"}, "config.batch_size='many' must be a whole number"),
        ({"batch_size": None}, "config.batch_size=None must be a whole number"),
        ({"augmentation": {"stack": [["rot"]]}}, "config.augmentation.stack="),
        ({"augmentation": {"crop_area": ["a", "b"]}}, "must be numbers separated"),
        ({"a.b": 1}, "config.json is damaged"),
    ],
)
def test_a_changed_configuration(copied, change, part, capsys):
    directory = copied("duet")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for name, value in change.items():
        if isinstance(value, dict):
            config[name] |= value
        else:
            config[name] = value
    path.write_text(json.dumps(config))
    assert part in refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert not (directory / "eval").exists()


def test_a_changed_configuration_is_refused_by_load_run(copied):
    path = copied("duet") / "config.json"
    config = json.loads(path.read_text())
    config["encoder"]["blocks"] = [1, 1]
    path.write_text(json.dumps(config))
    expected = f"{path.parent}: config.encoder.blocks=(1, 1) must be 3 whole numbers"
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}"):
        trained_run.load_run(path.parent)


def test_fewer_blocks_than_were_saved(copied, capsys):
    """What the checkpoint holds beyond the configuration is noticed, too."""
    directory = copied("duet")
    path = directory / "dataset.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"channels": 3}))
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert "stem.kernel is (3, 3, 1, 8) there and (3, 3, 3, 8)" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_names", 5), ("class_names", None), ("num_train", "many"), ("side", 16.5)],
)
def test_damaged_facts(field, value, copied, capsys):
    path = copied("simclr") / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    message = refusal(capsys, "--mode=knn", f"--workdir={path.parent}")
    assert f"dataset.json is damaged ({field} is {value!r})" in message


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "{}", "7"])
def test_damaged_records(copied, name, text, capsys):
    directory = copied("simclr")
    (directory / name).write_text(text)
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert name in message or "another architecture" in message


def test_a_damaged_checkpoint(copied, capsys):
    directory = copied("duet")
    for path in (directory / "checkpoints" / "4" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert "checkpoint 4" in message
    assert message.endswith("choose another step: 2.")


def test_other_classes(copied, pictures, capsys):
    """The data of the run have been replaced."""
    directory = copied("duet")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["dataset"] |= {"name": "folder", "path": str(pictures)}
    path.write_text(json.dumps(config))
    message = refusal(capsys, "--mode=linear_probe", f"--workdir={directory}")
    assert "but" in message
    assert "was trained with" in message


def test_a_place_that_cannot_be_written(copied, capsys):
    directory = copied("duet")
    (directory / "eval").write_text("a file of that name")
    message = refusal(capsys, "--mode=knn", f"--workdir={directory}")
    assert "is a file" in message
    assert (directory / "eval").read_text() == "a file of that name"


def fail_as_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    """A run whose features are all equal: its images are all black."""
    place = tmp_path_factory.mktemp("collapsed")
    images = tiny.folder(place / "images")
    for path in images.rglob("*.bmp"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    fields = ["--config.dataset.name=folder", f"--config.dataset.path={images}"]
    train(place / "run", *fields, "--config.batch_size=8")
    return place / "run"


def test_a_report_of_a_collapsed_run(collapsed, capsys):
    """Without the map, which would end the process in t-SNE."""
    (collapsed / "eval").mkdir()
    (collapsed / "eval" / "report_map.png").write_text("of an earlier report")
    call(collapsed, "report")
    told = capsys.readouterr().err
    assert "warning: the report has no map: the features of all test images" in told
    text = (collapsed / "report.html").read_text()
    assert "No map: the features of all test images are almost equal" in text
    assert "they have collapsed" in text
    assert "report map" not in text
    assert not (collapsed / "eval" / "report_map.png").exists()


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (np.ones((60, 8)), "almost equal"),
        (np.zeros((60, 8)), "almost equal"),
        (1 + 1e-7 * np.random.default_rng(0).normal(size=(60, 8)), "almost equal"),
        (np.eye(2, 8), "3 test images or more"),
        (np.full((60, 8), np.nan), "not finite"),
        (np.repeat(np.eye(2, 8), 30, 0), ""),
        (np.random.default_rng(0).normal(size=(60, 8)), ""),
        (1e18 * np.random.default_rng(0).normal(size=(60, 8)), ""),
    ],
)
def test_what_can_be_laid_out(features, reason):
    found = html_report.why_no_map(features.astype(np.float32))
    assert reason in found
    assert bool(found) == bool(reason)
    if not found:
        for places in html_report._projections(features.astype(np.float32)).values():
            assert np.isfinite(places).all()


@pytest.mark.parametrize(
    ("mode", "module", "function"),
    [
        ("features", export_features, "_pack"),
        ("knn", files.os, "replace"),
        ("linear_probe", store, "save"),
        ("report", html_report, "save"),
    ],
)
def test_a_full_disk(mode, module, function, copied, capsys, monkeypatch):
    directory = copied("simclr")
    call(directory, mode)
    before = snapshot(directory)
    capsys.readouterr()
    monkeypatch.setattr(module, function, fail_as_full)
    message = refusal(capsys, f"--mode={mode}", f"--workdir={directory}")
    assert "cannot be written (No space left on device); free some space" in message
    after = snapshot(directory)
    assert {path: after[path] for path in before} == before
    left = {path.name for path in set(after) - set(before)}
    assert not left


def test_four_evaluations_at_once(copied):
    """All finish; what is left is whole, and nothing else."""
    directory = copied("duet")
    command = ("--workdir=duet", "--mode=knn,features")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        start = functools.partial(program.run, *command, cwd=directory.parent)
        for done in [each.result() for each in [pool.submit(start) for _ in range(4)]]:
            assert done.status == 0, done.lines
            assert not done.errors
    names = {path.name for path in (directory / "eval").iterdir()}
    assert names == {"knn.json", "features.json", "features.npz"}
    found = json.loads((directory / "eval" / "knn.json").read_text())
    assert found["results"] == call(directory, "knn")["results"]
    with np.load(directory / "eval" / "features.npz") as arrays:
        assert arrays["test_full"].shape == (355, 32)


def test_an_interrupted_evaluation(trained, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("duet_jax.evaluation.evaluate.evaluate", interrupt)
    command = ["main.py", "--mode=knn", f"--workdir={trained['duet']}"]
    assert cli.main(command) == 130
    assert capsys.readouterr().err == "stopped; the same command starts again\n"


def test_training_again_on_other_data(copied, capsys):
    """A resumed run notices that the images are not those it has seen."""
    directory = copied("duet")
    path = directory / "dataset.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"num_train": 1000}))
    message = refusal(capsys, SMOKE, f"--workdir={directory}", "--config.knn.every=1")
    assert "num_train: 1000 -> 1442" in message


def test_help_names_every_mode_and_flag(capsys):
    assert cli.main(["main.py", "--help"]) == 0
    text = capsys.readouterr().out
    for name in (*EVALUATORS, "--step", "--datasets", "--out", "--protocol", "--codes"):
        assert name in text
