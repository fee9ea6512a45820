"""The smallest settings with which everything still runs for real."""

import pathlib

import ml_collections
import numpy as np
from PIL import Image

from configs import smoke
from duet_jax.augmentations import Options
from duet_jax.config import checks
from duet_jax.data import load_dataset
from duet_jax.runs.checkpoints import Checkpoints
from duet_jax.training import compiled, plan
from duet_jax.types import Dataset, Split

# Every number differs from its default.
OTHER_OPTIONS = Options(
    crop_area=(0.3, 0.6),
    crop_ratio=(0.5, 1.5),
    rotation_degrees=30.0,
    flip_probability=0.3,
    grey_probability=0.6,
    blur_probability=0.25,
    blur_sigma=(0.5, 1.5),
    jitter_probability=0.4,
    jitter_strength=(0.2, 0.3, 0.5, 0.05),
    solarize_probability=0.7,
    solarize_threshold=(0.3, 0.8),
    solarize_addition=(-0.2, 0.05),
)


def config(**changes) -> ml_collections.ConfigDict:
    """The smoke configuration without monitors, resolved; names with __ for dots."""
    config = smoke.get_config()
    config.monitor.images = 0
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return checks.check(config, smoke.get_config())


def dataset(train: int, test: int, *, side: int = 16, channels: int = 1) -> Dataset:
    """Smooth random images of three classes, which differ in brightness."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int32) % 3
        images = rng.uniform(0, 120, (count, side // 4, side // 4, channels))
        images += 60 * labels[:, None, None, None]
        images = images.repeat(4, 1).repeat(4, 2)
        return Split(images.astype(np.uint8), labels)

    return Dataset("tiny", split(train), split(test), ("dark", "dim", "bright"))


def digits(config: ml_collections.ConfigDict) -> Dataset:
    """The digits as `config` wants them."""
    return load_dataset("digits", image_size=config.dataset.image_size)


def saved_state(directory: pathlib.Path, config: ml_collections.ConfigDict):
    """The newest state that a run on the digits has saved."""
    run = plan.make_plan(config, digits(config).facts)
    with Checkpoints(directory / "checkpoints", create=False) as saved:
        return saved.restore(compiled.initial_shapes(run), saved.latest_step())


def folder(
    root: pathlib.Path,
    *,
    train: int = 24,
    test: int = 12,
    side: int = 16,
    seed: int = 0,
    suffix: str = ".bmp",
) -> pathlib.Path:
    """Coloured blobs of three classes as image files, and where they are.

    The files of a bitmap are all of one size, whatever is on it.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            label = index % 3
            place = root / split / ("red", "green", "blue")[label]
            place.mkdir(parents=True, exist_ok=True)
            centre, width = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.3)
            distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
            pixels = rng.uniform(0, 60, (side, side, 3))
            pixels[..., label] += 180 * np.exp(-distance / (2 * width**2))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(place / f"{index:03d}{suffix}")
    return root
