"""Runs of several processes: how they find each other, and who speaks for all."""

import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from duet_jax.errors import UsageError

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# A process that has not been heard of for so long is taken for dead, and all end.
HEARTBEAT_SECONDS = 30
# To wait for the others at the start.
_START_SECONDS = 300

# Launchers that JAX reads: variables that each of their processes has.
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
# Where a launcher says how many processes it has started, also one that JAX cannot
# read, such as Open MPI 5 or Intel MPI. The number of Slurm's step, not of the job: an
# interactive shell is a step of one process.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# How many of them are on this machine.
_LOCAL_COUNTS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
_GPUS = pathlib.Path("/proc/driver/nvidia/gpus")


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
      UsageError: arguments are missing or make no sense, or the first process cannot
        be reached. If it is the others that do not come, JAX ends the first one.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    named = any(value is not None for value in given.values())
    alone = num_processes == "1" and coordinator_address is None and process_id is None
    if alone or not (named or _launched()):
        return
    arguments = _checked(given) if named else {"local_device_ids": _local_devices()}
    _log.info("waiting for the other processes, for up to %d s ...", _START_SECONDS)
    if arguments.get("process_id"):
        _wait_for(arguments["coordinator_address"])
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the processes of this job do not find each other ({reason}); give each "
            "--coordinator_address, --num_processes and --process_id, or use "
            "--num_processes=1."
        ) from error
    if not is_main_process():
        logging.getLogger("duet_jax").setLevel(logging.ERROR)


def _launched() -> bool:
    """Whether a launcher has started this process as one of several.

    Raises:
      UsageError: one has that JAX cannot read: each process would train for itself.
    """
    several = [name for name in _COUNTS if os.environ.get(name, "1") != "1"]
    if not several:
        return False
    if any(all(name in os.environ for name in each) for each in _LAUNCHERS.values()):
        return True
    raise UsageError(
        f"{several[0]}={os.environ[several[0]]} says that this is one of several "
        "processes, but not where the others are; give each --coordinator_address, "
        "--num_processes and --process_id, or use --num_processes=1."
    )


def _local_devices() -> list[int] | None:
    """Returns the GPUs of this process of a launcher; None for JAX's rule.

    JAX gives the process that is number i on its machine GPU i of those it sees. That
    is wrong where the launcher shows each process its own GPU only, and where there is
    one process for all GPUs of a machine.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else _count_gpus()
    local = next((os.environ[n] for n in _LOCAL_COUNTS if n in os.environ), None)
    if count == 1 or (count and local == "1"):
        return list(range(count))
    return None


def _count_gpus() -> int:
    return len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0


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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
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


def _wait_for(address: str) -> None:
    """Returns when somebody listens at host:port; JAX itself would end the process.

    Raises:
      UsageError: there is no such host, or nobody listens in time.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            if unknown or time.monotonic() > deadline:
                raise UsageError(
                    f"--coordinator_address={address}: process 0 cannot be reached "
                    f"({error}); start it there too, and use the same address for all."
                ) from error
            time.sleep(0.2)


def is_main_process() -> bool:
    """Whether this process writes records and pictures, for all of them."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def check_alone(flag: str) -> None:
    """Raises a UsageError, naming `flag`, if this process is one of several."""
    if are_several():
        raise UsageError(
            f"{flag} takes one process; evaluate in a job of its own, with --workdir "
            "and without --config."
        )


def barrier(name: str) -> None:
    """Returns when every process has come to the point called `name`."""
    if are_several():
        multihost_utils.sync_global_devices(name)


def shutdown() -> None:
    """Leaves the others, once every process has come to this point.

    For an end that all have agreed on: each can then exit with a status of its own.
    """
    if are_several():
        jax.distributed.shutdown()


def main_process_first(name: str, function: Callable[[], _Result]) -> _Result:
    """Returns `function()`, which the others call when the first process is done.

    For what leaves files that the others then find.
    """
    if is_main_process():
        result = function()
        barrier(name)
        return result
    barrier(name)
    return function()


def broadcast(number: int) -> int:
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
