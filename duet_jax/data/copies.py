"""Finds test images that are training images as well."""

import numpy as np

_PLACES = 8  # bytes of an image that are compared first


def count_copies(train: np.ndarray, test: np.ndarray) -> int:
    """Returns how many test images have exactly the pixels of a training image.

    Args:
      train: uint8, [examples, side, side, channels].
      test: uint8, [examples, side, side, channels].
    """
    train_keys, test_keys = _keys(train), _keys(test)
    # Few images agree in these bytes; only those are compared as a whole.
    suspects = [image.tobytes() for image in test[np.isin(test_keys, train_keys)]]
    wanted = set(suspects)
    candidates = train[np.isin(train_keys, test_keys)]
    found = {pixels for image in candidates if (pixels := image.tobytes()) in wanted}
    return sum(pixels in found for pixels in suspects)


def _keys(images: np.ndarray) -> np.ndarray:
    """Returns a few bytes of each image as one number: uint64, [examples]."""
    pixels = images.reshape(len(images), -1)
    places = np.linspace(0, pixels.shape[1] - 1, _PLACES).astype(int)
    return np.ascontiguousarray(pixels[:, places]).view(np.uint64)[:, 0]
