"""Decoders: trained beside a run that stays as it is, kept, and trained to the end."""

import json
import logging
import os
import shutil

import jax
import jax.export
import numpy as np
import program
import pytest
import safetensors.numpy
import tiny
from program import snapshot

from duet_jax import cli, loggers
from duet_jax.errors import TrainingError, UsageError
from duet_jax.evaluation import control, generation
from duet_jax.runs import trained_run, workdir
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.runs.frozen_encoder import FrozenEncoder
from duet_jax.training import decoding, recorder, train

# Of a run that has not been trained with these settings.
OPTIONS = ("--config.generation.epochs=20", "--config.generation.batch_size=512")
STEPS = 20
# What is measured with the decoders is the matter of other tests.
QUICK = {(control, "STEPS"): 2, (generation, "_TRAINING_IMAGES"): 40}
QUICK |= {(generation, "_TEST_IMAGES"): 8}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in QUICK.items():
            patch.setattr(module, name, value)
        # Other tests look at pictures.
        patch.setattr(train, "_show_views", lambda *_: None)
        patch.setattr(train, "draw_curves", lambda *_: None)
        patch.setattr(recorder, "draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run over two steps, both of them saved."""
    directory = tmp_path_factory.mktemp("runs") / "original"
    settings = {"steps_per_epoch": 1, "tensorboard": False, "figures_every": 9}
    config = tiny.config(dataset__image_size=8, generation__width=2, **settings)
    train.train(config, directory)
    return directory


@pytest.fixture(scope="module")
def decoded(original, tmp_path_factory):
    """The same run, and its decoders."""
    directory = tmp_path_factory.mktemp("runs") / "decoded"
    shutil.copytree(original, directory)
    make(directory)
    return directory


def make(directory, *arguments, step=None):
    """Returns the decoders of the run in `directory`, as the command gets them."""
    words = ["main.py", "--mode=generation", f"--workdir={directory}", *OPTIONS]
    config = cli.parse([*words, *arguments]).config
    run = trained_run.load_run(directory, step, config=config)
    return decoding.train_decoders(run, run.config, tiny.digits(run.config))


def parameters(directory):
    """The parameters of finished decoders."""
    with Checkpoints(directory / "generation/checkpoints", create=False) as saved:
        assert saved.latest_step() == STEPS
    return jax.device_get(make(directory)._params)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def part(like, both):
    """The entries of nested dicts that `like` has as well."""
    return {
        name: part(each, both[name]) if isinstance(each, dict) else both[name]
        for name, each in like.items()
    }


def test_the_encoder_stays_as_it_is(original, decoded):
    run = trained_run.load_run(original)
    before = snapshot(original)
    after = {
        path: content
        for path, content in snapshot(decoded).items()
        if path.parts[0] != "generation"
    }
    assert after == before
    assert trained_run.load_run(decoded).fingerprint == run.fingerprint
    params, stats = run.encoder.state
    both = decoding._merged(params, stats)
    with Checkpoints(decoded / "generation/checkpoints", create=False) as saved:
        names = {path[:2] for path in saved.shapes(STEPS)}
        found = saved.restore_model({}, {"encoder": both})[2]["encoder"]
    assert names == {("params", "decoders"), ("batch_stats", "encoder")}
    own = FrozenEncoder(run.method, batch_size=8)
    own.use(part(params, found), part(stats, found))
    assert own.fingerprint() == run.fingerprint
    history = workdir.load_history(decoded / "generation")[1]
    assert history.origin.weights == run.fingerprint


def test_decoders_learn_and_decode(decoded):
    rows = loggers.read_rows(decoded / "generation/metrics.jsonl")
    losses = [row["loss"] for row in rows if row["split"] == "test"]
    assert losses[-1] < losses[0]
    names = ("full", "content", "structure")
    for row in rows:
        np.testing.assert_allclose(row["loss"], sum(row[f"mse_{n}"] for n in names))
    decoders = make(decoded)
    assert decoders.names == names
    run = trained_run.load_run(decoded)
    given = run(tiny.digits(run.config).test.images[:5])
    for name in names:
        images = decoders(name, given[name])
        assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.float32)
        # Neither the size of a batch nor its padding leaves a trace.
        many = decoders(name, np.concatenate([given[name]] * 120))
        np.testing.assert_allclose(many[595:], images, atol=1e-5)


