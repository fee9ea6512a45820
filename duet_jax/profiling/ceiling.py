"""Maximum rate of the matrix units of a device."""

import jax
import jax.numpy as jnp

from duet_jax.profiling.timing import times_in_turn

# Rows and columns of the factors: large enough to fill the device, small enough for a
# CPU to finish in seconds.
_SIDES = {"gpu": 8192, "tpu": 8192, "cpu": 1536}
_PRODUCTS = 8  # in one call, each with the previous result


def measure(dtype: str, seconds: float = 3.0) -> float:
    """Returns the operations per second of a large matrix product on one device.

    The factors are random: with zeros, a device draws less power and clocks higher. The
    fastest of many calls counts.

    Args:
      dtype: of the factors; sums are float32.
      seconds: time to spend.
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
            # Scaled by the size of the sums, or they would overflow.
            left = jnp.matmul(left, right, preferred_element_type=jnp.float32)
            left = (left * side**-0.5).astype(dtype)
        return left

    (times,) = times_in_turn([lambda: products(left, right)], seconds)
    return 2 * side**3 * _PRODUCTS / times.fastest
