"""Encoders from elsewhere: a function in a Python module, or an ONNX file.

`check` reads the command line's name of one without importing anything that is slow;
`load` imports or opens it. `frozen_encoder.ExternalEncoder` has it called.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from duet_jax.errors import UsageError, lookup
from duet_jax.runtime import files

_log = logging.getLogger(__name__)

FLAG = "--encoder"
# What a value of --encoder begins with -> what follows.
KINDS = {"onnx": "<file>", "python": "<module>:<function>"}
# How an ONNX file names one that holds a part of its weights: a key, then the length
# and the bytes of the path, relative to the directory of the file.
_ELSEWHERE = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")
# In that order; those of the installed package.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class External(NamedTuple):
    """A function from images to features.

    Attributes:
      name: in messages, such as "--encoder=onnx:encoder.onnx".
      function: takes float32 images, [n, side, side, channels] in [0, 1], an array of
        NumPy; returns one row of features for each image, as `features` accepts them.
      digest: a hash of where it comes from; "" if nobody knows.
    """

    name: str
    function: Callable[[np.ndarray], Any]
    digest: str = ""

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of a batch: float32, [n, d].

        The function may return anything that NumPy makes such an array of, numbers of
        any type, or a tensor of PyTorch on any device.

        Args:
          images: float32, [n, side, side, channels] in [0, 1].

        Raises:
          UsageError: the function fails, or what it returns are no such features.
        """
        shown = f"float32 images {list(images.shape)}"
        try:
            found = self.function(images)
            if hasattr(found, "detach"):  # PyTorch's own way to an array of NumPy
                found = found.detach().cpu().float()
            found = np.asarray(found)
        except (UsageError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UsageError(
                f"{self.name} fails on {shown} in [0, 1] ({reason}); it must return "
                "features [n, d]."
            ) from error
        if found.ndim != 2 or len(found) != len(images) or not found.size:
            raise UsageError(
                f"{self.name} returns {found.dtype} {list(found.shape)} for {shown}; "
                "it must return features [n, d], one row for each image: flatten or "
                "average what has more axes."
            )
        if found.dtype.kind not in "fiub" and not _is_narrow_float(found.dtype):
            raise UsageError(
                f"{self.name} returns {found.dtype}; it must return real numbers."
            )
        found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise UsageError(
                f"{self.name} returns features that are not finite for {shown}; it "
                "must take values from 0 to 1, in float32."
            )
        return found


def _is_narrow_float(dtype: np.dtype) -> bool:
    """Returns True for bfloat16 and the like, which are not NumPy's own."""
    return dtype.kind == "V" and dtype.names is None and "float" in dtype.name


def check(spec: str) -> None:
    """Raises a UsageError unless `spec` names an encoder that is there.

    Neither ONNX Runtime nor the module is imported.

    Args:
      spec: the value of --encoder.
    """
    kind, _, place = spec.partition(":")
    if kind not in KINDS or not place:
        forms = " or ".join(f"{FLAG}={name}:{what}" for name, what in KINDS.items())
        raise UsageError(f"{FLAG}={spec} names no encoder; write {forms}.")
    if kind == "onnx":
        path = files.local(place, f"{FLAG}: onnx")
        if not path.is_file():
            raise UsageError(f"{FLAG}={spec}: {path} is not a file; name an ONNX file.")
        if importlib.util.find_spec("onnxruntime") is None:
            raise UsageError(
                f"{FLAG}={spec} needs a package that is not installed: "
                "pip install onnxruntime"
            )
        return
    module, function = _split(spec, place)
    first = module.partition(".")[0]
    try:
        found = importlib.machinery.PathFinder.find_spec(first, _places())
    except (ImportError, ValueError):
        found = None
    if found is None and first not in sys.modules:
        raise UsageError(
            f"{FLAG}={spec}: there is no module {first!r} in {os.getcwd()} or among "
            f"what is installed; name the one that holds {function}."
        )


def load(spec: str) -> External:
    """Returns the encoder that `spec` names.

    Args:
      spec: as for `check`.

    Raises:
      UsageError: those of `check`; or the module has no such function or cannot be
        imported, or the file is no ONNX or takes or returns something else.
    """
    check(spec)
    kind, _, place = spec.partition(":")
    loaders = {"onnx": _load_onnx, "python": _load_python}
    function, digest = lookup(loaders, kind, FLAG)(spec, place)
    return External(f"{FLAG}={spec}", function, digest)


def short_name(spec: str) -> str:
    """Returns what an encoder is called in results: without the path of a file."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{pathlib.Path(place).name}"


# python:<module>:<function>.


def _split(spec: str, place: str) -> tuple[str, str]:
    """Returns the names of the module and of the function."""
    module, _, function = place.rpartition(":")
    plain = module.removesuffix(".py").replace("/", ".")
    if not all(name.isidentifier() for name in (*module.split("."), function)) or (
        plain != module
    ):
        names = plain if plain.replace(".", "").isidentifier() else "<module>"
        end = function if function.isidentifier() else "<function>"
        raise UsageError(
            f"{FLAG}={spec} does not name a function of a module; write "
            f"{FLAG}=python:{names}:{end}, such as python:encoder:features for "
            "features in encoder.py."
        )
    return module, function


def _places() -> list[str]:
    """Returns where modules are looked for: first the current directory."""
    return [os.getcwd(), *sys.path]


def _load_python(spec: str, place: str) -> tuple[Callable[[np.ndarray], Any], str]:
    """Imports the module; returns the function and a hash of the module's source."""
    module_name, name = _split(spec, place)
    if os.getcwd() not in sys.path:  # `python main.py` has that of main.py only
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(
            f"{FLAG}={spec}: {module_name} cannot be imported ({reason})."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            each
            for each, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module_name
        ]
        raise UsageError(
            f"{FLAG}={spec}: {module_name} has no function {name}; it has "
            f"{', '.join(known) or 'none'}."
        )
    source = pathlib.Path(getattr(module, "__file__", None) or "")
    content = source.read_bytes() if source.is_file() else b""
    return function, _hash(name.encode(), content)


def _hash(*parts: bytes) -> str:
    digests = (hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


# onnx:<file>.


def _load_onnx(spec: str, place: str) -> "tuple[_Onnx, str]":
    """Opens the file; returns what runs it and a hash of its bytes."""
    import onnxruntime  # an extra that few need

    path = files.local(place, FLAG)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    installed = onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[p for p in _PROVIDERS if p in installed]
        )
    except Exception as error:  # of many types, which have no other base
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{FLAG}={spec} cannot be read as ONNX ({reason}); export it again, with "
            "the files of its weights beside it."
        ) from error
    return _Onnx(f"{FLAG}={spec}", session), _hash(*_contents(path))


