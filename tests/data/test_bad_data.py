"""Bad images and folders, through a process of the real program.

What cannot be read is refused in one line; what can be read safely is converted, and
said so.
"""

import os
import pathlib
import shutil
import socket
import struct
import zlib

import numpy as np
import pytest
from pictures import chunk, encoded, fill, noise, png, swap
from PIL import Image
from program import TINY, refusal, run, side_by_side, snapshot

FOLDER = (*TINY, "--config.dataset.name=folder", "--config.dataset.path=images")


def _put(name: str, content: bytes):
    """Adds one file to the training images of a class."""
    return lambda root: (root / "train/cat" / name).write_bytes(content)


def _device(root: pathlib.Path) -> None:
    """Puts a socket where an image should be."""
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket has to be short.
        descriptor = os.open(root / "train/cat", os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{descriptor}/9.png")
        finally:
            os.close(descriptor)


def _loop(root: pathlib.Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").symlink_to("train")


# 128 MiB of text in a file of 128 KiB.
WORDS = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**27))
END = b"\0\0\0\0IEND"
WORDS = encoded(noise(8, 8, 3)).replace(END, WORDS + END)
# Samples in a pixel: 99.
MANY_SAMPLES = encoded(noise(8, 8, 3), "TIFF").replace(
    struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 99)
)
DAMAGED_CODES = encoded(noise(30, 30, 3), "TIFF", compression="tiff_lzw")
DAMAGED_CODES = DAMAGED_CODES[:60] + b"\xff" * 20 + DAMAGED_CODES[80:]
UNREADABLE = "1 of 9 images cannot be read: train/cat/9.png; replace or delete"

