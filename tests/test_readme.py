"""Every example of the README and of docs/add.md, run as it stands there."""

import contextlib
import functools
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image
from program import TINY
from readme import ADDITIONS, PAGES, block, blocks

from configs import digits_duet_rot
from duet_jax import augmentations, cli, data, figures, profiling
from duet_jax.augmentations import AUGMENTATIONS, Options, geometric, make_stack, stack
from duet_jax.evaluation import EVALUATORS, Evaluator, codes
from duet_jax.loggers import read_rows
from duet_jax.losses import targets
from duet_jax.methods import METHODS, Method
from duet_jax.models import encoders
from duet_jax.models.batch_norm import BatchNorm
from duet_jax.profiling import parts
from duet_jax.training import batches, compiled, plan

# What stands before a block of Python in docs/add.md.
EXAMPLES = (
    "## An augmentation",
    "## A method",
    "## A data set",
    "## A target",
    "## An evaluator",
    "## An experiment",
)


def run(example, module=None):
    """Carries a block out, in a file of its own or at the end of `module`'s.

    Returns what is defined then, by name.
    """
    names = dict(vars(module)) if module else {}
    exec(compile(block(example), f"docs/add.md: {example}", "exec"), names)
    return names


@pytest.fixture
def call(capfd):
    """Runs the program; returns what it has said, of which no line is a warning."""

    def call(*arguments, status=0):
        capfd.readouterr()
        found = cli.main(["main.py", *arguments])
        said = capfd.readouterr()
        assert found == status, said.err
        assert "warning" not in said.err
        return said.out + said.err

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of grey images in three classes: few, so that measuring takes little."""
    root = tmp_path_factory.mktemp("pictures")
    tiny_set = tiny.dataset(24, 9)
    for name in ("train", "test"):
        for i, (image, label) in enumerate(zip(*getattr(tiny_set, name), strict=True)):
            place = root / name / tiny_set.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(place / f"{i}.png")
    caches = tmp_path_factory.mktemp("decoded")
    return (
        "--config.dataset.name=folder",
        f"--config.dataset.path={root}",
        f"--config.dataset.cache_dir={caches}",
    )


class Flat(nnx.Module):
    """Another architecture: a network of one layer, which compiles in no time."""

    # As many as configs/digits_duet_rot.py has.
    num_features = 128

    def __init__(self, in_channels, rngs):
        width = self.num_features
        self.patches = nnx.Conv(in_channels, width, (4, 4), strides=4, rngs=rngs)
        self.norm = BatchNorm(width)

    def __call__(self, images, *, train):
        return self.norm(jnp.mean(self.patches(images), (1, 2)), train=train)


@pytest.fixture
def flat(monkeypatch):
    """Its row; returns the flags that choose it."""
    monkeypatch.setitem(encoders.ENCODERS, "flat", FlatSpec())
    sizes = ("--config.projector.hidden=32", "--config.projector.output=16")
    return ("--config.encoder.name=flat", *sizes)


class FlatSpec(encoders.EncoderSpec):
    """The row of `Flat`."""

    summary = "a network of one layer"
    fields = ()

    def num_features(self, settings):
        return Flat.num_features

    def make(self, settings, rngs):
        return Flat(settings.in_channels, rngs)


def test_every_block_is_an_example():
    assert [block(example) for example in EXAMPLES] == blocks("docs/add.md")


# --- an augmentation ------------------------------------------------------------------


@pytest.fixture
def shift(monkeypatch):
    """The record of docs/add.md, with its row."""
    record = run("## An augmentation", geometric)["SHIFT"]
    monkeypatch.setitem(AUGMENTATIONS, record.code, record)
    # Made of AUGMENTATIONS when the program starts.
    learnable = (*augmentations.LEARNABLE, record.code)
    for module in (augmentations, stack, codes):
        monkeypatch.setattr(module, "LEARNABLE", learnable)
    return record


def test_contracts_of_the_augmentation(shift):
    alone = make_stack(
        (shift.code,), input_side=12, image_size=12, channels=3, options=Options()
    )
    images = np.random.default_rng(0).uniform(size=(40, 12, 12, 3)).astype(np.float32)
    same = alone.apply(images, alone.identity(40))
    np.testing.assert_array_equal(same, images)
    draws = alone.draw(jax.random.key(0), 40)
    (values,) = alone.structure(draws).values()
    assert values.shape == (40,)
    assert values.dtype == jnp.float32
    assert 0 <= values.min() < 0.1
    assert 0.9 < values.max() < 1  # the circle's 1 is its 0
    ((_, frame),) = alone.stages
    back = {shift.stage: shift.scale.params(values, frame)}
    moved = alone.apply(images, back)
    np.testing.assert_array_equal(moved, alone.apply(images, draws))
    columns = shift.scale.parameter(values, frame)
    for image, by, found in zip(images, columns, moved, strict=True):
        np.testing.assert_array_equal(found, np.roll(image, round(float(by)), axis=1))
    assert shift.fields == ()


def test_an_augmentation(shift, flat, pictures, call, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "draw_views", spied(figures.draw_views, seen))
    workdir = f"--workdir={tmp_path / 'run'}"
    said = call(
        *(*TINY, *flat, *pictures, workdir, "--config.batch_size=16"),
        *("--config.augmentation.stack=sca,shi", "--config.learned=shi"),
    )
    assert "sca shi; shi is structure, 8 bins, target von_mises" in said
    ((view1, view2), options) = seen[0]
    assert options["learned"] == ("shi",)
    for view in (view1, view2):
        assert set(view.structure) == {"sca", "shi"}
        assert len(np.unique(view.structure["shi"])) > 2
    with Image.open(tmp_path / "run/figures/views.png") as image:
        image.load()
    call(workdir, "--mode=equivariance", "--measures=basic")
    text = (tmp_path / "run/eval/equivariance.json").read_text()
    found = json.loads(text)["results"]
    assert set(found) == {"shi"}
    assert found["shi"]["unit"] == "columns"
    assert {"marginal", "regression", "shift"} <= set(found["shi"])


def spied(function, seen):
    """The function, which also notes its arguments but for the first."""

    def spy(path, *arguments, **options):
        seen.append((arguments, options))
        return function(path, *arguments, **options)

    return spy


# --- a method -------------------------------------------------------------------------


ALIGNED = ("--config.method=aligned", "--config.augmentation.stack=sca")


@pytest.fixture
def aligned(monkeypatch):
    """The method of docs/add.md, with its row."""
    method = run("## A method")["Aligned"]
    monkeypatch.setitem(METHODS, "aligned", method)
    return method


def test_a_method_is_trained_resumed_and_measured(
    aligned, rank, flat, pictures, call, tmp_path
):
    directory = tmp_path / "run"
    command = (*TINY, *flat, *pictures, f"--workdir={directory}")
    command = (*command, *ALIGNED, "--config.epochs=2")
    call(*command)
    rows = read_rows(directory / "metrics.jsonl")
    for split in ("train", "test"):
        (*_, last) = (row for row in rows if row["split"] == split)
        total = last["nt_xent"] + last["online_loss"] + last["distance"]
        assert last["loss"] == pytest.approx(total, rel=1e-5)
        assert last["distance"] > 0
    # From the checkpoint before the last it goes on to the same end, bit for bit.
    shutil.rmtree(directory / "checkpoints/2")
    call(*command)
    assert (directory / "checkpoints/2").exists()
    assert losses_of(read_rows(directory / "metrics.jsonl")) == losses_of(rows)
    modes = ("linear_probe", "knn", "equivariance", "features", "rank", "report")
    call(f"--workdir={directory}", f"--mode={','.join(modes)}", "--measures=basic")
    for mode in modes:
        found = json.loads((directory / f"eval/{mode}.json").read_text())
        assert found["method"] == "aligned"
        assert found["results"]
    page = (directory / "report.html").read_text()
    assert "aligned on folder" in page
    assert "effective rank" in page


def losses_of(rows):
    return [(row["step"], row["split"], row["loss"]) for row in rows]


def test_a_broken_update_of_a_method(aligned, flat, pictures, call, tmp_path):
    """Left out where that is asked for; and diagnosed, with all that was drawn."""
    directory = tmp_path / "run"
    command = (*TINY, *flat, *pictures, f"--workdir={directory}")
    command = (*command, *ALIGNED, "--config.temperature=1e-300")
    said = call(*command, "--config.on_nonfinite=skip", status=1)
    assert "none of the 1 updates up to step 1 was finite" in said
    said = call(*command, status=1)
    assert "the update of step 0 is not finite: nt_xent=nan" in said
    assert "cannot be computed again" not in said
    found = json.loads((directory / "nonfinite_step_0.json").read_text())
    assert set(found["views"]) == {"first", "second"}
    for view in found["views"].values():
        height = np.array(view["drawn"]["sca"]["height"])
        values = view["structure"]["sca"]
        np.testing.assert_allclose(values, (8 - height) / 7, atol=1e-6)


def test_a_benchmark_of_a_method(aligned, flat):
    """What it compiles, traced: compiling that takes longer than all the rest."""
    config = tiny.config(method="aligned", batch_size=4, encoder__name="flat")
    images = tiny.dataset(8, 4)
    planned = plan.make_plan(config, images.facts)
    assert profiling._operations(planned)["counted"] > 0
    feed = batches.make_feed(planned, images)
    first = next(feed.training(0))
    step, key = jnp.zeros((), jnp.int32), jax.random.key(0)
    batch = jax.eval_shape(feed.pick_train, step, *first)
    views = jax.eval_shape(
        lambda key, images: planned.method.make_views(key, images, train=True),
        *(key, batch.images),
    )
    shapes = compiled.initial_shapes(planned), key, batch, views
    for part in parts.PARTS.values():
        traced = jax.eval_shape(functools.partial(part, planned), *shapes)
        assert traced.shape == ()


def test_what_a_method_may_forget():
    class Whole(Method):
        def loss(self, networks, views, labels, mask, *, train):
            raise NotImplementedError

    for name in ("init", "make_views", "draws", "representations"):
        assert hasattr(Whole, name)
    with pytest.raises(TypeError, match="loss"):
        Method(None)
    for alone in ("make_views", "draws"):
        with pytest.raises(TypeError, match=f"^Torn defines {alone} alone; .* both"):
            type("Torn", (Whole,), {alone: None})


# --- an encoder -----------------------------------------------------------------------


def test_an_encoder(monkeypatch):
    row = re.search(r'`("\w+":\s+ReferenceResNet\([^`]*\))`', ADDITIONS)[1]
    ((name, spec),) = eval(f"{{{row}}}", dict(vars(encoders))).items()
    monkeypatch.setitem(encoders.ENCODERS, name, spec)
    config = tiny.config(encoder__name=name, encoder__width_multiplier=0.125)
    planned = plan.make_plan(config, tiny.dataset(64, 4).facts)
    params = compiled.initial_shapes(planned).params["encoder"]
    convolutions = [x for x in jax.tree.leaves(params) if x.ndim == 4]
    shortcuts = 3
    assert len(convolutions) - shortcuts + 1 == int(re.search(r"\d+$", name)[0])
    features = nnx.eval_shape(
        lambda: planned.method.init(nnx.Rngs(0)).encoder(
            jnp.zeros((2, 16, 16, 1)), train=False
        )
    )
    assert features.shape == (2, encoders.EncoderSettings(name, 1, 0.125).num_features)


# --- the others, in one run -----------------------------------------------------------


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Arrays in the file that the source of docs/add.md reads, which has its row."""
    monkeypatch.setitem(data.SOURCES, "pets", run("## A data set")["find"])
    path = tmp_path / "pets.npz"
    write_pets(path)
    return path


