"""Networks: encoder, projector, predictor, online probe; content and structure.

Parameters and running statistics are float32, whatever the compute type. Modules have
no mode: where training and evaluation differ, `train` is an argument of the call.
"""

from duet_jax.models.encoders import ENCODERS, make_encoder
from duet_jax.models.representation import (
    as_matrix,
    content,
    shift,
    steer,
    structure,
    structure_logits,
)

__all__ = [
    "ENCODERS",
    "as_matrix",
    "content",
    "make_encoder",
    "shift",
    "steer",
    "structure",
    "structure_logits",
]
