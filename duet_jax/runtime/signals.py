"""Handling of SIGTERM (from a scheduler) and SIGINT (Ctrl-C).

They end the program at once, from its start on, and leave no half-written files. During
training they are recorded instead, so that the training can save a checkpoint first.
This module imports little, because the program handles signals before it imports slow
modules.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from typing import Self

from duet_jax.errors import InterruptionError
from duet_jax.runtime import files

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A stopped terminal accepts no text, and a disk may hang.
_LONGEST_ENDING = 1.0  # seconds


class Interruption:
    """Handles SIGTERM and SIGINT in a `with` block.

    A thread handles them, because handlers in the main thread have to wait for
    compilations and other long calls. A signal that is ignored from the start, as under
    nohup or after `&`, stays ignored. Outside the main thread this does nothing.

    Attributes:
      signal: number of the signal that came after `defer`; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._deferring = False
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            with self._undo:
                self._listen()
                self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def _listen(self) -> None:
        ours, pythons = socket.socketpair()
        self._undo.callback(ours.close)
        self._undo.callback(pythons.close)  # ends the thread
        pythons.setblocking(False)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # Python then writes
                # None is a handler that Python did not set, such as JAX's.
                self._undo.callback(signal.signal, number, handler or signal.SIG_DFL)
        threading.Thread(target=self._hear, args=(ours,), daemon=True).start()

    def _hear(self, ours: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while numbers := ours.recv(1):
                if numbers[0] in _SIGNALS:
                    with contextlib.suppress(OSError):  # standard error is gone
                        self._take(numbers[0])

    def _take(self, number: int) -> None:
        name = signal.Signals(number).name
        with self._lock:
            if not self._deferring or self.signal:
                _exit(128 + number, f"\nstopped by {name}")
            self.signal = number
        _log.warning("%s: ending when the run is saved; again to end at once", name)

    def defer(self) -> None:
        """From now on records the first signal; the second one ends the program."""
        with self._lock:
            self._deferring = True


def listen() -> None:
    """Makes SIGTERM and SIGINT end the program from now on, with a one-line message.

    During imports, Python's own KeyboardInterrupt may be swallowed, or print a
    traceback.
    """
    Interruption().__enter__()


def _exit(status: int, text: str) -> None:
    """Ends the program at once, and prints `text` if standard error accepts it."""
    threading.Timer(_LONGEST_ENDING, os._exit, (status,)).start()
    try:
        files.remove_unfinished()
        print(text, file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def interrupted(number: int, what_now: str) -> InterruptionError:
    """Returns the error that ends the program as the signal would have.

    Args:
      number: of the signal.
      what_now: what has been saved, and how to continue.
    """
    name = signal.Signals(number).name
    return InterruptionError(f"stopped by {name}; {what_now}", 128 + number)
