"""Images as users have them: without labels or test images, in lists and arrays."""

import io
import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from duet_jax.data import find_dataset, load_dataset
from duet_jax.data.decoding import in_channels
from duet_jax.data.source import held_out
from duet_jax.errors import UsageError

SIDE = 8


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(logging.getLogger("duet_jax"), "propagate", True)
    caplog.set_level(logging.INFO, logger="duet_jax")


def pixels(number: int, *, channels: int = 3) -> np.ndarray:
    """An image that no other number has."""
    shape = (SIDE, SIDE, 3) if channels == 3 else (SIDE, SIDE)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def save(path, number: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, **options)).save(path)


def load(name, path, **options):
    return load_dataset(name, path=str(path), image_size=SIDE, **options)


def refused(name, path, **options) -> str:
    with pytest.raises(UsageError) as caught:
        load(name, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.dataset.")
    return message


def contents(split) -> list[tuple[bytes, int]]:
    return [
        (image.tobytes(), label)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]


def streamed_alike(name, path, dataset, **options) -> None:
    """Reading image by image gives the same examples in the same order."""
    stream = find_dataset(name, path=str(path), image_size=SIDE, **options).stream()
    count = len(dataset.train.labels) + len(dataset.test.labels)
    read = stream.read(np.arange(count))
    assert contents(read) == contents(dataset.train) + contents(dataset.test)
    assert stream.facts == dataset.facts


@pytest.fixture
def flat(tmp_path):
    """Forty images in one folder."""
    for number in range(40):
        save(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


# Held-out images.


def test_the_name_decides_what_is_held_out():
    names = [f"photos/{number}.jpg" for number in range(10_000)]
    held = held_out(names, 0.1)
    assert 900 < held.sum() < 1100
    fewer = held_out(names[::3], 0.1)
    np.testing.assert_array_equal(fewer, held[::3])
    more = held_out(names, 0.2)
    assert (more | ~held).all()
    assert 1850 < more.sum() < 2150
    assert held_out(["a", "b", "c"], 0.1).tolist() == [False, False, True]


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_both_splits_have_an_image(share):
    held = held_out([str(number) for number in range(9)], share)
    assert held.any()
    assert not held.all()


def test_a_set_without_test_images(flat):
    dataset = load("images", flat, holdout=0.25)
    train, test = contents(dataset.train), contents(dataset.test)
    assert sorted(train + test) == sorted((pixels(n).tobytes(), -1) for n in range(40))
    assert len(test) == 13
    names = sorted(f"{number}.png" for number in range(40))
    held = {name for name, out in zip(names, held_out(names, 0.25), strict=True) if out}
    assert set(dataset.files[-13:]) == held
    assert dict(zip(dataset.files, train + test, strict=True))["7.png"] == (
        pixels(7).tobytes(),
        -1,
    )
    streamed_alike("images", flat, dataset, holdout=0.25)

    assert load("images", flat, holdout=0.25).files == dataset.files  # from the cache
    assert len(load("images", flat, holdout=0.5).test.labels) > 13  # from the same
    half = load("images", flat, holdout=0.25, train_fraction=0.5)
    assert (len(half.train.labels), len(half.test.labels)) == (14, 13)
    assert half.files[-13:] == dataset.files[-13:]


def test_classes_without_test_images(tmp_path):
    for number in range(40):
        name = ("cat", "dog")[number % 2]
        save(tmp_path / "pets" / name / f"{number}.png", number)
    dataset = load("folder", tmp_path / "pets", holdout=0.3)
    assert dataset.class_names == ("cat", "dog")
    found = contents(dataset.train) + contents(dataset.test)
    assert sorted(found) == sorted((pixels(n).tobytes(), n % 2) for n in range(40))
    assert 5 < len(dataset.test.labels) < 20
    streamed_alike("folder", tmp_path / "pets", dataset, holdout=0.3)


@pytest.mark.parametrize("test", ["test", "Testing", "val", "valid", "validation"])
def test_names_of_the_splits(tmp_path, test):
    for split, start in (("Training", 0), (test, 10)):
        for number in range(4):
            name = ("cat", "dog")[number % 2]
            save(tmp_path / "pets" / split / name / f"{number}.png", start + number)
    dataset = load("folder", tmp_path / "pets")
    assert len(dataset.train.labels) == len(dataset.test.labels) == 4
    assert dataset.files[4] == f"{test}/cat/0.png"


def test_a_second_test_split_is_told(tmp_path, caplog):
    for number, split in enumerate(("train", "test", "Val")):
        for name in ("cat", "dog"):
            save(tmp_path / "pets" / split / name / "1.png", number)
    dataset = load("folder", tmp_path / "pets")
    assert [file.partition("/")[0] for file in dataset.files[2:]] == ["test"] * 2
    assert "pets: left out Val: test is there" in caplog.text


def test_training_images_alone(tmp_path):
    for number in range(20):
        save(tmp_path / "pets/train" / f"{number % 2}" / f"{number}.png", number)
    save(tmp_path / "pets/notes/1.png", 99)
    dataset = load("folder", tmp_path / "pets")
    assert dataset.class_names == ("0", "1")
    assert len(dataset.files) == 20


# Images without labels.


def test_a_tree_of_images(tmp_path, caplog):
    places = ["1.png", "b/2.png", "b/c/d/3.png", "a/4.PNG"]
    for number, place in enumerate(places):
        save(tmp_path / "tree" / place, number)
    (tmp_path / "tree/b/notes.txt").touch()
    dataset = load("images", tmp_path / "tree")
    assert sorted(dataset.files) == sorted(places)
    assert dataset.class_names == ()
    assert dataset.facts.num_classes == 0
    assert {*dataset.train.labels, *dataset.test.labels} == {-1}
    assert "1 file was left out: 1 of other types (b/notes.txt)" in caplog.text
    assert "no labels" in caplog.text


def test_a_tree_with_splits(tmp_path):
    for number in range(3):
        save(tmp_path / "tree/train/x" / f"{number}.png", number)
        save(tmp_path / "tree/val" / f"{number}.png", 10 + number)
    save(tmp_path / "tree/other.png", 20)
    dataset = load("images", tmp_path / "tree")
    assert [len(dataset.train.labels), len(dataset.test.labels)] == [3, 3]
    assert dataset.files[3:] == ("val/0.png", "val/1.png", "val/2.png")


def test_a_single_class_is_no_label(tmp_path, caplog):
    for number in range(20):
        save(tmp_path / "pets/cat" / f"{number}.png", number)
    dataset = load("folder", tmp_path / "pets")
    assert dataset.class_names == ()
    assert set(dataset.train.labels) == {-1}
    assert "one class, cat: no labels" in caplog.text
    streamed_alike("folder", tmp_path / "pets", dataset)


def test_a_list_of_paths(flat, tmp_path, caplog):
    lines = ["# mine", "photos/3.png", "", str(flat / "5.png"), "photos/4.png  "]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    dataset = load("images", tmp_path / "list.txt", holdout=0.4)
    expected = {
        "photos/3.png": pixels(3),
        str(flat / "5.png"): pixels(5),
        "photos/4.png": pixels(4),
    }
    found = np.concatenate([dataset.train.images, dataset.test.images])
    assert set(dataset.files) == set(expected)
    for name, image in zip(dataset.files, found, strict=True):
        np.testing.assert_array_equal(image, expected[name])
    assert f"from {tmp_path / 'list.txt'}" in caplog.text
    streamed_alike("images", tmp_path / "list.txt", dataset, holdout=0.4)


# Tables.


def table(path, rows, *, header="path,label", between=",") -> None:
    lines = [header, *rows]
    path.write_text("\n".join(line.replace(",", between) for line in lines))


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_labels_from_a_table(flat, tmp_path, between):
    rows = [f"photos/{n}.png,{n % 12}" for n in range(40)]
    table(tmp_path / "labels.csv", rows, between=between)
    dataset = load("csv", tmp_path / "labels.csv")
    assert dataset.class_names == tuple(map(str, range(12)))
    found = contents(dataset.train) + contents(dataset.test)
    assert sorted(found) == sorted((pixels(n).tobytes(), n % 12) for n in range(40))
    streamed_alike("csv", tmp_path / "labels.csv", dataset)


def test_splits_and_words_in_a_table(flat, tmp_path, caplog):
    rows = [
        f"{('train', 'val', 'test')[n % 3]},{('owl', 'bat')[n % 2]},photos/{n}.png"
        for n in range(12)
    ]
    table(tmp_path / "t.csv", rows, header="split,class,file_name")
    dataset = load("csv", tmp_path / "t.csv")
    assert dataset.class_names == ("bat", "owl")
    label = {0: 1, 1: 0}
    assert contents(dataset.train) == [
        (pixels(n).tobytes(), label[n % 2]) for n in (0, 3, 6, 9)
    ]
    assert contents(dataset.test) == [
        (pixels(n).tobytes(), label[n % 2]) for n in (2, 5, 8, 11)
    ]
    assert "t.csv: left out val: test is there" in caplog.text


def test_a_table_without_labels(flat, tmp_path):
    table(tmp_path / "t.csv", [f"photos/{n}.png" for n in range(9)], header="path")
    assert load("csv", tmp_path / "t.csv").class_names == ()


def test_other_labels_are_another_set(flat, tmp_path):
    names = [f"photos/{n}.png" for n in range(9)]
    identities = []
    for labels in ("ab", "ba"):
        rows = [f"{name},{labels[n % 2]}" for n, name in enumerate(names)]
        table(tmp_path / "t.csv", rows)
        dataset = load("csv", tmp_path / "t.csv")
        identities.append(dataset.facts.identity)
        by_name = dict(
            zip(
                dataset.files,
                [*dataset.train.labels, *dataset.test.labels],
                strict=True,
            )
        )
        assert by_name["photos/0.png"] == "ab".index(labels[0])
    assert identities[0] != identities[1]


# Arrays.


IMAGES = np.stack([pixels(number) for number in range(40)])
LABELS = np.arange(40) % 3


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": IMAGES}, ((), 38, 2)),
        ({"images": IMAGES, "labels": LABELS}, (("0", "1", "2"), 38, 2)),
        (
            {
                "x_train": IMAGES[:30],
                "y_train": LABELS[:30],
                "x_test": IMAGES[30:],
                "y_test": LABELS[30:],
            },
            (("0", "1", "2"), 30, 10),
        ),
        (
            {
                "train_images": IMAGES[:20],
                "train_labels": LABELS[:20, None],
                "val_images": IMAGES[20:25],
                "val_labels": LABELS[20:25, None],
                "test_images": IMAGES[25:],
                "test_labels": LABELS[25:, None],
                "class_names": np.array(["x", "y", "z"]),
            },
            (("x", "y", "z"), 20, 15),
        ),
        (
            {"images": IMAGES, "labels": np.array(["b", "a"])[LABELS % 2]},
            (("a", "b"), 38, 2),
        ),
    ],
    ids=["images", "labels", "keras", "medmnist", "words"],
)
def test_arrays(tmp_path, arrays, expected, caplog):
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = load("npz", tmp_path / "set.npz")
    unused = "set.npz: left out val_images: test_images is there"
    assert (unused in caplog.text) == ("val_images" in arrays)
    counts = len(dataset.train.labels), len(dataset.test.labels)
    assert (dataset.class_names, *counts) == expected
    labels = arrays.get("labels", LABELS)
    for image, label in contents(dataset.train) + contents(dataset.test):
        number = next(n for n in range(40) if pixels(n).tobytes() == image)
        if dataset.class_names == ("x", "y", "z"):
            assert label == LABELS[number]
        elif dataset.class_names:
            assert dataset.class_names[label] == str(labels[number])


