"""Runs: a directory, its checkpoints and their seals, its trained encoder."""
