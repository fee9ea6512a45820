"""DUET, SimCLR and ESSL in JAX: structured self-supervised representations."""

__version__ = "0.1.0"
