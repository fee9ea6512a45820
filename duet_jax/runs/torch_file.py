"""Reads what `torch.save` has written, without PyTorch and without running code.

A file is a zip archive: one pickle, and the bytes of each storage. A pickle may name
any function to be called; this reader knows those of tensors and refuses all others.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from duet_jax.errors import UsageError

_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # widened to float32 when it is read
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Kind(NamedTuple):
    """A type of storage, as a pickle names it: data, which nothing can call."""

    name: str


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the dict that a file holds, with NumPy arrays in the place of tensors.

    Args:
      path: of a state dict, or of dicts that hold one.

    Raises:
      UsageError: it is damaged, of an old format, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _load(archive)
    except UsageError as error:
        raise UsageError(f"{path} {error}") from error
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{path} is no file of torch.save, or of PyTorch before 1.6, or damaged "
            f"({error}); load it in PyTorch and save the state dict again."
        ) from error
    # A pickle can make Python raise anything, NumPy too.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"{path} is damaged ({reason}); restore it from a copy."
        ) from error
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} holds a {type(found).__name__}; save a state dict: "
            "torch.save(model.state_dict(), file)."
        )
    return found


def _load(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UsageError(
            "is a zip archive, but not of torch.save: it has no data.pkl; save a state "
            "dict."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise UsageError("has another order of bytes; save it on another machine.")
    return _Unpickler(archive, root).load()


class _Unpickler(pickle.Unpickler):
    """Makes dicts and arrays, and refuses to look up anything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Callable | _Kind:
        """Returns what a name stands for; a UsageError unless it is about tensors."""
        if module == "torch" and name in _TYPES:
            return _Kind(name)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise UsageError(
            f"names {module}.{name}, and only tensors in dicts are read: anything else "
            "could run code; save the state dict alone."
        )

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """Returns the values of a storage."""
        _, kind, key, _, count = pid
        dtype, name = _TYPES[kind.name], f"{self._root}data/{key}"
        if name not in self._storages:
            content = self._archive.read(name)  # checked by its CRC
            if len(content) < count * dtype.itemsize:
                raise UsageError(f"is damaged ({name} is too short); restore it.")
            values = np.frombuffer(content, dtype)
            if kind.name == "BFloat16Storage":  # the upper half of a float32
                values = (values.astype("<u4") << 16).view("<f4")
            self._storages[name] = values
        return self._storages[name]


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any
) -> np.ndarray:
    """Returns the part of a storage that a tensor is."""
    last = offset + sum((n - 1) * by for n, by in zip(shape, strides, strict=True))
    count = math.prod(shape)
    inside = min(offset, *shape, *strides, 0) >= 0 and count <= storage.size
    if not inside or (count and last >= storage.size):
        raise UsageError("is damaged (a tensor reaches beyond its values); restore it.")
    steps = [by * storage.itemsize for by in strides]
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)
    return np.array(view)


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


_KNOWN: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
