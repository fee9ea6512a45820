"""Test images that are training images as well."""

import numpy as np

_PLACES = 8  # bytes of an image that are compared first


def count_copies(train: np.ndarray, test: np.ndarray) -> int:
    """Returns how many test images have exactly the pixels of a training image.

    Args:
      train: uint8, [examples, side, side, channels].
      test: likewise, of the same sides and channels.
    """
    first, second = _keys(train), _keys(test)
    # Few images agree in some bytes: the rest is compared for these alone.
    wanted = {image.tobytes() for image in test[np.isin(second, first)]}
    suspects = train[np.isin(first, second)]
    found = {pixels for image in suspects if (pixels := image.tobytes()) in wanted}
    return sum(image.tobytes() in found for image in test[np.isin(second, first)])


def _keys(images: np.ndarray) -> np.ndarray:
    """Returns a few bytes of each image as one number: uint64, [examples]."""
    pixels = images.reshape(len(images), -1)
    places = np.linspace(0, pixels.shape[1] - 1, _PLACES).astype(int)
    return np.ascontiguousarray(pixels[:, places]).view(np.uint64)[:, 0]
