"""Reads images without labels: below a folder, at any depth, or in a list of paths."""

import os

from duet_jax.data import listing
from duet_jax.data.image_files import image_source, list_files
from duet_jax.data.listing import Listing
from duet_jax.data.source import Source
from duet_jax.errors import UsageError

_LAYOUT = "images, at any depth"


def find(name: str, path: str) -> Source:
    """Lists the images; they are opened only when the examples are read.

    A folder may hold one of training and one of test images, named as for `folder`;
    otherwise a share of its images is held out. A file is a list: one path a line,
    absolute or relative to the file; empty lines and lines that begin with # do not
    count.

    Args:
      name: as in the configuration.
      path: the folder or the list.

    Raises:
      UsageError: there are no images, or a listed one does not exist; from `examples`
        and `reader`, damaged images.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if path and os.path.isfile(root):
        return _listed(path, root)
    problem = listing.problem(root) if path else "is empty"
    if problem:
        raise UsageError(
            f"config.dataset.path={path!r} {problem}; config.dataset.name={name!r} "
            "reads all images below a folder, or those in a text file of paths."
        )
    splits = listing.find_splits(path, root)
    found = [Listing(path, root, split, _LAYOUT).everything() for split in splits]
    return image_source(path, root, found, ())


def _listed(path: str, file: str) -> Source:
    """Returns the images in a text file of paths."""
    for kind in ("csv", "npz", "parquet"):
        if file.lower().endswith(f".{kind}"):
            raise UsageError(
                f"config.dataset.path={path!r} is no list of paths; set "
                f"config.dataset.name={kind}."
            )
    try:
        with open(file, encoding="utf-8") as text:
            lines = [line.strip() for line in text]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"config.dataset.path={path!r} cannot be read ({reason}); give a text file "
            "with one path a line, or a folder."
        ) from error
    rows = [(line, "") for line in lines if line and not line.startswith("#")]
    root = os.path.dirname(file)
    source = image_source(path, root, [list_files(path, root, rows)], ())
    return source._replace(location=file)