def test_decoders_are_exported(original, decoded, tmp_path):
    """Those of these weights, whatever settings they were trained with."""
    place = shutil.copytree(decoded, tmp_path / "run")
    options = ["--mode=export", "--format=safetensors,stablehlo"]
    assert cli.main(["main.py", *options, f"--workdir={place}"]) == 0
    run = trained_run.load_run(place)
    found = decoding.load_decoders(run)
    params = parameters(decoded)
    assert equal(jax.device_get(found.params), params)
    images = tiny.digits(run.config).test.images[:3]
    features = run(images)["full"]
    content = (place / "export" / "decoder.stablehlo").read_bytes()
    made = jax.export.deserialize(bytearray(content)).call(features)["images"]
    expected = np.clip(found("full", features) + 0.5, 0, 1)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    arrays = safetensors.numpy.load_file(place / "export" / "decoder.safetensors")
    kernel = params["content"]["expand"]["kernel"]
    np.testing.assert_array_equal(arrays["decoders.content.expand.kernel"], kernel)
    assert {name.split(".")[1] for name in arrays} == {*params}
    # Not of another step, nor where there are none, nor before their end.
    assert decoding.load_decoders(trained_run.load_run(place, 1)) is None
    assert decoding.load_decoders(trained_run.load_run(original)) is None
    shutil.rmtree(place / "generation" / "checkpoints" / str(STEPS))
    assert decoding.load_decoders(run) is None


def test_decoders_are_no_run(decoded):
    with pytest.raises(UsageError, match=rf"decoders of a run.*--workdir={decoded}\."):
        trained_run.load_run(decoded / "generation")


def test_a_batch_that_is_too_large(decoded):
    before = snapshot(decoded)
    with pytest.raises(UsageError, match=r"generation\.batch_size=2000.* most 1442"):
        make(decoded, "--config.generation.batch_size=2000")
    assert snapshot(decoded) == before


def test_decoders_that_are_there_are_taken(decoded, tmp_path, caplog):
    """Also where run and decoders have moved, or the decoders lie elsewhere."""
    expected = parameters(decoded)
    moved = shutil.copytree(decoded, tmp_path / "moved")
    (moved / "generation").rename(tmp_path / "elsewhere")
    (moved / "generation").symlink_to(tmp_path / "elsewhere")
    before = (moved / "generation/metrics.jsonl").read_bytes()
    with caplog.at_level(logging.INFO, "duet_jax"):
        found = make(moved)
    assert equal(jax.device_get(found._params), expected)
    assert f"taken from {moved / 'generation'}" in caplog.text
    assert "compiling" not in caplog.text
    assert (moved / "generation/metrics.jsonl").read_bytes() == before


class StoppedError(Exception):
    """A training begins."""


@pytest.fixture
def stopped(monkeypatch):
    def proceed(*_):
        raise StoppedError

    monkeypatch.setattr(train, "proceed", proceed)


def edited(name, **changes):
    def make(place):
        record = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(record | changes))

    return make


