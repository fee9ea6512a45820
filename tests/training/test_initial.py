"""Runs that begin with the weights of another one."""

import functools
import json
import logging
import shutil

import jax
import numpy as np
import program
import pytest
import tiny
import torch_files

from duet_jax import cli
from duet_jax.errors import UsageError
from duet_jax.models import torch_weights
from duet_jax.runs import trained_run, weights_file, workdir
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.history import parse_source
from duet_jax.training import compiled, initial, loop, plan, train


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return functools.partial(
        tiny.config,
        steps_per_epoch=1,
        tensorboard=False,
        dataset__cache_dir=str(tmp_path_factory.mktemp("data")),
    )


@pytest.fixture(scope="module")
def original(settings, tmp_path_factory):
    """A run of DUET over two steps, both of them saved."""
    directory = tmp_path_factory.mktemp("runs") / "original"
    train.train(settings(), directory)
    return directory


def planned(config):
    return plan.make_plan(config, tiny.digits(config).facts)


def saved_state(directory, config, step):
    with Checkpoints(directory / "checkpoints", create=False) as saved:
        return saved.restore(compiled.initial_shapes(planned(config)), step)


def first_states(monkeypatch):
    """Collects the states with which trainings begin, as they are on the host."""
    states = []
    run = loop.Loop.run

    def kept(self, state, start):
        states.append(jax.device_get(state))
        run(self, state, start)

    monkeypatch.setattr(loop.Loop, "run", kept)
    return states


def equal(one, other):
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize(("asked", "step"), [("", 2), (":newest", 2), (":1", 1)])
def test_all_networks_of_the_same_method(
    original, settings, tmp_path, monkeypatch, asked, step
):
    states = first_states(monkeypatch)
    config = settings(seed=1, epochs=1)
    train.train(config, tmp_path / "run", init_from=f"{original}{asked}")
    before = saved_state(original, settings(), step)
    (first,) = states
    assert equal(first.params, before.params)
    assert equal(first.batch_stats, before.batch_stats)
    # Neither step nor moments come along.
    drawn = compiled.initial_state(planned(config))
    assert int(first.step) == 0
    assert equal(first.opt_state, drawn.opt_state)
    assert not equal(first.params, drawn.params)
    history = json.loads((tmp_path / "run" / "config.json").read_text())["history"]
    weights = trained_run.load_run(original, step).fingerprint
    assert history == {
        "init_from": {
            "run": str(original),
            "asked": asked.removeprefix(":") or "newest",
            "step": step,
            "weights": weights,
        }
    }
    workdir.load_config(tmp_path / "run")  # by which it is evaluated


def test_the_best_checkpoint(original, settings):
    with Checkpoints(original / "checkpoints", create=False) as saved:
        best = saved.best().step
    weights = initial.load(parse_source(f"{original}:best"), planned(settings()))
    assert weights.origin.step == best


def test_heads_that_do_not_fit_are_told_and_drawn(
    original, settings, tmp_path, monkeypatch, caplog
):
    """SimCLR's projector reads the features, DUET's the content."""
    states = first_states(monkeypatch)
    config = settings(method="simclr", epochs=1)
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.train(config, tmp_path / "run", init_from=str(original))
    told = f"encoder, online_probe of step 2 of {original}; projector initialized anew"
    assert f"weights      {told}" in caplog.messages
    (first,) = states
    drawn = compiled.initial_state(planned(config))
    before = saved_state(original, settings(), 2)
    for name, source in (
        ("encoder", before),
        ("online_probe", before),
        ("projector", drawn),
    ):
        assert equal(first.params[name], source.params[name]), name
    assert equal(first.batch_stats["projector"], drawn.batch_stats["projector"])


def test_a_predictor_is_drawn(original, settings):
    config = settings(method="essl", learned="ron")
    weights = initial.load(parse_source(str(original)), planned(config))
    assert weights.anew == ("predictor", "projector")


