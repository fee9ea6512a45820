"""Decodes image files: conversion, resizing, packing into one uint8 array.

Images are Pillow images until they are square, and uint8, [side, side, channels],
after that.
"""

import contextlib
import ctypes
import functools
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from duet_jax.data.source import Example
from duet_jax.errors import UsageError
from duet_jax.runtime import terminal

# TIFF tags and their values.
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
# By what Pillow multiplies the samples of a PNG with fewer than 8 bits.
_SCALES = {"1": 255, "L;2": 85, "L;4": 17}
_DAMAGED = "but truncated, damaged or of a rare kind"
# Bytes that identify a file; the mark of a tar archive ends at 262.
_BEGINNING = 512
_MOST_TEXT = 30
# Shares of red, green and blue in the brightness of a color (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 1024  # images
# Of longer images, this many squares in the middle are resized.
_LONGEST = 16


def preprocessed_side(image_size: int, center_crop: bool) -> int:
    """Returns the side of the stored images in pixels.

    Source: reference: `floor(image_size * 256 / 224)` with the center-crop option.
    """
    if image_size < 1:
        raise UsageError(
            f"config.dataset.image_size={image_size} must be positive; "
            "the experiments of the paper use 32."
        )
    return image_size * 256 // 224 if center_crop else image_size


def decode(file: str | BinaryIO) -> tuple[Image.Image, str]:
    """Reads one image file.

    The content determines the format, whatever the file is called. Transparent pixels
    are composited over black, the value that a rotation leaves in the corners; 16-bit
    gray is scaled to 8 bits (of 16-bit color Pillow keeps the high bytes); palette and
    CMYK images become RGB; of an animation or several pages the first picture is used;
    an EXIF orientation is applied, since rotation is what the networks learn.

    Returns:
      The image in mode L or RGB, and what was converted ("" for nothing).

    Raises:
      Exception: the file is not a complete image in one of `FORMATS`, or its pixels
        have no fixed range; the message says what it is instead.
    """
    with _opened(file) as image:
        stored = _stored_mode(image)
        image.load()
        # Pillow has already turned a TIFF.
        if "exif" in image.info or "Raw profile type exif" in image.info:
            with contextlib.suppress(Exception):  # damaged EXIF data turn nothing
                image = ImageOps.exif_transpose(image)
        image, conversion = _to_gray_or_rgb(image, stored)
    return image, conversion or ("16-bit" if ";16" in stored else "")


def is_gray(file: str | BinaryIO) -> bool:
    """Returns whether `decode` makes a gray image of a file, without decoding it.

    Raises:
      Exception: as `decode`, as far as the header shows it.
    """
    with _opened(file) as image:
        return _is_gray(image)


@contextlib.contextmanager
def _opened(file: str | BinaryIO) -> Iterator[Image.Image]:
    """Opens an image file; an error says what an unreadable file is."""
    # Opening anything else, such as a pipe, could wait forever.
    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("it is not a regular file")
    _silence()
    try:
        # Pillow warns, file by file, of odd metadata that do not affect the pixels.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=_readable()) as image,
        ):
            _check_range(image)
            yield image
    except (_UnscaledError, Image.DecompressionBombError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot identify image file: {_what(file)}") from error
    except Exception as error:  # Pillow has no common type for damaged files
        if getattr(error, "errno", None):  # an error of the disk
            raise
        found = _format(_beginning(file))
        name = FORMATS[found].name if found else "an image"
        raise ValueError(f"{name}, {_DAMAGED}: {str(error) or repr(error)}") from error


@functools.cache
def _silence() -> None:
    """Stops Pillow and libtiff from writing about a damaged TIFF to standard error.

    What is wrong with it is raised as well.
    """
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # Pillow has no function for it, and its libtiff may be out of reach.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@functools.cache
def _readable() -> tuple[str, ...]:
    """Returns the formats that the installed Pillow has a library for."""
    with warnings.catch_warnings(action="ignore"):  # of libraries it does not know
        built = {name: features.check(each) for name, each in _LIBRARIES.items()}
    return tuple(name for name in FORMATS if built.get(name, True))


class _UnscaledError(ValueError):
    """The image is intact, but its pixels cannot be scaled to 8 bits."""


def _check_range(image: Image.Image) -> None:
    """Raises an error if it is unknown which pixel value is white."""
    unsigned = True
    if image.format == "TIFF":
        samples = image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
        unsigned = set(samples) == {_UNSIGNED}
    # Pillow scales 16-bit gray of the PPM family to all of 16 bits, in mode I.
    wide = image.mode == "I" and image.format != "PPM"
    if wide or image.mode == "F" or not unsigned:
        raise _UnscaledError(
            f"{FORMATS[image.format].name} with floating-point, signed or 32-bit "
            "pixels, of which none is known to be white; scale it to 8 or 16 bits"
        )


def _stored_mode(image: Image.Image) -> str:
    """Returns how pixels are stored in the file, which Pillow forgets on loading.

    Pillow's raw mode, such as `L;2`; some other word, or "", for formats that need
    none. " inverted" is appended for 16-bit gray in which 0 is white.
    """
    arguments = image.tile[0][-1] if image.tile else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    mode = str(arguments)
    # Pillow itself inverts gray of up to 8 bits.
    if mode in ("I;16", "I;16N") and image.format == "TIFF":
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return f"{mode} inverted" if inverted else mode
    return mode


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _to_gray_or_rgb(image: Image.Image, stored: str) -> tuple[Image.Image, str]:
    """Returns the image in mode L or RGB and the name of the conversion."""
    if image.mode.startswith("I"):
        return _narrow(image, stored)
    if image.has_transparency_data:
        _scale_transparency(image, stored)
        gray = _is_gray(image)
        layered = image.convert("LA" if gray else "RGBA")
        opaque = layered.convert("L" if gray else "RGB")
        black = Image.new(opaque.mode, opaque.size)
        return Image.composite(opaque, black, layered.getchannel("A")), "alpha"
    if image.mode in ("L", "RGB"):
        return image, ""
    if image.mode == "1":
        return image.convert("L"), ""
    return image.convert("RGB"), "palette" if image.mode == "P" else image.mode


def _narrow(image: Image.Image, stored: str) -> tuple[Image.Image, str]:
    """Scales gray of 12 or 16 bits to 8."""
    wide = np.asarray(image).astype(np.uint32)
    twelve = stored == "I;12"
    pixels = (wide * 255 + 2047) // 4095 if twelve else (wide + 128) // 257
    if stored.endswith(" inverted"):
        pixels = 255 - pixels
    transparent = image.info.get("transparency")
    if transparent is not None:
        pixels[wide == transparent] = 0
    gray = Image.fromarray(pixels.astype(np.uint8))
    return gray, "16-bit" if transparent is None else "alpha"


def _scale_transparency(image: Image.Image, stored: str) -> None:
    """Scales the transparent color of a PNG as Pillow scales the pixels.

    Of 16-bit colors Pillow keeps only the high bytes.
    """
    color = image.info.get("transparency")
    if stored == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)
    scale = _SCALES.get(stored, 1)
    if isinstance(color, int) and color <= 255 // scale:  # else Pillow has done it
        image.info["transparency"] = color * scale


