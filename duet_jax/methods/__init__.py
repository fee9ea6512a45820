"""The methods. To add one, write a file with its class and add a row here."""

from duet_jax.methods.base import EncoderSettings, Method, Metrics, TwoViews, Views
from duet_jax.methods.duet import DUET
from duet_jax.methods.essl import ESSL
from duet_jax.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {"duet": DUET, "simclr": SimCLR, "essl": ESSL}

__all__ = [
    "DUET",
    "ESSL",
    "METHODS",
    "EncoderSettings",
    "Method",
    "Metrics",
    "SimCLR",
    "TwoViews",
    "Views",
]
