"""Experiments: `base.py` is the schema, every other file a small change of it."""
