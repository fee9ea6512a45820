"""Every mode on a run that represents two transformations, and their crosstalk."""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from program import SMOKE

from duet_jax import cli, figures
from duet_jax.augmentations import Options, make_stack, measuring_stack
from duet_jax.evaluation import (
    EVALUATORS,
    crosstalk,
    equivariance,
    html_report,
    store,
)
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.codes import Code
from duet_jax.loggers import read_rows
from duet_jax.runs import trained_run

CODES = ("rot", "sca")


pytestmark = pytest.mark.usefixtures("quick_measures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run of DUET on gray digits, measured in every way."""
    directory = tmp_path_factory.mktemp("runs") / "duet"
    command = ["main.py", SMOKE, f"--workdir={directory}", "--config.learned=rot,sca"]
    command += ["--config.duet.num_bins=8,4", "--config.tensorboard=False"]
    command += ["--measures=basic"]
    modes = "train,linear_probe,knn,equivariance,generation,features,report"
    assert cli.main([*command, f"--mode={modes}"]) == 0
    return directory


def stored(run, mode):
    return json.loads((run / "eval" / f"{mode}.json").read_text())


def test_training_speaks_of_each_code(run):
    rows = read_rows(run / "metrics.jsonl")
    for row in rows:
        parts = [row[f"structure_loss_{code}"] for code in CODES]
        assert row["structure_loss"] == pytest.approx(np.mean(parts), rel=1e-5)
    config = json.loads((run / "config.json").read_text())
    assert config["learned"] == "rot,sca"
    assert config["duet"]["num_bins"] == [8, 4]
    curves = figures.build_curves(rows)
    titles = [axes.get_title(loc="left") for axes in curves.axes]
    for code in CODES:
        assert f"structure loss (Jensen-Shannon), {code}" in titles


def test_the_same_command_continues_it(run, capsys):
    """The bins come back from config.json as they were given."""
    command = ["main.py", SMOKE, f"--workdir={run}", "--config.learned=rot,sca"]
    command += ["--config.duet.num_bins=8,4", "--config.tensorboard=False"]
    assert cli.main(command) == 0
    assert "finished at step 4 already" in capsys.readouterr().err
    assert cli.main([*command[:-2], "--config.duet.num_bins=4,8"]) == 2
    assert "duet.num_bins: [8, 4] -> [4, 8]" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["linear_probe", "knn"])
def test_classes_are_read_off_content_and_each_structure(mode, run):
    names = {"full", "content", "structure_rot", "structure_sca"}
    assert {*stored(run, mode)["results"]["representations"]} == names


