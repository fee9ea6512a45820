"""Placement of arrays on several devices.

The mesh has one axis, over all devices of all processes. Batches are sharded along it,
and everything else is replicated. The program is written for one device; XLA derives
the communication from the shardings.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from duet_jax.errors import UsageError
from duet_jax.types import BATCH_AXIS


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, process by process."""
    # Not `jax.make_mesh`, which may reorder the devices: each process feeds one
    # contiguous part of the batch.
    devices = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))
    return Mesh(np.array(devices), (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of arrays that are split over the devices along `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def shapes(tree: Any, sharding: NamedSharding) -> Any:
    """Returns the shapes and types of the arrays in `tree`, with `sharding`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies host arrays, equal in all processes, to every device.

    `jax.device_put` would compare them between the processes first.
    """
    sharding = replicated(mesh)

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, jax.tree.map(np.asarray, tree))


def shard_batch(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Returns host arrays as global arrays, split over the devices along `axis`.

    Args:
      tree: the part of this process, `local_rows` of the whole batch.
      mesh: all devices.
      axis: along which the arrays are split; globally it is as long as those of all
        processes together.
    """
    sharding = sharded(mesh, axis)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), tree
    )


def largest(number: int, mesh: Mesh) -> jax.Array:
    """Returns the maximum of `number` over all processes.

    Args:
      number: of this process, int32.
      mesh: all devices.

    Returns:
      An int32 scalar on every device, computed asynchronously.
    """
    own = np.full(jax.local_device_count(), number, np.int32)
    return _largest(mesh)(shard_batch(own, mesh))


@functools.lru_cache(maxsize=1)
def _largest(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.max, out_shardings=replicated(mesh))


def local_rows(batch_size: int) -> tuple[int, int]:
    """Returns the rows of a batch that this process feeds: start and stop."""
    share = batch_size // jax.process_count()
    return share * jax.process_index(), share * (jax.process_index() + 1)


def check_batch_size(batch_size: int, field: str = "config.batch_size") -> None:
    """Raises a UsageError unless a batch can be split evenly over all devices.

    Args:
      batch_size: images in a batch.
      field: that gives it, for the message.
    """
    count = jax.device_count()
    if count != jax.local_device_count() * jax.process_count():
        raise UsageError(
            f"this process has {jax.local_device_count()} of {count} devices, and "
            f"there are {jax.process_count()} processes; give each the same number of "
            "devices (CUDA_VISIBLE_DEVICES)."
        )
    if batch_size % count == 0:
        return
    below = batch_size // count * count
    nearest = " or ".join(str(size) for size in (below, below + count) if size)
    raise UsageError(
        f"{field}={batch_size} cannot be split evenly over {count} devices; "
        f"use {nearest}, or fewer devices (CUDA_VISIBLE_DEVICES)."
    )
