"""How far any encoder is equivariant: `--mode=equivariance` as a function.

from duet_jax import equivariance

found = equivariance.evaluate(encoder, images, codes=("rot", "hue"))
found["rot"]["regression"]["full"]["error"]    # degrees
"""

import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epy

from duet_jax.augmentations import AUGMENTATIONS, options_read, split_codes
from duet_jax.config import checks, loading
from duet_jax.data.source import held_out
from duet_jax.errors import UsageError, suggestion
from duet_jax.evaluation import EVALUATORS, options
from duet_jax.runs.external import External
from duet_jax.types import Dataset, Split

__all__ = ["evaluate"]

with epy.lazy_imports():  # what measures
    from duet_jax.evaluation import base, store
    from duet_jax.evaluation import equivariance as evaluator
    from duet_jax.runs import trained_run


def evaluate(
    encoder: Callable[[np.ndarray], Any],
    images: np.ndarray,
    codes: str | Sequence[str] = ("rot", "hue"),
    *,
    measures: str | Sequence[str] | None = None,
    test_images: np.ndarray | None = None,
    holdout: float | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    cache_dir: str = "",
    **augmentation: Any,
) -> dict[str, dict[str, Any]]:
    """Returns how an encoder's features tell how an image was transformed.

    It is measured as by `--mode=equivariance`; `docs/evaluation.md` defines the
    numbers. What is not given has the default of `configs/base.py`.

    Args:
      encoder: takes float32 images [n, image_size, image_size, channels] in [0, 1], an
        array of NumPy, and returns features [n, d], an array of NumPy or JAX or a
        tensor of PyTorch. The last batch is padded: a row is of its image only.
      images: uint8, or floating numbers in [0, 1], which are rounded to the 256 values
        of uint8; [n, side, side, channels] with 1 or 3 channels.
      codes: augmentations that have a parameter, such as ("rot", "hue") or "rot,hue".
      measures: what to measure beside readings and shifts, of "readouts", "actions"
        and "matrix"; all by default, nothing else for "basic".
      test_images: of the same shape. Regressions are fitted on `images` and scored on
        these; None: a share of `images` is held out for that.
      holdout: that share, above 0, below 1. The number of an image decides, and always
        alike, as the name of a file does in a folder.
      image_size: side of the views, the center of the images; all of it by default.
      batch_size: images that the encoder is given at a time.
      seed: of the parameters that are drawn.
      cache_dir: where the scores of the raw pixels are kept; "" for `duet_jax` in the
        user's cache directory.
      **augmentation: options, named as in the section `augmentation`, such as
        rotation_degrees=90.0.

    Returns:
      What `eval/equivariance.json` holds under `results`, by code; and the "matrix".

    Raises:
      UsageError: an argument is wrong, an augmentation does not suit the images, or the
        encoder fails or returns no features.
    """
    codes = codes if isinstance(codes, str) else ",".join(codes)
    measures = measures if isinstance(measures, str | None) else ",".join(measures)
    options.check_equivariance(codes, measures)
    _check_options(augmentation, codes)
    dataset = _split(images, test_images, holdout)
    given = {
        "dataset.image_size": dataset.side if image_size is None else image_size,
        "dataset.cache_dir": cache_dir,
        "batch_size": batch_size,
        "seed": seed,
    }
    given |= {f"augmentation.{name}": value for name, value in augmentation.items()}
    return _measure(encoder, dataset, _config(given), codes, measures)


def _measure(
    encoder: Callable[[np.ndarray], Any],
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    codes: str,
    measures: str | None,
) -> dict[str, dict[str, Any]]:
    external = External("encoder", encoder)
    size = config.dataset.image_size
    if size > dataset.side:
        raise UsageError(
            f"image_size={size} is more than {dataset.side}, the side of the images; "
            "enlarge them first."
        )
    # Nothing is stored, but an evaluation has a place.
    with tempfile.TemporaryDirectory() as place:
        run = trained_run.external_run(
            external, config, dataset.facts, pathlib.Path(place), name="encoder"
        )
        evaluation = base.Evaluation(run, EVALUATORS, dataset)
        found = evaluator.measure(evaluation, codes, measures)
    return store.plain(found.values)


def _check_options(given: Iterable[str], codes: str) -> None:
    """Raises a UsageError for an option that none of the codes is measured with."""
    known = {
        option
        for code in split_codes(codes)
        # All of the images are changed, or half of them, whatever the probability.
        for option in options_read(code) - {AUGMENTATIONS[code].probability}
    }
    remedy = f"choose from {', '.join(sorted(known))}" if known else "leave it out"
    for name in given:
        if name not in known:
            raise UsageError(
                f"{name} is no option of {codes}; {remedy}.{suggestion(name, known)}"
            )


def _config(given: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the resolved configuration with the fields that are not None."""
    defaults = loading.schema()
    defaults.method = "simclr"  # two views of the stack, and no structure
    defaults.augmentation.stack = ()
    chosen = {name: value for name, value in given.items() if value is not None}
    return checks.with_fields(defaults, chosen)


def _as_bytes(name: str, images: Any) -> np.ndarray:
    """Returns images as uint8, [n, side, side, channels]."""
    array = np.asarray(images)
    shape = array.shape
    if (
        len(shape) != 4
        or shape[1] != shape[2]
        or shape[3] not in (1, 3)
        or not shape[0]
    ):
        raise UsageError(
            f"{name} {list(shape)} must be [n, side, side, channels] with n at least 1 "
            "and 1 or 3 channels; cut them square and move the channels to the end."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise UsageError(
            f"{name} of {array.dtype} from {array.min()} to {array.max()} must be "
            "uint8, or floating numbers from 0 to 1; convert them."
        )
    return np.rint(array * np.float32(255)).astype(np.uint8)


def _split(images: Any, test_images: Any, holdout: float | None) -> Dataset:
    """Returns training and test images, without labels."""
    images = _as_bytes("images", images)
    if test_images is None:
        share = _config({"dataset.holdout": holdout}).dataset.holdout
        if len(images) < 2:
            raise UsageError("images holds one; give two or more, or test_images.")
        held = held_out([str(number) for number in range(len(images))], share)
        train, test = images[~held], images[held]
    elif holdout is not None:
        raise UsageError(f"holdout={holdout} has no effect with test_images.")
    else:
        train, test = images, _as_bytes("test_images", test_images)
    if train.shape[1:] != test.shape[1:]:
        raise UsageError(
            f"test_images {list(test.shape)} must have the side and the channels of "
            f"images {list(train.shape)}."
        )
    content = hashlib.sha256()  # for what is kept of the raw pixels
    for part in (train, test):
        content.update(str(part.shape).encode() + part.tobytes())

    def unlabeled(images: np.ndarray) -> Split:
        return Split(images, np.full(len(images), -1, np.int32))

    digest = content.hexdigest()[:16]
    return Dataset("arrays", unlabeled(train), unlabeled(test), (), content=digest)
