"""Arbitrary input to all that reads: an error of ours in one line, or a sound result.

The cases are the same in every run. What has been found is kept as an example.
"""

import atexit
import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import warnings

import hypothesis
import ml_collections
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import encoded, noise, png
from PIL import Image

from configs import base, smoke
from duet_jax import cli
from duet_jax.config import checks
from duet_jax.data import cache, find_dataset, load_dataset
from duet_jax.data.decoding import decode, is_gray, square
from duet_jax.errors import UsageError
from duet_jax.loggers import JsonLines, read_rows
from duet_jax.loggers.wandb_run import read_credentials
from duet_jax.runs import workdir
from duet_jax.runtime.terminal import printable

# What hypothesis remembers is kept out of the tree.
PLACE = tempfile.TemporaryDirectory()
atexit.register(PLACE.cleanup)
hypothesis.configuration.set_hypothesis_home_dir(PLACE.name)

SMOKE = str(pathlib.Path(smoke.__file__))


def fuzz(count: int):
    """Runs a test on `count` examples that are always the same."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def only_ours():
    """Lets a UsageError of one line pass, and nothing else."""
    try:
        yield
    except UsageError as error:
        line = printable(str(error))
    else:
        line = "fine"
    assert len(line.splitlines()) == 1


@contextlib.contextmanager
def place():
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


# --- the command line -----------------------------------------------------------------

DEFAULTS = dict(checks.fields(smoke.get_config()))
NAMES = st.sampled_from(sorted(DEFAULTS))
ODD = ["", *"0{'\"\0\n\udcff", "-1", "1e999", "nan", "1,2", "1,a", "(1,", "()", "[["]
ODD += ["None", "true", "9" * 5000, "1_0", "0x10", "__import__('os')"]
VALUES = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.integers().map(str))
WRITTEN = st.builds("{}{}={}".format, st.sampled_from(["--", "-"]), NAMES, VALUES)
ARGUMENTS = st.one_of(
    st.builds("--config.{}={}".format, NAMES, VALUES),
    st.builds("--config.{}".format, NAMES),
    st.builds("--noconfig.{}".format, NAMES),
    st.builds("--config.{}{}".format, NAMES, VALUES),
    st.builds("--{}={}".format, st.sampled_from([*cli.FLAGS, "debug"]), VALUES),
    st.sampled_from(["--", "-", "---", "--=", "--config", "--config.", "--no"]),
    st.sampled_from(["--flagfile=/dev/zero", "--undefok=x", "--mode", "--helpfull"]),
    st.sampled_from(["--mode=knn", "--mode=benchmark", "--mode=train"]),
    WRITTEN,
    VALUES,
)


@fuzz(300)
@given(st.lists(ARGUMENTS, max_size=4))
@example(["--flagfile", "/dev/zero"])
@example(["--config.augmentation.crop_area=(0.1,"])
@example(["--config.encoder.width_multiplier=1e300"])
@example(["--config.projector.hidden=" + "9" * 30])
@example(["--workdir=run\udcff"])
def test_command_lines(arguments):
    with only_ours():
        command = cli.parse(["main.py", f"--config={SMOKE}", *arguments])
        assert set(command.modes) <= set(cli.MODES)


@fuzz(100)
@given(st.binary(max_size=60))
@example(b"raise SystemExit")
@example(b"\0")
@example(b"get_config = 3")
@example(b"get_config = lambda: {1: 2}")
@example(b"get_config = lambda: get_config()")
def test_configuration_files(content):
    with place() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file, which is a program
        path = directory / "config.py"
        path.write_bytes(content)
        with only_ours():
            cli.parse(["main.py", f"--config={path}"])


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)
)
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4).map(tuple),
    st.lists(SCALARS, max_size=2),
    st.dictionaries(st.text(max_size=4), SCALARS, max_size=2),
)
# Of the type that is right, and mostly out of range.
LIKE = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(),
    str: st.text(max_size=8) | st.sampled_from(["rot", "fli", "essl"]),
}


def like(default):
    """Values of the type of a field's default."""
    if isinstance(default, tuple):
        return st.lists(LIKE[type(default[0])], max_size=5).map(tuple)
    return LIKE[type(default)]


