"""Jobs of several processes: how they find each other, and which one writes."""

import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np

from duet_jax.errors import UsageError
from duet_jax.lazy import jax, multihost_utils

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# A process that has been silent for this long counts as lost, and all others end.
HEARTBEAT_SECONDS = 30
# How long to wait for the others at the start.
_START_SECONDS = 300

# Variables in which a launcher says how many processes it has started. For Slurm that
# of the step and not of the job: an interactive shell is a step of one process.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# How many of them run on this machine.
_LOCAL_COUNTS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
_GPUS = pathlib.Path("/proc/driver/nvidia/gpus")


def start(
    coordinator_address: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
) -> None:
    """Joins the processes of this job, if there are several; before any computation.

    Without arguments, JAX finds the processes of the launcher (srun, mpirun), if there
    is one.

    Args:
      coordinator_address: host:port at which process 0 listens.
      num_processes: of the whole job; "1" for this process alone, whatever the
        launcher says.
      process_id: of this one, from 0.

    Raises:
      UsageError: arguments are missing or invalid, process 0 cannot be reached, or JAX
        does not find the processes of a launcher: each would train on its own. If other
        processes do not come, JAX ends process 0.
    """
    given = (coordinator_address, num_processes, process_id)
    if given == (None, "1", None):
        return
    if given != (None, None, None):
        origin = f"--coordinator_address={coordinator_address}"
        arguments = _check_arguments(*given)
    elif origin := _launcher():
        arguments = {"local_device_ids": _local_devices()}
    else:
        return
    _log.info("waiting for the other processes, for up to %d s ...", _START_SECONDS)
    if arguments.get("process_id"):
        _wait_for(coordinator_address)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # of any type, from the search for a launcher
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{origin}: the processes of this job do not find each other ({reason}); "
            "give each --coordinator_address, --num_processes and --process_id, or use "
            "--num_processes=1."
        ) from error
    if not is_main_process():
        logging.getLogger("duet_jax").setLevel(logging.ERROR)


def _launcher() -> str | None:
    """Returns the variable by which a launcher announces several processes, if any."""
    values = {name: os.environ.get(name, "1") for name in _COUNTS}
    return next((f"{k}={v}" for k, v in values.items() if v != "1"), None)


def _local_devices() -> list[int] | None:
    """Returns the GPUs of this process of a launcher; None for JAX's rule.

    JAX gives process i of a machine GPU i of those it sees. That is wrong if the
    launcher shows each process its own GPU only, or if one process has all GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else len([*_GPUS.glob("*")])
    local = next((os.environ[n] for n in _LOCAL_COUNTS if n in os.environ), None)
    if count == 1 or (count and local == "1"):
        return list(range(count))
    return None


def _check_arguments(
    address: str | None, count: str | None, number: str | None
) -> dict[str, str | int]:
    """Returns the arguments of `jax.distributed.initialize`; all must be given."""
    given = {
        "--coordinator_address": address,
        "--num_processes": count,
        "--process_id": number,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must be given too: every process gets the same "
            "--coordinator_address=host:port and --num_processes, and its own "
            "--process_id from 0."
        )
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
    """Waits until a process listens at host:port; JAX would end this one instead.

    Raises:
      UsageError: there is no such host, or no process listens in time.
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
    """True for the process that writes records and figures for all."""
    return jax.process_index() == 0


def are_several() -> bool:
    """True if this process has joined others."""
    # Where JAX has not been imported, it has not.
    return "jax" in sys.modules and jax.distributed.is_initialized()


def check_alone(flag: str) -> None:
    """Raises a UsageError, naming `flag`, if this process is one of several."""
    if are_several():
        raise UsageError(
            f"{flag} takes one process; evaluate in a job of its own, with --workdir "
            "and without --config."
        )


def barrier(name: str) -> None:
    """Waits until every process has reached the point called `name`."""
    if are_several():
        multihost_utils.sync_global_devices(name)


def shutdown() -> None:
    """Disconnects from the other processes, once all have reached this point.

    After that each can exit with a status of its own.
    """
    if are_several():
        jax.distributed.shutdown()


def main_process_first(name: str, function: Callable[[], _Result]) -> _Result:
    """Returns `function()`, called by process 0 first and then by the others.

    For functions that leave files, which the others then find.
    """
    if not is_main_process():
        barrier(name)
        return function()
    result = function()
    barrier(name)
    return result


def broadcast(number: int) -> int:
    """Returns the `number` of process 0, in every process."""
    if not are_several():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def leave(status: int) -> NoReturn:
    """Ends this process with `status`.

    A process that fails ends at once: JAX would wait for the others, which wait for it.
    They notice within HEARTBEAT_SECONDS and end as well.
    """
    if status and are_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
