"""Steerable pyramid: a fixed tight frame of scales and orientations.

Source: Simoncelli and Freeman (1995); radial and angular functions as in Portilla
and Simoncelli (2000). The reference names a "lifted" encoder, but only its number
of inputs is left: 3 channels x (4 scales x 4 orientations + 2 residuals) = 54.

We keep every band at the size of the image. The bands of one channel are, in order:
the high-pass residual, then the scales from fine to coarse with all orientations
of one scale together, then the low-pass residual. Channel c, band m is at index
`c * (scales * orientations + 2) + m`.

Scale s = 1, 2, ... responds most to a period of 2**(s+1) pixels and not at all an
octave away from it, in either direction. Orientation k responds most to a wave
whose direction of change is k * 180 / orientations degrees from the rightward
x axis towards the downward y axis; 0 is a vertical edge. The filters are fixed in
pixels, so an image too small for a scale has zeros there.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.types import Array


def num_bands(scales: int = 4, orientations: int = 4) -> int:
    """Number of bands that one image channel becomes, 18 by default."""
    return scales * orientations + 2


def steerable_pyramid(
    images: Array, *, scales: int = 4, orientations: int = 4
) -> Array:
    """Splits images into bands of one scale and orientation each.

    The map is linear and keeps the energy: the squares of all bands of an image
    sum to the squares of its pixels. Borders are periodic.

    Args:
      images: [batch, side, side, channels], any side.
      scales: number of octaves between the two residuals.
      orientations: number of directions of each octave.

    Returns:
      [batch, side, side, channels * (scales * orientations + 2)], float32 also for
      images of lower precision; the order is that of the module's description.
    """
    batch, side, _, channels = images.shape
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    frame = _frame(side, scales, orientations)
    forward_y, forward_x, masks, inverse_y, inverse_x = (
        array.astype(jnp.promote_types(dtype, jnp.complex64)) for array in frame
    )
    # Products with DFT matrices instead of an FFT: at these sizes the cost is lost
    # beside the encoder's, and XLA splits them over devices along the batch, where
    # it gathers the operand of an FFT on every device.
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rows = einsum("byxc,lx->bylc", images.astype(dtype), forward_x)
    spectrum = einsum("bylc,ky->bklc", rows, forward_y)
    bands = spectrum[..., None] * masks[None, :, :, None, :]
    rows = einsum("bklcm,yk->bylcm", bands, inverse_y)
    bands = einsum("bylcm,xl->byxcm", rows.real, inverse_x.real)
    bands -= einsum("bylcm,xl->byxcm", rows.imag, inverse_x.imag)
    return bands.reshape(batch, side, side, channels * masks.shape[-1])


def steerable_pyramid_adjoint(
    bands: Array, *, scales: int = 4, orientations: int = 4
) -> Array:
    """Rebuilds images from their bands; the inverse of `steerable_pyramid`.

    The frame is tight, so its adjoint is also its left inverse.

    Args:
      bands: [batch, side, side, channels * (scales * orientations + 2)], float32.
      scales: as given to `steerable_pyramid`.
      orientations: as given to `steerable_pyramid`.

    Returns:
      Images, [batch, side, side, channels].
    """
    *shape, depth = bands.shape
    channels = depth // num_bands(scales, orientations)
    analyse = functools.partial(
        steerable_pyramid, scales=scales, orientations=orientations
    )
    images = jax.ShapeDtypeStruct((*shape, channels), bands.dtype)
    (result,) = jax.linear_transpose(analyse, images)(bands)
    return result


class _Frame(NamedTuple):
    """The frame of one image size; complex128, on the host.

    Real images have Hermitian spectra, so only the half with non-negative x
    frequencies is formed, [side, side // 2 + 1].

    Attributes:
      forward_y: DFT along y, [frequencies, side].
      forward_x: DFT along x, [frequencies // 2 + 1, side].
      masks: frequency responses, [frequencies, frequencies // 2 + 1, bands]; their
        squared magnitudes sum to 1 at every frequency.
      inverse_y: inverse DFT along y, [side, frequencies].
      inverse_x: inverse DFT along x of the half spectrum, [side, half frequencies];
        the real part of the product is wanted.
    """

    forward_y: np.ndarray
    forward_x: np.ndarray
    masks: np.ndarray
    inverse_y: np.ndarray
    inverse_x: np.ndarray


@functools.lru_cache(maxsize=16)
def _frame(side: int, scales: int, orientations: int) -> _Frame:
    half = side // 2 + 1
    index = np.arange(side)
    # The product of indices is reduced first: exact integers, exact symmetries.
    dft = np.exp(-2j * np.pi * (index[:, None] * index[None, :] % side) / side)
    # A frequency of the half spectrum also stands for its conjugate partner,
    # except the zero and, for even sides, the Nyquist column, which have none.
    weight = np.where((2 * index[:half]) % side == 0, 1.0, 2.0)
    inverse = dft.conj() / side
    frequencies = 2 * np.pi * np.fft.fftfreq(side)
    masks = _masks(frequencies[:, None], frequencies[None, :], scales, orientations)
    frame = _Frame(
        forward_y=dft,
        forward_x=dft[:half],
        masks=masks[:, :half],
        inverse_y=inverse,
        inverse_x=inverse[:, :half] * weight[None, :],
    )
    for array in frame:
        array.flags.writeable = False  # the cache hands out the arrays themselves
    return frame


def _masks(
    wy: np.ndarray, wx: np.ndarray, scales: int, orientations: int
) -> np.ndarray:
    """Frequency responses of all bands, [frequencies y, frequencies x, bands].

    Bands are real because each response at -w is the conjugate of that at w: the
    residuals are real and even; the oriented ones have cos**(K-1), even or odd,
    times (-i)**(K-1), real or imaginary. On the Nyquist lines of even sides -w and
    w share an index and that would fail, but there the radius is at least pi and
    everything is in the high-pass residual, so no case is needed for them.
    """
    radius = np.hypot(wy, wx)
    angle = np.arctan2(wy, wx)
    high, low = _split(radius, np.pi)
    masks = [high]
    for scale in range(1, scales + 1):
        band, lower = _split(radius, np.pi / 2**scale)
        masks += [low * band * a for a in _angular_masks(angle, orientations)]
        low = low * lower
    return np.stack([*masks, low], axis=-1).astype(np.complex128)


def _split(radius: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """High- and low-pass responses, crossing over in the octave below `cutoff`."""
    octaves = np.log2(2 * np.maximum(radius, 1e-9) / cutoff)
    phase = np.pi / 2 * np.clip(octaves, 0, 1)
    return np.sin(phase), np.where(octaves >= 1, 0.0, np.cos(phase))


def _angular_masks(angle: np.ndarray, orientations: int) -> list[np.ndarray]:
    """Angular responses whose squared magnitudes sum to 1 at every angle."""
    order = orientations - 1
    power = sum(
        math.cos(math.pi * k / orientations) ** (2 * order) for k in range(orientations)
    )  # the same at every angle
    return [
        (-1j * np.cos(angle - np.pi * k / orientations)) ** order / math.sqrt(power)
        for k in range(orientations)
    ]
