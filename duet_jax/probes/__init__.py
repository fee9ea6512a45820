"""Classifiers and regressors on frozen features, and their scores.

Arrays in, arrays out: independent of methods, data sets and files.

- `logistic`: the linear probe, `fit_with_selection(features, labels, num_classes=...)`
- `knn`: `classify(bank, bank_labels, queries, num_classes=...)`
- `ridge`: linear regression, `fit_with_selection(features, targets)`
- `mlp`: a small network for classes or numbers, `fit(features, targets)`
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_jax.probes import knn, logistic, mlp, ridge

__all__ = ["knn", "logistic", "mlp", "ridge"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:  # they import JAX
        return importlib.import_module(f"duet_jax.probes.{name}")
    raise AttributeError(f"module 'duet_jax.probes' has no attribute {name!r}")