def _contents(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the bytes of an ONNX file, and of the files that hold its weights."""
    content = path.read_bytes()
    yield content
    others = set()
    for match in _ELSEWHERE.finditer(content):
        length = sum((byte & 127) << 7 * i for i, byte in enumerate(match[1]))
        name = content[match.end() : match.end() + length]
        others.add(path.parent / os.fsdecode(name.replace(b"\0", b"")))
    yield from (other.read_bytes() for other in sorted(others) if other.is_file())


class _Onnx:
    """Runs an ONNX model on images with the channels last.

    The model may take channels first, and batches of one size: the last is padded then.
    """

    def __init__(self, name: str, session: Any):
        """Checks what the model takes and returns; `name` is for messages."""
        self._name, self._session = name, session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UsageError(
                f"{name} has inputs {', '.join(each.name for each in inputs)} and "
                f"outputs {', '.join(each.name for each in outputs)}; it must take one "
                "batch of images and return one of features."
            )
        (self._input,), (output,) = inputs, outputs
        shape = self._input.shape
        if self._input.type != "tensor(float)" or len(shape) != 4:
            raise UsageError(
                f"{name} takes {self._input.type} {shape}; it must take float32 "
                "images [n, side, side, channels] or [n, channels, side, side]."
            )
        if output.shape and len(output.shape) != 2:
            raise UsageError(
                f"{name} returns {output.shape}; it must return features [n, d]: "
                "flatten or average what has more axes before it is exported."
            )
        self._told = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of images, [n, side, side, channels] in [0, 1]."""
        if self._is_channels_first(images.shape[1:]):
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        size = self._input.shape[0]
        if not isinstance(size, int):
            return self._run(images)
        parts = []
        for start in range(0, len(images), size):
            rows = images[start : start + size]
            padding = np.repeat(rows[-1:], size - len(rows), axis=0)
            parts.append(self._run(np.concatenate([rows, padding]))[: len(rows)])
        return np.concatenate(parts)

    def _run(self, images: np.ndarray) -> np.ndarray:
        (found,) = self._session.run(None, {self._input.name: images})
        return found

    def _is_channels_first(self, wanted: tuple[int, int, int]) -> bool:
        """Returns whether the model takes channels first; a UsageError if neither."""
        own = self._input.shape[1:]
        side, _, channels = wanted

        def fits(*sizes: int) -> bool:
            pairs = zip(own, sizes, strict=True)
            return all(a == b for a, b in pairs if isinstance(a, int))

        if fits(side, side, channels):
            return False
        # Sizes that are left open say nothing of the order: that must be certain.
        if own[0] == channels and fits(channels, side, side):
            if not self._told:
                _log.info("%s takes channels first: the images are transposed", FLAG)
            self._told = True
            return True
        raise UsageError(
            f"{self._name} takes images {self._input.shape}, and these are "
            f"[n, {side}, {side}, {channels}]; set config.dataset.image_size to its "
            "side and config.dataset.channels to 1 or 3 as it has."
        )