CHANGES = NAMES.flatmap(lambda name: st.tuples(st.just(name), like(DEFAULTS[name])))


@fuzz(300)
@given(st.lists(CHANGES, max_size=3))
@example([("encoder.width_multiplier", 1e300)])
@example([("dataset.cache_dir", "\0")])
@example([("augmentation.blur_sigma", ())])
def test_fields_of_the_right_type(changes):
    config = smoke.get_config()
    config.update_from_flattened_dict(dict(changes))
    with only_ours():
        checks.check(config, smoke.get_config())


@fuzz(200)
@given(NAMES, ANYTHING)
def test_fields_of_any_type(name, value):
    """As `config.json` and configuration files may have them."""
    config = smoke.get_config()
    try:
        with config.ignore_type():
            config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, ValueError):
        return  # of the file itself
    with only_ours():
        checks.check_schema(config, base.get_config())
        checks.check(config, smoke.get_config())


# --- the records of a run -------------------------------------------------------------

JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["method", "dataset", "name", "a.b", "items", "_x", ""])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
WRITTEN_JSON = JSON.map(lambda value: json.dumps(value).encode())
SMOKE_CONFIG = checks.check(smoke.get_config(), smoke.get_config())
GOOD_CONFIG = json.loads(SMOKE_CONFIG.to_json())
GOOD_FACTS = {
    "name": "folder",
    "side": 8,
    "channels": 3,
    "class_names": ["a", "b"],
    "num_train": 4,
    "num_test": 4,
}


def records(good: dict):
    """Texts of a record: damaged, changed in some fields, or anything."""
    text = json.dumps(good).encode()
    cut = st.integers(0, len(text)).map(lambda end: text[:end])
    some = st.dictionaries(st.sampled_from(sorted(good)) | st.text(max_size=5), JSON)
    changed = some.map(lambda new: json.dumps(good | new).encode())
    return st.one_of(cut, changed, st.binary(max_size=40), WRITTEN_JSON)


def read(name: str, content: bytes, reader):
    with place() as directory:
        (directory / name).write_bytes(content)
        with only_ours():
            return reader(directory)


@fuzz(300)
@given(records(GOOD_CONFIG))
@example(b"[]")
@example(b'[["method", "duet"]]')
@example(b'{"a":' * 2_000)
@example(json.dumps(GOOD_CONFIG | {"items": 1}).encode())
@example(json.dumps(GOOD_CONFIG | {"dataset": 1}).encode())
@example(json.dumps(GOOD_CONFIG | {"": {"": 1}}).encode())
def test_configurations_of_runs(content):
    def reader(directory):
        defaults = workdir.load_config(directory)
        return checks.check(defaults, defaults)

    found = read("config.json", content, reader)
    assert found is None or isinstance(found, ml_collections.ConfigDict)


@fuzz(100)
@given(records(GOOD_CONFIG))
@example(json.dumps(GOOD_CONFIG | {"items": 1}).encode())
@example(b'{"a.b": 1}')
@example(b"[]")
@example(b"[[null, null], [false, null]]")
def test_configurations_of_runs_that_go_on(content):
    def reader(directory):
        (directory / "checkpoints" / "2").mkdir(parents=True)
        workdir.check(SMOKE_CONFIG, directory)

    read("config.json", content, reader)


@fuzz(300)
@given(records(GOOD_FACTS))
@example(b'{"a":' * 2_000)
@example(b'[["name", 1]]')
@example(b"[[null, null]]")
def test_facts_of_runs(content):
    found = read("dataset.json", content, workdir.load_facts)
    if found is not None:
        assert all(isinstance(name, str) for name in found.class_names)


