"""Decoded images, kept until the tests end, and compiled programs, kept for the next.

One directory serves all workers, what they do in process, and what they start.
"""

import atexit
import os
import pathlib
import shutil
import tempfile
import time

import jax
from jax._src import lru_cache

from duet_jax.runtime import devices, files

# A program is found again by all that it is made of: code, versions, flags.
_PROGRAMS = pathlib.Path(__file__).parents[1] / ".cache" / "programs"
_LONGEST = 7 * 24 * 3600.0  # seconds that a program is kept


def _directory() -> pathlib.Path:
    place = os.environ.get("DUET_JAX_TEST_CACHES")
    if place is None:  # the first process of these tests
        place = os.environ["DUET_JAX_TEST_CACHES"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        _PROGRAMS.mkdir(parents=True, exist_ok=True)
        for path in _PROGRAMS.iterdir():
            if path.stat().st_mtime < time.time() - _LONGEST:
                path.unlink(missing_ok=True)
        (pathlib.Path(place) / "duet_jax").mkdir()
        (pathlib.Path(place) / "duet_jax" / "xla").symlink_to(_PROGRAMS)
    return pathlib.Path(place)


DIRECTORY = _directory()


def keep() -> None:
    """Keeps whatever this process compiles, also what takes less than a second."""
    os.environ["XDG_CACHE_HOME"] = str(DIRECTORY)
    # Else the place, another one each time, is part of what a program is found by.
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    devices.LEAST_SECONDS = 0.3
    devices.enable_compilation_cache("")
    lru_cache.LRUCache.put = _put


def _put(cache: lru_cache.LRUCache, key: str, value: bytes) -> None:
    """Writes an entry whole: JAX would let others read half of one."""
    path = pathlib.Path(cache.path) / f"{key}{lru_cache._CACHE_SUFFIX}"
    if not path.exists():
        with files.replacing(path) as partial:
            partial.write_bytes(value)
