"""Encoders from elsewhere: as good as a run where they are one, refused in one line."""

import functools
import json
import pathlib
import re
import sys
import textwrap

import numpy as np
import onnx_files
import onnxruntime
import pytest
import tiny
from flax import nnx
from program import snapshot
from sklearn import manifold

from duet_jax import cli, equivariance
from duet_jax.data import load_dataset
from duet_jax.errors import UsageError
from duet_jax.evaluation import EVALUATORS
from duet_jax.evaluation.yardsticks import CHANCE, PIXELS
from duet_jax.runs import external, frozen_encoder, onnx_file, trained_run

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"

# Fewer training images, so that measuring takes little.
FEW = "--config.dataset.train_fraction=0.2"

MODULE = """
    import numpy as np

    def features(images):
        assert isinstance(images, np.ndarray) and images.dtype == np.float32
        assert images.flags.writeable
        assert 0 <= images.min() and images.max() <= 1
        return images[:, ::2, ::2].reshape(len(images), -1)

    def jax_features(images):
        import jax.numpy as jnp
        return jnp.asarray(features(images), jnp.bfloat16)

    deep = lambda images: images
    short = lambda images: features(images)[:1]
    words = lambda images: [["a", "b"] for _ in images]
    ragged = lambda images: [[1.0] * n for n, _ in enumerate(images)]
    infinite = lambda images: features(images) / 0.0
    none = lambda images: None

    def fails(images):
        raise KeyError("no\\nweights")

    number = 3
"""


def run(*arguments: str) -> int:
    return cli.main(["main.py", *arguments])


