"""Runs the rows of an experiment one after another, and makes a table of them.

`python sweep.py --help` says more; `duet_jax/sweeps/cli.py` reads the command line.
"""

import sys

from duet_jax.runtime import signals

if __name__ == "__main__":  # before the imports, which take seconds
    signals.listen()

from duet_jax.sweeps import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv))