def _beginning(file: str | BinaryIO) -> bytes:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(_BEGINNING)
    file.seek(0)
    return file.read(_BEGINNING)


def _format(beginning: bytes) -> str:
    """Returns the one of `FORMATS` that a file begins like; "" for none."""
    return next(
        (f for f, row in FORMATS.items() if re.match(row.magic, beginning, re.DOTALL)),
        "",
    )


def _what(file: str | BinaryIO) -> str:
    """Describes a file that Pillow cannot identify, by its first bytes."""
    beginning = _beginning(file)
    if not beginning:
        return "an empty file"
    found = _format(beginning)
    if found and found not in _readable():
        return f"{FORMATS[found].name}, which needs a newer Pillow or one with more"
    if found:
        return f"{FORMATS[found].name}, {_DAMAGED}"
    for words, pattern in _OTHERS.items():
        if re.match(pattern, beginning, re.DOTALL | re.IGNORECASE):
            return words
    text = beginning.decode(errors="ignore")
    is_text = all(letter.isprintable() or letter.isspace() for letter in text)
    # A character of up to four bytes may be cut in two at the end.
    if is_text and len(text.encode()) > len(beginning) - 4:
        return f"text that begins {' '.join(text.split())[:_MOST_TEXT]!r}"
    return f"of an unknown kind, beginning with 0x{beginning[:8].hex()}"


def square(image: Image.Image, side: int) -> np.ndarray:
    """Resizes the shorter side to `side` and crops the central square.

    Args:
      image: mode L or RGB.
      side: in pixels.

    Returns:
      uint8, [side, side, channels].

    Source: reference: torchvision's Resize (Pillow bilinear, longer side rounded down)
    and CenterCrop (offset rounded to the nearest even integer at a half). We first cut
    off the ends of an image more than 16 times as long as wide: resized as a whole, a
    tiny file with one line of pixels would fill the memory.
    """
    image = _without_ends(image)
    width, height = image.size
    if (width, height) != (side, side):
        shorter = min(width, height)
        width, height = side * width // shorter, side * height // shorter
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image).reshape(side, side, -1)


def _without_ends(image: Image.Image) -> Image.Image:
    """Returns the middle of a very long image; others unchanged."""
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    right, bottom = left + min(width, most), top + min(height, most)
    return image.crop((left, top, right, bottom))


