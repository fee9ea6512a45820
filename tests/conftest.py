"""Strictness that every test runs under."""

import gc
import importlib
import logging
import os
import pathlib
import pkgutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles much and computes little: LLVM's optimisations cost twice the time
# of everything else. XLA's own passes, fusion among them, run as always.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import caches
import jax
import pytest
from absl import logging as absl_logging

import duet_jax
from duet_jax.runtime import terminal

# A package holds stand-ins for modules that are not imported yet (`duet_jax.lazy`), and
# what is patched on one of them is gone afterwards. With all imported there are none.
for module in pkgutil.walk_packages(duet_jax.__path__, "duet_jax."):
    importlib.import_module(module.name)

caches.keep()
jax.config.update("jax_numpy_rank_promotion", "raise")
terminal.QUIET = 1e6  # signs of life depend on how slow a machine is


# Of the 65,530 mappings of memory that Linux allows a process.
_MOST_MAPPINGS = 25_000


@pytest.fixture(autouse=True)
def _few_programs():
    """Forgets compiled programs before XLA crashes for want of another mapping.

    A program takes dozens of them, and those of hundreds of tests would stay.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Undoes what a program's main function, called in a test, does to logging."""
    verbosity = absl_logging.get_verbosity()
    yield
    absl_logging.set_verbosity(verbosity)
    logger = logging.getLogger("duet_jax")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
