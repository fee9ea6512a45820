"""The most that the matrix units of this device do."""

import jax
import jax.numpy as jnp

from duet_jax.profiling.timing import times

# Rows and columns of the factors: large enough to fill the device, small enough for a
# CPU to be done in seconds.
_SIDES = {"gpu": 8192, "tpu": 8192, "cpu": 1536}
_PRODUCTS = 8  # in one call, each of the result before


def measure(dtype: str, seconds: float = 3.0) -> float:
    """Returns the operations per second of a large product of random numbers.

    Of random numbers, since a device that is given zeros draws less power and clocks
    higher. On one device of this process; the fastest of many calls.

    Args:
      dtype: of the factors; sums are float32.
      seconds: to spend on it.
    """
    device = jax.local_devices()[0]
    side = _SIDES.get(device.platform, _SIDES["gpu"])
    left, right = (
        jax.device_put(
            jax.random.normal(jax.random.key(i), (side, side)).astype(dtype), device
        )
        for i in range(2)
    )

    @jax.jit
    def products(left, right):
        for _ in range(_PRODUCTS):
            # Scaled by the size of the sums, or they would overflow after a few.
            left = jnp.matmul(left, right, preferred_element_type=jnp.float32)
            left = (left * side**-0.5).astype(dtype)
        return left

    seconds = times(lambda: products(left, right), seconds).fastest
    return 2 * side**3 * _PRODUCTS / seconds
