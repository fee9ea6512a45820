"""Data sets: what is read, how it is cut, cached, and reported when it is wrong."""

import importlib.util
import io
import json
import logging
import os
import pathlib
import struct
import subprocess
import sys
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from duet_jax import data
from duet_jax.data import cache, find_dataset, load_dataset
from duet_jax.data import tfds as tfds_source
from duet_jax.data.decoding import decode, pack, preprocessed_side, square
from duet_jax.data.source import kept_rows
from duet_jax.errors import UsageError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch, caplog):
    """Keeps the user's directories out, and lets `caplog` see the project's log."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(logging.getLogger("duet_jax"), "propagate", True)
    caplog.set_level(logging.NOTSET, logger="duet_jax")


def usage_error(*args, **kwargs) -> str:
    """Returns the message of the UsageError that `load_dataset` raises."""
    with pytest.raises(UsageError) as caught:
        load_dataset(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.dataset.")
    return message


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: pathlib.Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Two classes; three training images and one test image each, 8x8 RGB."""
    root = tmp_path / "images"
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                pixels = noise((8, 8, 3), 100 * label + 10 * i + (split == "test"))
                save(root / split / name / f"{i}.png", pixels)
    return root


def load_folder(root, **options):
    return load_dataset("folder", path=str(root), **{"image_size": 8} | options)


# --- digits


