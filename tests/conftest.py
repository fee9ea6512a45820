"""Strictness that every test runs under."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles much and computes little: LLVM's optimisations cost twice the time
# of everything else. XLA's own passes, fusion among them, run as always.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
