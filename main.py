"""Trains DUET or one of its peers, and measures what has been trained: --help."""

from duet_jax.__main__ import main

if __name__ == "__main__":
    main()
