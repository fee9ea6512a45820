"""DUET, SimCLR and ESSL in JAX: structured self-supervised representations.

    import duet_jax as dj

    stack = dj.augment.random_stack(("sca", "rot"))
    views, draws = stack(key, images)                     # inside jax.jit or outside
    encoder = dj.encoders.create("cifar10_resnet20")
    features = encoder(dj.augment.normalize(views), train=True)
    matrix = dj.as_matrix(features, num_bins=8)
    targets = dj.losses.von_mises(draws["rot"].structure, 8, concentration=3.0)
    loss = dj.losses.structure_loss(dj.structure_logits(matrix), targets)

    run = dj.load_run("runs/rot")                         # a trained encoder
    features = run(images)["full"]

`__all__` here and in these modules is what is public; the rest of the package may
change. JAX and what is built on it are imported when they are first used; `train` alone
needs them at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_MODULES = ("augment", "encoders", "equivariance", "losses", "metrics", "probes")
# Name -> module that it comes from.
_NAMES = {
    "Run": "duet_jax.runs.trained_run",
    "as_matrix": "duet_jax.models.representation",
    "content": "duet_jax.models.representation",
    "load_config": "duet_jax.config.loading",
    "load_dataset": "duet_jax.data",
    "load_file": "duet_jax.runs.trained_run",
    "load_run": "duet_jax.runs.trained_run",
    "shift": "duet_jax.models.representation",
    "steer": "duet_jax.models.representation",
    "structure": "duet_jax.models.representation",
    "structure_logits": "duet_jax.models.representation",
    "train": "duet_jax.training.train",
}

if TYPE_CHECKING:
    from duet_jax import augment, encoders, equivariance, losses, metrics, probes
    from duet_jax.config.loading import load_config
    from duet_jax.data import load_dataset
    from duet_jax.models.representation import (
        as_matrix,
        content,
        shift,
        steer,
        structure,
        structure_logits,
    )
    from duet_jax.runs.trained_run import Run, load_file, load_run
    from duet_jax.training.train import train

__all__ = [
    "Run",
    "as_matrix",
    "augment",
    "content",
    "encoders",
    "equivariance",
    "load_config",
    "load_dataset",
    "load_file",
    "load_run",
    "losses",
    "metrics",
    "probes",
    "shift",
    "steer",
    "structure",
    "structure_logits",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"duet_jax.{name}")
    raise AttributeError(f"module 'duet_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
