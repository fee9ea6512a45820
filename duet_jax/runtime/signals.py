"""Requests to end: SIGTERM of a scheduler, SIGINT of Ctrl-C.

They end the program at once, from its first moment on, and leave nothing half-written.
While it trains they are noted, so that the training can save what it has at the next
point where it can go on from. Little is imported here, since the program listens before
it imports what takes seconds.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from types import TracebackType
from typing import Self

from duet_jax.errors import InterruptionError
from duet_jax.runtime import files

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal that has been stopped takes no text, and a disk may not answer.
_LONGEST_ENDING = 1.0  # seconds


class Interruption:
    """Hears SIGTERM and SIGINT in a `with` block.

    A thread hears them: in the main one Python waits for compilations and other long
    calls to return. One that the program was started to ignore, as under nohup or
    behind `&`, stays ignored. Outside the main thread of a program it hears nothing.

    Attributes:
      signal: number of the one that came after `defer`; 0 for none.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
                signal.signal(number, lambda *_: None)  # for the thread to hear of it
                # None is a handler that Python did not set, such as JAX's.
                self._undo.callback(signal.signal, number, handler or signal.SIG_DFL)
        threading.Thread(target=self._hear, args=(ours,), daemon=True).start()

    def _hear(self, ours: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while numbers := ours.recv(1):
                if numbers[0] in _SIGNALS:
                    with contextlib.suppress(OSError):  # nobody reads what is said
                        self._take(numbers[0])

    def _take(self, number: int) -> None:
        name = signal.Signals(number).name
        with self._lock:
            if not self._deferring or self.signal:
                _exit(128 + number, f"\nstopped by {name}")
            self.signal = number
        _log.warning("%s: ending when the run is saved; again to end at once", name)

    def defer(self) -> None:
        """Has the first signal noted from now on; the second one ends the program."""
        with self._lock:
            self._deferring = True


def listen() -> None:
    """Has SIGTERM and SIGINT end the program from now on, with one line.

    Python's own KeyboardInterrupt is swallowed by some imports, and is a page of
    traceback in others.
    """
    Interruption().__enter__()


def _exit(status: int, text: str) -> None:
    """Ends the program at once, saying `text` if somebody reads it."""
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
      what_now: what has been saved, and how the user goes on.
    """
    name = signal.Signals(number).name
    return InterruptionError(f"stopped by {name}; {what_now}", 128 + number)
