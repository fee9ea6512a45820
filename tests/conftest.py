"""Strictness that every test runs under."""

import logging
import mmap
import os
import pathlib

import jaxlib


def _quick_to_compile() -> str:
    """Flags for a suite that compiles much and computes little.

    Without LLVM's optimizations and the emitters of XLA that are made for fast code, a
    program compiles in a quarter of the time. XLA's passes, fusion among them, run as
    always.
    """
    flags = "--xla_backend_optimization_level=0"
    # XLA ends a process that gives it a flag that it does not know.
    library = pathlib.Path(jaxlib.__file__).with_name("libjax_common.so")
    if library.exists():
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(b"xla_cpu_use_fusion_emitters") >= 0:
                flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _quick_to_compile()

import caches
import jax
import pytest
from absl import logging as absl_logging

caches.keep()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Undoes what a program's main function, called in a test, does to logging."""
    verbosity = absl_logging.get_verbosity()
    yield
    absl_logging.set_verbosity(verbosity)
    logger = logging.getLogger("duet_jax")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
