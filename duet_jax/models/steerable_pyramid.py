"""Steerable pyramid: a fixed tight frame of scales and orientations.

Source: Simoncelli and Freeman (1995); radial and angular functions as in Portilla
and Simoncelli (2000). The reference names a "lifted" encoder, of which only the number
of inputs is known: 3 channels x (4 scales x 4 orientations + 2 residuals) = 54.

All bands have the size of the image. The bands of one channel are, in order: the
high-pass residual, the scales from fine to coarse, each with all its orientations, and
the low-pass residual. Band m of channel c has the index `c * NUM_BANDS + m`.

Scale s = 1, 2, ... responds most to a period of 2**(s+1) pixels, and not at all an
octave away from it. Orientation k responds most to a wave whose direction is k * 45
degrees from the rightward x axis towards the downward y axis; 0 is a vertical edge. The
filters are fixed in pixels: a scale that does not fit into the image is zero.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.types import Array

_SCALES = 4  # octaves between the two residuals
_ORIENTATIONS = 4
NUM_BANDS = _SCALES * _ORIENTATIONS + 2  # per image channel


def steerable_pyramid(images: Array) -> Array:
    """Splits images into bands of one scale and orientation each.

    The map is linear and preserves energy: the squares of all bands of an image sum to
    the squares of its pixels, so its adjoint rebuilds the image. Borders are periodic.

    Args:
      images: [batch, side, side, channels], any side.

    Returns:
      [batch, side, side, channels * NUM_BANDS], at least float32, in the order given
      above.
    """
    batch, side, _, channels = images.shape
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    forward_y, forward_x, masks, inverse_y, inverse_x = (
        array.astype(jnp.promote_types(dtype, jnp.complex64)) for array in _frame(side)
    )
    # Products with DFT matrices instead of an FFT: at these sizes their cost is
    # negligible beside the encoder's, and XLA shards them along the batch, whereas it
    # gathers the operand of an FFT on every device.
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rows = einsum("byxc,lx->bylc", images.astype(dtype), forward_x)
    spectrum = einsum("bylc,ky->bklc", rows, forward_y)
    bands = spectrum[..., None] * masks[None, :, :, None, :]
    rows = einsum("bklcm,yk->bylcm", bands, inverse_y)
    bands = einsum("bylcm,xl->byxcm", rows.real, inverse_x.real)
    bands -= einsum("bylcm,xl->byxcm", rows.imag, inverse_x.imag)
    return bands.reshape(batch, side, side, channels * NUM_BANDS)


@functools.lru_cache(maxsize=16)
def _frame(side: int) -> tuple[np.ndarray, ...]:
    """Returns the frame for one image size as complex128 NumPy arrays.

    Real images have Hermitian spectra, so only the half with non-negative x frequencies
    is computed: half = side // 2 + 1.

    Returns:
      The DFTs along y, [side, side], and along x, [half, side]; the frequency responses
      of the bands, [side, half, NUM_BANDS], whose squared magnitudes sum to 1; and the
      inverse DFTs along y, [side, side], and along x, [side, half], of whose product
      only the real part is used.
    """
    half = side // 2 + 1
    index = np.arange(side)
    # The product of indices is reduced first, so that symmetries are exact.
    dft = np.exp(-2j * np.pi * (index[:, None] * index[None, :] % side) / side)
    # A frequency of the half spectrum also stands for its conjugate, except in the
    # zero and, for even sides, the Nyquist column, which have none.
    weight = np.where((2 * index[:half]) % side == 0, 1.0, 2.0)
    inverse = dft.conj() / side
    frequencies = 2 * np.pi * np.fft.fftfreq(side)
    masks = _masks(frequencies[:, None], frequencies[None, :])
    frame = (
        dft,
        dft[:half],
        masks[:, :half],
        inverse,
        inverse[:, :half] * weight[None, :],
    )
    for array in frame:
        array.flags.writeable = False  # the cache returns the arrays themselves
    return frame


def _masks(wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """Returns the responses of all bands, [frequencies y, frequencies x, bands].

    The bands of real images are real because each response at -w is the conjugate of
    that at w: the residuals are real and even, the oriented responses imaginary and
    odd. On the Nyquist lines of even sides, -w and w share an index and this would
    fail, but there the radius is at least pi and everything is in the high-pass
    residual.
    """
    radius = np.hypot(wy, wx)
    angle = np.arctan2(wy, wx)
    high, low = _split(radius, np.pi)
    masks = [high]
    for scale in range(1, _SCALES + 1):
        band, lower = _split(radius, np.pi / 2**scale)
        masks += [low * band * a for a in _angular_masks(angle)]
        low = low * lower
    return np.stack([*masks, low], axis=-1).astype(np.complex128)


def _split(radius: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """High- and low-pass responses, crossing over in the octave below `cutoff`."""
    octaves = np.log2(2 * np.maximum(radius, 1e-9) / cutoff)
    phase = np.pi / 2 * np.clip(octaves, 0, 1)
    return np.sin(phase), np.where(octaves >= 1, 0.0, np.cos(phase))


def _angular_masks(angle: np.ndarray) -> list[np.ndarray]:
    """Angular responses whose squared magnitudes sum to 1 at every angle."""
    order = _ORIENTATIONS - 1
    centers = [math.pi * k / _ORIENTATIONS for k in range(_ORIENTATIONS)]
    power = sum(math.cos(c) ** (2 * order) for c in centers)  # the same at every angle
    return [(-1j * np.cos(angle - c)) ** order / math.sqrt(power) for c in centers]
