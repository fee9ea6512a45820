"""The losses of all methods, and the accuracies reported with them.

Everything is computed in at least float32, whatever the networks' precision. A `mask`
marks the examples that count: the last batch of an evaluation is padded, and padding is
neither averaged nor used as a negative.
"""

from duet_jax.losses.nt_xent import REDUCTIONS, Contrast, nt_xent
from duet_jax.losses.precision import masked_mean
from duet_jax.losses.prediction import cross_entropy, squared_error, top_k
from duet_jax.losses.structure import jensen_shannon, structure_loss
from duet_jax.losses.targets import TARGETS, Target, gaussian, von_mises
from duet_jax.losses.vicreg import covariance, variance_hinge

__all__ = [
    "REDUCTIONS",
    "TARGETS",
    "Contrast",
    "Target",
    "covariance",
    "cross_entropy",
    "gaussian",
    "jensen_shannon",
    "masked_mean",
    "nt_xent",
    "squared_error",
    "structure_loss",
    "top_k",
    "variance_hinge",
    "von_mises",
]
