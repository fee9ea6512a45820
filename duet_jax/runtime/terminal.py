"""Log lines and standard streams."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator

import tqdm

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


def log_to_terminal(level: int) -> None:
    """Sends only the log records of this project to standard error."""
    logger = logging.getLogger("duet_jax")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    logger.propagate = False
    # Orbax's threads log errors that are raised in the main thread as well.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Shows what is going on, on a terminal only, until it is done."""
    with bar(bar_format="{desc}", desc=text, disable=None, leave=False):
        yield


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
