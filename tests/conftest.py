"""Strictness that every test runs under."""

import logging
import os

import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", flags.quick_to_compile())

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
