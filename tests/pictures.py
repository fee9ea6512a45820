"""Folders of small images, good and bad."""

import io
import itertools
import pathlib
import shutil
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str = "", **options) -> bytes:
    """An image file in memory, after a conversion to `mode`."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of any form, also of one that Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def fill(
    root: pathlib.Path, classes: Sequence[str] = ("cat", "dog"), count: int = 2
) -> pathlib.Path:
    """Makes `root` a folder of data, with `count` images a class in each split."""
    seeds = itertools.count()
    for split in ("train", "test"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = encoded(noise(8, 8, 3, seed=next(seeds)))
                (folder / f"{number}.png").write_bytes(image)
    return root


def swap(path: pathlib.Path, content: bytes) -> None:
    """Puts `content` where a folder or a file was."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(content)