def results(directory: pathlib.Path, mode: str) -> dict:
    return json.loads((directory / "eval" / f"{mode}.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a run, its encoder as a file, other files, and a module."""
    place = tmp_path_factory.mktemp("external")
    options = ["--config.method=simclr", "--config.tensorboard=False"]
    assert run(SMOKE, FEW, f"--workdir={place / 'run'}", *options) == 0
    trained = trained_run.load_run(place / "run")
    graph = frozen_encoder.encoder_shapes(trained.method)[0]

    encoder = nnx.merge(graph, *trained.encoder.state)
    onnx_file.write(place / "encoder.onnx", encoder, ("n", 16, 16, 1), side=16)
    row, gray = {1: 0, 2: 0}, ("n", 16, 16, 1)
    for name, shapes, *wanted in (
        ("fixed", [(5, 16, 16, 1)], {1: slice(7), 2: 3, 3: 0}),
        ("first", [("n", 1, 16, 16)], {1: 0, 2: slice(7), 3: 3}),
        ("two", [gray, gray], row),
        ("outputs", [gray], row, {1: 1, 2: 0}),
        ("deep", [gray], {1: 0}),
        ("flat", [("n", 256, 1)], {1: slice(3), 2: 0}),
        ("large", [("n", 32, 32, 1)], row),
        ("color", [("n", 16, 16, 3)], row),
    ):
        onnx_files.parts(place / f"{name}.onnx", shapes, *wanted)
    (place / "text.onnx").write_text("no encoder")
    (place / "encoder_of_mine.py").write_text(textwrap.dedent(MODULE))
    (place / "broken_of_mine.py").write_text("import nothing_of_mine")
    return place


@pytest.fixture(autouse=True)
def _here(place, monkeypatch):
    """Starts in that directory, where modules are found without being asked for."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "encoder_of_mine", raising=False)


def test_a_file_gives_the_numbers_of_the_run(place, capsys):
    """The same features but for rounding: errors within 1 %, kNN within two images."""
    modes = ["--mode=equivariance,knn", "--measures=actions"]
    assert run(f"--workdir={place / 'run'}", *modes) == 0
    own = capsys.readouterr().out
    other = place / "file"
    options = ["--encoder=onnx:encoder.onnx", f"--workdir={other}"]
    assert run(SMOKE, FEW, *modes, *options) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith("equivariance to")]
    assert len(titles) == 2
    assert set(titles) < set(own.splitlines())
    found, expected = (results(each, "knn") for each in (other, place / "run"))
    assert found["results"]["yardsticks"].keys() == {PIXELS, CHANCE}
    for name in (PIXELS, CHANCE):
        each = expected["results"]["yardsticks"][name]
        assert found["results"]["yardsticks"][name] == each
    representations = (each["results"]["representations"] for each in (found, expected))
    assert_close(*(each["full"]["top1"] for each in representations), 2.1 / 355)
    assert (found["method"], found["step"]) == ("onnx:encoder.onnx", 0)
    found, expected = (results(each, "equivariance") for each in (other, place / "run"))
    for code in ("sca", "rot"):
        each = found["results"][code]
        own = expected["results"][code]
        assert each["yardsticks"] == {k: own["yardsticks"][k] for k in (PIXELS, CHANCE)}
        scores, own = each["regression"]["full"], own["regression"]["full"]
        assert_close(scores["error"], own["error"], 0.01 * own["error"])
        assert_close(scores["r_squared"], own["r_squared"], 0.01)
        ranked, own = (
            each["results"][code]["retrieval"]["predictors"]["linear map"]["mrr"]
            for each in (found, expected)
        )
        assert_close(ranked, own, 0.01)


def assert_close(found: float, expected: float, most: float) -> None:
    assert abs(found - expected) <= most


def test_features_of_a_file(place):
    trained = trained_run.load_run(place / "run")
    images = load_dataset("digits", image_size=16).test.images[:40]
    views = images.astype(np.float32) / 255
    found = external.load("onnx:encoder.onnx").features(views)
    np.testing.assert_allclose(found, trained(images)["full"], atol=1e-5)
    # A batch of one size is padded; and channels may come first.
    for name in ("fixed", "first"):
        found = external.load(f"onnx:{name}.onnx").features(views[:12])
        np.testing.assert_array_equal(found, views[:12, :7, 3, 0])


def test_all_modes_take_a_function(place, tmp_path, capsys, monkeypatch):
    """With a module in the current directory; and a result says what it is of."""
    quick = functools.partial(manifold.TSNE, max_iter=250)
    monkeypatch.setattr(manifold, "TSNE", quick)
    modes = [name for name, each in EVALUATORS.items() if not each.needs_run]
    assert {*EVALUATORS} - {*modes} == {"generation", "export"}
    spec = "--encoder=python:encoder_of_mine:features"
    options = [f"--datasets=folder:{tiny.folder(tmp_path / 'other')}"]
    options += ["--config.augmentation.stack=fli"]
    options += [FEW, f"--workdir={tmp_path}", f"--mode={','.join(modes)}"]
    assert run(SMOKE, spec, *options) == 0
    printed = capsys.readouterr().out
    images = load_dataset("digits", image_size=16).test.images
    expected = images[:, ::2, ::2].reshape(len(images), -1) / np.float32(255)
    with np.load(tmp_path / "eval/features.npz") as file:
        np.testing.assert_allclose(file["test_full"], expected, atol=1e-6)
    for mode in modes:
        found = results(tmp_path, mode)
        assert found["method"] == "python:encoder_of_mine:features"
        for table in found["tables"]:
            assert table["title"] in printed
    page = (tmp_path / "report.html").read_text()
    assert "python:encoder_of_mine:features on digits" in page
    assert "untrained encoder" not in page
    assert not (tmp_path / "config.json").exists()


def test_arrays_give_the_numbers_of_the_program(place, tmp_path):
    """On the same images and views, whatever array the function returns."""
    spec = "--encoder=python:encoder_of_mine:features"
    command = [SMOKE, FEW, "--mode=equivariance", spec, f"--workdir={tmp_path}"]
    command.append("--measures=actions,matrix")
    options = ["--codes=rot,fli", "--config.augmentation.rotation_degrees=90.0"]
    assert run(*command, *options, "--config.seed=3", "--config.knn.k=5") == 2
    assert run(*command, *options, "--config.seed=3") == 0
    stored = results(tmp_path, "equivariance")["results"]
    dataset = load_dataset("digits", image_size=16, train_fraction=0.2)
    train, test = dataset.train.images, dataset.test.images
    module = sys.modules["encoder_of_mine"]
    arguments = {"rotation_degrees": 90.0, "seed": 3, "cache_dir": str(tmp_path)}
    found = equivariance.evaluate(
        module.features,
        train,
        ("rot", "fli"),
        measures=("actions", "matrix"),
        test_images=test,
        **arguments,
    )
    assert found == stored
    assert {*found} == {"rot", "fli", "matrix"}
    assert {row["role"] for row in found["matrix"].values()} == {""}
    halves = np.float32(1) / np.float32(255) * train, test / np.float32(255)
    arguments |= {"test_images": halves[1], "measures": "basic"}
    again = equivariance.evaluate(module.jax_features, halves[0], "rot", **arguments)
    scores, own = (each["rot"]["regression"]["full"] for each in (again, found))
    assert_close(scores["error"], own["error"], 0.03 * own["error"])


def test_arrays_are_split(place):
    """A share is held out, always the same; the encoder sees each image once a code."""
    data = tiny.dataset(60, 0, side=8, channels=3)
    seen = []

    def encode(images):
        seen.append(len(images))
        return images.mean(axis=(1, 2))

    found = equivariance.evaluate(
        encode, data.train.images, "hue", batch_size=16, measures="basic"
    )
    assert 2 <= found["hue"]["images"] <= 12
    assert {*seen} <= {2, 4, 8, 16}  # tried on two; else powers of two
    half = equivariance.evaluate(
        encode, data.train.images, "hue", holdout=0.5, measures="basic"
    )
    assert 20 <= half["hue"]["images"] <= 40
    # Of larger images the center is taken.
    padded = np.pad(data.train.images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    again = equivariance.evaluate(
        encode, padded, "hue", image_size=8, batch_size=16, measures="basic"
    )
    assert again["hue"]["regression"] == found["hue"]["regression"]


def test_the_call_in_the_documentation():
    text = (ROOT / "docs" / "encoders.md").read_text()
    (call,) = re.findall(r"```python\n(from duet_jax.*?)```", text, re.DOTALL)
    images = tiny.dataset(40, 0, side=8, channels=3).train.images
    names = {"encoder": lambda x: x.mean(axis=1).reshape(len(x), -1), "images": images}
    exec(compile(call, "docs/encoders.md", "exec"), names)
    assert 0 < names["degrees"] < 180


class Tensor:
    """What PyTorch's tensors have: NumPy takes them only where they are bare."""

    def __init__(self, array, done=()):
        self.array, self.done = array, done

    def detach(self):
        return Tensor(self.array, (*self.done, "detach"))

    def cpu(self):
        return Tensor(self.array, (*self.done, "cpu"))

    def float(self):
        return Tensor(self.array, (*self.done, "float"))

    def __array__(self, dtype=None, copy=None):
        assert self.done == ("detach", "cpu", "float")
        return self.array


def test_what_looks_like_a_tensor_of_torch():
    images = np.ones((3, 8, 8, 1), np.float32)
    found = external.External("it", lambda x: Tensor(x[:, :, 0, 0])).features(images)
    np.testing.assert_array_equal(found, images[:, :, 0, 0])


def test_a_tensor_of_torch(place):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
    images = tiny.dataset(40, 0, side=8, channels=3).train.images

    def encode(images):
        return layer(torch.from_numpy(images).permute(0, 3, 1, 2))

    def plain(images):
        return encode(images).detach().numpy()

    found, expected = (
        equivariance.evaluate(each, images, "rot", measures="basic")
        for each in (encode, plain)
    )
    assert found == expected


def loaded(*arguments: str) -> trained_run.Run:
    """The run that stands for the encoder of a command line."""
    command = cli.parse(["main.py", SMOKE, "--mode=knn", "--workdir=new", *arguments])
    facts = load_dataset("digits", image_size=16).facts
    found = external.load(command.options["encoder"])
    return trained_run.external_run(
        found, command.config, facts, command.workdir, name="it"
    )


def test_a_function_is_given_values_from_0_to_1(place):
    """Although rounding can take a view past an end; it asserts so itself."""
    encoder = loaded("--encoder=python:encoder_of_mine:features").encoder
    views = np.linspace(-0.5000002, 0.5000002, 512, dtype=np.float32)
    found = encoder.of_views(views.reshape(2, 16, 16, 1))["full"]
    assert found.shape == (2, 64)
    assert found.min() == 0


def test_what_a_result_depends_on(place, monkeypatch):
    spec = "--encoder=python:encoder_of_mine:features"
    first = loaded(spec)
    assert not hasattr(first.encoder, "differentiable")
    same = ["--config.batch_size=16", "--config.knn.k=3", "--config.device=cpu"]
    assert loaded(spec, *same).fingerprint == first.fingerprint
    others = {
        loaded(spec, option).fingerprint
        for option in (
            "--config.seed=1",
            "--config.dataset.train_fraction=0.5",
            "--config.augmentation.stack=rot",
            "--config.augmentation.rotation_degrees=20.0",
        )
    }
    others.add(loaded("--encoder=python:encoder_of_mine:jax_features").fingerprint)
    others.add(loaded("--encoder=onnx:encoder.onnx").fingerprint)
    path = place / "encoder_of_mine.py"
    text = path.read_text()
    path.write_text(f"{text}\n# changed\n")
    others.add(loaded(spec).fingerprint)
    path.write_text(text)
    assert len(others | {first.fingerprint}) == 8
    (place / "copy.onnx").write_bytes((place / "encoder.onnx").read_bytes())
    digests = {external.load(f"onnx:{x}.onnx").digest for x in ("copy", "encoder")}
    assert len(digests) == 1


def test_the_weights_beside_a_file_count(tmp_path):
    name = f"{'w' * 150}.data"
    entry = b"\x0a\x08location\x12\x9b\x01" + name.encode()
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01" + entry + b"\x00")

    def digest():
        return external._hash(*external._contents(tmp_path / "model.onnx"))

    found = {digest()}
    for content in (b"a", b"b"):
        (tmp_path / name).write_bytes(content)
        found.add(digest())
    (tmp_path / "other").write_bytes(b"c")
    assert digest() in found
    assert len(found) == 3


MINE = "--encoder=python:encoder_of_mine"
REFUSED = {
    "no kind": (["--encoder=x"], "write --encoder=onnx:<file> or --encoder=python:"),
    "another kind": (["--encoder=tf:x"], "--encoder=tf:x names no encoder"),
    "nothing": (["--encoder=onnx:"], "--encoder=onnx: names no encoder"),
    "no file": (["--encoder=onnx:no.onnx"], "no.onnx is not a file"),
    "an address": (["--encoder=onnx:gs://a/b"], "--encoder: onnx=gs://a/b is an addr"),
    "a text": (["--encoder=onnx:text.onnx"], "cannot be read as ONNX"),
    "two inputs": (["--encoder=onnx:two.onnx"], "must take one batch of images and"),
    "two outputs": (["--encoder=onnx:outputs.onnx"], "return one of features"),
    "rank 3": (["--encoder=onnx:deep.onnx"], "it must return features [n, d]"),
    "rank 2": (["--encoder=onnx:flat.onnx"], "takes tensor(float) ['n', 256, 1]; it"),
    "a side": (["--encoder=onnx:large.onnx"], "set config.dataset.image_size to its"),
    "channels": (["--encoder=onnx:color.onnx"], "and these are [n, 16, 16, 1]"),
    "no module": (["--encoder=python:of_nobody:f"], "no module 'of_nobody' in"),
    "a module": (["--encoder=python:encoder_of_mine"], "write --encoder=python:<mod"),
    "a path": (["--encoder=python:a/b.py:f"], "write --encoder=python:a.b:f, such as"),
    "broken": (["--encoder=python:broken_of_mine:f"], "ModuleNotFoundError: No module"),
    "no function": ([f"{MINE}:feature"], "no function feature; it has features, "),
    "a number": ([f"{MINE}:number"], "has no function number"),
    "an image": ([f"{MINE}:deep"], "float32 [2, 16, 16, 1] for float32 images [2, 16"),
    "one row": ([f"{MINE}:short"], "returns float32 [1, 64] for float32 images [2, "),
    "words": ([f"{MINE}:words"], "returns <U1; it must return real numbers"),
    "ragged": ([f"{MINE}:ragged"], "fails on float32 images [2, 16, 16, 1] in [0, 1]"),
    "infinite": ([f"{MINE}:infinite"], "returns features that are not finite"),
    "none": ([f"{MINE}:none"], "returns object [] for float32 images"),
    "fails": ([f"{MINE}:fails"], "(KeyError: 'no\\nweights'); it must return"),
    "training": ([f"{MINE}:features", "--mode=train"], "no effect with --mode=train"),
    "no mode": (
        [f"{MINE}:features", "--mode=train,knn"],
        "--mode=train takes a run of",
    ),
    "decoders": ([f"{MINE}:features", "--mode=generation"], "with --mode=generation"),
    "and decoders": (
        [f"{MINE}:features", "--mode=knn,generation"],
        "--mode=generation takes a run of this program only; choose from linear_probe,",
    ),
    "compared": ([f"{MINE}:features", "--mode=compare"], "with --mode=compare; it "),
    "a step": ([f"{MINE}:features", "--step=3"], "--step=3 has no effect with --enc"),
    "no place": ([f"{MINE}:features", "--workdir=auto"], "--encoder needs --workdir"),
    "a run": ([f"{MINE}:features", "--workdir=run"], "--workdir=run holds a run, who"),
    "a method": (
        [f"{MINE}:features", "--config.method=duet"],
        "config.method has no effect with --encoder, or this evaluation does not read",
    ),
    "another probe": (
        [f"{MINE}:features", "--config.linear_probe.epochs=3"],
        "config.linear_probe.epochs has no effect with --encoder",
    ),
    "an idle option": (
        [f"{MINE}:features", "--config.augmentation.blur_sigma=1.0,2.0"],
        "config.augmentation.blur_sigma has no effect with config.augmentation.stack",
    ),
    "colors": (
        [
            *(f"{MINE}:features", "--mode=equivariance", "--codes=hue"),
            "--config.augmentation.jitter_strength=0.4,0.4,0.4,0.5",
        ],
        "--codes='hue': hue (shift of the hue) needs images with 3 channels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_refusals(case, place, capfd):
    arguments, message = REFUSED[case]
    before = {k: v for k, v in snapshot(place).items() if "__pycache__" not in k.parts}
    defaults = [SMOKE, "--mode=knn", "--workdir=new"]
    if "--mode=compare" in arguments:
        defaults = []
    assert run(*defaults, *arguments) == 2
    (line,) = (x for x in capfd.readouterr().err.splitlines() if "error: " in x)
    assert message in line
    assert line.endswith((".", "?"))
    after = {k: v for k, v in snapshot(place).items() if "__pycache__" not in k.parts}
    assert after == before


def test_a_missing_package_is_named(place, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(SMOKE, "--mode=knn", "--workdir=new", "--encoder=onnx:encoder.onnx") == 2
    assert "not installed: pip install onnxruntime" in capfd.readouterr().err
    assert onnxruntime.__version__  # only hidden


IMAGES = np.zeros((12, 8, 8, 3), np.uint8)
REFUSED_ARRAYS = {
    "not square": ({"images": IMAGES[:, :7]}, "images [12, 7, 8, 3] must be [n, side,"),
    "channels first": ({"images": IMAGES.swapaxes(1, 3)}, "move the channels to the"),
    "centered": ({"images": IMAGES - 0.5}, "float64 from -0.5 to -0.5 must be uint8"),
    "not finite": ({"images": IMAGES + np.nan}, "float64 from nan to nan must be"),
    "integers": ({"images": IMAGES.astype(int)}, "images of int64 from 0 to 0 must be"),
    "one": ({"images": IMAGES[:1]}, "images holds one; give two or more"),
    "another side": (
        {"test_images": np.zeros((3, 9, 9, 3))},
        "test_images [3, 9, 9, 3",
    ),
    "no code": ({"codes": ()}, "--codes='' names no augmentation"),
    "a code": ({"codes": ("rot", "huee")}, "--codes='huee' is not known"),
    "an option": (
        {"rotation": 3},
        "rotation is no option of rot,hue; choose from jitter",
    ),
    "no option": ({"codes": "fli", "flip_probability": 1.0}, "leave it out."),
    "a range": ({"rotation_degrees": 400.0}, "rotation_degrees=400.0 must lie in (0,"),
    "a type": ({"rotation_degrees": "x"}, "rotation_degrees='x' must be a number"),
    "a seed": ({"seed": 0.5}, "seed=0.5 must be a whole number"),
    "a size": ({"image_size": 9}, "image_size=9 is more than 8, the side of the"),
    "no share": (
        {"holdout": 0.5, "test_images": IMAGES},
        "holdout=0.5 has no effect with test_images",
    ),
    "a share": ({"holdout": 1.0}, "holdout=1.0 must be above 0, below 1"),
    "gray": ({"images": IMAGES[..., :1]}, "hue (shift of the hue) needs images with 3"),
    "no function": ({"encoder": None}, "'NoneType' object is not callable"),
    "a shape": ({"encoder": lambda x: x}, "encoder returns float32 [2, 8, 8, 3] for"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_refusals_of_arrays(case):
    changes, message = REFUSED_ARRAYS[case]
    good = {"encoder": lambda x: x.mean(axis=(1, 2)), "images": IMAGES}
    with pytest.raises(UsageError) as error:
        equivariance.evaluate(**good | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
