"""The options of evaluators: what their flags mean, and which values they refuse.

They are read before anything is measured, without what measures.
"""

import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from duet_jax.augmentations import LEARNABLE, split_codes
from duet_jax.data import FROM_PATHS, SOURCES
from duet_jax.errors import UsageError, lookup
from duet_jax.evaluation.evaluator import Sources
from duet_jax.runtime import files

# Names of --protocol.
PROTOCOLS = ("lbfgs", "sgd")
# Names of --measures: what --mode=equivariance measures beside its basic numbers; of
# every augmentation, or of the run.
MEASURES = ("readouts", "actions", "local", "matrix")
BASIC = "basic"
# Names of --format: what --mode=export writes, and the packages that each needs.
FORMATS = ("safetensors", "onnx", "stablehlo")
_PACKAGES = {"safetensors": ("safetensors",), "onnx": ("onnx", "onnxruntime")}
_COMMA = re.compile(r"(?<!\\),")


def check_protocol(protocol: str = PROTOCOLS[0]) -> None:
    """Raises a UsageError for an unknown protocol."""
    lookup(dict.fromkeys(PROTOCOLS), protocol, "--protocol")


def check_codes(codes: str | None = None) -> None:
    """Raises a UsageError unless `codes` are augmentations with a structure."""
    if codes is None:
        return
    names = split_codes(codes)
    if not names:
        raise UsageError(
            f"--codes={codes!r} names no augmentation; choose some of "
            f"{' '.join(LEARNABLE)}."
        )
    for name in names:
        lookup(dict.fromkeys(LEARNABLE), name, "--codes")


def check_equivariance(codes: str | None = None, measures: str | None = None) -> None:
    """Raises a UsageError for unknown augmentations or measures."""
    check_codes(codes)
    chosen_measures(measures)


def chosen_measures(measures: str | None) -> tuple[str, ...]:
    """Returns the names in MEASURES that --measures asks for; all without it.

    Raises:
      UsageError: a name is unknown, or there is none.
    """
    if measures is None:
        return MEASURES
    names = split_codes(measures) or (measures,)
    if names == (BASIC,):
        return ()
    for name in names:
        lookup(dict.fromkeys((BASIC, *MEASURES)), name, "--measures")
    if BASIC in names:
        raise UsageError(
            f"--measures={measures!r}: {BASIC} is always measured; leave it out, or "
            "write it alone for nothing else."
        )
    return names


def check_format(format: str | None = None) -> None:
    """Raises a UsageError for an unknown format, or one without its packages."""
    chosen_formats(format)


def chosen_formats(text: str | None) -> tuple[str, ...]:
    """Returns the names in FORMATS that --format asks for; the first without it.

    Raises:
      UsageError: a name is unknown, or given twice, or a package is not installed.
    """
    names = FORMATS[:1] if text is None else split_codes(text) or (text,)
    for name in names:
        lookup(dict.fromkeys(FORMATS), name, "--format")
        if names.count(name) > 1:
            raise UsageError(f"--format={text} names {name} twice; name it once.")
        for package in _PACKAGES.get(name, ()):
            if importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"--format={name} needs a package that is not installed: "
                    f"pip install {package}"
                )
    return names


def no_images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns no data set; see `Evaluator.images`."""
    return {}


def check_out(out: str | None = None) -> None:
    """Raises a UsageError if `out` cannot be a file name."""
    if out is not None:
        npz_file(out)


def npz_file(out: str) -> pathlib.Path:
    """Returns the file that --out names; a UsageError if it names none."""
    path = files.local(out, "--out")
    if out.endswith("/") or path.name in ("", ".."):
        raise UsageError(
            f"--out={out!r} must name a file; write --out=features.npz, say."
        )
    return path


def check_datasets(datasets: str | None = None) -> None:
    """Raises a UsageError if no data set is named, or one without its path."""
    sources = _parse(datasets or "")
    if not sources:
        raise UsageError(
            "--mode=transfer needs --datasets, such as "
            "--datasets=mnist,digits,folder:<path>."
        )
    for name, (kind, path) in sources.items():
        if kind in FROM_PATHS and not path:
            raise UsageError(f"--datasets={name} has no path; write {kind}:<path>.")
        if kind in FROM_PATHS:
            files.local(path, f"--datasets: {kind}")


def images(dataset: Mapping[str, Any], options: Mapping[str, str]) -> Sources:
    """Returns the data sets in `--datasets`; see `Evaluator.images`."""
    # The run's `dataset.path` is TFDS's data directory only if its data are from TFDS.
    directory = "" if dataset["name"] in SOURCES else dataset["path"]
    return {
        name: source if source[0] in FROM_PATHS else (name, directory)
        for name, source in _parse(options["datasets"]).items()
    }


def _parse(datasets: str) -> dict[str, tuple[str, str]]:
    """Splits at commas that are not escaped: name -> kind and path, for folders."""
    sources = {}
    for part in _COMMA.split(datasets):
        name = part.strip().replace(r"\,", ",")
        if name:
            kind, _, path = name.partition(":")
            sources[name] = kind, path.strip()
    return sources


def directories(workdirs: str) -> list[pathlib.Path]:
    """Returns the directories that --workdirs names.

    Raises:
      UsageError: they are not two or more different runs.
    """
    names = [part.strip().replace(r"\,", ",") for part in _COMMA.split(workdirs)]
    paths = [files.local(name, "--workdirs") for name in names if name]
    if len(paths) < 2:
        raise UsageError(
            f"--workdirs={workdirs} names {len(paths) or 'no'} run"
            f"{'' if len(paths) == 1 else 's'}, and --mode=compare takes two or more; "
            "name them like --workdirs=runs/a,runs/b."
        )
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise UsageError(f"--workdirs={workdirs} names {path} twice; name it once.")
        if not (path / "config.json").is_file():
            raise UsageError(
                f"--workdirs={workdirs}: {path} holds no run (no config.json); name "
                "directories of trainings, with a comma in a path written \\,."
            )
    return paths