def write_pets(path, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 16), ("test", 5)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 20, 28, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(path, **arrays)


@pytest.fixture
def laplace(monkeypatch):
    """The target of docs/add.md, with its rows."""
    names = run("## A target", targets)
    row = re.search(r'`("laplace": Target\(.*?\))`', ADDITIONS)[1]
    target = eval(f"{{{row}}}", {**vars(targets), **names})["laplace"]
    monkeypatch.setitem(targets.TARGETS, "laplace", target)
    return target.distribution


@pytest.fixture
def rank(monkeypatch):
    """The evaluator of docs/add.md, with its row."""
    row = re.search(r'`("rank": Evaluator\(.*?\))`', ADDITIONS)[1]
    module = types.SimpleNamespace(**run("## An evaluator"))
    names = {"Evaluator": Evaluator, "rank": module}
    monkeypatch.setitem(EVALUATORS, "rank", eval(f"{{{row}}}", names)["rank"])
    monkeypatch.setattr(cli, "MODES", {**cli.MODES, "rank": EVALUATORS["rank"].summary})


def test_the_target(laplace):
    values = jnp.array([0.0, 0.3, 0.5, 0.99])
    found = np.asarray(laplace(values, 8, 0.2))
    assert found.shape == (4, 8)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.argmax(1)[[0, 1, 3]], [0, 2, 7])
    # Of equal bins left of its peak each has the same share of the next.
    share = np.exp(-1 / 8 / 0.2)
    np.testing.assert_allclose(found[3, :6] / found[3, 1:7], share, rtol=0.02)


