"""Measures speed and memory of streaming images from a folder.

    python benchmarks/streaming.py --images=200000 --side=64 --workers=8

makes a folder of JPEG files, reads one epoch of batches from it as in training, and
prints the speed and the memory of each process.

The files are 5/4 of the side high and 5/3 wide, so that they are resized and cropped.
Only `DISTINCT` of them are encoded; all others are hard links. They are read from the
page cache: the disk is not measured.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from duet_jax.data import Batches, TrainingRows, stream_dataset

DISTINCT = 2000
CLASSES = 20


def main() -> None:
    """Makes the folder if it does not exist, and streams one epoch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200_000, help="for training")
    parser.add_argument("--side", type=int, default=64, help="of the crops in pixels")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--directory", type=pathlib.Path, help="kept and reused; default: temporary"
    )
    options = parser.parse_args()
    if options.images < options.batch:
        parser.error(f"--images={options.images} is less than --batch={options.batch}")
    if options.directory:
        place = contextlib.nullcontext(options.directory)
    else:
        place = tempfile.TemporaryDirectory()
    with place as name:
        directory = pathlib.Path(name)
        if not (directory / "train").exists():
            started = time.perf_counter()
            make_folder(directory, options.images, options.side)
            print(f"made in {time.perf_counter() - started:.1f} s: {directory}")
        measure(directory, options)


def make_folder(root: pathlib.Path, count: int, side: int) -> None:
    """Writes `count` training images and a test image for each class."""
    generator = np.random.default_rng(0)
    distinct: list[pathlib.Path] = []
    for split, images in (("train", count), ("test", CLASSES)):
        for label in range(CLASSES):
            (root / split / f"{label:02}").mkdir(parents=True)
        for index in range(images):
            path = root / split / f"{index % CLASSES:02}" / f"{index:08}.jpg"
            if index < DISTINCT and split == "train":
                path.write_bytes(_jpeg(generator, side))
                distinct.append(path)
            else:
                os.link(distinct[index % len(distinct)], path)


def _jpeg(generator: np.random.Generator, side: int) -> bytes:
    """Returns an image of smooth colors with some noise, about 2 bits per pixel."""
    shape = (side * 5 // 4, side * 5 // 3)
    colors = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(colors.resize(shape[::-1], Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + generator.integers(-12, 13, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def measure(directory: pathlib.Path, options: argparse.Namespace) -> None:
    """Streams one epoch and prints speed and memory."""
    started = time.perf_counter()
    dataset = stream_dataset("folder", path=str(directory), image_size=options.side)
    facts = dataset.facts
    print(f"found in {time.perf_counter() - started:.1f} s: {facts.num_train} images")
    steps = facts.num_train // options.batch
    rows = TrainingRows(0, facts.num_train, steps, options.batch, (0, options.batch))
    started = time.perf_counter()
    with Batches(dataset, rows, start=0, stop=steps, workers=options.workers) as made:
        next(made)
        print(f"first batch after {time.perf_counter() - started:.1f} s")
        print_memory(f"batch 1 of {steps}")
        started, cpu = time.perf_counter(), _cpu_seconds()
        for step in range(2, steps + 1):
            next(made)
            if step in (steps // 4, steps // 2, steps * 3 // 4, steps - 1):
                print_memory(f"batch {step} of {steps}")
        seconds = time.perf_counter() - started
        cpu = [
            after - before for after, before in zip(_cpu_seconds(), cpu, strict=True)
        ]
        started = time.perf_counter()
    images = (steps - 1) * options.batch
    core = images / max(sum(cpu[1:] or cpu), 1e-9)
    print(
        f"{images / seconds:.0f} images/s from {options.workers} workers on "
        f"{len(os.sched_getaffinity(0))} cores\n"
        f"{core:.0f} images for each second of a core that decodes\n"
        f"{cpu[0] / seconds:.0%} of a core in the main process\n"
        f"closed in {time.perf_counter() - started:.1f} s"
    )


def print_memory(when: str) -> None:
    """Prints the resident memory of this process and of its workers."""
    main, *workers = (_resident(pid) for pid in _processes())
    each = ", ".join(f"{size:.0f}" for size in workers)
    print(f"{when}: main process {main:.0f} MiB, workers {each or 'none'} MiB")


def _processes() -> list[int]:
    children = sorted(child.pid for child in multiprocessing.active_children())
    return [os.getpid(), *children]


def _resident(pid: int) -> float:
    """Returns the resident memory of a process in MiB, including shared memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _cpu_seconds() -> list[float]:
    """Returns the processor time of this process and of each worker."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in _processes()]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return [(int(field[11]) + int(field[12])) / ticks for field in fields]


if __name__ == "__main__":
    main()