def in_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Returns images with 1 or 3 channels.

    Args:
      images: uint8, [..., channels]. Gray is repeated; color becomes its luma.
      channels: wanted; 0 for those that the images have.
    """
    if channels in (0, images.shape[-1]):
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    gray = np.empty((*images.shape[:-1], 1), np.uint8)
    # In blocks, as float32 takes four times as much.
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK].astype(np.float32)
        # Summed one by one: a matrix product rounds differently on other processors.
        red, green, blue = (block[..., i] * share for i, share in enumerate(_LUMA))
        gray[start : start + _BLOCK, ..., 0] = np.rint(red + green + blue)
    return gray


def pack(
    examples: Iterable[Example], count: int, side: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes examples into two arrays, with a progress bar on a terminal.

    Args:
      examples: exactly `count` images in mode L or RGB, with labels.
      count: number of examples.
      side: side of the result in pixels.
      name: name of the data set, for the progress bar.

    Returns:
      Images uint8, [count, side, side, channels], with one channel if all are gray and
      three otherwise; labels int32, [count].
    """
    try:
        images = np.empty((count, side, side, 3), np.uint8)
    except MemoryError as error:
        raise UsageError(
            f"config.dataset.image_size: {count} images of {side}x{side} pixels do not "
            "fit into memory; choose a smaller image size or data set."
        ) from error
    labels = np.empty(count, np.int32)
    has_color = False
    bar = terminal.bar(
        examples, name, count, unit=" images", delay=2, disable=None, leave=False
    )
    for index, (image, label) in enumerate(bar):
        pixels = square(image, side)
        images[index] = pixels  # a gray image is repeated in all three channels
        labels[index] = label
        has_color |= pixels.shape[2] == 3
    return images if has_color else np.ascontiguousarray(images[..., :1]), labels


class Format(NamedTuple):
    """A format of image files.

    Attributes:
      name: for messages.
      extensions: of its files, in lower case.
      magic: a regular expression for the first bytes.
    """

    name: str
    extensions: tuple[str, ...]
    magic: bytes


# By Pillow's names, and tried in this order. Only formats that Pillow decodes in this
# process and recognizes by their first bytes. EPS would start Ghostscript, WMF code of
# Windows; TGA begins like anything; FITS holds measurements, in which no value is
# white; of a PSD with layers Pillow sees only the preview that the program has saved.
FORMATS = {
    "PNG": Format("PNG", (".png", ".apng"), rb"\x89PNG"),
    "JPEG": Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff"
    ),
    "BMP": Format("BMP", (".bmp", ".dib"), rb"BM.{4}\0{4}"),
    "GIF": Format("GIF", (".gif",), rb"GIF8[79]a"),
    "WEBP": Format("WebP", (".webp",), rb"RIFF.{4}WEBP"),
    "TIFF": Format("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    "PPM": Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6]\s"),
    "JPEG2000": Format(
        "JPEG 2000",
        (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        rb"\xff\x4f\xff\x51|\0{3}\x0cjP  ",
    ),
    "AVIF": Format("AVIF", (".avif", ".avifs"), rb".{4}ftypavi[fs]"),
    "QOI": Format("QOI", (".qoi",), rb"qoif"),
    "DIB": Format("BMP", (), rb"[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}"),
}
# Libraries that Pillow must be built with, by format.
_LIBRARIES = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}

# What may precede the first element of a page. The groups are atomic: otherwise files
# full of comments would take forever.
_PREAMBLE = rb"(\xef\xbb\xbf)?\s*+(?><\?xml[^>]*>\s*)?+(?><!--.*?-->\s*)*+"
# Other files found in place of an image, by their first bytes.
_OTHERS = {
    "a web page, such as a failed download leaves": (
        _PREAMBLE + rb"<(!doctype html|html|head|body|script)"
    ),
    "PFM with floating-point pixels (scale it to 8 or 16 bits)": rb"P[Ff]\s",
    "an SVG drawing": _PREAMBLE + rb"<(!doctype )?svg",
    "an XML document, such as a failed download leaves": rb"(\xef\xbb\xbf)?\s*<\?xml",
    "a Git LFS pointer (git lfs pull fetches the image)": (
        rb"version https://git-lfs\.github\.com/spec/"
    ),
    "a git-annex pointer (git annex get fetches the image)": rb"\S*/annex/objects/",
    "a ZIP archive": rb"PK\x03\x04|PK\x05\x06",
    "a gzip archive": rb"\x1f\x8b",
    "a tar archive": rb".{257}ustar",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "an xz, bzip2 or zstd archive": rb"\xfd7zXZ\0|BZh[1-9]1AY|\x28\xb5\x2f\xfd",
    "a PDF document": rb"%PDF-",
    "a PostScript drawing": rb"%!PS|\xc5\xd0\xd3\xc6",
    "HEIC, as iPhones take photographs (convert it to JPEG)": (
        rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"
    ),
    "a Canon photograph in raw form (convert it to TIFF)": rb".{4}ftypcrx |II\x1a\0",
    "JPEG XL, which Pillow does not read": rb"\xff\x0a|\0{3}\x0cJXL ",
    "a Photoshop document": rb"8BPS",
    "an icon": rb"\0\0[\1\2]\0[^\0]\0|icns",
    "a video": (
        rb".{4}(ftyp|moov|mdat)|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\1[\xb3\xba]|FLV\1"
    ),
    "an HDF5 file": rb"\x89HDF",
    "a NumPy array": rb"\x93NUMPY",
    "a file of zeros, such as a failed copy leaves": rb"\0{16}",
}
