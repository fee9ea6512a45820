import jax
import jax.numpy as jnp
import numpy as np
import pytest

from duet_jax.models import steerable_pyramid as pyramid
from duet_jax.models.steerable_pyramid import NUM_BANDS, steerable_pyramid

SIDES = (8, 16, 32, 36, 15, 33)


def noise(side, channels, batch=2):
    """White noise: every frequency, the Nyquist ones included, is present."""
    rng = np.random.default_rng(side)
    return rng.uniform(-0.5, 0.5, (batch, side, side, channels)).astype(np.float32)


def photograph(side, channels, batch=2):
    """Noise whose spectrum falls as in photographs, about a mean, in [-0.5, 0.5]."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    spectrum = np.fft.fft2(noise(side, channels, batch), axes=(1, 2))
    spectrum /= np.maximum(f, 1 / side)[None, :, :, None]
    image = np.fft.ifft2(spectrum, axes=(1, 2)).real
    image = image / np.abs(image).max() / 2.5 + 0.1
    return image.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [noise, photograph])
@pytest.mark.parametrize("side", SIDES)
def test_adjoint_reconstructs_and_energy_is_kept(side, make, channels):
    x = make(side, channels)
    bands = steerable_pyramid(x)
    assert bands.shape == (2, side, side, 18 * channels)
    assert bands.dtype == jnp.float32
    (again,) = jax.linear_transpose(steerable_pyramid, x)(bands)
    np.testing.assert_allclose(again, x, rtol=0, atol=1e-5)
    energy = np.square(bands, dtype=np.float64).sum((1, 2, 3))
    expected = np.square(x, dtype=np.float64).sum((1, 2, 3))
    np.testing.assert_allclose(energy, expected, rtol=1e-5)


@pytest.mark.parametrize("side", [8, 32, 33])
def test_squared_masks_sum_to_one_at_every_frequency(side):
    masks = pyramid._frame(side)[2]
    assert masks.shape[-1] == NUM_BANDS == 18
    np.testing.assert_allclose((np.abs(masks) ** 2).sum(-1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", [8, 15, 32])
def test_masks_are_those_of_real_filters(side):
    w = 2 * np.pi * np.fft.fftfreq(side)
    masks = pyramid._masks(w[:, None], w[None, :])
    filters = np.fft.ifft2(masks, axes=(0, 1))
    np.testing.assert_allclose(filters.imag, 0, rtol=0, atol=1e-15)


@pytest.mark.parametrize("side", [9, 16])
def test_bands_are_those_of_the_fourier_transform(side):
    x = noise(side, 3)
    w = 2 * np.pi * np.fft.fftfreq(side)
    masks = pyramid._masks(w[:, None], w[None, :])
    spectrum = np.fft.fft2(x.astype(np.float64), axes=(1, 2))
    expected = np.fft.ifft2(spectrum[..., None] * masks[None, :, :, None], axes=(1, 2))
    expected = expected.real.reshape(2, side, side, 3 * 18)
    np.testing.assert_allclose(steerable_pyramid(x), expected, rtol=0, atol=2e-6)


def grating(side, wave_y, wave_x, phase=0.3):
    """A wave with that many periods across the image along y and x."""
    y, x = np.mgrid[:side, :side]
    wave = np.cos(2 * np.pi * (wave_y * y + wave_x * x) / side + phase)
    return wave.astype(np.float32)[None, :, :, None]


def shares(image):
    """Share of the energy in each band: high-pass, [scales, orientations], low-pass."""
    energy = np.square(steerable_pyramid(image)).sum((0, 1, 2))
    energy = energy / energy.sum()
    return energy[0], energy[1:-1].reshape(4, 4), energy[-1]


# cos**6 of the angles 0, 45, 90 and 135 degrees, normalized.
ORIENTATION_SHARES = np.array([0.8, 0.1, 0.0, 0.1])

GRATINGS = [
    # periods down and across a side of 32, scale (period 4, 8, ... pixels), orientation
    (0, 8, 0, 0),
    (8, 0, 0, 2),
    (0, 4, 1, 0),
    (4, 0, 1, 2),
    (0, 2, 2, 0),
    (2, 0, 2, 2),
    (0, 1, 3, 0),
    (1, 0, 3, 2),
]


@pytest.mark.parametrize(("wave_y", "wave_x", "scale", "orientation"), GRATINGS)
def test_gratings_land_in_their_scale_and_orientation(
    wave_y, wave_x, scale, orientation
):
    high, oriented, low = shares(grating(32, wave_y, wave_x))
    expected = np.zeros((4, 4))
    expected[scale] = np.roll(ORIENTATION_SHARES, orientation)
    np.testing.assert_allclose(oriented, expected, rtol=0, atol=1e-5)
    assert max(high, low) < 1e-5


@pytest.mark.parametrize(("sign", "orientation"), [(1, 1), (-1, 3)])
def test_diagonal_gratings_land_in_their_orientation(sign, orientation):
    _, oriented, _ = shares(grating(32, 4, 4 * sign))
    expected = np.roll(ORIENTATION_SHARES, orientation)
    np.testing.assert_allclose(oriented.sum(0), expected, rtol=0, atol=1e-5)
    assert oriented[:2].sum() > 0.999  # its period, 5.7 pixels, is between 4 and 8


def test_constants_are_low_pass_and_checkerboards_high_pass():
    assert shares(np.ones((1, 32, 32, 1), np.float32))[2] > 1 - 1e-6
    assert shares(grating(32, 16, 16, phase=0))[0] > 1 - 1e-6


def test_rotating_the_image_rotates_the_bands():
    x = noise(33, 1)  # an odd side turns about a pixel without a shift
    bands = np.asarray(steerable_pyramid(x)).reshape(2, 33, 33, 18)
    turned = np.asarray(steerable_pyramid(np.rot90(x, axes=(2, 1))))
    oriented = bands[..., 1:17].reshape(2, 33, 33, 4, 4)
    # Turned clockwise by 90 degrees, orientation k becomes k + 2; the filters are odd,
    # so those that come around to the other side change sign.
    expected = np.concatenate([-oriented[..., 2:], oriented[..., :2]], -1)
    expected = np.rot90(expected, axes=(2, 1)).reshape(2, 33, 33, 16)
    np.testing.assert_allclose(turned[..., 1:17], expected, rtol=0, atol=2e-6)


def test_channels_are_apart_and_in_order():
    x = noise(16, 3)
    together = steerable_pyramid(x)
    apart = [steerable_pyramid(x[..., c : c + 1]) for c in range(3)]
    np.testing.assert_allclose(together, np.concatenate(apart, -1), rtol=0, atol=1e-6)


def test_scales_that_do_not_fit_are_zero():
    bands = np.asarray(steerable_pyramid(noise(8, 1)))
    per_band = np.abs(bands).max((0, 1, 2))
    np.testing.assert_array_less(per_band[9:17], 1e-6)  # periods of 16 and 32 pixels
    assert per_band[:9].min() > 1e-3
    assert per_band[17] > 1e-3


def test_bfloat16_images_are_filtered_in_float32():
    x = jnp.asarray(noise(16, 1), jnp.bfloat16)
    bands = steerable_pyramid(x)
    assert bands.dtype == jnp.float32
    np.testing.assert_array_equal(bands, steerable_pyramid(x.astype(jnp.float32)))


def test_there_is_no_fft_which_xla_would_not_split_over_devices():
    assert "fft" not in jax.jit(steerable_pyramid).lower(noise(8, 1)).as_text()
