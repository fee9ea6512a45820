"""Runs of several processes: how they find each other, and who speaks for all."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from duet_jax.errors import UsageError

_log = logging.getLogger(__name__)

# A process that has not been heard of for so long is taken for dead, and all end.
HEARTBEAT_SECONDS = 30
# To wait for the others at the start.
_START_SECONDS = 300

# Launchers that JAX knows: variables that each of their processes has, the first of
# which is the number of processes.
_LAUNCHERS: dict[str, tuple[str, ...]] = {
    "Slurm": (
        "SLURM_NTASKS",
        "SLURM_JOB_ID",
        "SLURM_STEP_NODELIST",
        "SLURM_PROCID",
        "SLURM_LOCALID",
    ),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"),
}


def start(
    coordinator_address: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
) -> None:
    """Joins the processes of this job, if there are several; before any computation.

    Without arguments the processes are those of the launcher (srun, mpirun), or there
    is but this one.

    Args:
      coordinator_address: host:port at which the first process listens.
      num_processes: of the whole job; "1" for this one alone, whatever the launcher
        says.
      process_id: of this one, from 0.

    Raises:
      UsageError: arguments are missing or no numbers, or the others cannot be reached.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if num_processes == "1" or (not any(given.values()) and not _launched()):
        return
    arguments = _checked(given) if any(given.values()) else {}
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the processes of this job do not find each other ({reason}); start them "
            "with srun or mpirun, give each --coordinator_address, --num_processes and "
            "--process_id, or use --num_processes=1."
        ) from error
    if not is_first():
        logging.getLogger("duet_jax").setLevel(logging.ERROR)
    _log.info("processes    %d", jax.process_count())


def _launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return any(
        all(name in os.environ for name in names) and os.environ[names[0]] != "1"
        for names in _LAUNCHERS.values()
    )


def _checked(given: Mapping[str, str | None]) -> dict[str, str | int]:
    """Returns the arguments of JAX, all three of them."""
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must be given too: every process gets the same "
            "--coordinator_address=host:port and --num_processes, and its own "
            "--process_id from 0."
        )
    address, count, number = given.values()
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"--coordinator_address={address!r} must be host:port, such as "
            "node1:29500: a free port of the machine of process 0."
        )
    if not count.isdecimal() or not int(count):
        raise UsageError(f"--num_processes={count!r} must be a whole number above 0.")
    if not number.isdecimal() or int(number) >= int(count):
        raise UsageError(
            f"--process_id={number!r} must be a whole number from 0 to "
            f"{int(count) - 1}: there are --num_processes={count}."
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


def is_first() -> bool:
    """Whether this process writes records and pictures, for all of them."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point called `name`."""
    if are_several():
        multihost_utils.sync_global_devices(name)


def agree(number: int) -> int:
    """Returns the first process's `number`: all must do something equally often."""
    if not are_several():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def leave(status: int) -> NoReturn:
    """Ends this process with `status`.

    One that fails ends at once: JAX would wait for the others, which wait for it. They
    miss it within HEARTBEAT_SECONDS and end as well.
    """
    if status and are_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
