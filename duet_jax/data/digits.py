"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from duet_jax.data.source import Example, Source
from duet_jax.errors import UsageError


def find(name: str, path: str) -> Source:
    """Returns the digits; needs neither a path nor a network.

    Gray levels 0 to 16 become 0 to 255. Every fifth image of each class, in the order
    of scikit-learn, is a test image: stratified, and the same everywhere, which a
    random generator promises only within a version.

    Args:
      name: as in the configuration.
      path: not used.

    Raises:
      UsageError: scikit-learn is not installed.
    """
    del path
    try:
        # Imported here because it takes a second that other data sets need not spend.
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            f"config.dataset.name={name!r} needs scikit-learn; pip install scikit-learn"
        ) from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    is_test = np.zeros(len(pixels), bool)
    for label in np.unique(digits.target):
        is_test[np.flatnonzero(digits.target == label)[4::5]] = True
    order = np.argsort(is_test, kind="stable")
    labels, num_test = digits.target[order], int(np.sum(is_test))
    num_train = len(order) - num_test
    reader = functools.partial(_read, pixels[order], labels)
    return Source(
        class_names=tuple(str(digit) for digit in digits.target_names),
        num_train=num_train,
        num_test=num_test,
        examples=lambda: reader(range(len(order))),
        location="scikit-learn",
        identity=None,
        labels=lambda: labels[:num_train],
        reader=reader,
        channels=lambda: 1,
    )


def _read(
    pixels: np.ndarray, labels: np.ndarray, rows: Sequence[int]
) -> Iterator[Example]:
    for row in rows:
        yield Image.fromarray(pixels[row]), int(labels[row])
