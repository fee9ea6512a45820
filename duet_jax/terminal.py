"""The program's lines on the terminal."""

import logging
import sys

import tqdm


class _Handler(logging.Handler):
    """Writes records above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm.tqdm.write(text, file=sys.stderr)


def log_to_terminal(level: int) -> None:
    """Sends the project's own log records, and nobody else's, to standard error."""
    logger = logging.getLogger("duet_jax")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    logger.propagate = False
