"""Flags of XLA for a suite that compiles much and computes little."""

import mmap
import pathlib

import jaxlib

# Without LLVM's optimizations. XLA's own passes, fusion among them, run as always.
_FLAGS = ["--xla_backend_optimization_level=0"]
# Without the emitters that are made for fast code: half of the time to compile.
_IF_KNOWN = "--xla_cpu_use_fusion_emitters=false"


def quick_to_compile() -> str:
    """Returns flags for XLA_FLAGS; XLA ends a process that gives it an unknown one."""
    library = pathlib.Path(jaxlib.__file__).with_name("libjax_common.so")
    name = _IF_KNOWN.strip("-").partition("=")[0]
    if library.exists():
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(name.encode()) >= 0:
                return " ".join([*_FLAGS, _IF_KNOWN])
    return " ".join(_FLAGS)
