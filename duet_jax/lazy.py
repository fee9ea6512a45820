"""JAX and what is built on it, imported when it is first used.

    from duet_jax.lazy import jax, jnp

Their imports take longer than all that is done for --help or for a command line that
is refused, and neither computes anything. So the modules that the command line is
checked with take them from here. They use nothing of them while they are imported:
annotations that do are not evaluated (`from __future__ import annotations`), and
decorators of JAX are applied inside functions.
"""

from etils import epy

with epy.lazy_imports():
    import dm_pix as pix
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jax.experimental import multihost_utils

__all__ = ["jax", "jnp", "multihost_utils", "nnx", "optax", "pix"]
