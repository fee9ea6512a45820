"""The methods. To add one: a file with a class like these, and a row here."""

from duet_jax.methods.base import DataSpec, Method, Metrics, Networks, Views
from duet_jax.methods.duet import DUET
from duet_jax.methods.essl import ESSL
from duet_jax.methods.simclr import SimCLR

METHODS = {"duet": DUET, "simclr": SimCLR, "essl": ESSL}

__all__ = ["METHODS", "DataSpec", "Method", "Metrics", "Networks", "Views"]
