"""Programs that start at once: forks of a process that has imported all of ours.

Importing takes longer than what most tests have a program do. `Process` has what the
tests use of `subprocess.Popen`, and like it gives a process of its own: directory,
environment, streams, signals and exit status are as if `python script arguments` had
been started. Only what is read at the start of Python or at an import is not read
anew; tests of that start a Python.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pathlib
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import NoReturn

ROOT = pathlib.Path(__file__).parents[1]


class Process:
    """A program that has been started.

    Attributes:
      pid: its number.
      returncode: None while it runs; the negative signal if one has ended it.
    """

    _server: socket.socket | None = None
    _lock = threading.Lock()

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | os.PathLike = ".",
        env: Mapping[str, str] | None = None,
        stdin: int | io.IOBase = subprocess.DEVNULL,
        stdout: int | io.IOBase | None = None,
        stderr: int | io.IOBase | None = None,
        closed: Sequence[int] = (),
        as_user: bool = False,
        largest_file: int = 0,
        group: bool = False,
        before: str = "",
    ):
        """Starts `python *arguments`.

        Args:
          arguments: a script, or -c and a text, and what it is given.
          cwd: the directory it is started in.
          env: all of its environment; None for ours.
          stdin: a file or a descriptor.
          stdout: likewise, or DEVNULL.
          stderr: likewise, or STDOUT.
          closed: which of its three streams it does not get.
          as_user: permissions bind it, also where the tests are run by root.
          largest_file: bytes at which a file cannot grow any more, as on a full disk.
          group: it gets a process group and a session of its own.
          before: code that is executed before the script.
        """
        streams = [stdin, stdout, stderr]
        with open(os.devnull, "r+b") as nothing:
            for number, stream in enumerate(streams):
                if stream == subprocess.DEVNULL:
                    stream = nothing
                if stream == subprocess.STDOUT:
                    stream = streams[1]
                if stream is None:
                    stream = number
                streams[number] = stream if isinstance(stream, int) else stream.fileno()
            request = {
                "arguments": [str(each) for each in arguments],
                "cwd": str(cwd),
                "environment": dict(os.environ if env is None else env),
                "closed": list(closed),
                "as_user": as_user,
                "largest_file": largest_file,
                "group": group,
                "before": before,
            }
            self._told = self._ask(json.dumps(request).encode(), streams)
            self.pid = int(self._told.recv(100))
        self._waiting = threading.Lock()
        self.returncode: int | None = None

    @classmethod
    def _ask(cls, request: bytes, streams: Sequence[int]) -> socket.socket:
        """Has a program started, and returns where its number and status are told."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with cls._lock, theirs:
            if cls._server is None:
                cls._server, server = socket.socketpair(type=socket.SOCK_SEQPACKET)
                with server:
                    number = server.fileno()
                    command = [sys.executable, __file__, str(number)]
                    process = subprocess.Popen(command, pass_fds=[number], cwd=ROOT)
                atexit.register(process.wait)
                atexit.register(cls._server.close)  # which ends it, and comes first
            socket.send_fds(cls._server, [request], [*streams, theirs.fileno()])
        return ours

    def poll(self) -> int | None:
        """Returns the exit status if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status, or raises TimeoutExpired after some seconds."""
        with self._waiting:
            if self.returncode is None:
                if not select.select([self._told], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
                status = int(self._told.recv(100))
                self.returncode = os.waitstatus_to_exitcode(status)
                self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()
        self.wait()


def _popen(command: Sequence[str], **options) -> Process:
    return Process(command[1:], **options)


# In the place of the module `subprocess`, for what starts `[sys.executable, ...]`.
subprocesses = types.SimpleNamespace(**{**vars(subprocess), "Popen": _popen})


# --- In the process that is forked ----------------------------------------------------


def _serve(connection: socket.socket) -> tuple[dict, list[int]]:
    """Forks for each request; returns in the new process, with what it is to become."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who tell
    while True:
        text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        if not text:  # the tests have ended
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            program = os.fork()
            *streams, told = descriptors
            if program == 0:
                os.close(told)
                return json.loads(text), streams
            for descriptor in streams:
                os.close(descriptor)
            os.write(told, str(program).encode())
            os.write(told, str(os.waitpid(program, 0)[1]).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: dict, streams: Sequence[int]) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in request["closed"]:
        os.close(number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if request["group"]:
        os.setsid()
    if request["largest_file"]:
        limit = request["largest_file"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if request["as_user"] and os.geteuid() == 0:
        _give_up_rights()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, None if number in request["closed"] else _stream(number))
    sys.argv = request["arguments"]
    script = pathlib.Path(sys.argv[0])
    sys.path[0] = "" if sys.argv[0] == "-c" else str(script.resolve().parent)


def _run() -> None:
    if sys.argv[0] == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _stream(number: int) -> io.TextIOWrapper:
    """The standard stream of a number, buffered as Python does."""
    errors = "backslashreplace" if number == 2 else None
    lines = number == 2 or os.isatty(number)
    return open(
        number,
        "w" if number else "r",
        buffering=1 if lines else -1,
        errors=errors,
        closefd=False,
    )


def _give_up_rights() -> None:
    """Takes the right of root to read and write everything from this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    libc.capget(header, sets)
    for each in range(3):
        sets[each] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


_ENDING = (signal.SIGINT, signal.SIGTERM)


class Child:
    """In the place of `subprocess.Popen` in a program that has itself been forked.

    It forks on. What is to be kept open stays open, as everything does.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: io.IOBase,
        stderr: io.IOBase,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ):
        del stdin, pass_fds
        self.returncode: int | None = None
        # What is sent at once is not for the handlers of the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        else:
            if start_new_session:
                os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            self._run(command[1:])

    def _run(self, arguments: Sequence[str]) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        sys.argv, status = list(arguments), 1
        try:
            _run()
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, timeout: float) -> int:
        """As that of a `Process`."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            else:
                time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


# For `before` of a program that starts others by the module `subprocess` of a module.
FORKS = f"""
import subprocess, sys, types
sys.path.append({str(ROOT / "tests")!r})
import forked
from duet_jax.sweeps import runner
forks = vars(subprocess) | {{"Popen": forked.Child}}
runner.subprocess = types.SimpleNamespace(**forks)
"""


def _import_program() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import caches

    caches.keep()
    import duet_jax

    # All of it: commands import what they do when they do it.
    for module in pkgutil.walk_packages(duet_jax.__path__, "duet_jax."):
        importlib.import_module(module.name)

    with contextlib.suppress(ImportError):
        import sklearn.linear_model  # noqa: F401
    gc.freeze()  # what never changes is neither searched nor copied


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_program()
    _asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become(*_asked)
    exec(_asked[0]["before"], {})
    _run()