def test_gray_arrays(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=IMAGES[..., :1])
    dataset = load("npz", tmp_path / "set.npz")
    assert dataset.train.images.shape == (38, SIDE, SIDE, 1)
    color = load("npz", tmp_path / "set.npz", channels=3)
    np.testing.assert_array_equal(
        color.train.images, dataset.train.images.repeat(3, axis=3)
    )


# Parquet files.


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, numbers, *, labels=True, names=None, struct=True) -> None:
    """Writes a file as the `datasets` library does."""
    images = [encoded(pixels(n)) for n in numbers]
    columns = {
        "img": [{"bytes": i, "path": None} for i in images] if struct else images
    }
    if labels:
        columns["label"] = [n % 3 for n in numbers] if labels is True else labels
    found = pa.table(columns)
    if names:
        features = {
            "img": {"_type": "Image"},
            "label": {"names": names, "_type": "ClassLabel"},
        }
        about = json.dumps({"info": {"features": features}})
        found = found.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path, row_group_size=7)


def test_parquet_as_on_the_hub(tmp_path):
    names, data = ["owl", "bat", "cat"], tmp_path / "set/data"
    write_parquet(data / "train-00000-of-00002.parquet", range(10), names=names)
    write_parquet(data / "train-00001-of-00002.parquet", range(10, 30), names=names)
    write_parquet(data / "test-00000-of-00001.parquet", range(30, 40), names=names)
    dataset = load("parquet", tmp_path / "set")
    assert dataset.class_names == ("owl", "bat", "cat")
    expected = [(pixels(n).tobytes(), n % 3) for n in range(40)]
    assert contents(dataset.train) == expected[:30]
    assert contents(dataset.test) == expected[30:]
    message = "cannot be streamed: .* is not in a format with random access"
    with pytest.raises(UsageError, match=message):
        find_dataset("parquet", path=str(tmp_path / "set"), image_size=SIDE).stream()


