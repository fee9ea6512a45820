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
import unicodedata
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import chunk
from PIL import Image
from prepared import Shapes, as_tfrecord, noise, png, prepare, save, shape_image
from program import PATIENCE
from sklearn.datasets import load_digits

from duet_jax.data import (
    FoundDataset,
    cache,
    find_dataset,
    found,
    load_dataset,
    stream_dataset,
)
from duet_jax.data import tfds as tfds_source
from duet_jax.data.decoding import (
    FORMATS,
    decode,
    is_gray,
    pack,
    preprocessed_side,
    square,
)
from duet_jax.data.source import kept_rows
from duet_jax.errors import UsageError

ROOT = pathlib.Path(__file__).parents[2]


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


# --- decoding: every format, by what is in the file


def written(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> tuple[np.ndarray, str]:
    """Returns the pixels and the conversion, and checks that `is_gray` foresaw them."""
    image, conversion = decode(io.BytesIO(content))
    assert image.mode == ("L" if is_gray(io.BytesIO(content)) else "RGB")
    return np.asarray(image), conversion


def refused(content: bytes) -> str:
    """Returns why an image cannot be decoded."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Pillow has no common type)
        decode(io.BytesIO(content))
    return str(caught.value)


def over_black(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels[..., :-1] * (pixels[..., -1:] / 255)).squeeze()


def smooth(*shape: int) -> np.ndarray:
    """Pixels that change slowly, so that lossy formats keep them."""
    rows, columns, channels = np.indices((*shape, 1)[:3])
    return (40 + 4 * rows + 3 * columns + 30 * channels).astype(np.uint8).squeeze()


def _modes() -> dict[str, tuple[Image.Image, np.ndarray]]:
    """An image in every mode that is written, and the pixels it stands for."""
    grey, colour, veiled = smooth(24, 16), smooth(24, 16, 3), smooth(24, 16, 4)
    deep = grey.astype(np.uint16) * 257 + 100
    palette = Image.fromarray(grey).convert("P")
    levels = range(256)
    palette.putpalette([v for i in levels for v in (255 - i, 255 - i, i)])
    inks = veiled.astype(float)
    return {
        "1": (Image.fromarray(grey > 100), (grey > 100) * 255),
        "L": (Image.fromarray(grey), grey),
        "LA": (Image.fromarray(veiled[..., 2:]), over_black(veiled[..., 2:])),
        "P": (palette, np.stack([255 - grey, 255 - grey, grey], -1)),
        "RGB": (Image.fromarray(colour), colour),
        "RGBA": (Image.fromarray(veiled), over_black(veiled)),
        "CMYK": (
            Image.frombytes("CMYK", (16, 24), veiled.tobytes()),
            np.rint((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255),
        ),
        "I;16": (Image.fromarray(deep), np.rint(deep / 257)),
    }


MODES = {
    "PNG": "1 L LA P RGB RGBA I;16",
    "JPEG": "L RGB CMYK",
    "BMP": "1 L P RGB",
    "GIF": "1 P",
    "WEBP": "RGB RGBA",
    "TIFF": "1 L LA P RGB RGBA CMYK I;16",
    "PPM": "1 L RGB I;16",
    "JPEG2000": "L LA RGB RGBA CMYK I;16",
    "AVIF": "RGB RGBA",
    "QOI": "RGB RGBA",
    "DIB": "1 L P RGB",
}
LOSSY = {"JPEG": 4, "AVIF": 6}
SAVED = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100},
}
SAVED_AS = [(kind, mode) for kind in MODES for mode in MODES[kind].split()]


def test_every_format_has_its_modes():
    assert set(MODES) == set(FORMATS)


@pytest.mark.parametrize(("kind", "mode"), SAVED_AS)
def test_every_format_and_mode(kind, mode):
    image, expected = _modes()[mode]
    pixels, conversion = decoded(written(image, kind, **SAVED.get(kind, {})))
    assert (pixels.ndim == 2) == (expected.ndim == 2)
    tolerance = LOSSY.get(kind, "A" in mode)  # Pillow rounds compositing in its own way
    np.testing.assert_allclose(pixels.astype(int), expected, atol=tolerance)
    kinds = {"P": "palette", "LA": "alpha", "RGBA": "alpha", "I;16": "16-bit"}
    assert conversion == kinds.get(mode, mode if mode == "CMYK" else "")


COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "jpeg", "group4")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_tiff(compression):
    modes = {"jpeg": "L RGB", "group4": "1"}
    for mode in modes.get(compression, MODES["TIFF"]).split():
        image, expected = _modes()[mode]
        options = {"quality": 100} if compression == "jpeg" else {}
        content = written(image, "TIFF", compression=compression, **options)
        pixels, _ = decoded(content)
        tolerance = 4 if options else "A" in mode
        np.testing.assert_allclose(pixels.astype(int), expected, atol=tolerance)


def tiff(samples: np.ndarray, *, order: str = "<", **tags: int | list[int]) -> bytes:
    """A TIFF of one line, also of a form that Pillow does not write.

    Args:
      samples: [pixels, samples]; bytes if there are 12 bits in each.
      order: of bytes.
      **tags: `bits`, `photometric`, `sign` (1 unsigned, 2 signed, 3 floating-point),
        `extra` (what a further sample is: 1 premultiplied alpha, 2 alpha), `width`.
    """
    width, count = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = tags.get("bits", 8 * samples.itemsize)
    entries = {
        256: [tags.get("width", width)],
        257: [1],
        258: [bits] * count,
        259: [1],
        262: [tags["photometric"]],
        273: [8],
        277: [count],
        278: [1],
        279: [len(data)],
        339: [tags.get("sign", 1)] * count,
    }
    if "extra" in tags:
        entries[338] = [tags["extra"]]
    entries = dict(sorted(entries.items()))
    data += bytes(len(data) % 2)
    further, start = b"", 8 + len(data) + 2 + 12 * len(entries) + 4
    listed = struct.pack(f"{order}H", len(entries))
    for tag, values in entries.items():
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + len(further))
            further += packed
            packed = place
        listed += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(
            4, b"\0"
        )
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        f"{order}HI", 42, 8 + len(data)
    )
    return head + data + listed + bytes(4) + further


def bits_png(depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one line of two pixels in which one colour is transparent."""
    head = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", transparent)]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pgm(limit: int, *values: int) -> bytes:
    kind = "H" if limit > 255 else "B"
    data = struct.pack(f">{len(values)}{kind}", *values)
    return b"P5 %d 1 %d\n%s" % (len(values), limit, data)


def line(*values, dtype: type = np.uint8) -> np.ndarray:
    """Samples of one line: [pixels, samples]."""
    array = np.array(values, dtype)
    return array[:, None] if array.ndim == 1 else array


DEEP = line(0, 128, 129, 32768, 65535, dtype=np.uint16)
LEVELS = [0, 0, 1, 128, 255]

# Files as other programs write them, and their pixels.
MADE = {
    "TIFF of 16 bits, little-endian": (tiff(DEEP, photometric=1), LEVELS),
    "TIFF of 16 bits, big-endian": (tiff(DEEP, photometric=1, order=">"), LEVELS),
    "TIFF of 16 bits, 0 is white": (
        tiff(DEEP, photometric=0),
        [255 - level for level in LEVELS],
    ),
    "TIFF of 8 bits, 0 is white": (
        tiff(line(0, 55, 255), photometric=0),
        [255, 200, 0],
    ),
    "TIFF of 12 bits": (
        tiff(line(0xFF, 0xF0, 0x10), photometric=1, bits=12, width=2),
        [255, 1],
    ),
    "TIFF with premultiplied grey": (
        tiff(line((100, 200), (10, 255), (0, 0)), photometric=1, extra=1),
        [100, 10, 0],
    ),
    "TIFF with premultiplied colour": (
        tiff(line((50, 20, 10, 100), (5, 6, 7, 255)), photometric=2, extra=1),
        [(50, 20, 10), (5, 6, 7)],
    ),
    "TIFF of colour in 16 bits": (
        tiff(line((65535, 512, 255), dtype=np.uint16), photometric=2),
        [(255, 2, 0)],
    ),
    "TIFF of inks in 16 bits": (
        tiff(line((0, 65535, 65535, 0), dtype=np.uint16), photometric=5),
        [(255, 0, 0)],
    ),
    # L* = 78.4, a* = 20, b* = -16, with D50 white, by the formulas of CIE and sRGB.
    "TIFF of L*a*b*": (tiff(line((200, 20, 240)), photometric=8), [(221, 182, 224)]),
    "PGM of 4 bits": (pgm(15, 0, 1, 15), [0, 17, 255]),
    "PGM of 10 bits": (pgm(1023, 0, 512, 1023), [0, 128, 255]),
    "PGM up to 300": (pgm(300, 0, 20, 300), [0, 17, 255]),
    "PGM of 16 bits": (pgm(65535, 0, 128, 129, 32768, 65535), LEVELS),
    "PGM in words": (b"P2 3 1 300\n0 20 300\n", [0, 17, 255]),
    "PPM of 10 bits": (
        b"P6 1 1 1023\n" + struct.pack(">3H", 1023, 512, 0),
        [(255, 128, 0)],
    ),
    "PPM in words": (b"P3 1 1 15\n# red\n15 1 0\n", [(255, 17, 0)]),
    "PBM": (b"P4 4 1\n\x50", [255, 0, 255, 0]),
    "PBM in words": (b"P1 4 1\n0101", [255, 0, 255, 0]),
    "PNG of 1 bit, white transparent": (bits_png(1, 0, b"\x40", b"\0\1"), [0, 0]),
    "PNG of 2 bits, 1 of 3 transparent": (bits_png(2, 0, b"\x60", b"\0\1"), [0, 170]),
    "PNG of 4 bits, white transparent": (bits_png(4, 0, b"\xf1", b"\0\x0f"), [0, 17]),
    "PNG of 16 bits, one transparent": (
        bits_png(16, 0, b"\x12\x34\x12\x35", b"\x12\x34"),
        [0, 18],
    ),
    "PNG of colour in 16 bits, one transparent": (
        bits_png(16, 2, b"\x12\x34" * 3 + b"\xff\xff" * 3, b"\x12\x34" * 3),
        [(0, 0, 0), (255, 255, 255)],
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_files_of_other_programs(case):
    content, expected = MADE[case]
    pixels, _ = decoded(content)
    np.testing.assert_array_equal(pixels[0], expected)


UNSCALED = {
    "TIFF of 16 bits, signed": tiff(line(-1, 9, dtype=np.int16), photometric=1, sign=2),
    "TIFF of 8 bits, signed": tiff(line(-1, 9, dtype=np.int8), photometric=1, sign=2),
    "TIFF of 32 bits": tiff(line(2**32 - 1, 9, dtype=np.uint32), photometric=1),
    "TIFF of 32 bits, signed": tiff(
        line(-1, 9, dtype=np.int32), photometric=1, sign=2, order=">"
    ),
    "TIFF of fractions": tiff(line(0.5, 9.0, dtype=np.float32), photometric=1, sign=3),
    "PFM": b"Pf 1 1 -1\n" + struct.pack("<f", 0.5),
}


@pytest.mark.parametrize("case", UNSCALED)
def test_what_has_no_white_is_refused(case):
    """Wrapped round or cut off, it would be another image."""
    kind = "PPM" if case == "PFM" else "TIFF"
    expected = f"{kind} with floating-point, signed or 32-bit pixels, of which none is "
    assert refused(UNSCALED[case]).startswith(expected)
    with pytest.raises(ValueError, match="scale it to 8 or 16 bits"):
        is_gray(io.BytesIO(UNSCALED[case]))


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}
ORIENTED = {
    "PNG": {},
    "PNG of 16 bits": {},
    "JPEG": {"quality": 100},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF of 16 bits": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 100},
}


@pytest.mark.parametrize("kind", ORIENTED)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_turned_upright(kind, orientation):
    pixels = smooth(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    if "16" in kind:
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    found, _ = decoded(written(image, kind.split()[0], exif=exif, **ORIENTED[kind]))
    expected = UPRIGHT[orientation](pixels)
    if found.ndim == 3:
        expected = np.stack([expected] * 3, -1)
    tolerance = LOSSY.get(kind, 0)
    np.testing.assert_allclose(found.astype(int), expected, atol=tolerance)


def test_a_photograph_with_exif_in_a_text_of_the_png_is_turned_upright():
    """As ImageMagick wrote it before PNG had a place for it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    content = exif.tobytes()
    text = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    pixels = noise((2, 3))
    start, end = png(pixels).split(b"\0\0\0\0IEND")
    found, _ = decoded(start + text + b"\0\0\0\0IEND" + end)
    np.testing.assert_array_equal(found, pixels[::-1, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "AVIF", "MPO"])
def test_the_first_picture_is_taken(kind):
    images = [Image.new("RGB", (16, 24), colour) for colour in ("red", "blue", "lime")]
    content = written(images[0], kind, save_all=True, append_images=images[1:])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    pixels, _ = decoded(content)
    np.testing.assert_allclose(pixels[:, :] + 0.0, [[(255, 0, 0)] * 16] * 24, atol=6)


def test_other_formats_stay_shut():
    """Also those that would start a program, or that could be anything."""
    colour = Image.fromarray(noise((8, 8, 3)))
    for kind in ("EPS", "TGA", "PCX", "ICO", "SGI", "PDF"):
        message = refused(written(colour, kind))
        assert message.startswith("cannot identify image file: ")


PAGE = b"<!DOCTYPE html><html><head><title>404</title></head></html>"
XML = b"<?xml version='1.0'?>\n"
OTHERS = {
    b"": "an empty file",
    PAGE: "a web page, such as a failed download leaves",
    b"\xef\xbb\xbf \n<HTML lang=de>": "a web page, such as a failed download leaves",
    XML + b"<!-- <svg> -->\n" + PAGE: "a web page, such as a failed download leaves",
    XML + b"<svg width='1'/>": "an SVG drawing",
    XML + b"<Error><Code>AccessDenied": "an XML document, such as a failed download",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a Git LFS pointer "
    "(git lfs pull fetches the image)",
    b"/annex/objects/SHA256E-s1--0.jpg\n": "a git-annex pointer",
    b'{"error": "not found",\n "code": 404, "more": "and more"}': "text that begins "
    '\'{"error": "not found", "code":\'',
    "schön, aber kein Bild".encode(): "text that begins 'schön, aber kein Bild'",
    b"PK\3\4rest": "a ZIP archive",
    b"\x1f\x8b\x08rest": "a gzip archive",
    b"name".ljust(257, b"\0") + b"ustar\0": "a tar archive",
    b"%PDF-1.4\n": "a PDF document",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC, as iPhones take photographs",
    b"%!PS-Adobe-3.0 EPSF-3.0\n": "a PostScript drawing",
    b"8BPS\0\1\0\0": "a Photoshop document",
    b"\0\0\1\0\1\0\x10\x10": "an icon",
    b"\0\0\0\x20ftypisom\0\0\2\0": "a video",
    b"\0\0\0\x14ftypqt  \0\0\2\0": "a video",
    b"RIFF\1\0\0\0AVI LIST": "a video",
    b"\x1a\x45\xdf\xa3\x9f": "a video",
    b"\xff\x0a\xfa\x1f": "JPEG XL, which Pillow does not read",
    b"PF 1 1 -1\n" + bytes(12): "PFM with floating-point pixels",
    bytes(600): "a file of zeros, such as a failed copy leaves",
    b"\xde\xad\xbe\xef\0\1\2\3\4\5": "of an unknown kind, beginning with "
    "0xdeadbeef00010203",
    b"\x80text\n" * 50: "of an unknown kind, beginning with 0x80746578740a8074",
}


@pytest.mark.parametrize("content", OTHERS, ids=range(len(OTHERS)))
def test_what_is_no_image_is_said_to_be(content):
    expected = f"cannot identify image file: {OTHERS[content]}"
    message = refused(content)
    assert message.startswith(expected)
    assert len(message) < 120
    with pytest.raises(ValueError, match="cannot identify image file"):
        is_gray(io.BytesIO(content))


def test_text_is_known_with_a_letter_cut_in_two():
    text = ("x" + "ö" * 300).encode()
    assert refused(text).startswith("cannot identify image file: text that begins 'xö")


def test_a_page_of_comments_is_told_at_once():
    """Where comments end could be guessed in 2^72 ways."""
    started = time.monotonic()
    assert "text that begins '<!---->" in refused(b"<!---->" * 73)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_image_is_said_to_be_one(kind):
    content = written(Image.fromarray(noise((9, 8, 3))), kind, **SAVED.get(kind, {}))
    name = FORMATS[kind].name
    # What is missing of the end may be no more than a checksum.
    for length in range(14, len(content) - 24, 7):
        message = refused(content[:length])
        assert "truncated" in message
        assert name in message


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
    for name in ("notes.txt", "a.csv", "b.csv", "deep/c.csv", "png"):
        (folder / "train/cat" / name).parent.mkdir(exist_ok=True)
        (folder / "train/cat" / name).write_text("not an image")
    (folder / "train/LICENSE").write_text("beside the classes")
    (folder / "train/cat/._0.png").write_text("left by a file manager")
    (folder / "train/.hidden").mkdir()
    save(folder / "train/.hidden/0.png", noise((8, 8, 3)))
    save(folder / "train/loose.png", noise((8, 8, 3)))
    (folder / "test/dog/odd\nname.txt").write_text("not an image")
    (folder / "LICENSE").write_text("beside the splits")
    with caplog.at_level(logging.INFO):
        dataset = load_folder(folder)
    assert len(dataset.train.labels) == 8
    assert [line for line in messages(caplog) if "left out" in line] == [
        f"{folder}/train: 9 files and folders were left out: 2 hidden (.hidden/, "
        "cat/._0.png), 6 of other types (LICENSE, cat/a.csv, cat/b.csv and 3 more), "
        "1 not in a class folder (loose.png)",
        f"{folder}/test: 1 file was left out: 1 of other types ('dog/odd\\nname.txt')",
    ]


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_folder_reads_every_extension(tmp_path, caplog):
    """Whatever the file is called, in either case; the content tells its format."""
    extensions = [each for row in FORMATS.values() for each in row.extensions]
    known = ".png .jpg .jpeg .jfif .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .jp2"
    assert set(known.split()) <= set(extensions)
    kinds = [kind for kind, row in FORMATS.items() for _ in row.extensions]
    image = Image.fromarray(smooth(8, 8, 3))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for kind, extension in zip(kinds, extensions, strict=True):
                content = written(image, kind, **SAVED.get(kind, {}))
                for end in (extension, extension.upper()):
                    (tmp_path / split / name / f"0{end}").write_bytes(content)
    with caplog.at_level(logging.INFO):
        dataset = load_folder(tmp_path)
    expected = [np.asarray(image)] * 4 * len(extensions)
    np.testing.assert_allclose(dataset.train.images + 0.0, expected, atol=12)
    assert "left out" not in caplog.text


def test_folder_reads_classes_at_any_depth(tmp_path):
    """Depth first, by name; a folder may be called like an image."""
    names = {
        "train": "b/2.png b/a/1.png b/a/x/0.png b/a/z.png b/b.png b/z.png/3.png "
        "c/0.png",
        "test": "b/deep/er/0.png c/0.png",
    }
    for split, listed in names.items():
        for i, name in enumerate(reversed(listed.split())):
            save(tmp_path / split / name, np.full((8, 8), i, np.uint8))
    dataset = load_folder(tmp_path)
    listed = [f"{s}/{name}" for s in names for name in names[s].split()]
    assert list(dataset.files) == listed
    assert dataset.class_names == ("b", "c")
    np.testing.assert_array_equal(dataset.train.labels, [0] * 6 + [1])
    np.testing.assert_array_equal(dataset.train.images[:, 0, 0, 0], range(6, -1, -1))
    np.testing.assert_array_equal(dataset.test.images[:, 0, 0, 0], [1, 0])


def test_folder_order_is_pinned(tmp_path):
    """By code points, as ever: the order of the examples is part of every result."""
    names = "A/10.png A/2.png A/B.png A/a.png B/0.png a/0.png a/é.png é/0.png 猫/0.png"
    for split in ("train", "test"):
        for name in names.split():
            save(tmp_path / split / name, noise((8, 8)))
    dataset = load_folder(tmp_path)
    assert dataset.class_names == ("A", "B", "a", "é", "猫")
    assert dataset.files[:9] == tuple(f"train/{name}" for name in names.split())


def decomposed(name: str) -> str:
    """A name as macOS writes it: accents apart from their letters."""
    return unicodedata.normalize("NFD", name)


def test_folder_names_of_classes_from_another_system(tmp_path):
    """é is é, and comes where its label says, however it is written."""
    for split, name in [("train", "é"), ("train", "ẑ"), ("test", decomposed("é"))]:
        save(tmp_path / split / name / "0.png", noise((8, 8), len(name)))
    save(tmp_path / "test/ẑ/0.png", noise((8, 8), 5))
    # One split may have both.
    save(tmp_path / "train" / decomposed("é") / "1.png", noise((8, 8), 6))
    save(tmp_path / "train/f/0.png", noise((8, 8), 7))
    save(tmp_path / "test/f/0.png", noise((8, 8), 8))
    dataset = load_folder(tmp_path)
    assert dataset.class_names == ("f", "é", "ẑ")
    assert dataset.files == (
        "train/f/0.png",
        f"train/{decomposed('é')}/1.png",
        "train/é/0.png",
        "train/ẑ/0.png",
        "test/f/0.png",
        f"test/{decomposed('é')}/0.png",
        "test/ẑ/0.png",
    )
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 1, 2])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])
    np.testing.assert_array_equal(dataset.train.images[1, ..., 0], noise((8, 8), 6))
    np.testing.assert_array_equal(dataset.test.images[1, ..., 0], noise((8, 8), 2))
    reader = find_dataset("folder", path=str(tmp_path), image_size=8).source.reader
    assert [label for _, label in reader(range(7))] == [0, 1, 1, 2, 0, 1, 2]


def test_folder_of_another_system_is_in_the_same_order(tmp_path):
    """Classes and labels do not depend on how a file system writes accents."""
    for split in ("train", "test"):
        for name in ("e", "é", "f"):
            for place, form in (("linux", name), ("mac", decomposed(name))):
                save(
                    tmp_path / place / split / form / "0.png", noise((8, 8), ord(name))
                )
    assert same(*(load_folder(tmp_path / place) for place in ("linux", "mac")))
    assert load_folder(tmp_path / "mac").class_names == ("e", "f", "é")


def test_folder_says_how_many_images_it_converted(folder, caplog):
    save(folder / "train/cat/a.png", noise((8, 8, 4)))
    save(folder / "train/cat/b.png", noise((8, 8, 4)))
    save(folder / "test/dog/c.png", np.zeros((8, 8), np.uint16))
    with caplog.at_level(logging.INFO):
        load_folder(folder)
    lines = [r.getMessage() for r in caplog.records if "converted" in r.getMessage()]
    assert lines == [
        f"{folder}: 3 of 11 images were converted to 8-bit gray or RGB "
        "(2 alpha, 1 16-bit)"
    ]


def test_folder_follows_links_without_going_round(folder, tmp_path, caplog):
    save(tmp_path / "elsewhere" / "a" / "0.png", noise((8, 8, 3)))
    (folder / "train/emu").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b").symlink_to(tmp_path / "elsewhere" / "a")
    (folder / "train/loop").symlink_to(folder / "train/loop")
    (folder / "train/cat/more").symlink_to(tmp_path / "elsewhere" / "a")
    (folder / "train/cat/up").symlink_to(folder / "train")
    (folder / "train/cat/root").symlink_to("../..")
    (folder / "train/dog/sub").mkdir()
    (folder / "train/dog/sub/here").symlink_to(".")
    (folder / "train/dog/sub/all").symlink_to("/")
    (folder / "train/over").symlink_to("..")
    with caplog.at_level(logging.INFO):
        dataset = load_folder(folder)
    assert dataset.class_names == ("cat", "dog", "emu")
    assert dataset.files[:8] == (
        *(f"train/cat/{name}" for name in ("0.png", "1.png", "2.png", "more/0.png")),
        *(f"train/dog/{name}" for name in ("0.png", "1.png", "2.png")),
        "train/emu/a/0.png",
    )
    assert (
        "train: 7 files and folders were left out: 1 of other types (loop), "
        "6 listed already, through a link (over/, cat/root/, cat/up/ and 3 more)"
    ) in caplog.text


def test_folder_of_links_to_each_other(folder):
    """Every way through ten folders would be millions of ways."""
    for i in range(10):
        save(folder / f"train/cat/{i}/0.png", noise((8, 8, 3), i))
        for j in range(10):
            (folder / f"train/cat/{i}/{j}").symlink_to(f"../{j}")
    started = time.monotonic()
    files = find_dataset("folder", path=str(folder)).source.files
    assert time.monotonic() - started < 5
    images = [name for name in files if name.startswith("train/cat")]
    assert (
        len(images) == len({os.path.realpath(folder / name) for name in images}) == 13
    )


def test_folder_within_a_thousand_folders(folder):
    """Deeper than Python's own stack."""
    deep = folder / "train/cat"
    for _ in range(1_200):
        deep /= "a"
        deep.mkdir()
    save(deep / "0.png", noise((8, 8, 3)))
    assert len(load_folder(folder).train.labels) == 7
    (deep / "0.png").unlink()
    os.removedirs(deep)  # too deep for pytest


def test_a_large_folder_is_listed_without_asking_for_each_file(folder, monkeypatch):
    """But for the size and time of an image, which its entry in the folder asks for."""
    for i in range(50):
        (folder / f"train/cat/{i}.txt").touch()
        save(folder / f"train/cat/sub/{i}/0.png", noise((8, 8, 3)))
    asked = []

    def counted(path, **options):
        asked.append(path)
        return lstat(path, **options)

    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", counted)  # as realpath does
    assert find_dataset("folder", path=str(folder)).source.num_train == 56
    assert len(set(asked)) <= len(folder.parts) + 2
    assert not any("cat" in str(path) for path in asked)


def _remove(path: pathlib.Path) -> None:
    for child in path.iterdir():
        child.unlink() if child.is_file() else _remove(child)
    path.rmdir()


FOLDER_FAULTS = {
    "no train": (
        lambda root: (root / "train").rename(root / "others"),
        "has a folder test and none of training images; it holds others, test; name",
    ),
    "an empty split": (
        lambda root: [_remove(child) for child in (root / "test").iterdir()],
        "no images in test/<class>/; arrange the images as <path>/train/<class>/*.png",
    ),
    "images without a class": (
        lambda root: [
            *[_remove(child) for child in (root / "train").iterdir()],
            *[save(root / f"train/{i}.png", noise((8, 8, 3))) for i in range(5)],
            (root / "train/labels.csv").touch(),
        ],
        "no images in train/<class>/ (6 files were left out: 5 not in a class folder "
        "(0.png, 1.png, 2.png and 2 more), 1 of other types (labels.csv)); arrange the "
        "images as <path>/train/<class>/*.png",
    ),
    "a class of other files": (
        lambda root: [
            _remove(root / "test/dog"),
            (root / "test/dog").mkdir(),
            (root / "test/dog/0.heic").touch(),
        ],
        "no images in test/dog (1 file was left out: 1 of other types (dog/0.heic)); "
        "remove the folder or arrange the images as ",
    ),
    "a class only in test, with an accent": (
        lambda root: save(root / "test" / decomposed("é") / "0.png", noise((8, 8, 3))),
        "test has classes that train lacks: é; give both",
    ),
    "a broken link": (
        lambda root: (root / "train/cat/9.png").symlink_to(root / "nowhere"),
        "1 of 9 images cannot be read: train/cat/9.png; replace or delete",
    ),
    "a file of another kind": (
        lambda root: (root / "test/dog/9.png").write_text("<html>not found</html>"),
        "1 of 9 images cannot be read: test/dog/9.png; replace or delete them (the "
        "first: cannot identify image file: a web page, such as a failed download",
    ),
    "a truncated file": (
        lambda root: (root / "train/cat/0.png").write_bytes(
            png(noise((8, 8, 3)))[:-60]
        ),
        "1 of 8 images cannot be read: train/cat/0.png; replace or delete them (the "
        "first: PNG, but truncated, damaged or of a rare kind: ",
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

    original = found._decode
    monkeypatch.setattr(found, "_decode", counted)
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
    np.testing.assert_array_equal(kept_rows(np.zeros(10), fraction), list(rows))


def test_fewer_training_images(folder, tmp_path, decodings):
    """Both shares come from one entry of the cache; all test images are there."""
    cache_dir = str(tmp_path / "cache")
    whole = load_folder(folder, cache_dir=cache_dir)
    half = load_folder(folder, cache_dir=cache_dir, train_fraction=0.5)
    assert decodings == ["folder"]
    rows = kept_rows(whole.train.labels, 0.5)
    assert len(rows) == 3
    for part, all_of_it in zip(half.train, whole.train, strict=True):
        np.testing.assert_array_equal(part, all_of_it[rows])
    for part, all_of_it in zip(half.test, whole.test, strict=True):
        np.testing.assert_array_equal(part, all_of_it)
    assert half.files == tuple(whole.files[row] for row in (*rows, 6, 7))
    assert half.facts == whole.facts._replace(num_train=3)


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 0.999, 1.0])
@pytest.mark.parametrize("counts", [[5] * 20, [1, 2, 3, 300], [50, 50], [7]])
def test_a_share_has_its_share_of_every_class(counts, fraction, order):
    labels = np.repeat(np.arange(len(counts)), counts)
    if order == "mixed":
        labels = np.random.default_rng(0).permutation(labels)
    rows = kept_rows(labels, fraction)
    assert (np.diff(rows) > 0).all()
    kept = np.bincount(labels[rows], minlength=len(counts))
    for share, count in zip(kept, counts, strict=True):
        assert 1 <= share <= count
        assert abs(share - fraction * count) <= 1
    most = max(round(fraction * len(labels)), len(counts))
    assert round(fraction * len(labels)) <= len(rows) <= most + len(counts)
    if fraction == 1:
        assert len(rows) == len(labels)


def test_a_share_of_equal_classes_is_spread_as_before():
    """A folder lists class after class; every tenth image is a tenth of each."""
    labels = np.repeat(np.arange(10), 500)
    rows = kept_rows(labels, 0.1)
    np.testing.assert_array_equal(rows, np.arange(0, 5000, 10))


def test_a_share_of_a_folder_loses_no_class(tmp_path, caplog):
    """20 classes of 5 images, of which a tenth is ten images."""
    for index in range(20):
        for number in range(5):
            place = tmp_path / "train" / f"{index:02d}" / f"{number}.png"
            save(place, noise((8, 8, 3), 5 * index + number))
        save(
            tmp_path / "test" / f"{index:02d}" / "0.png", noise((8, 8, 3), 200 + index)
        )
    options = {"path": str(tmp_path), "image_size": 8, "train_fraction": 0.1}
    with caplog.at_level(logging.WARNING, "duet_jax"):
        whole = load_dataset("folder", **options)
    assert not caplog.records
    assert sorted(whole.train.labels) == [*range(20)]
    streamed = stream_dataset("folder", **options)
    assert streamed.facts == whole.facts
    images, labels = streamed.read(np.arange(20))
    np.testing.assert_array_equal(images, whole.train.images)
    np.testing.assert_array_equal(labels, whole.train.labels)


def test_classes_that_are_left_without_images_are_told(caplog):
    """Of a source that does not know its labels before it is decoded."""
    source = find_dataset("digits", image_size=8).source._replace(labels=None)
    share = 3 / source.num_train
    with caplog.at_level(logging.WARNING, "duet_jax"):
        dataset = FoundDataset("digits", source, 8, share).decode()
    (told,) = (record.getMessage() for record in caplog.records)
    gone = 10 - len(np.unique(dataset.train.labels))
    assert f"{gone} of 10 classes have no training image: " in told
    assert told.count(",") == 4 + 1
    assert f" and {gone - 5} more; raise" in told


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
    (entry,) = (tmp_path / "cache").glob("folder-*")
    assert f"by way of the cache {entry}" in caplog.text
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


def test_each_size_has_its_own_entry(folder, tmp_path, decodings):
    for size in (8, 16, 8, 16):
        load_folder(folder, cache_dir=str(tmp_path / "cache"), image_size=size)
    assert decodings == ["folder", "folder"]


def test_cache_is_in_the_users_cache_directory_by_default(folder, tmp_path):
    load_folder(folder)
    assert len(list((tmp_path / "xdg/duet_jax").glob("folder-*"))) == 1


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
    assert len(list((tmp_path / "xdg/duet_jax").glob("folder-*"))) == 2
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
    (entry,) = (tmp_path / "cache").glob("folder-*")
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
    (entry,) = (tmp_path / "cache").glob("folder-*")
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
    def full_disk(path, array):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full_disk)
    with caplog.at_level(logging.WARNING):
        dataset = load_folder(folder, cache_dir=str(tmp_path / "cache"))
    assert len(dataset.train.labels) == 6
    assert "No space left on device" in caplog.text
    (entry,) = (tmp_path / "cache").glob("folder-*")
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
    (entry,) = (tmp_path / "cache").glob("folder-*")
    assert len(list(entry.iterdir())) == 5  # no temporary files are left


# --- TensorFlow Datasets


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
        timeout=PATIENCE,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


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
    "attributes",
    [
        {"SPLITS": {"train": 30}},
        {"SPLITS": {"train": 30, "test": 2}, "LABELLED": ("train",)},
    ],
)
def test_tfds_test_images_are_held_out(tmp_path, attributes):
    prepare(tmp_path, **attributes)
    dataset = load_dataset("shapes", path=str(tmp_path), image_size=8, holdout=0.3)
    assert 1 < len(dataset.test.labels) < 20
    found = images_with_labels(dataset.train) + images_with_labels(dataset.test)
    assert sorted(map(str, found)) == sorted(map(str, expected_shapes("train", 30)))


def test_tfds_without_labels(tmp_path):
    features = {"image": Shapes.FEATURES["image"]}
    prepare(tmp_path, SPLITS={"train": 3, "test": 2}, FEATURES=features)
    dataset = load_dataset("shapes", path=str(tmp_path), image_size=8)
    assert dataset.class_names == ()
    labels = [*dataset.train.labels, *dataset.test.labels]
    assert labels == [-1] * 5
    stream = stream_dataset("shapes", path=str(tmp_path), image_size=8)
    assert stream.read(np.arange(5)).labels.tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"SPLITS": {"test": 2}}, "needs a split train; it has test;"),
        (
            {"SPLITS": {"train": 2, "test": 2}, "LABELLED": ("test",)},
            "has images without a valid label",
        ),
        (
            {
                "SPLITS": {"train": 2, "test": 2},
                "FEATURES": {"label": Shapes.FEATURES["label"]},
            },
            "is not an image set: its features are label;",
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
        f"config.dataset.path={str(tmp_path)!r}; choose digits, folder, images, csv, "
        "npz, parquet or an image set of TFDS such as cifar10, cifar100, mnist or "
        "svhn_cropped. Did you mean 'cifar10'?"
    )
    assert "Did you mean 'digits'?" in usage_error("digit")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../data", "cannot be used: ValueError: "),
        ("cifar10:9.9.9", "cannot be loaded at version 9.9.9, only: 3.0.2."),
        ("imdb_reviews", "is not an image set: its features are text"),
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
    message = usage_error("imagez")
    assert "csv, npz, parquet. Did you mean 'images'? Others are of TFDS" in message
    assert message.endswith("pip install tensorflow_datasets")


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
    told = caplog.records[0].getMessage()
    assert told.startswith(
        "data         digits: 1442 training and 355 test images of 16x16x1, 10 "
        "classes, from scikit-learn in "
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
    facts = find_dataset("folder", path=str(folder), image_size=8).facts
    assert facts.content == after.content


def test_a_copied_folder_holds_the_same_images(folder, tmp_path):
    before = load_folder(folder).content
    folder.rename(tmp_path / "moved")
    assert load_folder(tmp_path / "moved").content == before != ""