@fuzz(200)
@given(st.binary(max_size=200) | st.lists(WRITTEN_JSON).map(b"\n".join))
@example(b'{"step":' * 2_000)
@example(b'{"step": ' + b"9" * 5000 + b"}")
@example(b'{"step": NaN}\n{"step": "9", "split": "test"}\n{"step": 1e999}')
def test_rows_of_metrics(content):
    def reader(directory):
        path = directory / "metrics.jsonl"
        rows = read_rows(path)
        JsonLines(path, resume_step=3).close()
        assert read_rows(path) == [row for row in rows if row["step"] <= 3]

    read("metrics.jsonl", content, reader)


@fuzz(200)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([*"\n\t -[]{}!&*#|>'\"%@`0:", "WANDB_API_KEY: "]))
    .map("".join)
    .map(str.encode)
)
@example(b"WANDB_API_KEY: 2001-99-99")
@example(b"[" * 2_000)
@example(b"WANDB_API_KEY: 'a\\nb'")
@example(b"WANDB_BASE_URL: http://a:99999999")
@example("WANDB_API_KEY: schlüssel".encode())
def test_credentials(content):
    found = read(".wandb.yaml", content, read_credentials)
    if found is not None:
        assert found.api_key is None or found.api_key.isascii()


# --- images ---------------------------------------------------------------------------

COLOUR, GREY = noise(9, 7, 3), noise(9, 7)
TURNED = Image.Exif()
TURNED[0x0112] = 6
SEEDS = (
    encoded(COLOUR),
    encoded(GREY),
    encoded(COLOUR, mode="P"),
    encoded(noise(9, 7, 4)),
    encoded(GREY.astype(np.uint16) * 257),
    encoded(COLOUR, "JPEG", exif=TURNED),
    encoded(COLOUR, "JPEG", "CMYK"),
    encoded(COLOUR, "BMP"),
    encoded(GREY, "BMP"),
    encoded(COLOUR, save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
    encoded(COLOUR, "GIF", "P"),
    encoded(noise(9, 7, 4), "WEBP", lossless=True),
    encoded(COLOUR, "WEBP", exif=TURNED),
    encoded(COLOUR, "TIFF", exif=TURNED),
    encoded(noise(9, 7, 2), "TIFF", compression="tiff_lzw"),
    encoded(COLOUR, "TIFF", "CMYK", compression="tiff_adobe_deflate"),
    encoded(GREY.astype(np.uint16) * 257, "TIFF"),
    encoded(GREY.astype(np.uint16) * 257, "PPM"),
    b"P2 3 2 300\n0 20 300 # a comment\n 1 2 3\n",
    encoded(COLOUR, "JPEG2000"),
    encoded(COLOUR, "AVIF"),
    encoded(COLOUR, "QOI"),
    encoded(COLOUR, "DIB"),
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 3]), st.binary(max_size=4)),
    max_size=6,
)


def edited(content: bytes, edits) -> bytes:
    """Puts bytes in place of none or some others."""
    data = bytearray(content)
    for where, length, new in edits:
        at = int(where * len(data))
        data[at : at + length] = new
    return bytes(data)


IMAGES = st.builds(edited, st.sampled_from(SEEDS), EDITS) | st.binary(max_size=60)


