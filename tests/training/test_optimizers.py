"""Whole runs by other optimizers than AdamW: saved, extended, decoded, told of."""

import functools
import json
import logging
import shutil

import jax
import numpy as np
import pytest
import tiny

from duet_jax import cli, loggers, optim
from duet_jax.runs import trained_run, workdir
from duet_jax.training import decoding, loop, recorder, train

OTHERS = {
    "sgd": {"optimizer__nesterov": True, "optimizer__decay": "all"},
    "lars": {"optimizer__trust_coefficient": 0.01, "optimizer__decay": "weights"},
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_show_views", lambda *_: None)  # of other tests
        patch.setattr(train, "draw_curves", lambda *_: None)
        patch.setattr(recorder, "draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module", params=OTHERS)
def settings(request, tmp_path_factory):
    """Short epochs of batches of 32: linear scaling makes an eighth of the rate."""
    return functools.partial(
        tiny.config,
        method="simclr",
        dataset__image_size=8,
        augmentation__stack=("ccr",),
        dataset__cache_dir=str(tmp_path_factory.mktemp("data")),
        warmup_epochs=0,
        tensorboard=False,
        knn__every=2,
        knn__k=10,
        knn__weights="uniform",
        nt_xent__reduction="mean",
        projector__layers=2,
        projector__norm=False,
        optimizer__name=request.param,
        optimizer__learning_rate=0.8,
        optimizer__scale="linear",
        optimizer__schedule="step",
        **OTHERS[request.param],
    )


def test_a_run_has_its_rates_and_its_momentum(extended, settings):
    config = settings(epochs=4)
    found = tiny.saved_state(extended, config)
    assert int(found.step) == 8
    arrays = [x for x in jax.tree.leaves(found.opt_state) if x.dtype == np.float32]
    params = jax.tree.leaves(found.params)
    assert sorted(x.shape for x in arrays) == sorted(x.shape for x in params)
    assert all(np.abs(x).max() > 0 for x in arrays)
    rows = loggers.read_rows(extended / "metrics.jsonl")
    rates = [row["learning_rate"] for row in rows if row["split"] == "train"]
    cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(rates[:2], 0.1 * cosine.reshape(2, 2).mean(1), rtol=1e-5)
    assert rates[2] > rates[3] > 0
    scored = [row["epoch"] for row in rows if "knn_top1" in row]
    assert scored == [2, 4]
    record = json.loads((extended / "config.json").read_text())["optimizer"]
    common = {"name", "learning_rate", "scale", "schedule"}
    assert {*record} == common | {*optim.fields_read(config.optimizer.name)}


def test_it_continues_to_equal_bits(
    extended, finished, settings, tmp_path, monkeypatch
):
    class StopError(Exception):
        pass

    made, call = [], loop.Loop._train

    def one(self, *arguments):
        if len(made) == 3:  # after the checkpoint of step 6
            raise StopError
        made.append(1)
        return call(self, *arguments)

    config, directory = settings(epochs=4), tmp_path / "run"
    shutil.copytree(finished, directory)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_train", one)
        with pytest.raises(StopError):
            train.train(config, directory, extend=True)
    train.train(config, directory)
    jax.tree.map(
        np.testing.assert_array_equal,
        tiny.saved_state(directory, config),
        tiny.saved_state(extended, config),
    )


def test_its_decoders_are_trained_by_adamw(extended, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(extended, directory)
    words = ["main.py", "--mode=generation", f"--workdir={directory}"]
    words += ["--config.generation.epochs=1", "--config.generation.batch_size=512"]
    config = cli.parse(words).config
    run = trained_run.load_run(directory, config=config)
    made = decoding.train_decoders(run, run.config, tiny.digits(run.config))
    record = json.loads((directory / "generation/config.json").read_text())
    own = record["optimizer"]
    assert (own["name"], own["scale"]) == ("adamw", "none")
    assert not {*own} & {"momentum", "nesterov", "trust_coefficient"}
    (row, *_) = loggers.read_rows(directory / "generation/metrics.jsonl")
    # The whole rate, then half of it.
    assert row["learning_rate"] == pytest.approx(2e-3 * 0.75, rel=1e-5)
    again = decoding.load_decoders(trained_run.load_run(directory))
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)


def test_it_is_measured(extended, tmp_path, capsys, settings):
    directory, name = tmp_path / "run", settings().optimizer.name
    shutil.copytree(extended, directory)
    assert cli.main(["main.py", "--mode=knn", f"--workdir={directory}"]) == 0
    assert "k = 10, one vote each" in capsys.readouterr().out
    stored = json.loads((directory / "eval" / "knn.json").read_text())
    rows = loggers.read_rows(directory / "metrics.jsonl")
    top1 = stored["results"]["representations"]["full"]["top1"]
    assert top1 == pytest.approx(rows[-1]["knn_top1"], abs=1e-6)
    assert stored["settings"]["knn.weights"] == "uniform"
    assert workdir.load_config(directory).optimizer.name == name


def test_the_start_says_how_it_is_trained(extended, settings, caplog):
    caplog.set_level(logging.INFO)
    train.train(settings(epochs=4), extended)
    told = f"{settings().optimizer.name} with learning rate 0.1 after 0"
    assert told in caplog.text
