"""Squared error, PSNR and SSIM, against scikit-image."""

import numpy as np
import pytest
from skimage import metrics

from duet_jax.metrics.images import compare


def pairs(side: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(side)
    true = rng.random((3, side // 4, side // 4, channels)).repeat(4, 1).repeat(4, 2)
    made = true + rng.normal(0, 0.1, true.shape)
    return tuple(np.float32(np.clip(x, 0, 1) - 0.5) for x in (true, made))


@pytest.mark.parametrize(("side", "channels"), [(12, 1), (16, 3), (32, 1)])
def test_it_is_scikit_images(side, channels):
    views = pairs(side, channels)
    found = compare(*views)
    # SSIM depends on where zero is.
    for number, (true, made) in enumerate(zip(*(v + 0.5 for v in views), strict=True)):
        error = metrics.mean_squared_error(true, made)
        assert found["mse"][number] == pytest.approx(error, rel=1e-5)
        noise = metrics.peak_signal_noise_ratio(true, made, data_range=1)
        assert found["psnr"][number] == pytest.approx(noise, abs=1e-3)
        similar = metrics.structural_similarity(
            np.float64(true), np.float64(made), channel_axis=2, data_range=1.0,
            gaussian_weights=True, use_sample_covariance=False,
        )  # fmt: skip
        assert found["ssim"][number] == pytest.approx(similar, abs=1e-4)


def test_small_images_have_a_small_window():
    true, made = pairs(8, 3)
    found = compare(true, made)["ssim"]
    assert np.all((found > 0) & (found < 1))
    assert found == pytest.approx(compare(made, true)["ssim"], abs=1e-5)


def test_equal_images_and_opposite_ones():
    image = np.full((1, 16, 16, 1), 0.5, np.float32)
    same = compare(image, image)
    assert same["mse"] == [0]
    assert same["ssim"] == pytest.approx([1])
    opposite = compare(image, -image)
    assert opposite["mse"] == [1]
    assert opposite["psnr"] == pytest.approx([0], abs=1e-5)


def test_what_is_outside_the_range_is_clipped():
    image = np.full((1, 16, 16, 3), 0.5, np.float32)
    assert compare(image, image + 1)["mse"] == [0]