def test_an_experiment_on_a_data_set_with_a_target_and_an_evaluator(
    pets, laplace, rank, flat, call, tmp_path
):
    experiment = tmp_path / "mine.py"
    experiment.write_text(block("## An experiment"))
    directory = tmp_path / "run"
    of_size = [each for each in TINY if not each.startswith("--config=")]
    command = (
        *(f"--config={experiment}", *of_size, *flat, f"--workdir={directory}"),
        *("--config.dataset.name=pets", f"--config.dataset.path={pets}"),
        "--config.duet.target=laplace",
    )
    said = call(*command, "--mode=train,rank")
    assert "blu is structure, 8 bins, target laplace" in said
    assert "effective rank" in said
    facts = json.loads((directory / "dataset.json").read_text())
    assert facts["class_names"] == ["cat", "dog"]
    assert (facts["num_train"], facts["num_test"], facts["channels"]) == (16, 5, 3)
    config = json.loads((directory / "config.json").read_text())
    assert config["learned"] == "blu"
    assert config["augmentation"]["stack"] == ["sca", "blu"]
    assert set(config["duet"]) >= {"sigma", "target"}
    assert "concentration" not in config["duet"]
    found = json.loads((directory / "eval/rank.json").read_text())
    assert 1 < found["results"]["rank"] <= 5  # as many images
    write_pets(pets, seed=1)
    assert "other images" in call(*command, status=2)


