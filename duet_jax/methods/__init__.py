"""The methods. To add one, write a file with its class and add a row here."""

from duet_jax.methods.augself import AugSelf
from duet_jax.methods.base import EncoderSettings, Method, Metrics, TwoViews, Views
from duet_jax.methods.care import CARE
from duet_jax.methods.duet import DUET
from duet_jax.methods.equimod import EquiMod
from duet_jax.methods.essl import ESSL
from duet_jax.methods.sie import SIE
from duet_jax.methods.simclr import SimCLR

# In the order of their colors in figures.
METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "essl": ESSL,
    "duet": DUET,
    "augself": AugSelf,
    "equimod": EquiMod,
    "care": CARE,
    "sie": SIE,
}

__all__ = [
    "CARE",
    "DUET",
    "ESSL",
    "METHODS",
    "SIE",
    "AugSelf",
    "EncoderSettings",
    "EquiMod",
    "Method",
    "Metrics",
    "SimCLR",
    "TwoViews",
    "Views",
]
