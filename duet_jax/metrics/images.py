"""How alike two images are."""

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from duet_jax.types import Array

# Side of the window of SSIM, as its authors have it; less for smaller images.
_WINDOW = 11


def compare(true: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """Returns squared error, PSNR and SSIM of every image, each [n].

    Args:
      true: normalized views, in [-0.5, 0.5], [n, side, side, channels].
      made: likewise; what is outside is clipped.

    Returns:
      "mse", the mean over pixels and channels; "psnr" in decibels, for a range of 1;
      "ssim", at most 1, in a Gaussian window of 11 pixels with standard deviation 1.5
      that lies inside the image, or of the largest odd number of pixels that does.

    Source: Wang et al. 2004, "Image quality assessment"; scikit-image has the same
    numbers with `gaussian_weights=True, use_sample_covariance=False`.
    """
    return jax.tree.map(np.asarray, _compare(jnp.asarray(true), jnp.asarray(made)))


@jax.jit
def _compare(true: Array, made: Array) -> dict[str, Array]:
    true, made = (jnp.clip(x + 0.5, 0, 1) for x in (true, made))
    window = min(_WINDOW, (true.shape[1] - 1) // 2 * 2 + 1)
    return {
        "mse": pix.mse(true, made),
        "psnr": pix.psnr(true, made),
        "ssim": pix.ssim(true, made, filter_size=window),
    }
