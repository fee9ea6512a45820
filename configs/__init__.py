"""Configurations: `base.py` has all fields, every other file changes some of them."""
