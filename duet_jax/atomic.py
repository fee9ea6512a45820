"""Files that are there whole or not at all, whenever the program is killed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, whose file takes the place of `path` at the end.

    Where the block fails, `path` is left as it was. The disk holds the new content
    before it gets the name.
    """
    path = pathlib.Path(path)
    # The suffix stays: it says in which format a picture is written.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
