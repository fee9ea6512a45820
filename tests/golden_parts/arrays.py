"""Reference arrays: what they are and their tolerances is in `golden/README.md`."""

import functools
import os
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
DIRECTORY = pathlib.Path(os.environ.get("DUET_GOLDEN_DIR") or HERE.parent / "golden")


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of `<name>.npz` by name."""
    with np.load(DIRECTORY / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)
