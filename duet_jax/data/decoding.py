"""From image files to one uint8 array: conversion, resizing, packing.

Images are Pillow images until they are square, and uint8, [side, side, channels],
after that.
"""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from duet_jax.data.source import Example
from duet_jax.errors import UsageError

# Tried in this order whatever the file is called.
_FORMATS = ("PNG", "JPEG", "BMP")
# Of images that are longer, this many squares in the middle are resized.
_LONGEST = 16


def preprocessed_side(image_size: int, center_crop: bool) -> int:
    """Returns the side of the stored images in pixels.

    Source: reference: `floor(image_size * 256 / 224)` with the centre-crop option.
    """
    if image_size < 1:
        raise UsageError(
            f"config.dataset.image_size={image_size} must be positive; "
            "the experiments of the paper use 32."
        )
    return image_size * 256 // 224 if center_crop else image_size


def decode(file: str | BinaryIO) -> tuple[Image.Image, str]:
    """Reads one image file.

    Transparent pixels are composited over black, the value that a rotation leaves in
    the corners; 16-bit grey is scaled to 8 bits (of 16-bit colour Pillow keeps the high
    bytes); palette and CMYK images become RGB; of an animation the first picture is
    taken; an orientation in the EXIF data is applied, since rotation is what the
    networks learn.

    Returns:
      The image in mode L or RGB, and what had to be converted ("" for nothing).

    Raises:
      Exception: whatever Pillow raises for a file that is not a whole PNG, JPEG or BMP.
    """
    _check_file(file)
    with Image.open(file, formats=_FORMATS) as image:
        wide = _is_wide(image)
        image.load()
    if "exif" in image.info:
        with contextlib.suppress(Exception):  # what is damaged turns nothing
            image = ImageOps.exif_transpose(image)
    image, conversion = _to_grey_or_rgb(image)
    return image, conversion or ("16-bit" if wide else "")


def is_grey(file: str | BinaryIO) -> bool:
    """Returns whether `decode` makes a grey image of a file; reads its header only.

    Raises:
      Exception: whatever Pillow raises for a file that is not a PNG, JPEG or BMP.
    """
    _check_file(file)
    with Image.open(file, formats=_FORMATS) as image:
        return _is_grey(image)


def _check_file(file: str | BinaryIO) -> None:
    """Raises an OSError where opening a file could wait for ever, as for a pipe."""
    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("it is not a regular file")


def _is_wide(image: Image.Image) -> bool:
    """Returns whether an opened, not yet loaded PNG has 16 bits a channel."""
    return image.format == "PNG" and any(
        str(tile[-1]).endswith(";16B") for tile in image.tile
    )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def _to_grey_or_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Returns the image in mode L or RGB and the name of the conversion."""
    if image.mode.startswith("I"):  # 16-bit grey; "I" in older versions of Pillow
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)), "16-bit"
    if image.has_transparency_data:
        grey = _is_grey(image)
        layered = image.convert("LA" if grey else "RGBA")
        opaque = layered.convert("L" if grey else "RGB")
        black = Image.new(opaque.mode, opaque.size)
        return Image.composite(opaque, black, layered.getchannel("A")), "alpha"
    if image.mode in ("L", "RGB"):
        return image, ""
    if image.mode == "1":
        return image.convert("L"), ""
    return image.convert("RGB"), "palette" if image.mode == "P" else image.mode


def square(image: Image.Image, side: int) -> np.ndarray:
    """Resizes the shorter side to `side` and cuts the central square.

    Args:
      image: mode L or RGB.
      side: in pixels.

    Returns:
      uint8, [side, side, channels].

    Source: reference: torchvision's Resize (Pillow bilinear, longer side rounded down)
    and CenterCrop (offset rounded to the nearest even integer at a half). We cut the
    ends off an image more than 16 times as long as wide first: resized as a whole, a
    line of pixels in a file of some bytes would fill the memory.
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
    """Returns the middle of an image that is very long, others as they are."""
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    right, bottom = left + min(width, most), top + min(height, most)
    return image.crop((left, top, right, bottom))


def pack(
    examples: Iterable[Example], count: int, side: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes examples into two arrays, with a progress bar on a terminal.

    Args:
      examples: exactly `count` images in mode L or RGB, with labels.
      count: number of examples.
      side: side of the result in pixels.
      name: of the data set, for the progress bar.

    Returns:
      Images uint8, [count, side, side, channels], with one channel if all are grey and
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
    colour = False
    bar = tqdm(
        examples, name, count, unit=" images", delay=2, disable=None, leave=False
    )
    with warnings.catch_warnings():
        # Pillow warns, file by file, of odd metadata that do not touch the pixels.
        warnings.simplefilter("ignore")
        for index, (image, label) in enumerate(bar):
            pixels = square(image, side)
            images[index] = pixels  # a grey image is repeated in all three channels
            labels[index] = label
            colour |= pixels.shape[2] == 3
    return images if colour else np.ascontiguousarray(images[..., :1]), labels
