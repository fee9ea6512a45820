"""Trains DUET or one of its peers, and measures what has been trained.

`main.py`, `python -m duet_jax` and the command duet-jax are this. `--help` says more;
`cli.py` reads the command line.
"""

import sys

from duet_jax.runtime import signals


def main() -> None:
    """Runs the program and exits."""
    signals.listen()  # before the imports, which take seconds
    from duet_jax import cli
    from duet_jax.runtime import processes

    processes.leave(cli.main(sys.argv))


if __name__ == "__main__":
    main()