# What is done to a good folder, and what the line has to say.
FOLDERS = {
    "missing": (shutil.rmtree, ["images' does not exist", "<path>/train/"]),
    "a file": (lambda root: swap(root, b"?"), ["images' is not a folder"]),
    "a link to itself": (
        lambda root: (shutil.rmtree(root), root.symlink_to(root)),
        ["images' cannot be reached", "Too many levels of symbolic links"],
    ),
    "training that links to itself": (
        _loop,
        ["has a folder test and none of training images; it holds test;"],
    ),
    "tests that are trained on": (
        lambda root: (
            shutil.rmtree(root / "test"),
            (root / "test").symlink_to("train"),
        ),
        ["train and test are the same folder", "that are not trained on"],
    ),
    "an empty class": (
        lambda root: (root / "train/emu").mkdir(),
        ["no images in train/emu", "remove the folder"],
    ),
    "a class that is tested only": (
        lambda root: shutil.copytree(root / "test/cat", root / "test/emu"),
        ["test has classes that train lacks: emu", "same class folders"],
    ),
    "no images at all": (
        lambda root: [
            swap(p, b"") or p.rename(f"{p}.txt") for p in root.rglob("*.png")
        ],
        [
            "no images in train/cat, train/dog (4 files were left out: 4 of other "
            "types (cat/0.png.txt, cat/1.png.txt, dog/0.png.txt and 1 more))",
            "(or any of PNG, JPEG, BMP, GIF, WebP, TIFF, PPM, JPEG 2000, AVIF, QOI)",
        ],
    ),
    "images without classes": (
        lambda root: (
            [
                path.rename(root / "train" / f"{path.parent.name}{path.name}")
                for path in root.glob("train/*/*.png")
            ]
            and [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")]
        ),
        [
            "no images in train/<class>/ (4 files were left out: 4 not in a class "
            "folder (cat0.png, cat1.png, dog0.png and 1 more))",
            "arrange the images as <path>/train/<class>/*.png",
        ],
    ),
    "classes in a folder of their own": (
        lambda root: (
            [
                path.rename(root / "all" / path.name)
                for _ in [(root / "all").mkdir()]
                for path in list(root.glob("train/*"))
            ]
            and (root / "all").rename(root / "train/all")
        ),
        ["the only class, train/all, holds the folders cat, dog", "move them up"],
    ),
    "a class that is not UTF-8": (
        lambda root: (root / "train/cat").rename(root / "train/c\udcfft"),
        [r"train/'c\udcfft' is not UTF-8", "rename it"],
    ),
    "an odd name of a class": (
        lambda root: (root / "train/<b>\n\x1b[2J\u202e").mkdir(),
        [r"no images in 'train/<b>\n\x1b[2J\u202e'", "remove the folder"],
    ),
    "a pipe": (lambda root: os.mkfifo(root / "train/cat/9.png"), [UNREADABLE, "not a"]),
    "a socket": (_device, [UNREADABLE, "it is not a regular file"]),
    "a device": (
        lambda root: (root / "train/cat/9.png").symlink_to("/dev/zero"),
        [UNREADABLE, "it is not a regular file"],
    ),
    "a link to nothing": (
        lambda root: (root / "train/cat/9.png").symlink_to("nowhere"),
        [UNREADABLE, "No such file"],
    ),
    "a link round and round": (
        lambda root: (root / "train/cat/9.png").symlink_to("9.png"),
        [UNREADABLE, "Too many levels of symbolic links"],
    ),
    "an empty file": (_put("9.png", b""), [UNREADABLE, "an empty file"]),
    "a page of HTML": (_put("9.png", b"<html>"), [UNREADABLE, "a web page"]),
    "a pointer of Git LFS": (
        _put("9.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        [UNREADABLE, "cannot identify image file: a Git LFS pointer (git lfs pull "],
    ),
    "text that moves the cursor": (
        _put("9.png", "\x1b[2J\u202e".encode()),
        [UNREADABLE, "of an unknown kind, beginning with 0x1b5b324a"],
    ),
    "an EPS called PNG": (
        _put("9.png", encoded(noise(8, 8, 3), "EPS")),
        [UNREADABLE, "cannot identify image file: a PostScript drawing"],
    ),
    "fractions": (
        _put("9.tif", encoded(noise(8, 8).astype(np.float32), "TIFF")),
        ["cannot be read: train/cat/9.tif; replace or delete", "scale it to 8 or 16"],
    ),
    "a TIFF of which Pillow complains in its log": (
        _put("9.tif", MANY_SAMPLES),
        ["cannot be read: train/cat/9.tif; replace", "TIFF, but truncated, damaged"],
    ),
    "a TIFF of which libtiff complains": (
        _put("9.tif", DAMAGED_CODES),
        ["cannot be read: train/cat/9.tif; replace", "TIFF, but truncated, damaged"],
    ),
    "a truncated WebP": (
        _put("9.webp", encoded(noise(64, 64, 3), "WEBP")[:900]),
        ["cannot be read: train/cat/9.webp; replace", "WebP, but truncated, damaged"],
    ),
    "a truncated JPEG": (
        _put("9.jpg", encoded(noise(64, 64, 3), "JPEG")[:900]),
        ["cannot be read: train/cat/9.jpg; replace or delete", "truncated"],
    ),
    "a truncated PNG": (_put("9.png", encoded(noise(64, 64, 3))[:900]), [UNREADABLE]),
    "a damaged PNG": (
        _put("9.png", encoded(noise(8, 8, 3)).replace(b"IDAT", b"IDAX")),
        [UNREADABLE],
    ),
    "a bomb": (
        _put("9.png", png(40_000, 40_000, 8, 0, b"\0" * 40_001)),
        [UNREADABLE, "exceeds limit", "decompression bomb"],
    ),
    "a bomb of words": (_put("9.png", WORDS), [UNREADABLE, "too large"]),
    "several bad ones": (
        lambda root: [swap(path, b"?") for path in root.rglob("*.png")],
        ["8 of 8 images cannot be read", "and 3 more; replace or delete"],
    ),
}


@pytest.fixture(scope="module")
def refused(request):
    """The outcome of every folder that is asked for."""

    def ask(case, place):
        FOLDERS[case][0](fill(place / "images"))
        return refusal(*FOLDER, "--workdir=run", cwd=place)

    return side_by_side(ask, request)


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case, refused):
    line, parts = refused[case].result(), FOLDERS[case][1]
    assert line.startswith("config.dataset.")
    assert [part for part in parts if part not in line] == [], line


def test_what_is_converted(tmp_path):
    """Every kind that Pillow reads safely, in one set of which nothing is refused."""
    images = fill(tmp_path / "images")
    grey, colour = noise(8, 8), noise(8, 8, 3)
    rows = b"".join(b"\0" + bytes(8 * 3 * 2) for _ in range(8))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "palette.png": encoded(colour, mode="P"),
        "transparent.png": encoded(colour, mode="P", transparency=0),
        "alpha.png": encoded(noise(8, 8, 4)),
        "veiled.png": encoded(noise(8, 8, 2)),
        "deep.png": encoded(grey.astype(np.uint16) * 257),
        "deeper.png": png(8, 8, 16, 2, rows),
        "print.jpg": encoded(colour, "JPEG", "CMYK"),
        "bits.png": encoded(grey, mode="1"),
        "windows.png": encoded(colour, "BMP"),
        "gif.png": encoded(colour, "GIF", "P"),
        "web.webp": encoded(colour, "WEBP"),
        "scan.tiff": encoded(grey.astype(np.uint16) * 257, "TIFF"),
        "inks.tif": encoded(colour, "TIFF", "CMYK"),
        "wavelets.jp2": encoded(colour, "JPEG2000"),
        "plain.ppm": encoded(colour, "PPM"),
        "av1.avif": encoded(colour, "AVIF"),
        "one.png": encoded(noise(1, 1)),
        "line.png": encoded(noise(1, 50_000)),
        "turned.jpg": encoded(colour, "JPEG", exif=turned),
        "spoilt.jpg": encoded(colour, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "moving.png": encoded(
            colour, save_all=True, append_images=[Image.fromarray(255 - colour)]
        ),
        "UPPER.PNG": encoded(colour),
    }
    for name, content in files.items():
        (images / "train/cat" / name).write_bytes(content)
    (images / "train/cat/notes.txt").write_text("not an image")
    (images / "train/cat/folder.png").mkdir()
    (images / "train/cat/folder.png/quite.png").write_bytes(encoded(colour, "QOI"))
    (images / "train/cat/round").symlink_to(".")
    before = snapshot(images)
    done = run(*FOLDER, "--workdir=run", cwd=tmp_path)
    assert (done.status, done.out, done.errors) == (0, "", []), done.lines
    told = "\n".join(done.lines)
    assert (
        "train: 2 files and folders were left out: 1 of other types (cat/notes.txt), "
        "1 listed already, through a link (cat/round/)"
    ) in told
    assert "images: 10 of 31 images were converted to 8-bit gray or RGB" in told
    for kind in ("3 alpha", "3 16-bit", "2 palette", "2 CMYK"):
        assert kind in told
    assert snapshot(images) == before


def test_thousands_of_classes(tmp_path):
    fill(tmp_path / "images", [f"class {n:04d}" for n in range(2_000)], 1)
    done = run(*FOLDER, "--workdir=run", "--config.knn.every=1", cwd=tmp_path)
    assert (done.status, done.out, done.errors) == (0, "", []), done.lines
    assert any("2000 test images of 8x8x3, 2000 classes" in line for line in done.lines)
