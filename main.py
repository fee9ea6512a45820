"""Trains DUET or one of its peers, and measures what has been trained.

`python main.py --help` says more; `duet_jax/cli.py` reads the command line.
"""

import sys

from duet_jax.runtime import signals

if __name__ == "__main__":  # before the imports, which take seconds
    signals.listen()

from duet_jax import cli
from duet_jax.runtime import processes

if __name__ == "__main__":
    processes.leave(cli.main(sys.argv))
