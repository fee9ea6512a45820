"""Choice of the device and of the place where compiled programs are kept."""

import ctypes.util
import importlib.util
import os
import pathlib

import jax

from duet_jax.errors import UsageError


def cache_directory() -> pathlib.Path:
    """Returns the project's directory in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "duet_jax"


def select(device: str) -> None:
    """Makes JAX use `device` ("auto", "cpu" or "gpu"); before anything is computed.

    Raises:
      UsageError: "gpu" where JAX finds none.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif device == "gpu":
        _require_gpu()
    elif _cuda_wheels_without_driver():
        # JAX would fall back to the CPU as well, after a page of traceback.
        jax.config.update("jax_platforms", "cpu")


def _require_gpu() -> None:
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
    """Keeps compiled programs in `directory`.

    Args:
      directory: empty for the user's cache directory, "off" for nowhere.
    """
    if directory == "off":
        return
    path = pathlib.Path(directory).expanduser() if directory else None
    jax.config.update(
        "jax_compilation_cache_dir", str(path or cache_directory() / "xla")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def describe() -> str:
    """Returns the device in words: its kind and platform, and how many stand idle."""
    used, *idle = jax.local_devices()
    rest = f"; {len(idle)} more not used" if idle else ""
    return f"{used.device_kind} ({used.platform}){rest}"
