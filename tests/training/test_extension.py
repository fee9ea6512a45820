"""Runs that go on to more epochs than they were begun with."""

import functools
import json
import logging
import shutil

import jax
import numpy as np
import program
import pytest
import tiny

from duet_jax import cli, loggers
from duet_jax.errors import UsageError
from duet_jax.runs import trained_run, workdir
from duet_jax.runs.history import Extension
from duet_jax.training import loop, plan, train


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return functools.partial(
        tiny.config,
        method="simclr",
        warmup_epochs=0,
        tensorboard=False,
        dataset__cache_dir=str(tmp_path_factory.mktemp("data")),
    )


def assert_equal(one, other, config):
    """Equal bits of the last states, and equal rows of metrics."""
    jax.tree.map(
        np.testing.assert_array_equal,
        tiny.saved_state(one, config),
        tiny.saved_state(other, config),
    )
    rows = [
        [
            {k: v for k, v in row.items() if k != "images_per_second"}
            for row in loggers.read_rows(directory / "metrics.jsonl")
        ]
        for directory in (one, other)
    ]
    assert rows[0] == rows[1]


def stopped(monkeypatch, config, directory, *, after, **options):
    """Trains until that many updates are made by this process."""

    class StopError(Exception):
        pass

    made, call = [], loop.Loop._train

    def one(self, *arguments):
        if len(made) == after:
            raise StopError
        made.append(1)
        return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_train", one)
        with pytest.raises(StopError):
            train.train(config, directory, **options)


def test_an_extended_run_goes_to_its_new_end(extended, finished, settings):
    assert int(tiny.saved_state(extended, settings(epochs=4)).step) == 8
    rows = loggers.read_rows(extended / "metrics.jsonl")
    assert rows[:4] == loggers.read_rows(finished / "metrics.jsonl")
    found = [row["learning_rate"] for row in rows if row["split"] == "train"]
    # Full, half; again half, and half of it.
    np.testing.assert_allclose(found, [4e-4, 2e-4, 2e-4, 1e-4], rtol=1e-6)
    record = json.loads((extended / "config.json").read_text())
    assert record["epochs"] == 4
    assert record["history"] == {"extensions": [{"step": 4, "before": 2, "after": 4}]}
    (line,) = (extended / "changes.jsonl").read_text().splitlines()
    change = json.loads(line)
    assert (change["step"], change["changes"]) == (4, ["epochs: 2 -> 4"])
    assert trained_run.load_run(extended).config.epochs == 4


@pytest.mark.parametrize(("after", "again"), [(0, True), (1, False), (3, False)])
def test_it_continues_to_equal_bits(
    extended, finished, settings, tmp_path, monkeypatch, after, again
):
    """Stopped before its first checkpoint or later; with --extend repeated or not."""
    config, directory = settings(epochs=4), tmp_path / "run"
    shutil.copytree(finished, directory)
    stopped(monkeypatch, config, directory, after=after, extend=True)
    train.train(config, directory, extend=again)
    assert_equal(directory, extended, config)
    assert len((directory / "changes.jsonl").read_text().splitlines()) == 1
    assert (directory / "config.json").read_text() == (
        extended / "config.json"
    ).read_text()


def test_a_stop_between_its_two_records(finished, extended, settings, tmp_path):
    """What changes.jsonl says does not count before config.json says it."""
    directory = shutil.copytree(finished, tmp_path / "run")
    shutil.copy(extended / "changes.jsonl", directory)
    with pytest.raises(UsageError, match=r"\(epochs: 2 -> 4\); add --extend"):
        workdir.check(settings(epochs=4), directory)
    train.train(settings(epochs=4), directory, extend=True)
    assert_equal(directory, extended, settings(epochs=4))


def test_several_extensions(
    extended, finished, settings, tmp_path, monkeypatch, caplog
):
    """Of an unfinished run too."""
    config, directory = settings(epochs=7), tmp_path / "run"
    shutil.copytree(finished, directory)
    stopped(monkeypatch, settings(epochs=4), directory, after=3, extend=True)
    shutil.copytree(directory, tmp_path / "other")
    caplog.clear()
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.train(config, directory, extend=True)
    told = "extended at step 6 from 4 to 7 epochs: a cosine from a learning rate of "
    assert f"schedule     {told}0.0002 to 0 at step 14, without a second warm-up" in (
        caplog.messages
    )
    assert not any(r.levelname == "WARNING" for r in caplog.records)
    rows = loggers.read_rows(directory / "metrics.jsonl")
    found = [row["learning_rate"] for row in rows if row["split"] == "train"]
    falling = 2e-4 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(found[:3], [4e-4, 2e-4, 2e-4], rtol=1e-6)
    np.testing.assert_allclose(found[3:], falling, rtol=1e-5)
    history = workdir.extended(config, directory, 14)
    assert history.extensions == (Extension(4, 2, 4), Extension(6, 4, 7))
    stopped(monkeypatch, config, tmp_path / "other", after=3, extend=True)
    train.train(config, tmp_path / "other")
    assert_equal(tmp_path / "other", directory, config)