def test_features_by_code(run):
    with np.load(run / "eval" / "features.npz") as arrays:
        shapes = {name: arrays[f"test_{name}"].shape[1] for name in ("full", "content")}
        assert shapes == {"full": 32, "content": 16 // 8 + 16 // 4}
        for code, bins in zip(CODES, (8, 4), strict=True):
            rows = arrays[f"test_structure_{code}"]
            assert rows.shape[1] == bins
            np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    features = trained_run.load_run(run)(np.zeros((2, 16, 16, 1), np.uint8))
    assert features["structure_sca"].shape == (2, 4)


def test_equivariance_to_each_code(run):
    found = stored(run, "equivariance")
    assert [*found["results"]] == [*CODES]
    for code in CODES:
        scores = found["results"][code]
        assert {"divergence", "marginal", "regression", "crosstalk"} <= {*scores}
        assert {"block_rot", "block_sca", "structure_rot"} <= {*scores["regression"]}
        assert {*scores["yardsticks"]} >= {"untrained encoder", "raw pixels", "chance"}
        row = scores["crosstalk"]
        for how in ("structure", "regression"):
            for question in crosstalk.QUESTIONS:
                assert [*row[how][question]] == [*CODES]
                for each in row[how][question].values():
                    low, high = each["interval"]
                    assert low <= each["mean"] <= high
    assert found["results"]["rot"]["shift"]["bins"] == 8
    assert "equivariance_crosstalk.png" in found["pictures"]


def test_generation_of_both_together(run):
    found = stored(run, "generation")
    assert [*found["results"]] == ["reconstruction", "rot", "sca", "rot+sca"]
    both = found["results"]["rot+sca"]
    assert {code: len(each) for code, each in both["parameters"].items()} == {
        "rot": 4,
        "sca": 4,
    }
    assert {"steer", "linear map", "oracle"} <= {*both["predictions"]}
    assert "shift" not in both["predictions"]  # a line cannot be shifted
    for name, scores in both["predictions"].items():
        for code in CODES:
            assert {*scores[code]} == {"regression", "structure"}, name
    pictures = found["pictures"]
    assert "generation_knob.png" in pictures
    assert "generation_rot_knob.png" not in pictures
    (knob,) = html_report.knobs_of(found).values()
    assert [dial.code for dial in knob.dials] == [*CODES]
    assert np.shape(knob.error["steer"]) == (6, 16)
    assert [np.shape(dial.targets) for dial in knob.dials] == [(4, 8), (4, 4)]


def test_the_report_has_a_section_for_each_code(run):
    text = (run / "report.html").read_text()
    headings = re.findall("<h2>([^<]*)</h2>", text)
    assert headings[:9] == [
        "Linear probe",
        "Nearest neighbors",
        "Spread of the features",
        *("Equivariance", "Equivariance: rot", "Equivariance: sca"),
        *("Controlled generation", "Controlled generation: rot"),
        "Controlled generation: sca",
    ]
    assert text.count('class="knob"') == 1
    assert text.count('class="slide"') == 2
    first, *sections = text.split("<details open>")
    of = {re.search("<h2>([^<]*)", each)[1]: each for each in sections}
    assert "control of rot and sca together" in of["Controlled generation"]
    assert "what moves the reading of rot" in of["Equivariance: rot"]
    assert "what moves the reading of rot" not in of["Equivariance: sca"]
    assert of["Equivariance"].count("<img") == 1  # crosstalk
    assert "duet, rot, sca on digits" in first


def test_a_comparison_draws_crosstalk_together(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    command = ["main.py", SMOKE, f"--workdir={other}", "--config.method=simclr"]
    command += ["--config.tensorboard=False", "--mode=train,equivariance"]
    command += ["--measures=basic"]
    assert cli.main([*command, "--codes=rot,sca"]) == 0
    assert cli.main(["main.py", "--mode=compare", f"--workdirs={run},{other}"]) == 0
    text = (tmp_path / "compare.html").read_text()
    assert 'alt="equivariance crosstalk"' in text
    row = stored(other, "equivariance")["results"]["rot"]["crosstalk"]
    assert "structure" not in row
    assert "regression" in row


# --- encoders whose answers are known -------------------------------------------------


class Constructed:
    """Features of two groups, each the logarithm of its target, in every channel."""

    def __init__(self, method, leak):
        self.method, self.leak = method, leak

    def __call__(self, images, stack=None, draws=None):
        count = len(images)
        values = {"rot": np.full(count, 0.5), "sca": np.zeros(count)}
        if stack is not None:
            drawn = stack.structure(draws)
            values |= {name: np.asarray(x) for name, x in drawn.items()}
        values["rot"] = (values["rot"] + self.leak * values["sca"]) % 1
        blocks = []
        for group in self.method.groups:
            logits = np.log(group.targets(jnp.float32(values[group.code])))
            channels = 16 // group.num_bins
            blocks.append(np.repeat(logits, channels, axis=1))
        return self.method.representations(jnp.concatenate(blocks, axis=1))


def measured(run, leak):
    restored = trained_run.load_run(run)
    encoder = Constructed(restored.method, leak)
    evaluation = Evaluation(dataclasses.replace(restored, encoder=encoder), EVALUATORS)
    measure = EVALUATORS["equivariance"].measure
    found = measure(evaluation, codes="rot,sca", measures="basic")
    return {code: found.values[code]["crosstalk"] for code in CODES}


def test_an_ideal_representation_is_diagonal(run):
    found = measured(run, 0.0)
    rot, sca = (found[code]["structure"] for code in CODES)
    assert rot["moves"]["rot"]["mean"] == pytest.approx(found["rot"]["exact"], rel=0.05)
    assert rot["moves"]["sca"]["mean"] == pytest.approx(0, abs=1e-3)
    assert rot["errs"]["rot"]["mean"] == rot["errs"]["sca"]["mean"] < 1  # degrees
    assert sca["moves"]["sca"]["mean"] > 0.05
    assert sca["moves"]["rot"]["mean"] == pytest.approx(0, abs=1e-5)
    for own, other in (CODES, CODES[::-1]):
        moves = found[own]["regression"]["moves"]
        assert moves[other]["mean"] < 0.01 * moves[own]["mean"]


def test_a_leak_is_seen_in_the_row_of_what_is_read(run):
    found = measured(run, 0.25)
    leaked = found["rot"]["structure"]["moves"]["sca"]["mean"]
    # By a quarter turn times how far the crop moves, in degrees.
    inside = found["sca"]["exact"] * 16 / 15  # of the structure value
    assert leaked == pytest.approx(90 * inside, rel=0.05)
    errs = found["rot"]["structure"]["errs"]
    assert errs["sca"]["mean"] == pytest.approx(leaked, rel=0.1)
    assert errs["rot"]["mean"] < 1
    assert found["sca"]["structure"]["moves"]["rot"]["mean"] == pytest.approx(
        0, abs=1e-5
    )


def code_of(name, channels=3):
    plain = make_stack(
        (), input_side=16, image_size=16, channels=channels, options=Options()
    )
    stack = measuring_stack((name,), plain)
    return Code(name, stack, *stack.stages[0])


def test_a_row_is_what_numpy_says():
    """A circle, whose readings go the short way round, and levels."""
    true = np.array([0.1, 0.6, 0.9])
    plain = {"rot": {"structure": np.array([0.5, 0.5, 0.5])}}
    alone = {
        "rot": {"rot": {"structure": np.array([0.15, 0.55, 0.0])}},
        "hue": {"rot": {"structure": np.array([0.5, 0.4, 0.5])}},
    }
    both = {
        frozenset(("rot", "hue")): {"rot": {"structure": np.array([0.3, 0.6, 0.1])}}
    }
    found = crosstalk.row(code_of("rot"), true, plain, alone, both)
    moves, errs = (found["structure"][q] for q in ("moves", "errs"))
    assert moves["rot"]["mean"] == pytest.approx(360 * (0.35 + 0.05 + 0.5) / 3)
    assert moves["hue"]["mean"] == pytest.approx(360 * 0.1 / 3)
    assert errs["rot"]["mean"] == pytest.approx(360 * (0.05 + 0.05 + 0.1) / 3)
    assert errs["hue"]["mean"] == pytest.approx(360 * (0.2 + 0 + 0.2) / 3)
    assert found["exact"] == pytest.approx(360 * (0.4 + 0.1 + 0.4) / 3)

    true = np.array([0.0, 1.0, 1.0, 0.0])
    plain = {"gra": {"regression": np.array([0.0, 0.0, 0.0, 1.0])}}
    alone = {
        "gra": {"gra": {"regression": np.array([0.0, 1.0, 0.0, 1.0])}},
        "rot": {"gra": {"regression": np.array([0.0, 0.0, 1.0, 1.0])}},
    }
    both = {frozenset(("rot", "gra")): {"gra": {"regression": 1 - true}}}
    found = crosstalk.row(code_of("gra"), true, plain, alone, both)
    assert found["regression"]["moves"]["gra"]["mean"] == 0.25
    assert found["regression"]["moves"]["rot"]["mean"] == 0.25
    assert found["regression"]["errs"]["gra"]["mean"] == 0.5
    assert found["regression"]["errs"]["rot"]["mean"] == 1
    assert found["chance"] == 0.5


def test_the_picture_masks_what_cannot_be_read():
    matrix = np.array([[90.0, 30.0], [np.nan, np.nan]])
    summary = figures.Crosstalk(
        ["rot", "hue"],
        ["degrees", "turns of hue"],
        {"structure moves": matrix, "structure errs": matrix},
        np.array([90.0, 0.05]),
        np.array([45.0, 0.05]),
    )
    drawing = figures.Drawing("crosstalk", "a title", summary)
    stored = json.loads(json.dumps(store.plain(drawing.stored())))
    again = figures.restored(stored).summary
    figure = figures.build_crosstalk({"a": summary, "b": again})
    images = [image for axes in figure.axes for image in axes.images]
    moves, errs = (images[k].get_array() for k in (0, 1))
    np.testing.assert_allclose(moves[0], [1, 1 / 3])
    np.testing.assert_allclose(errs[0], [2, 2 / 3])
    assert moves.mask[1].all()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["90°", "30°", "-", "-"]


# --- stacks of several codes ----------------------------------------------------------


def test_a_stack_with_some_codes_left_to_act():
    like = make_stack(
        ("rot", "bri", "sca"),
        input_side=16,
        image_size=16,
        channels=3,
        options=Options(),
    )
    stack = measuring_stack(("hue", "sca", "bri", "rot"), like)
    assert stack.codes == ("rot", "bri", "sca", "hue")
    draws = stack.draw(jax.random.key(3), 5)
    images = tiny.dataset(5, 1, channels=3).train.images / np.float32(255)
    same = stack.apply(images, stack.only(draws, ()))
    np.testing.assert_array_equal(same, images)
    drawn, alone = stack.structure(draws), stack.structure(stack.only(draws, ("hue",)))
    identity = stack.structure(stack.identity(5))
    np.testing.assert_array_equal(alone["hue"], drawn["hue"])
    for other in ("rot", "bri", "sca"):
        np.testing.assert_array_equal(alone[other], identity[other])
        assert np.abs(np.asarray(drawn[other]) - identity[other]).max() > 0.01
    every = stack.only(draws, stack.codes)
    np.testing.assert_array_equal(
        stack.apply(images, every), stack.apply(images, draws)
    )


def test_a_stack_at_given_values():
    stack = measuring_stack(
        ("rot", "bri", "hue"),
        make_stack((), input_side=16, image_size=16, channels=3, options=Options()),
    )
    values = {name: jnp.linspace(0.1, 0.9, 4) for name in ("bri", "hue")}
    found = stack.structure(stack.params_at(values))
    for name, each in values.items():
        np.testing.assert_allclose(found[name], each, atol=1e-6)
    np.testing.assert_allclose(found["rot"], 0.5)


def test_the_regression_of_crosstalk_reads_the_own_group(run):
    method = trained_run.load_run(run).method
    fits = {
        name: types.SimpleNamespace(values=lambda found, name=name: name)
        for name in ("full", "block_rot", "block_sca")
    }
    for own, expected in (("sca", "block_sca"), ("rot", "block_rot"), ("bri", "full")):
        readers = equivariance._readers(method, code_of(own, channels=1), fits)
        assert readers["regression"]({"full": np.zeros((1, 32))}) == expected
        assert ("structure" in readers) == (own in CODES)
