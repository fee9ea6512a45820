"""Preprocessing against the stored reference images."""

import re

import numpy as np
import pytest
from PIL import Image

from duet_jax.data.decoding import preprocessed_side, square
from golden_parts.arrays import load

_DATA_CASES = sorted(
    match.groups()
    for key in load("augment")
    if (match := re.fullmatch(r"pre_(?!uint8)(\w+)_(plain|centercrop)", key))
)


def test_data_cases_are_there():
    assert {variant for _, variant in _DATA_CASES} == {"plain", "centercrop"}


@pytest.mark.parametrize(("tag", "variant"), _DATA_CASES)
def test_preprocessing(tag, variant):
    arrays = load("augment")
    expected = arrays[f"pre_{tag}_{variant}"]
    side = preprocessed_side(32, variant == "centercrop")
    actual = np.stack(
        [square(Image.fromarray(image), side) for image in arrays[f"pre_uint8_{tag}"]]
    )
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(
        actual.transpose(0, 3, 1, 2), np.rint(expected * 255).astype(np.uint8)
    )
    np.testing.assert_allclose(
        actual.transpose(0, 3, 1, 2) / 255, expected, rtol=0, atol=1e-7
    )
