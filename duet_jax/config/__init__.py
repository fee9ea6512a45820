"""Configurations: loading, checking, and what is built from them."""