@fuzz(600)
@given(IMAGES, st.sampled_from([1, 8, 33]))
@example(encoded(noise(1, 50_000)), 224)
@example(encoded(noise(1, 1)), 33)
@example(encoded(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 8)
@example(png(40_000, 40_000, 8, 0, b"\0" * 40_001), 8)
@example(png(0, 1, 8, 0, b""), 8)
def test_images(content, side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `pack` has it
        try:
            image, _ = decode(io.BytesIO(content))
        except Exception:  # reported by the folder, with the file's name
            return
        pixels = square(image, side)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (side, side, 1 if is_gray(io.BytesIO(content)) else 3)


NODES = st.sampled_from(
    ["image", "file", "link", "loop", "up", "over", "pipe", "folder", "empty"]
)
NAMED = st.sampled_from(
    ["a.png", "b.PNG", "c.jpg", ".png", "d", "e.png.txt", "-x.png", "d/a.tif", "d/d/up"]
)
CLASS = st.sampled_from(
    ["cat", "dog", "c\n", "\udcff", ".x", "-rf", "<b>", "e" * 250, "é", "e\u0301"]
)
TREES = st.lists(
    st.tuples(st.sampled_from(["train", "test", ""]), CLASS, NAMED, NODES, IMAGES),
    max_size=14,
)
GOOD_TREE = [
    (split, name, "a.png", "image", SEEDS[0])
    for split in ("train", "test")
    for name in ("cat", "dog")
]


def grow(root: pathlib.Path, tree) -> None:
    """Makes the files of a tree as far as they do not stand in each other's way."""
    for split, name, file, node, content in tree:
        path = root / split / name / file
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue  # to write into a pipe would take for ever
            if node == "image":
                path.write_bytes(content)
            elif node == "file":
                path.write_text("text")
            elif node == "link":
                path.symlink_to(root / "train" / "cat" / "a.png")
            elif node == "loop":
                path.symlink_to(path)
            elif node == "up":
                path.symlink_to("..")
            elif node == "over":
                path.symlink_to(root / "train")
            elif node == "pipe":
                os.mkfifo(path)
            elif node == "folder":
                path.mkdir()


@fuzz(200)
@given(TREES, st.booleans())
@example([*GOOD_TREE, ("train", "cat", "c.jpg", "pipe", b"")], True)
@example([*GOOD_TREE, ("train", "\udcff", "a.png", "image", SEEDS[0])], False)
@example([*GOOD_TREE, ("test", "dog", "c.jpg", "loop", b"")], True)
def test_folders(tree, sound):
    options = {"path": "", "image_size": 8}
    with place() as directory:
        grow(directory / "images", [*GOOD_TREE, *tree] if sound else tree)
        options["path"] = str(directory / "images")
        with only_ours():
            channels = find_dataset("folder", **options).channels
            dataset = load_dataset("folder", **options, cache_dir=str(directory / "c"))
            assert dataset.channels == channels
            for split in (dataset.train, dataset.test):
                assert split.images.shape[1:] == (8, 8, channels)
                assert len(split.labels) == len(split.images) > 0
                assert set(split.labels) <= set(range(len(dataset.class_names)))


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder of data, decoded, and its entry in a cache."""
    place = tmp_path_factory.mktemp("cached")
    grow(place / "images", GOOD_TREE)
    source = find_dataset("folder", path=str(place / "images"), image_size=8).source
    options = {"path": str(place / "images"), "image_size": 8}
    load_dataset("folder", **options, cache_dir=str(place / "cache"))
    return source, cache.entry(str(place / "cache"), "folder", source, 8)


FILES = ("train_images", "train_labels", "test_images", "test_labels")
HEAD = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 8, 8, 3)}"


@fuzz(300)
@given(st.sampled_from(FILES), EDITS)
def test_caches(cached, name, edits):
    source, entry = cached
    with place() as directory:
        shutil.copytree(entry, directory / "entry")
        path = directory / "entry" / f"{name}.npy"
        path.write_bytes(edited(path.read_bytes(), edits))
        found = cache.load(directory / "entry", source, 8)
    if found is not None:
        train, test = found
        assert train.images.shape == (2, 8, 8, 3)
        assert set(train.labels) | set(test.labels) <= {0, 1}


@pytest.mark.parametrize("length", [0, 3, 10**6, 10**15])
def test_a_cache_of_another_length(cached, length, tmp_path):
    source, entry = cached
    shutil.copytree(entry, tmp_path / "entry")
    head = b"\x93NUMPY\1\0v\0" + (HEAD % length).ljust(117).encode() + b"\n"
    (tmp_path / "entry" / "train_images.npy").write_bytes(head + bytes(100))
    assert cache.load(tmp_path / "entry", source, 8) is None
