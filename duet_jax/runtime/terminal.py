"""The program's lines on the terminal."""

import logging
import os
import sys

import tqdm


def printable(text: str) -> str:
    r"""Returns `text` as one line that only writes, whatever names it holds.

    What would end the line, move the cursor, turn the direction of reading or is no
    character at all is spelt out, like `\n`.
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
    """Sends the project's own log records, and nobody else's, to standard error."""
    logger = logging.getLogger("duet_jax")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    logger.propagate = False
    # Orbax's threads; what goes wrong in them is raised here as well.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def prepare_streams() -> None:
    """Makes the standard streams take whatever is written.

    One that was closed before the program started leads nowhere; left alone, its number
    would go to the next file that is opened. A character that standard output cannot
    encode is spelt out.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # not everything that stands in for it
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Writes what waits for standard output.

    Raises:
      OSError: it cannot be written, and is dropped; Python would try again at its end.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = None
        raise OSError(error.errno, error.strerror, "standard output") from error
