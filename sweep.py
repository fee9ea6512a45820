"""Runs the rows of an experiment with several seeds, and makes a table: --help."""

from duet_jax.sweeps.__main__ import main

if __name__ == "__main__":
    main()
