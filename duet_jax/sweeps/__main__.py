"""Runs the rows of an experiment with several seeds, and makes a table of them.

`sweep.py`, `python -m duet_jax.sweeps` and the command duet-jax-sweep are this.
`--help` says more; `cli.py` reads the command line.
"""

import sys

from duet_jax.runtime import signals


def main() -> None:
    """Runs the program and exits."""
    signals.listen()  # before the imports, which take seconds
    from duet_jax.sweeps import cli

    sys.exit(cli.main(sys.argv))


if __name__ == "__main__":
    main()