def test_in_its_warm_up_it_is_the_longer_run(settings, tmp_path, caplog):
    longer = settings(epochs=3, warmup_epochs=1)
    train.train(longer, tmp_path / "longer")
    directory = tmp_path / "extended"
    train.train(settings(epochs=1, warmup_epochs=1), directory)
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.train(longer, directory, extend=True)
    assert "in the warm-up, so that of the longer run" in caplog.text
    assert_equal(directory, tmp_path / "longer", longer)


def test_a_rate_that_had_fallen_is_told(settings, caplog, tmp_path):
    config = settings(epochs=80)
    run = plan.make_plan(config, tiny.dataset(64, 32).facts)
    run = plan.with_extensions(run, (Extension(80, 40, 80),))
    with caplog.at_level(logging.INFO, "duet_jax"):
        train.summary.start_lines(run, tmp_path, 80)
    (told,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "fallen to 0.15 % of config.optimizer.learning_rate=0.0004: little" in told
    assert "a new run of 80 epochs has a whole schedule" in told


def test_what_is_refused(finished, extended, settings, tmp_path):
    cases = [
        # Without the flag it is said that there is one, where it would do.
        (finished, {"epochs": 3}, False, "(epochs: 2 -> 3); add --extend to train on"),
        (finished, {"epochs": 1}, False, "(epochs: 2 -> 1); choose another, such as"),
        (
            finished,
            {"epochs": 3, "seed": 1},
            False,
            "(epochs: 2 -> 3; seed: 0 -> 1); choose another, such as",
        ),
        (
            finished,
            {"epochs": 3, "seed": 1},
            True,
            "(epochs: 2 -> 3; seed: 0 -> 1); choose another, such as",
        ),
        (extended, {"epochs": 2}, False, "(epochs: 4 -> 2); choose another, such as"),
        (extended, {"epochs": 2}, True, "config.epochs=2 is not more than the 4 of"),
        (finished, {}, True, "config.epochs=2 is not more than the 2 of the run in"),
        (tmp_path / "x", {}, True, f"--extend: {tmp_path / 'x'} holds no run that has"),
    ]
    for directory, changes, extend, words in cases:
        with pytest.raises(UsageError) as refused:
            train.train(settings(**changes), directory, extend=extend)
        assert words in str(refused.value)
        # Every field that alters the run is named in the directory that is offered.
        if "--workdir=" in words:
            assert f"--workdir={directory}-epochs" in str(refused.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "history",
    [
        {"extensions": [{"step": 4, "before": 2, "after": 5}]},
        {"extensions": [{"step": 4, "before": 2}]},
        {"extensions": [{"step": "4", "before": 2, "after": 4}]},
        {"extensions": 3},
        {"init_from": {"run": "/a"}},
        {"init_from": None},
        [],
    ],
)
def test_a_damaged_history(extended, settings, tmp_path, history):
    directory = shutil.copytree(extended, tmp_path / "run")
    record = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(record | {"history": history}))
    before = program.snapshot(directory)
    for call in (
        lambda: workdir.check(settings(epochs=4), directory),
        lambda: workdir.load_config(directory),
    ):
        with pytest.raises(UsageError, match=r"config.json is damaged \(its "):
            call()
    assert program.snapshot(directory) == before


def test_on_the_command_line(capsys):
    options = [
        cli.parse(["main.py", program.SMOKE, *given]).options
        for given in (["--extend"], ["--extend=true"], ["--noextend"], [])
    ]
    assert options == [{"extend": True}, {"extend": True}, {}, {}]
    for arguments, words in (
        (["--extend", "--workdir=auto"], "--extend with --workdir=auto: "),
        (["--extend=3"], "--extend"),
        (["--extend", "--mode=benchmark"], "--extend has no effect with --mode=bench"),
    ):
        with pytest.raises(UsageError) as refused:
            cli.parse(["main.py", program.SMOKE, *arguments])
        assert words in str(refused.value)
