"""Files as `torch.save` writes them, made without PyTorch."""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


class Stored:
    """A tensor, which a pickle has as a call of a function of PyTorch."""

    def __init__(self, values: np.ndarray, kind: str = "", *, form: tuple = ()):
        # Transposed arrays keep their values as they lie, with other strides.
        base = values.base if values.base is not None else values
        self.storage = Storage(base.ravel(), kind or STORAGES[values.dtype.name])
        steps = tuple(by // values.itemsize for by in values.strides)
        self.form = form or (0, values.shape, steps)

    def __reduce__(self):
        rest = (False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (
            self.storage,
            *self.form,
            *rest,
        )


class Storage:
    def __init__(self, values: np.ndarray, kind: str):
        self.values, self.kind = values, kind


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> tuple | None:
        if not isinstance(obj, Storage):
            return None
        self.storages.append(obj.values)
        kind = getattr(sys.modules["torch"], obj.kind)
        return "storage", kind, str(len(self.storages) - 1), "cpu", obj.values.size


def _modules() -> dict[str, types.ModuleType]:
    """Stand-ins for PyTorch's modules, which a pickle only names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("BFloat16Storage", "ComplexFloatStorage", *STORAGES.values()):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise NotImplementedError

    def _rebuild_parameter():
        raise NotImplementedError

    for function in (_rebuild_tensor_v2, _rebuild_parameter):
        function.__module__ = "torch._utils"
        function.__qualname__ = function.__name__
        setattr(utils, function.__name__, function)
    return {"torch": torch, "torch._utils": utils}


def save(
    path: pathlib.Path,
    content: Any,
    *,
    edit: Callable[[dict[str, bytes]], None] = lambda files: None,
) -> None:
    """Writes what `torch.save(content, path)` would; arrays become tensors.

    Args:
      path: of the file.
      content: dicts of arrays, and of anything else that can be pickled.
      edit: changes the files in the archive, by name.
    """
    before = {name: sys.modules.get(name) for name in _modules()}
    sys.modules.update(_modules())
    try:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        pickler.dump(_tensors(content))
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    files = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "version": b"3\n"}
    for number, values in enumerate(pickler.storages):
        files[f"data/{number}"] = values.tobytes()
    edit(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{path.stem}/{name}", data)


def _tensors(content: Any) -> Any:
    if isinstance(content, Mapping):
        return type(content)((k, _tensors(each)) for k, each in content.items())
    return Stored(content) if isinstance(content, np.ndarray) else content