def test_digits_are_split_once_by_class():
    digits = load_digits()
    dataset = load_dataset("digits", image_size=8)
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.side, dataset.channels) == (8, 1)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1442, 355)

    # Together the splits are the whole set, so none of its images is in both.
    expected = [
        (*levels, t) for levels, t in zip(digits.data, digits.target, strict=True)
    ]
    actual = [
        (*(image.ravel() * (16 / 255)).round(), label)
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(actual) == sorted(expected)

    for label in range(10):
        total = np.sum(digits.target == label)
        assert np.sum(dataset.test.labels == label) == total // 5
        # every fifth of the class, in scikit-learn's order
        np.testing.assert_array_equal(
            dataset.test.images[dataset.test.labels == label, :, :, 0],
            np.rint(digits.images[digits.target == label][4::5] * (255 / 16)),
        )


def test_digits_are_stable_and_not_cached(tmp_path):
    first, second = load_dataset("digits"), load_dataset("digits")
    assert same(first, second)
    assert first.train.images.shape == (1442, 32, 32, 1)
    assert not (tmp_path / "xdg").exists()


# --- preprocessing


@pytest.mark.parametrize(
    ("image_size", "center_crop", "side"),
    [(32, False, 32), (32, True, 36), (224, True, 256), (64, True, 73)],
)
def test_preprocessed_side(image_size, center_crop, side):
    assert preprocessed_side(image_size, center_crop) == side


def test_center_crop_keeps_a_margin():
    assert load_dataset("digits", image_size=14, center_crop=True).side == 16


@pytest.mark.parametrize(
    ("height", "width", "resized", "top", "left"),
    [
        (10, 20, (16, 8), 0, 4),
        (20, 10, (8, 16), 4, 0),
        (10, 13, (10, 8), 0, 1),  # 10.4 is rounded down
        (5, 7, (11, 8), 0, 2),  # an offset of 1.5 is rounded to the even 2
        (7, 3, (8, 18), 5, 0),
        (16, 16, (8, 8), 0, 0),
        (9, 8, (8, 9), 0, 0),  # no resizing; an offset of 0.5 is rounded to 0
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_square_is_a_resize_and_a_central_cut(
    height, width, resized, top, left, channels
):
    image = Image.fromarray(noise((height, width, channels)).squeeze())
    whole = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    expected = whole[top : top + 8, left : left + 8].reshape(8, 8, channels)
    np.testing.assert_array_equal(square(image, 8), expected)


def test_images_of_the_right_size_are_untouched():
    pixels = noise((8, 8, 3))
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 8), pixels)


def test_pack_keeps_grey_as_one_channel_and_repeats_it_beside_colour():
    grey, colour = noise((4, 4)), noise((4, 4, 3))
    images, labels = pack([(Image.fromarray(grey), 1)], 1, 4, "x")
    np.testing.assert_array_equal(images, grey[None, :, :, None])
    assert images.flags.c_contiguous
    images, labels = pack(
        [(Image.fromarray(grey), 1), (Image.fromarray(colour), 0)], 2, 4, "x"
    )
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(images[1], colour)
    np.testing.assert_array_equal(labels, [1, 0])
    assert labels.dtype == np.int32


# --- decoding: (image as saved, options of saving, expected pixels, conversion)


def _palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


def _new(mode: str, pixels: list) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


DECODED = {
    "grey": (_new("L", [3, 250]), {}, [3, 250], ""),
    "two levels": (_new("1", [0, 1]), {}, [0, 255], ""),
    "colour": (_new("RGB", [(1, 2, 3)]), {}, [(1, 2, 3)], ""),
    "palette": (_palette(), {}, [(10, 20, 30), (200, 100, 50)], "palette"),
    "palette with a transparent colour": (
        _palette(),
        {"transparency": 0},
        [(0, 0, 0), (200, 100, 50)],
        "alpha",
    ),
    "grey with alpha": (
        _new("LA", [(200, 255), (200, 0), (200, 51)]),
        {},
        [200, 0, 40],
        "alpha",
    ),
    "colour with alpha": (
        _new("RGBA", [(9, 8, 7, 255), (9, 8, 7, 0), (100, 50, 250, 102)]),
        {},
        [(9, 8, 7), (0, 0, 0), (40, 20, 100)],
        "alpha",
    ),
    "colour with a transparent colour": (
        _new("RGB", [(1, 2, 3), (4, 5, 6)]),
        {"transparency": (1, 2, 3)},
        [(0, 0, 0), (4, 5, 6)],
        "alpha",
    ),
    "16 bits": (
        Image.fromarray(np.array([[0, 128, 129, 32768, 65535]], np.uint16)),
        {},
        [0, 0, 1, 128, 255],  # 65535 levels to 255: one is 257
        "16-bit",
    ),
}


@pytest.mark.parametrize("case", DECODED)
def test_decode(case):
    image, options, expected, conversion = DECODED[case]
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    decoded, found = decode(io.BytesIO(buffer.getvalue()))
    assert decoded.mode in ("L", "RGB")
    assert found == conversion
    np.testing.assert_array_equal(np.asarray(decoded)[0], expected)


def test_decode_cmyk():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    decoded, conversion = decode(io.BytesIO(buffer.getvalue()))
    assert (decoded.mode, conversion) == ("RGB", "CMYK")
    np.testing.assert_allclose(np.asarray(decoded)[4, 4], (255, 0, 0), atol=3)


def test_decode_turns_photographs_upright():
    pixels = noise((2, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    decoded, _ = decode(io.BytesIO(buffer.getvalue()))
    np.testing.assert_array_equal(np.asarray(decoded), pixels[::-1, ::-1])


# --- folder


def test_folder_is_read_in_the_order_of_names(folder):
    dataset = load_folder(folder)
    assert (dataset.name, dataset.class_names) == ("folder", ("cat", "dog"))
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    expected = [noise((8, 8, 3), seed) for seed in (0, 10, 20, 100, 110, 120)]
    np.testing.assert_array_equal(dataset.train.images, expected)
    for split in (dataset.train, dataset.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.images.flags.c_contiguous


def test_folder_extensions_hidden_entries_and_other_files(folder, caplog):
    save(folder / "train/cat/a.JPG", np.zeros((8, 8, 3), np.uint8))
    save(folder / "train/cat/b.jpeg", np.zeros((8, 8, 3), np.uint8))
    (folder / "train/cat/notes.txt").write_text("not an image")
    (folder / "train/cat/._0.png").write_text("left by a file manager")
    (folder / "train/.hidden").mkdir()
    (folder / "LICENSE").write_text("beside the splits")
    with caplog.at_level(logging.INFO):
        dataset = load_folder(folder)
    assert len(dataset.train.labels) == 8
    assert "train: 1 other files were left out" in caplog.text


@pytest.mark.parametrize("coloured", ["", "train", "test"])
def test_folder_is_grey_only_if_every_image_is(tmp_path, coloured):
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / "0.png", noise((8, 8)))
        if split == coloured:
            save(tmp_path / split / "b" / "1.png", noise((8, 8, 3)))
    dataset = load_folder(tmp_path)
    channels = 3 if coloured else 1
    assert dataset.train.images.shape[1:] == (8, 8, channels)
    assert dataset.test.images.shape[1:] == (8, 8, channels)


def test_folder_says_how_many_images_it_converted(folder, caplog):
    save(folder / "train/cat/a.png", noise((8, 8, 4)))
    save(folder / "train/cat/b.png", noise((8, 8, 4)))
    save(folder / "test/dog/c.png", np.zeros((8, 8), np.uint16))
    with caplog.at_level(logging.INFO):
        load_folder(folder)
    lines = [r.getMessage() for r in caplog.records if "converted" in r.getMessage()]
    assert lines == [
        f"{folder}: 3 of 11 images were converted to 8-bit grey or RGB "
        "(2 alpha, 1 16-bit)"
    ]


def test_folder_follows_links_without_going_round(folder, tmp_path):
    save(tmp_path / "elsewhere" / "0.png", noise((8, 8, 3)))
    (folder / "train/emu").symlink_to(tmp_path / "elsewhere")
    (folder / "train/loop").symlink_to(folder / "train/loop")
    (folder / "train/cat/up").symlink_to(folder / "train")
    dataset = load_folder(folder)
    assert dataset.class_names == ("cat", "dog", "emu")
    assert len(dataset.train.labels) == 7


def _remove(path: pathlib.Path) -> None:
    for child in path.iterdir():
        child.unlink() if child.is_file() else _remove(child)
    path.rmdir()


FOLDER_FAULTS = {
    "no train": (
        lambda root: (root / "train").rename(root / "training"),
        "has no folder train; it holds test, training; rename or arrange",
    ),
    "no test": (
        lambda root: (root / "test").rename(root / "val"),
        "has no folder test; it holds train, val; rename or arrange",
    ),
    "classes without splits": (
        lambda root: [(root / s).rename(root / f"class{s}") for s in ("train", "test")],
        "has no folder train and no test; it holds classtest, classtrain;",
    ),
    "an empty class": (
        lambda root: (root / "train/emu").mkdir(),
        "no images in train/emu; remove the folder",
    ),
    "an empty split": (
        lambda root: [_remove(child) for child in (root / "test").iterdir()],
        "no images in test; ",
    ),
    "a class only in test": (
        lambda root: save(root / "test/emu/0.png", noise((8, 8, 3))),
        "test has classes that train lacks: emu; give both",
    ),
    "one class": (
        lambda root: (_remove(root / "train/dog"), _remove(root / "test/dog")),
        "has 1 class",
    ),
    "a broken link": (
        lambda root: (root / "train/cat/9.png").symlink_to(root / "nowhere"),
        "1 of 9 images cannot be read: train/cat/9.png; replace or delete",
    ),
    "an empty file": (
        lambda root: (root / "test/dog/9.png").write_bytes(b""),
        "1 of 9 images cannot be read: test/dog/9.png; ",
    ),
    "a file of another kind": (
        lambda root: (root / "test/dog/9.png").write_text("<html>not found</html>"),
        "1 of 9 images cannot be read: test/dog/9.png; ",
    ),
    "a truncated file": (
        lambda root: (root / "train/cat/0.png").write_bytes(
            png(noise((8, 8, 3)))[:-60]
        ),
        "1 of 8 images cannot be read: train/cat/0.png; ",
    ),
    "a damaged file": (
        lambda root: (root / "train/cat/0.png").write_bytes(
            png(noise((8, 8, 3))).replace(b"IDAT", b"IDAX")
        ),
        "1 of 8 images cannot be read: train/cat/0.png; ",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_folder_faults_are_told_in_one_line(folder, fault):
    make, expected = FOLDER_FAULTS[fault]
    make(folder)
    message = usage_error("folder", path=str(folder), image_size=8)
    assert expected in message


def test_folder_lists_the_first_damaged_files_of_both_splits(folder):
    for i in range(4):
        (folder / f"train/cat/x{i}.png").write_bytes(b"x")
        (folder / f"test/cat/x{i}.png").write_bytes(b"x")
    message = usage_error("folder", path=str(folder), image_size=8)
    assert (
        "8 of 16 images cannot be read: train/cat/x0.png, train/cat/x1.png, "
        "train/cat/x2.png, train/cat/x3.png, test/cat/x0.png and 3 more; replace"
    ) in message


@pytest.mark.parametrize(
    ("path", "problem"),
    [("", "is empty"), ("/no/such", "does not exist"), (__file__, "is not a folder")],
)
def test_folder_path_faults(path, problem):
    message = usage_error("folder", path=path)
    assert f"config.dataset.path={path!r} {problem}; " in message
    assert "<path>/train/<class>/*.png" in message


def test_folder_that_may_not_be_listed(folder, monkeypatch):
    def refuse(path):
        if path.endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    message = usage_error("folder", path=str(folder))
    assert f"cannot list {str(folder / 'train/cat')!r} (Permission denied)" in message


# --- cache


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """Names of the data sets that were decoded rather than taken from the cache."""
    names = []

    def counted(source, name, side):
        names.append(name)
        return original(source, name, side)

    original = data._decode
    monkeypatch.setattr(data, "_decode", counted)
    return names


@pytest.mark.parametrize(
    ("fraction", "rows"),
    [
        (1.0, range(10)),
        (0.5, [0, 2, 4, 6, 8]),
        (0.3, [0, 3, 6]),
        (0.7, [0, 1, 2, 4, 5, 7, 8]),
        (0.001, [0]),
    ],
)
def test_a_share_of_the_images_is_spread_over_the_set(fraction, rows):
    np.testing.assert_array_equal(kept_rows(10, fraction), list(rows))


def test_fewer_training_images(folder, tmp_path, decodings):
    """Both shares come from one entry of the cache; all test images are there."""
    cache_dir = str(tmp_path / "cache")
    whole = load_folder(folder, cache_dir=cache_dir)
    half = load_folder(folder, cache_dir=cache_dir, train_fraction=0.5)
    assert decodings == ["folder"]
    for part, all_of_it in zip(half.train, whole.train, strict=True):
        np.testing.assert_array_equal(part, all_of_it[[0, 2, 4]])
    for part, all_of_it in zip(half.test, whole.test, strict=True):
        np.testing.assert_array_equal(part, all_of_it)
    assert half.files == tuple(whole.files[row] for row in (0, 2, 4, 6, 7))
    assert half.facts == whole.facts._replace(num_train=3)


def test_a_share_of_ordered_classes_has_all_of_them():
    """A folder lists class after class; every tenth image is a tenth of each."""
    whole = load_dataset("digits", image_size=8)
    order = np.argsort(whole.train.labels, kind="stable")
    labels = whole.train.labels[order][kept_rows(len(order), 0.1)]
    counts = np.bincount(labels, minlength=10)
    assert counts.sum() == round(0.1 * len(order))
    assert np.ptp(counts) <= 2


def same(a, b) -> bool:
    arrays = zip((*a.train, *a.test), (*b.train, *b.test), strict=True)
    return a.class_names == b.class_names and all(
        np.array_equal(x, y) for x, y in arrays
    )


def test_cache_returns_what_was_decoded(folder, tmp_path, decodings, caplog):
    first = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        second = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    assert decodings == ["folder"]
    assert same(first, second)
    (entry,) = (tmp_path / "cache").iterdir()
    assert f"from the cache {entry}" in caplog.text
    assert sorted(os.listdir(entry)) == [
        "index.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]
    assert json.loads((entry / "index.json").read_text()) == {
        "name": "folder",
        "made_from": str(folder),
        "class_names": ["cat", "dog"],
    }


def test_cache_is_in_the_users_cache_directory_by_default(folder, tmp_path):
    load_folder(folder)
    assert len(list((tmp_path / "xdg/duet_jax").iterdir())) == 1


CHANGES = {
    "a file is touched": lambda root: os.utime(root / "train/cat/0.png", ns=(1, 1)),
    "a file is renamed": lambda root: (root / "train/cat/0.png").rename(
        root / "train/cat/00.png"
    ),
    "a file is added": lambda root: save(root / "test/dog/9.png", noise((8, 8, 3))),
    "a file is removed": lambda root: (root / "train/cat/0.png").unlink(),
    "the size of a file": lambda root: _grow(root / "train/cat/0.png"),
    "a class is renamed": lambda root: [
        (root / split / "cat").rename(root / split / "kitten")
        for split in ("train", "test")
    ],
    "the image size": {"image_size": 12},
    "the margin": {"center_crop": True},
}


def _grow(path: pathlib.Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_cache_is_not_used_after_a_change(folder, tmp_path, decodings, change):
    load_folder(folder)
    apply, options = CHANGES[change], {}
    if isinstance(apply, dict):
        options = apply
    else:
        apply(folder)
    dataset = load_folder(folder, **options)
    assert len(decodings) == 2
    assert len(list((tmp_path / "xdg/duet_jax").iterdir())) == 2
    assert same(dataset, load_folder(folder, **options))
    assert len(decodings) == 2


def test_cache_of_a_copied_folder_is_another(folder, tmp_path, decodings):
    load_folder(folder)
    folder.rename(tmp_path / "moved")
    load_folder(tmp_path / "moved")
    assert len(decodings) == 2


def _save_npy(array):
    return lambda path: np.save(path, array)


CACHE_DAMAGE = {
    "truncated": (
        "train_images.npy",
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ),
    "emptied": ("test_labels.npy", lambda path: path.write_bytes(b"")),
    "removed": ("test_images.npy", lambda path: path.unlink()),
    "no array": ("train_labels.npy", lambda path: path.write_bytes(b"x" * 200)),
    "wrong shape": ("train_images.npy", _save_npy(np.zeros((6, 4, 4, 3), np.uint8))),
    "wrong count": ("train_images.npy", _save_npy(np.zeros((5, 8, 8, 3), np.uint8))),
    "wrong channels": ("test_images.npy", _save_npy(np.zeros((2, 8, 8, 1), np.uint8))),
    "wrong type": ("train_labels.npy", _save_npy(np.zeros(6, np.float32))),
    "pickled": (
        "train_labels.npy",
        lambda path: np.save(path, np.array([None] * 6), allow_pickle=True),
    ),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_damaged_cache_is_made_again(folder, tmp_path, decodings, caplog, damage):
    first = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    (entry,) = (tmp_path / "cache").iterdir()
    name, spoil = CACHE_DAMAGE[damage]
    spoil(entry / name)
    with caplog.at_level(logging.WARNING):
        second = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    assert len(decodings) == 2
    assert same(first, second)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"the cache {entry} is damaged and will be made again" in caplog.text
    caplog.clear()
    assert same(first, load_folder(folder, cache_dir=str(tmp_path / "cache")))
    assert len(decodings) == 2
    assert not caplog.records


def test_interrupted_write_is_no_cache(folder, tmp_path, decodings, caplog):
    load_folder(folder, cache_dir=str(tmp_path / "cache"))
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "index.json").unlink()  # the index is written last
    with caplog.at_level(logging.WARNING):
        load_folder(folder, cache_dir=str(tmp_path / "cache"))
    assert len(decodings) == 2
    assert not caplog.records


def test_unwritable_cache_is_a_warning(folder, tmp_path, decodings, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            dataset = load_folder(folder, cache_dir=str(tmp_path / "file" / "cache"))
    assert len(dataset.train.labels) == 6
    assert len(decodings) == 2
    assert "set config.dataset.cache_dir to a directory that can be wri" in caplog.text


def test_failed_write_leaves_nothing_behind(folder, tmp_path, monkeypatch, caplog):
    def full_disk(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full_disk)
    with caplog.at_level(logging.WARNING):
        dataset = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    assert len(dataset.train.labels) == 6
    assert "No space left on device" in caplog.text
    (entry,) = (tmp_path / "cache").iterdir()
    assert list(entry.iterdir()) == []


def test_no_home_directory_is_a_warning(folder, monkeypatch, caplog):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    with caplog.at_level(logging.WARNING):
        assert len(load_folder(folder).train.labels) == 6
    assert "no home directory: decoded images are not cached" in caplog.text


def test_concurrent_runs_share_an_entry(folder, tmp_path):
    expected = load_folder(folder)
    results, barrier = [], threading.Barrier(4)

    def run():
        barrier.wait()
        for _ in range(5):
            results.append(load_folder(folder, cache_dir=str(tmp_path / "cache")))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(same(expected, result) for result in results)
    (entry,) = (tmp_path / "cache").iterdir()
    assert len(list(entry.iterdir())) == 5  # no temporary files are left


# --- TensorFlow Datasets


# Not registered: TFDS knows it by its files alone, like a set somebody brought along.
with tfds.core.registered.skip_registration():

    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Every split holds the images `split_seed + index`, labelled index % 2."""

        VERSION = tfds.core.Version("1.0.0")
        SPLITS: ClassVar = {}
        LABELLED = ("train", "test", "validation")
        FEATURES: ClassVar = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["round", "square"]),
        }

        def _info(self):
            features = tfds.features.FeaturesDict(self.FEATURES)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in self.SPLITS}

        def _generate_examples(self, split):
            for i in range(self.SPLITS[split]):
                # A file object: arrays would be encoded by TensorFlow.
                label = i % 2 if split in self.LABELLED else -1
                example = {
                    "image": io.BytesIO(png(shape_image(split, i))),
                    "label": label,
                }
                yield i, {key: example[key] for key in self.FEATURES}


def shape_image(split: str, index: int) -> np.ndarray:
    return noise((8, 10, 3), 1000 * len(split) + index)


def prepare(directory: pathlib.Path, **attributes) -> pathlib.Path:
    """Prepares a data set `shapes` of which only the files are known to TFDS."""
    with tfds.core.registered.skip_registration():
        builder_class = type("Shapes", (Shapes,), attributes)
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return directory


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory.mktemp("tfds"), SPLITS={"train": 300, "test": 5})


def images_with_labels(split) -> list:
    return sorted(
        (image.tobytes(), int(label))
        for image, label in zip(split.images, split.labels, strict=True)
    )


def expected_shapes(split: str, count: int) -> list:
    return sorted(
        (shape_image(split, i)[:, 1:9].tobytes(), i % 2) for i in range(count)
    )


def test_tfds_array_record(prepared, decodings):
    for _ in range(2):
        dataset = load_dataset("shapes", path=str(prepared), image_size=8)
        assert (dataset.name, dataset.class_names) == ("shapes", ("round", "square"))
        assert dataset.train.images.shape == (300, 8, 8, 3)
        assert images_with_labels(dataset.train) == expected_shapes("train", 300)
        assert images_with_labels(dataset.test) == expected_shapes("test", 5)
    assert decodings == ["shapes"]


def test_tfds_is_read_quietly_and_without_tensorflow(prepared, tmp_path):
    program = (
        "import sys; from duet_jax.data import load_dataset;"
        f"d = load_dataset('shapes', path={str(prepared)!r}, image_size=8,"
        f" cache_dir={str(tmp_path)!r});"
        "assert d.train.images.shape == (300, 8, 8, 3);"
        "assert 'tensorflow' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def as_tfrecord(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Rewrites a prepared directory in TFRecord format; checksums are left at 0."""
    builder = tfds.builder("shapes", data_dir=source)
    (target / "shapes/1.0.0").mkdir(parents=True)
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        text = (source / "shapes/1.0.0" / name).read_text()
        (target / "shapes/1.0.0" / name).write_text(
            text.replace('"array_record"', '"tfrecord"')
        )
    for split in builder.info.splits:
        raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = (bytes(raw[i]) for i in range(len(raw)))
        (target / f"shapes/1.0.0/shapes-{split}.tfrecord-00000-of-00001").write_bytes(
            b"".join(struct.pack("<Q4x", len(r)) + r + b"\0" * 4 for r in records)
        )
    return target


def test_tfds_tfrecord(prepared, tmp_path):
    tfrecord = as_tfrecord(prepared, tmp_path / "tfrecord")
    assert same(
        load_dataset("shapes", path=str(tfrecord), image_size=8),
        load_dataset("shapes", path=str(prepared), image_size=8),
    )


@pytest.mark.parametrize("cut", ["within a record", "between records"])
def test_tfds_incomplete_tfrecord(prepared, tmp_path, cut):
    tfrecord = as_tfrecord(prepared, tmp_path / "tfrecord")
    file = tfrecord / "shapes/1.0.0/shapes-train.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    first = 16 + struct.unpack_from("<Q", whole)[0]
    file.write_bytes(whole[:-10] if cut == "within a record" else whole[first:])
    message = usage_error("shapes", path=str(tfrecord))
    assert f"cannot be read from {tfrecord}/shapes/1.0.0: ValueError: " in message
    assert "delete that directory and prepare it again" in message
    if cut == "between records":
        assert "299 of 300 train examples found" in message


def test_tfds_damaged_array_record(prepared, tmp_path):
    prepare(tmp_path, SPLITS={"train": 3, "test": 2})
    file = tmp_path / "shapes/1.0.0/shapes-train.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-100])
    message = usage_error("shapes", path=str(tmp_path))
    assert f"cannot be read from {tmp_path}/shapes/1.0.0: " in message


def test_tfds_cache_follows_the_prepared_files(tmp_path, decodings):
    directory = prepare(tmp_path, SPLITS={"train": 3, "test": 2})
    load_dataset("shapes", path=str(directory), image_size=8)
    _remove(directory / "shapes")
    prepare(tmp_path, SPLITS={"train": 4, "test": 2})
    dataset = load_dataset("shapes", path=str(directory), image_size=8)
    assert len(decodings) == 2
    assert len(dataset.train.labels) == 4


@pytest.mark.parametrize(
    ("splits", "labelled", "used"),
    [
        (["train", "validation"], ["train", "validation"], "validation"),
        (["train", "validation", "test"], ["train", "validation"], "validation"),
        (["train", "validation", "test"], ["train", "validation", "test"], "test"),
    ],
)
def test_tfds_test_split(tmp_path, splits, labelled, used):
    counts = {split: 2 + i for i, split in enumerate(splits)}
    prepare(tmp_path, SPLITS=counts, LABELLED=labelled)
    dataset = load_dataset("shapes", path=str(tmp_path), image_size=8)
    assert images_with_labels(dataset.test) == expected_shapes(used, counts[used])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            {"SPLITS": {"train": 2}},
            "needs a split train and a labelled split test or validation; "
            "it has train;",
        ),
        (
            {"SPLITS": {"train": 2, "test": 2}, "LABELLED": ("train",)},
            "it has train, test;",
        ),
        (
            {"SPLITS": {"train": 2, "test": 2}, "LABELLED": ("test",)},
            "has images without a valid label",
        ),
        (
            {
                "SPLITS": {"train": 2, "test": 2},
                "FEATURES": {"image": Shapes.FEATURES["image"]},
            },
            "is not an image classification set: its features are image;",
        ),
        (
            {
                "SPLITS": {"train": 2, "test": 2},
                "FEATURES": {"label": Shapes.FEATURES["label"]},
            },
            "is not an image classification set: its features are label;",
        ),
    ],
)
def test_tfds_unsuitable_sets(tmp_path, attributes, expected):
    prepare(tmp_path, **attributes)
    message = usage_error("shapes", path=str(tmp_path), image_size=8)
    assert message.startswith("config.dataset.name='shapes' ")
    assert expected in message


def test_tfds_unknown_name(tmp_path):
    message = usage_error("cifar1o", path=str(tmp_path))
    assert message == (
        "config.dataset.name='cifar1o' is not known to TensorFlow Datasets or in "
        f"config.dataset.path={str(tmp_path)!r}; choose digits, folder or a TFDS image "
        "classification set such as cifar10, cifar100, mnist or svhn_cropped. Did you "
        "mean 'cifar10'?"
    )
    assert "Did you mean 'digits'?" in usage_error("digit")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../data", "cannot be used: ValueError: "),
        ("cifar10:9.9.9", "cannot be loaded at version 9.9.9, only: 3.0.2."),
        ("imdb_reviews", "is not an image classification set: its features are text"),
    ],
)
def test_tfds_names_that_cannot_be_used(name, expected, tmp_path):
    assert expected in usage_error(name, path=str(tmp_path))


def _refused(url, timeout):
    raise OSError("Name or service not known")


def _hanging(url, timeout):
    time.sleep(60)


@pytest.mark.parametrize("network", [_refused, _hanging])
def test_tfds_without_data_and_network(tmp_path, monkeypatch, capfd, caplog, network):
    monkeypatch.setattr("requests.head", network)
    monkeypatch.setattr(tfds_source, "_PROBE_SECONDS", 0.1)
    started = time.monotonic()
    message = usage_error("mnist", path=str(tmp_path))
    assert time.monotonic() - started < 5
    assert message.startswith(
        f"config.dataset.name='mnist' is not prepared in {tmp_path}/mnist/3.0.1 and "
        "cannot be downloaded: no network; set config.dataset.path to a TFDS data "
        "directory that holds it, or prepare it on a machine with network: python -c"
    )
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_tfds_probe_bound_is_within_ten_seconds():
    assert 2 * tfds_source._PROBE_SECONDS < 10


def _pretend_tensorflow(monkeypatch, spec) -> None:
    """Makes TensorFlow look installed or not, whichever it is."""

    def pretend(name, package=None):
        return spec if name == "tensorflow" else find_spec(name, package)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", pretend)


def test_tfds_needs_tensorflow_to_prepare(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("requests.head", lambda url, timeout: asked.append(url))
    _pretend_tensorflow(monkeypatch, None)
    message = usage_error("cifar10", path=str(tmp_path))
    assert "preparing it, once, needs TensorFlow; pip install tensorflow-cpu" in message
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]


def test_tfds_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(self, **options):
        raise ConnectionError("server\nwent away")

    monkeypatch.setattr("requests.head", lambda url, timeout: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    _pretend_tensorflow(monkeypatch, "found")
    message = usage_error("mnist", path=str(tmp_path))
    assert "preparing it failed: ConnectionError: server went away; set" in message


def test_tfds_prepares_array_records(tmp_path, monkeypatch):
    """The real builder of MNIST, with its downloads replaced by four small images."""

    def tiny(self, dl_manager):
        def examples():
            for i in range(4):
                yield i, {"image": io.BytesIO(png(noise((28, 28), i))), "label": i}

        return {"train": examples(), "test": examples()}

    builder_class = type(tfds.builder("mnist", data_dir=tmp_path))
    monkeypatch.setattr(builder_class, "_split_generators", tiny)
    _pretend_tensorflow(monkeypatch, "found")  # these images do not need it
    monkeypatch.setattr("requests.head", lambda url, timeout: None)
    dataset = load_dataset("mnist", path=str(tmp_path), image_size=28)
    assert dataset.class_names == tuple("0123456789")
    order = np.argsort(dataset.train.labels)
    np.testing.assert_array_equal(
        dataset.train.images[order, :, :, 0], [noise((28, 28), i) for i in range(4)]
    )
    assert "array_record" in (tmp_path / "mnist/3.0.1/dataset_info.json").read_text()


def test_tfds_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert usage_error("cifar10").endswith("pip install tensorflow_datasets")


# --- every source


def test_num_classes_must_be_those_of_the_data(folder):
    for accepted in (None, 0, 10):
        load_dataset("digits", image_size=8, num_classes=accepted)
    message = usage_error("digits", num_classes=7)
    assert message.startswith("config.dataset.num_classes=7 is wrong: ")
    assert "'digits' has 10; set it to 10" in message


def test_image_size_must_be_positive():
    assert usage_error("digits", image_size=0).startswith(
        "config.dataset.image_size=0 must be positive"
    )


def test_one_line_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        load_dataset("digits", image_size=16)
    assert len(caplog.records) == 1
    assert (
        caplog.records[0]
        .getMessage()
        .startswith(
            "digits: 1442 train and 355 test images of 16x16x1, 10 classes, "
            "from scikit-learn in "
        )
    )


def test_too_large_for_memory(monkeypatch):
    def no_memory(shape, dtype):
        raise MemoryError

    monkeypatch.setattr("duet_jax.data.decoding.np.empty", no_memory)
    with pytest.raises(UsageError, match="10 images of 4x4 pixels do not fit"):
        pack([], 10, 4, "x")


@pytest.mark.parametrize("change", CHANGES)
def test_what_tells_images_from_others(folder, change):
    """Names and sizes of the files: not where they are, and not how they are read."""
    before = load_folder(folder).content
    apply, options = CHANGES[change], {}
    if isinstance(apply, dict):
        options = apply
    else:
        apply(folder)
    same_images = change in ("a file is touched", "the image size", "the margin")
    after = load_folder(folder, **options)
    assert (after.content == before) == same_images
    assert after.facts.content == after.content
    assert load_folder(folder, **options).content == after.content  # from the cache
    found = find_dataset("folder", path=str(folder), image_size=8)
    assert found.facts.content == after.content


def test_a_copied_folder_holds_the_same_images(folder, tmp_path):
    before = load_folder(folder).content
    folder.rename(tmp_path / "moved")
    assert load_folder(tmp_path / "moved").content == before != ""
