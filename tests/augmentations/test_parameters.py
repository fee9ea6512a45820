"""The parameters that a view carries, as points and as differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax.augmentations import (
    AUGMENTATIONS,
    LEARNABLE,
    Options,
    difference,
    make_stack,
    points,
)

COUNT = 6


def parameters(code, side=20):
    stack = make_stack(
        (code,), input_side=side, image_size=16, channels=3, options=Options()
    )
    params = stack.draw(jax.random.key(4), COUNT)
    plain = stack.parameters(stack.identity(COUNT))
    return params, stack.structure(params), stack.parameters(params), plain


@pytest.mark.parametrize("code", LEARNABLE)
def test_every_code_with_a_structure_has_parameters(code):
    _, structure, found, plain = parameters(code)
    assert set(found) == set(structure) == {code}
    columns = 4 if code == "sca" else 1
    for values in (found[code], plain[code]):
        assert values.shape == (COUNT, columns)
        assert values.dtype == jnp.float32
        assert ((values >= 0) & (values <= 1)).all()
    if code != "sca":
        np.testing.assert_array_equal(found[code][:, 0], structure[code])


def test_a_code_without_structure_has_none():
    assert not parameters("jit")[2]


def test_a_crop_tells_its_box():
    params, _, found, plain = parameters("sca", side=20)
    box = params["sca"]
    expected = [box[part] for part in ("top", "left", "height", "width")]
    np.testing.assert_allclose(found["sca"], np.stack(expected, 1) / 20, rtol=1e-6)
    np.testing.assert_array_equal(plain["sca"][0], [0, 0, 1, 1])


def column(*values):
    return jnp.array(values, jnp.float32)[:, None]


def test_points():
    half = np.sqrt(0.5)
    found = points("rot", column(0, 0.125, 0.5, 1))
    expected = [[1, 0], [half, half], [-1, 0], [1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(points("hue", column(0.2, 0.7)), column(0.2, 0.7))


def test_differences():
    found = difference("rot", column(0.9, 0.1, 0.5), column(0.15, 0.35, 0.25))
    np.testing.assert_allclose(found, [[0, 1], [0, 1], [0, -1]], atol=1e-6)
    found = difference("gra", column(0, 1, 1), column(1, 0, 1))
    np.testing.assert_array_equal(found, column(1, -1, 0))


@pytest.mark.parametrize("code", LEARNABLE)
def test_nothing_is_between_a_view_and_itself(code):
    found = parameters(code)[2][code]
    circle = AUGMENTATIONS[code].topology == "circle"
    expected = [1, 0] if circle else [0] * found.shape[1]
    between = difference(code, found, found)
    np.testing.assert_array_equal(between, np.tile(expected, (COUNT, 1)))
    assert between.shape == points(code, found).shape