def test_it_is_loaded_once(original, settings, tmp_path, monkeypatch):
    """A run that has begun needs its source no longer; the flag is repeated."""
    source = shutil.copytree(original, tmp_path / "source")
    run = functools.partial(train.train, init_from=str(source))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(settings(seed=1), whole)
    save = Checkpoints.save

    def save_and_die(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(settings(seed=1), stopped)
    shutil.rmtree(source)
    run(settings(seed=1), stopped)
    ends = [saved_state(each, settings(seed=1), 2) for each in (whole, stopped)]
    assert equal(*ends)
    assert (stopped / "config.json").read_text() == (whole / "config.json").read_text()
    before = program.snapshot(stopped)
    for other in (None, f"{source}:1", f"{tmp_path}/another"):
        with pytest.raises(UsageError) as refused:
            train.train(settings(seed=1), stopped, init_from=other)
        line = str(refused.value)
        assert f"(init_from: {source}:newest, step 2 -> " in line
        assert "choose another, such as --workdir=" in line
    assert program.snapshot(stopped) == before
    workdir.check(settings(seed=1), stopped, source=parse_source(f"{source}:2"))


def test_the_encoder_of_a_file(original, settings, tmp_path, monkeypatch, caplog):
    """Which the run takes from there once, as from a run."""
    run = trained_run.load_run(original)
    place = tmp_path / "encoder.safetensors"
    about = weights_file.describe(run.config, run.facts, run.step, run.fingerprint)
    arrays = weights_file.named("encoder", *run.encoder.state)
    weights_file.write(place, arrays, about)
    states = first_states(monkeypatch)
    config = settings(seed=1, epochs=1)
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.train(config, tmp_path / "run", init_from=str(place))
    told = f"encoder of {place}; online_probe, projector initialized anew"
    assert f"weights      {told}" in caplog.messages
    before, drawn = (
        saved_state(original, settings(), 2),
        compiled.initial_state(planned(config)),
    )
    assert equal(states[0].params["encoder"], before.params["encoder"])
    assert equal(states[0].batch_stats["encoder"], before.batch_stats["encoder"])
    assert equal(states[0].params["projector"], drawn.params["projector"])
    _, history = workdir.load_history(tmp_path / "run")
    assert history.origin == (str(place), "", 2, run.fingerprint)
    place.unlink()  # which is needed no longer
    train.train(config, tmp_path / "run", init_from=str(place))
    with pytest.raises(UsageError, match=r"\(init_from: /.*tensors, step 2 -> None\)"):
        train.train(config, tmp_path / "run")


def test_all_networks_of_a_state_dict(original, settings, tmp_path):
    """Of a file of PyTorch: with the heads that the reference has."""
    config = settings()
    before = saved_state(original, config, 2)
    content = {
        torch_weights.PREFIXES[network] + name: array
        for network, params in before.params.items()
        for name, array in torch_weights.export_network(
            network, params, before.batch_stats.get(network, {})
        ).items()
    }
    torch_files.save(tmp_path / "weights.pt", {"state_dict": content})
    source = parse_source(str(tmp_path / "weights.pt"))
    weights = initial.load(source, planned(config))
    assert weights.anew == ()
    assert equal(weights.params, before.params)
    assert equal(weights.batch_stats, before.batch_stats)
    wide = settings(encoder__widths=(8, 8, 16, 64))
    with pytest.raises(UsageError, match=r"^--init_from=/.*weights\.pt: weight "):
        initial.load(source, planned(wide))


def test_a_run_that_was_drawn_stays_so(original, settings):
    source = parse_source("elsewhere:best")
    with pytest.raises(UsageError, match=r"\(init_from: None -> /.*/elsewhere:best\)"):
        workdir.check(settings(), original, source=source)


def test_refusals_leave_no_trace(original, settings, tmp_path):
    others = {
        f"{tmp_path}/none": "/none does not exist; name the --workdir of a training",
        f"{tmp_path}/empty": "/empty holds no checkpoint; name the --workdir of a",
        f"{tmp_path}/notes.txt": "/notes.txt is a file; one of weights ends in .safet",
        f"{original}:7": "--step=7 is not a checkpoint of",
        f"{original}:last": "must be the --workdir of a training, <workdir>:<step> wit",
        f"{tmp_path}/none.pt": "/none.pt is not a file; name a file of weights",
        "": "must be the --workdir of a training",
        "gs://b/run": "is an address",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    before = program.snapshot(tmp_path)
    for text, words in others.items():
        with pytest.raises(UsageError) as refused:
            train.train(settings(), tmp_path / "run", init_from=text)
        assert words in str(refused.value)
        assert str(refused.value).startswith("--init_from=")
    wide = settings(encoder__widths=(8, 8, 16, 64))
    with pytest.raises(UsageError, match=r"its encoder .*\(32,\) there and \(64,\) h"):
        train.train(wide, tmp_path / "run", init_from=str(original))
    assert program.snapshot(tmp_path) == before


def test_on_the_command_line():
    arguments = ["main.py", program.SMOKE, "--workdir=auto", "--init_from=runs/a:best"]
    command = cli.parse(arguments)
    assert command.options == {"init_from": "runs/a:best"}
    assert command.workdir.name == "smoke-init_from_a@best"
    with pytest.raises(UsageError, match=r"/a:newest is a run, which --mode=knn takes"):
        cli.parse(["main.py", "--mode=knn", "--workdir=w", "--init_from=a"])
    arguments[3] = "--init_from=a/encoder.pt"
    assert cli.parse(arguments).workdir.name == "smoke-init_from_encoder.pt"