def halved(*patterns):
    def make(place):
        for pattern in patterns:
            for path in place.glob(pattern):
                os.truncate(path, path.stat().st_size // 2)

    return make


def nothing(_):
    pass


DAMAGED = "whose config.json or dataset.json is damaged"
# What has changed since decoders were trained, and what is said of them.
OTHERS = {
    "of another step": (["--step=1"], nothing, "of other weights"),
    "wider": (
        ["--config.generation.width=3"],
        nothing,
        "with other settings (generation.width: 2 -> 3)",
    ),
    "of fewer images": ([], edited("dataset.json", num_train=9), "of other images"),
    "half a configuration": ([], halved("config.json"), DAMAGED),
    "half of what is known of the data": ([], halved("dataset.json"), DAMAGED),
    "damaged": (
        [],
        halved("checkpoints/*/model/_METADATA"),
        "without an intact checkpoint",
    ),
    "without checkpoints": (
        [],
        lambda place: shutil.rmtree(place / "checkpoints"),
        "without an intact checkpoint",
    ),
}


def step_of(arguments):
    """Splits --step off."""
    steps = [each.partition("=")[2] for each in arguments if "--step" in each]
    return [each for each in arguments if "--step" not in each], *(steps or [None])


@pytest.mark.parametrize("case", OTHERS)
def test_other_decoders_are_trained_anew(case, decoded, tmp_path, stopped, caplog):
    arguments, change, reason = OTHERS[case]
    directory = shutil.copytree(decoded, tmp_path / "run")
    change(directory / "generation")
    before = snapshot(directory)
    arguments, step = step_of(arguments)
    with caplog.at_level(logging.INFO, "duet_jax"), pytest.raises(StoppedError):
        make(directory, *arguments, step=step)
    assert f"decoders     {reason} are removed; others are trained" in caplog.text
    left = snapshot(directory / "generation")
    assert {path.name for path in left} == {".lock"}
    after = snapshot(directory).items()
    others = {path: each for path, each in after if path.parts[0] != "generation"}
    assert others.items() <= before.items()


def test_decoders_follow_the_checkpoint(decoded, tmp_path):
    directory = shutil.copytree(decoded, tmp_path / "run")
    earlier = jax.device_get(make(directory, step=1)._params)
    assert not equal(earlier, parameters(decoded))
    history = workdir.load_history(directory / "generation")[1]
    assert (history.origin.run, history.origin.step) == ("..", 1)
    first, newest = (
        trained_run.load_run(directory, step).fingerprint for step in (1, 2)
    )
    assert history.origin.weights == first != newest


def test_what_only_began_is_no_obstacle(original, tmp_path, stopped):
    directory = shutil.copytree(original, tmp_path / "run")
    for name in ("figures", "checkpoints"):
        (directory / "generation" / name).mkdir(parents=True)
    (directory / "generation/.config.json.host_1_1.partial").touch()
    with pytest.raises(StoppedError):
        make(directory)


def _notes(place, _):
    place.mkdir()
    (place / "notes.txt").write_text("mine")


def _run(place, decoded):
    shutil.copytree(decoded, place, ignore=shutil.ignore_patterns("generation"))


def _damaged_run(place, decoded):
    _run(place, decoded)
    halved("config.json")(place)


def _link(place, decoded):
    shutil.copytree(decoded / "generation", place.parent / "elsewhere")
    place.symlink_to("elsewhere")


SOMETHING = "where decoders are to be trained, holds something else; move it"
FOREIGN = {
    "notes": (_notes, SOMETHING),
    "another run": (_run, SOMETHING),
    "another run, damaged": (_damaged_run, SOMETHING),
    "a link": (_link, "is a link to decoders of other weights; remove the link"),
    "a file": (lambda place, _: place.write_text("mine"), "generation cannot be used"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_somebody_elses_stays(case, original, decoded, tmp_path, stopped):
    put, message = FOREIGN[case]
    directory = shutil.copytree(original, tmp_path / "run")
    put(directory / "generation", decoded)
    before = snapshot(directory)
    with pytest.raises(UsageError, match=message):
        make(directory, step=1)
    assert snapshot(directory) == before


def test_decoders_in_training_stay(decoded, tmp_path, monkeypatch):
    """Another process has claimed them, for other settings."""
    directory = shutil.copytree(decoded, tmp_path / "run")
    monkeypatch.setattr(workdir, "is_in_use", lambda _: True)
    before = snapshot(directory / "generation/checkpoints")
    with pytest.raises(UsageError):
        make(directory, "--config.generation.learning_rate=1")
    assert snapshot(directory / "generation/checkpoints") == before


def test_a_rate_that_breaks_the_decoders(decoded, tmp_path, monkeypatch):
    """What the user is told to lower is theirs, and the next command begins anew."""
    directory = shutil.copytree(decoded, tmp_path / "run")
    made = decoding.Reconstruction.loss

    def broken(self, *arguments, **options):
        loss, metrics = made(self, *arguments, **options)
        return loss + np.nan, metrics | {"loss": loss + np.nan}

    monkeypatch.setattr(decoding.Reconstruction, "loss", broken)
    rate = "--config.generation.learning_rate=3"
    with pytest.raises(TrainingError, match=r"lower config\.generation\.learning_rate"):
        make(directory, rate)
    place = directory / "generation"
    found = json.loads((place / "nonfinite_step_0.json").read_text())
    layers = {layer["layer"]: layer for layer in found["layers"]}
    assert "gradient" in layers["decoders.full.output"]
    frozen = [each for name, each in layers.items() if name.startswith("encoder.")]
    assert {key for each in frozen for key in each} == {"layer", "statistics"}
    monkeypatch.setattr(train, "proceed", lambda *_: [].pop())
    with pytest.raises(IndexError):
        make(directory, rate)
    assert {path.name for path in place.iterdir()} == {".lock"}


# --- as a user starts it --------------------------------------------------------------

SENDS = """
import os, signal
from duet_jax.training import loop
train, calls = loop.Loop._train, iter(range(1000))

def counted(self, *arguments):
    if next(calls) == {call}:
        os.kill(os.getpid(), signal.{name})
    return train(self, *arguments)

loop.Loop._train = counted
"""
SHORT = "".join(
    f"from duet_jax.evaluation import control, generation\n"
    f"{module.__name__.rpartition('.')[2]}.{name} = {value}\n"
    for (module, name), value in QUICK.items()
)
COMMAND = ("--mode=generation", "--workdir=run", *OPTIONS)


@pytest.fixture
def place(original, tmp_path):
    """A directory with a run, which has a result."""
    directory = shutil.copytree(original, tmp_path / "run")
    (directory / "eval").mkdir()
    (directory / "eval" / "knn.json").write_text("kept")
    return tmp_path


def test_killed_and_asked_to_end_it_comes_to_the_same_end(place, decoded):
    killed = SENDS.format(call=10, name="SIGKILL")
    done = program.run(*COMMAND, cwd=place, before=SHORT + killed)
    assert done.status == -9
    ended = SENDS.format(call=5, name="SIGTERM")
    done = program.run(*COMMAND, cwd=place, before=SHORT + ended)
    assert done.status == 143, done.lines
    assert "continuing   from the checkpoint of step 8" in done.lines
    assert f"of {STEPS} is saved in run/generation, and the same" in done.lines[-1]
    assert [path.name for path in (place / "run/eval").iterdir()] == ["knn.json"]
    done = program.run(*COMMAND, cwd=place, before=SHORT)
    assert (done.status, done.errors) == (0, [])
    assert any("from the checkpoint of step 1" in line for line in done.lines)
    assert (place / "run/eval/generation.json").exists()
    assert equal(parameters(place / "run"), parameters(decoded))
    whole, parts = (
        loggers.read_rows(directory / "generation/metrics.jsonl")
        for directory in (decoded, place / "run")
    )
    for row in (*whole, *parts):
        row.pop("images_per_second", None)
    assert parts == whole


def test_a_disk_without_room_for_decoders(place):
    options = {"told": 99, "begun": True, "largest_file": 10_000}
    line = program.refusal(*COMMAND, cwd=place, before=SHORT, status=1, **options)
    assert "File too large" in line


def test_a_disk_without_room_for_results(place, decoded):
    shutil.copytree(decoded / "generation", place / "run/generation")
    full = """
import resource
draw = generation._draw_knob

def full(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    return draw(*arguments)

generation._draw_knob = full
"""
    before = snapshot(place / "run/eval")
    done = program.run(*COMMAND, cwd=place, before=SHORT + full)
    assert (done.status, len(done.errors)) == (2, 1), done.lines
    assert "run/eval cannot be written (File too large)" in done.lines[-1]
    assert snapshot(place / "run/eval") == before