# --- in Python ------------------------------------------------------------------------


class OfAnotherDevice:
    """An array of another library that does not give it away."""

    def __array__(self, *arguments, **options):
        raise TypeError("can't convert cuda:0 device type\nto numpy; use .cpu()")


BAD = {
    "a list": ([1, 2], r"not int64 \[2\]"),
    "nothing": ([], r"not float64 \[0\]"),
    "no image": (np.zeros((0, 16, 16, 1), np.uint8), r"not uint8 \[0, 16, 16, 1\]"),
    "floats": (np.zeros((2, 16, 16, 1)), r"not float64 \[2, 16, 16, 1\]"),
    "floats of JAX": (jnp.zeros((2, 16, 16, 1)), r"not float32 \[2, 16, 16, 1\]"),
    "lists of numbers": (np.zeros((2, 16, 16, 1), int).tolist(), r"not int64 \[2, "),
    "one image": (np.zeros((16, 16, 1), np.uint8), r"not uint8 \[16, 16, 1\]"),
    "another side": (np.zeros((2, 8, 8, 1), np.uint8), r"not uint8 \[2, 8, 8, 1\]"),
    "a number": (7, r"not int64 \[\]"),
    "text": ("images.png", r"not <U10 \[\]"),
    "None": (None, r"not object \[\]"),
    "a key": (jax.random.key(0), r"a PRNGKeyArray\w* that NumPy .*\(TypeError: "),
    "ragged": ([[1], [2, 3]], r"a list that NumPy cannot convert \(ValueError: "),
    "another device": (OfAnotherDevice(), r"an? OfAn.* \(TypeError: .* type to numpy;"),
}


def test_load_run(flat, call, tmp_path):
    assert digits_duet_rot.get_config().encoder.widths[-1] == Flat.num_features
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
    with contextlib.chdir(tmp_path):
        one_update = ("--config.epochs=1", "--config.warmup_epochs=0")
        one_update = (*one_update, "--config.steps_per_epoch=1")
        call(*one_update, *flat, "--noconfig.tensorboard")
        names = {"images": images}
        exec(block("## Use it from Python", "README.md"), names)
    assert block("## A trained run", "docs/api.md") == (
        block("## Use it from Python", "README.md")
    )
    loaded, features = names["run"], names["features"]
    sizes = {"full": 128, "content": 16, "structure": 8}  # the table below the block
    assert {name: x.shape for name, x in features.items()} == {
        name: (5, size) for name, size in sizes.items()
    }
    for name, size in sizes.items():
        row = rf'`"{name}"`.* \| \[n, {size}\] \|'
        assert re.search(row, PAGES["docs/api.md"])
    np.testing.assert_allclose(features["structure"].sum(1), 1, rtol=1e-5)
    for same in (jnp.asarray(images), list(images), memoryview(images)):
        for name, expected in features.items():
            np.testing.assert_array_equal(loaded(same)[name], expected)
    for given, said in BAD.values():
        with pytest.raises(
            ValueError, match=rf"^images must be uint8 .*{said}"
        ) as error:
            loaded(given)
        assert "\n" not in str(error.value)
        assert r"[n, 16, 16, 1], n at least 1, not " in str(error.value)
