"""Log lines, signs of life, and standard streams."""

import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

_log = logging.getLogger(__name__)

# A sign of life comes after so many seconds without a line, and later after a share of
# the time that something takes: the log of a long run stays short.
QUIET = 2.5
_SHARE = 0.1

# A tqdm.tqdm that is also shown on a terminal that does not know its height.
bar = functools.partial(tqdm.tqdm, nrows=20)


def printable(text: str) -> str:
    r"""Returns `text` as a single line that is safe to print.

    Characters that would end the line, move the cursor or change the direction of the
    text are escaped, like `\n`, and so are invalid ones.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Handler(logging.Handler):
    """Writes records above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        text = printable(record.getMessage())
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm.tqdm.write(text, file=sys.stderr)
        if record.name != __name__:
            _pulse.said(text)


def log_to_terminal(level: int) -> None:
    """Sends only the log records of this project to standard error."""
    logger = logging.getLogger("duet_jax")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    logger.propagate = False
    # Orbax's threads log errors that are raised in the main thread as well.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class _Pulse:
    """Knows what is being done, and when something was last said of it."""

    def __init__(self):
        self._doing: list[tuple[str, float]] = []
        self._said = ("", time.monotonic())

    def said(self, line: str) -> None:
        """Takes note of a line. One that ends with "..." tells what is being done."""
        self._said = (line, time.monotonic())

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Tells what is being done, until it is done."""
        entry = (what, time.monotonic())
        self._doing.append(entry)
        try:
            yield
        finally:
            self._doing.remove(entry)

    def now(self) -> tuple[str, float, float] | None:
        """Returns what is being done, for how many seconds, and when it was last said.

        None if that is not known.
        """
        line, since = said = self._said
        what = line.removesuffix("...").strip() if line.endswith("...") else ""
        doing = [*self._doing]  # another thread ends what is done
        if doing and (not what or doing[-1][1] >= since):
            what, since = doing[-1]
        return (what, time.monotonic() - since, said[1]) if what else None


_pulse = _Pulse()
doing, said = _pulse.doing, _pulse.said


@contextlib.contextmanager
def signs_of_life() -> Iterator[None]:
    """Says what is being done whenever nothing else is said for some seconds."""
    said("")
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(over: threading.Event) -> None:
    """Gives the signs: lines, or on a terminal one line that is replaced."""
    in_place, last = sys.stderr.isatty(), 0.0
    # Where nobody reads any more, the program itself finds out.
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
        sign = None
        while not over.wait(QUIET / 5):
            text = _sign(last, 0 if in_place else _SHARE, besides=sign)
            if text and not in_place:
                _log.info("%s", text)
                last = time.monotonic()
            elif text and sign is None:
                sign = bar(bar_format="{desc}", desc=text, leave=False)
                stack.callback(sign.close)
            elif text:
                sign.set_description_str(text)
            elif sign is not None:
                stack.close()
                sign = None


def _sign(last: float, share: float, besides: tqdm.tqdm | None) -> str | None:
    """Returns what to say, if it is time.

    Args:
      last: when the last sign was given.
      share: of the time spent so far, to be silent for.
      besides: the bar that shows the signs.
    """
    what, seconds, said = _pulse.now() or ("", 0.0, 0.0)
    silence = time.monotonic() - max(said, last)
    if not what or silence < max(QUIET, share * seconds) or _bar_is_shown(besides):
        return None
    return f"{what} ... {seconds:.0f} s"


def _bar_is_shown(besides: tqdm.tqdm | None) -> bool:
    """Returns whether there is another bar, which tells more."""
    with tqdm.tqdm.get_lock():  # another thread may open one
        shown = [*getattr(tqdm.tqdm, "_instances", ())]
    return any(not each.disable for each in shown if each is not besides)


def prepare_streams() -> None:
    """Makes the standard streams accept any text.

    A stream that was closed before the program started is replaced by the null device;
    otherwise the next file opened would get its number. Characters that standard output
    cannot encode are escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # a replacement may lack it
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Flushes standard output.

    Raises:
      OSError: it cannot be written. The text is dropped, or Python would try again at
        exit.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = None
        raise OSError(error.errno, error.strerror, "standard output") from error
