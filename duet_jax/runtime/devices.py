"""Selects the device and the cache for compiled programs."""

import ctypes.util
import importlib.util
import logging
import os
import pathlib

from duet_jax.errors import UsageError
from duet_jax.lazy import jax

_log = logging.getLogger(__name__)

# Programs that compile faster are not cached.
LEAST_SECONDS = 1.0


def cache_directory() -> pathlib.Path:
    """Returns the project's directory in the user's cache directory.

    Raises:
      RuntimeError: the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "duet_jax"


def select(device: str) -> None:
    """Makes JAX use `device` ("auto", "cpu" or "gpu"); before any computation.

    `check` tests whether it exists, after `processes.start`.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif device == "auto" and _cuda_wheels_without_driver():
        # JAX would fall back to the CPU as well, but print a traceback first.
        jax.config.update("jax_platforms", "cpu")


def check(device: str) -> None:
    """Raises a UsageError if `device` is "gpu" and JAX finds none."""
    if device != "gpu":
        return
    try:
        platform = jax.default_backend()
    except RuntimeError as error:
        raise UsageError(
            f"config.device='gpu', but JAX cannot start one ({error}); check the "
            "driver with nvidia-smi or use config.device=auto."
        ) from error
    if platform != "gpu":
        raise UsageError(
            f"config.device='gpu', but JAX finds only {platform}; install jax[cuda12] "
            "on a machine with an NVIDIA driver, or use config.device=auto."
        )


def _cuda_wheels_without_driver() -> bool:
    wheels = importlib.util.find_spec("jax_cuda12_plugin") is not None
    driver = ctypes.util.find_library("cuda") or os.path.exists("/dev/nvidiactl")
    return wheels and not driver and "JAX_PLATFORMS" not in os.environ


def enable_compilation_cache(directory: str) -> None:
    """Caches compiled programs in `directory`; warns if it is not writable.

    Args:
      directory: empty for the user's cache directory, "off" to disable the cache.
    """
    if directory == "off":
        return
    try:
        path = pathlib.Path(directory).expanduser() if directory else None
        path = path or cache_directory() / "xla"
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
        reason = "" if writable else f"{nearest} is not writable"
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        _log.warning(
            "compiled programs are not kept (%s); set config.compilation_cache to a "
            "writable directory or to off",
            reason,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def describe() -> str:
    """Returns number and kind of the devices and the number of processes, as text."""
    devices = jax.devices()
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    several = jax.process_count()
    processes = f" in {several} processes" if several > 1 else ""
    if devices[0].platform == "cpu":
        cores = count_cores()
        return f"{count}cpu, {cores} core{'s' * (cores > 1)}{processes}"
    return f"{count}{devices[0].device_kind} ({devices[0].platform}){processes}"


def memory() -> int:
    """Returns the memory of one local device in bytes; on a CPU, of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", pages)


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
