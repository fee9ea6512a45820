"""DUET, SimCLR and ESSL in JAX: structured self-supervised representations."""