def test_parquet_with_withheld_test_labels(tmp_path, caplog):
    write_parquet(tmp_path / "set/train/0000.parquet", range(10))
    write_parquet(tmp_path / "set/test/0000.parquet", range(10, 14), labels=[-1] * 4)
    write_parquet(tmp_path / "set/validation/0000.parquet", range(20, 26))
    dataset = load("parquet", tmp_path / "set")
    assert contents(dataset.test) == [
        (pixels(n).tobytes(), n % 3) for n in range(20, 26)
    ]
    assert "set: left out test: validation is there" in caplog.text
    shutil.rmtree(tmp_path / "set/validation")
    assert len(load("parquet", tmp_path / "set", holdout=0.3).files) == 0
    held = load("parquet", tmp_path / "set", holdout=0.3)
    assert len(held.train.labels) + len(held.test.labels) == 10


def test_a_single_parquet_file_without_labels(tmp_path):
    write_parquet(tmp_path / "x.parquet", range(20), labels=False, struct=False)
    dataset = load("parquet", tmp_path / "x.parquet")
    assert dataset.class_names == ()
    assert len(dataset.train.labels) + len(dataset.test.labels) == 20


# Channels.


def test_images_become_gray_or_color(flat):
    gray = load("images", flat, channels=1)
    color = load("images", flat)
    weights = np.array([0.299, 0.587, 0.114])
    expected = np.rint(color.train.images @ weights)[..., None]
    assert gray.train.images.dtype == np.uint8
    assert np.abs(gray.train.images - expected).max() <= 1
    assert (gray.train.images != expected).mean() < 0.01
    streamed_alike("images", flat, gray, channels=1)
    digits = load_dataset("digits", image_size=SIDE, channels=3)
    assert digits.facts.channels == 3
    plain = load_dataset("digits", image_size=SIDE)
    np.testing.assert_array_equal(digits.test.images[..., 2:], plain.test.images)


def test_channels_as_they_are():
    for channels in (1, 3):
        images = np.zeros((2, 4, 4, channels), np.uint8)
        assert in_channels(images, 0) is images
        assert in_channels(images, channels) is images


def test_other_splits_of_one_cache_are_not_mixed(flat, tmp_path):
    """The test split of a list is not that of the folder it lists."""
    rows = [f"photos/{n}.png,{('train', 'test')[n > 29]}" for n in range(40)]
    table(tmp_path / "t.csv", rows, header="path,split")
    first = load("csv", tmp_path / "t.csv")
    table(
        tmp_path / "t.csv",
        [row.replace("test", "train") for row in rows[:-5]] + rows[-5:],
        header="path,split",
    )
    second = load("csv", tmp_path / "t.csv")
    assert (len(first.test.labels), len(second.test.labels)) == (10, 5)
    assert first.facts.identity != second.facts.identity


# Mistakes.


def _csv(text):
    return lambda root: (root / "t.csv").write_text(text)


def _npz(**arrays):
    return lambda root: np.savez(root / "t.npz", **arrays)


FAULTS = {
    "images of nothing": ("images", "", lambda root: None, ["is empty; ", "text file"]),
    "images nowhere": ("images", "no", lambda root: None, ["does not exist; "]),
    "no images": (
        "images",
        "x",
        lambda root: (root / "x").mkdir(),
        ["no images in it; name a folder that holds images, at any depth"],
    ),
    "test images alone": (
        "images",
        "x",
        lambda root: save(root / "x/test/1.png", 1),
        ["has a folder test and none of training images; it holds test"],
    ),
    "a single image": (
        "images",
        "x",
        lambda root: save(root / "x/1.png", 1),
        ["has 1 images", "it takes two or more"],
    ),
    "a flat folder": (
        "folder",
        "photos",
        lambda root: None,
        ["40 not in a class folder", "without labels, set config.dataset.name=images."],
    ),
    "a folder of data sets": (
        "folder",
        "x",
        lambda root: [
            save(root / f"x/{n}/train/a/1.png", 1) for n in ("mnist", "pets")
        ],
        ["holds the data sets mnist, pets; name one of them."],
    ),
    "a list of what is gone": (
        "images",
        "l.txt",
        lambda root: (root / "l.txt").write_text("photos/1.png\nphotos/no.png\n"),
        ["1 of 2 listed files cannot be reached: photos/no.png; paths are absolute or"],
    ),
    "an empty list": (
        "images",
        "l.txt",
        lambda root: (root / "l.txt").write_text("# nothing\n"),
        ["lists no images; add some."],
    ),
    "a table as a list": (
        "images",
        "t.csv",
        _csv("path\nphotos/1.png"),
        ["is no list of paths; set config.dataset.name=csv."],
    ),
    "an image as a list": (
        "images",
        "photos/1.png",
        lambda root: None,
        ["cannot be read (it is not UTF-8 text); give a text file with one path"],
    ),
    "a table without paths": (
        "csv",
        "t.csv",
        _csv("name,label\na,b"),
        ["has no column path, but name, label; give a table with a header: path,label"],
    ),
    "a table without rows": ("csv", "t.csv", _csv("path,label\n"), ["has no rows; "]),
    "no table": ("csv", "no.csv", lambda root: None, ["cannot be read (No such file"]),
    "a label left out": (
        "csv",
        "t.csv",
        _csv("path,label\nphotos/1.png,a\nphotos/2.png,\n"),
        ["has no label in line 3; fill it in, or leave it out."],
    ),
    "a short row": (
        "csv",
        "t.csv",
        _csv("path,label\nphotos/1.png,a\nphotos/2.png\n"),
        ["has no label in line 3"],
    ),
    "an unknown split": (
        "csv",
        "t.csv",
        _csv("path,split\nphotos/1.png,train\nphotos/2.png,dev\n"),
        ["has the split dev; choose from train, training, test, testing, val"],
    ),
    "a label of test only": (
        "csv",
        "t.csv",
        _csv("path,label,split\nphotos/1.png,a,train\nphotos/2.png,b,test\n"),
        ["has test labels that no training image has: b; move"],
    ),
    "no arrays": ("npz", "photos/1.png", lambda root: None, ["it is of another kind"]),
    "no file of arrays": ("npz", "no.npz", lambda root: None, ["(No such file or dir"]),
    "other arrays": (
        "npz",
        "t.npz",
        _npz(data=IMAGES),
        ["has no images, but data; it needs images, uint8 [n, height, width] or"],
    ),
    "fractions": (
        "npz",
        "t.npz",
        _npz(images=IMAGES / 255),
        ["has images float64 [40, 8, 8, 3]; it needs"],
    ),
    "channels first": (
        "npz",
        "t.npz",
        _npz(images=IMAGES.transpose(0, 3, 1, 2)),
        ["has images uint8 [40, 3, 8, 8]; it needs"],
    ),
    "too few labels": (
        "npz",
        "t.npz",
        _npz(images=IMAGES, labels=LABELS[:-1]),
        ["has labels int64 [39] for 40 images; it needs"],
    ),
    "labels of one split": (
        "npz",
        "t.npz",
        _npz(images=IMAGES, labels=LABELS, test_images=IMAGES),
        ["has labels of one split only; it needs"],
    ),
    "too few names": (
        "npz",
        "t.npz",
        _npz(images=IMAGES, labels=LABELS, class_names=np.array(["a"])),
        ["has 1 class_names for the labels 0, 1, 2; it needs"],
    ),
    "no parquet": ("parquet", "photos", lambda root: None, ["holds no .parquet files"]),
    "no parquet file": (
        "parquet",
        "x.parquet",
        lambda root: (root / "x.parquet").write_text("text"),
        ["cannot be read: x.parquet is no Parquet file."],
    ),
    "columns without images": (
        "parquet",
        "x.parquet",
        lambda root: pq.write_table(pa.table({"a": [1]}), root / "x.parquet"),
        ["has no column of encoded images, but a; images are bytes"],
    ),
    "a damaged image in a row": (
        "parquet",
        "x.parquet",
        lambda root: pq.write_table(
            pa.table({"image": [encoded(pixels(1)), b"?"]}), root / "x.parquet"
        ),
        ["cannot be read: row 1 of x.parquet (cannot identify image file"],
    ),
    "a row without a label": (
        "parquet",
        "x.parquet",
        lambda root: write_parquet(root / "x.parquet", range(3), labels=[0, None, 1]),
        ["has rows without a label; give every image one, or drop the column"],
    ),
    "a name of TFDS for class folders": (
        "cifar10",
        "x",
        lambda root: save(root / "x/train/a/1.png", 1),
        [
            "holds image files and no data set 'cifar10'",
            "set config.dataset.name=folder",
        ],
    ),
    "a name of TFDS for images": (
        "nothing_like_it",
        "photos",
        lambda root: None,
        ["'nothing_like_it' of TensorFlow", "set config.dataset.name=images to read"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_line(flat, tmp_path, fault):
    name, path, make, expected = FAULTS[fault]
    make(tmp_path)
    message = refused(name, tmp_path / path if path else "")
    for part in expected:
        assert part in message


def test_parquet_needs_a_package(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in refused("parquet", tmp_path)
