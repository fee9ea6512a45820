"""Writes the weights and the computation of a trained encoder, for use elsewhere."""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import numpy as np
from flax import nnx

from duet_jax.errors import TrainingError, UsageError
from duet_jax.evaluation import model_card
from duet_jax.evaluation.base import Evaluation
from duet_jax.evaluation.options import FORMATS, chosen_formats
from duet_jax.evaluation.result import Result, Table
from duet_jax.methods.networks import split
from duet_jax.models import torch_weights
from duet_jax.models.resnet import ResNet
from duet_jax.runs import frozen_encoder, trained_run, weights_file, workdir
from duet_jax.runs.frozen_encoder import Representations
from duet_jax.runs.trained_run import Run
from duet_jax.runtime import files
from duet_jax.training import decoding
from duet_jax.training.decoding import Decoders

# Random images that each file is tried on; odd, as no batch of the program is.
_IMAGES = 5
# Largest difference from the run, as a share of the largest value (at least 1).
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
# Programs are compiled for one of these where they are called.
_PLATFORMS = ("cpu", "cuda")
_CARD = "README.md"


class _Samples(NamedTuple):
    """What the run itself makes of some images.

    Attributes:
      images: uint8.
      representations: of the images.
      decoded: from the full representations, from 0 to 1; None without a decoder.
    """

    images: np.ndarray
    representations: Representations
    decoded: np.ndarray | None

    @property
    def floats(self) -> np.ndarray:
        """The images in [0, 1]."""
        return self.images / np.float32(255)


# What a file gives for samples, and what it should give.
_Trial = Callable[[_Samples], tuple[Representations, Representations]]


def measure(evaluation: Evaluation, format: str | None = None) -> Result:
    """Writes files to `export/` of the work directory, with a model card.

    Every file is read again, and what it makes of random images is compared with what
    the run does. The files of an earlier export are replaced.

    Args:
      evaluation: of a run.
      format: names in FORMATS, separated by commas; "safetensors" by default.

    Raises:
      UsageError: the encoder cannot be written in that format, or the files cannot.
      TrainingError: a file gives something else than the run; none is kept.
    """
    run, formats = evaluation.run, chosen_formats(format)
    if "onnx" in formats:
        _check_plain(run)
    directory = run.directory / "export"
    workdir.check_writable(directory, "--workdir")
    decoders = decoding.load_decoders(run)
    samples = _samples(run, decoders)
    with workdir.writing(directory, "--workdir"):
        directory.mkdir(parents=True, exist_ok=True)
        with files.scratch(directory / "new") as place:
            found = {}
            for name in formats:
                for file, trial in _WRITERS[name](run, decoders, place).items():
                    found[file] = _compared(run, place / file, trial, samples)
            card = model_card.text(run, found, samples.representations)
            (place / _CARD).write_text(card, encoding="utf-8")
            _put(place, directory)
    rows = tuple(
        (file, f"{each['bytes']:,}", f"{each['difference']:.2g}")
        for file, each in found.items()
    )
    header = ("file", "bytes", "largest difference")
    note = (
        f"Differences from the run on {_IMAGES} random images; README.md beside the "
        "files says how each is loaded."
    )
    table = Table(f"files in {directory}", header, rows, note)
    values = {"directory": str(directory), "images": _IMAGES, "files": found}
    return Result(values, (table,), {})


def _check_plain(run: Run) -> None:
    """Raises a UsageError unless the encoder is one of what `onnx_file` writes."""
    if not isinstance(_network(run), ResNet):
        others = ", ".join(name for name in FORMATS if name != "onnx")
        raise UsageError(
            f"--format=onnx: config.encoder.name={run.config.encoder.name!r} is no "
            "plain ResNet: a pyramid takes complex numbers, which ONNX lacks, and the "
            f"layers of a transformer are not written here; choose from {others}."
        )


def _network(run: Run) -> nnx.Module:
    return nnx.merge(frozen_encoder.encoder_shapes(run.method)[0], *run.encoder.state)


def _samples(run: Run, decoders: Decoders | None) -> _Samples:
    shape = (_IMAGES, *run.encoder.input_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = run(images)
    decoded = decoders and np.clip(decoders("full", found["full"]) + 0.5, 0, 1)
    return _Samples(images, found, decoded)


def _compared(
    run: Run, path: pathlib.Path, trial: _Trial, samples: _Samples
) -> dict[str, float]:
    """Returns the size of a file, and how far it is from the run.

    Raises:
      TrainingError: farther than rounding explains.
    """
    found, expected = trial(samples)
    largest = max(float(np.abs(each).max()) for each in expected.values())
    differences = [np.abs(found[name] - each) for name, each in expected.items()]
    difference = max(float(each.max()) for each in differences)
    most = _TOLERANCE[run.config.compute_dtype] * max(1.0, largest)
    if not difference <= most:
        raise TrainingError(
            f"{path.name} differs from the run by {difference:.2g}, more than "
            f"{most:.2g}; it is not kept: use another --format, or report this."
        )
    size = path.stat().st_size
    return {"bytes": size, "difference": difference, "largest_value": largest}


def _put(place: pathlib.Path, directory: pathlib.Path) -> None:
    """Moves the new files to their place, and removes those of an earlier export."""
    new = {path.name: path for path in place.iterdir()}
    for name, path in new.items():
        os.replace(path, directory / name)
    for name in {*_NAMES} - {*new}:
        (directory / name).unlink(missing_ok=True)


# One function for each format: (run, decoders, directory) -> a trial of each file.


def _safetensors(
    run: Run, decoders: Decoders | None, place: pathlib.Path
) -> dict[str, _Trial]:
    about = weights_file.describe(run.config, run.facts, run.step, run.fingerprint)
    prefix = torch_weights.PREFIXES["encoder"]
    of_torch = torch_weights.export_network("encoder", *run.encoder.state)
    arrays = {
        "encoder.safetensors": weights_file.named("encoder", *run.encoder.state)
        | _predictive(run),
        "encoder_torch.safetensors": {prefix + k: a for k, a in of_torch.items()},
    }
    trials: dict[str, _Trial] = {}
    for name, each in arrays.items():
        weights_file.write(place / name, each, about)
        trials[name] = lambda samples, name=name: (
            trained_run.load_file(place / name)(samples.images),
            samples.representations,
        )
    if decoders:
        name, own = (
            "decoder.safetensors",
            weights_file.named("decoders", decoders.params),
        )
        weights_file.write(place / name, own, about)
        trials[name] = lambda samples: (weights_file.arrays(place / name), own)
    return trials


def _predictive(run: Run) -> dict[str, np.ndarray]:
    """Returns the arrays of networks that a method predicts features with, if any.

    An evaluation of the weights reads them.
    """
    found = {}
    for name in getattr(run.method, "predictive_parts", ()):
        _, *state = split(getattr(run.networks(name), name))
        found |= weights_file.named(name, *state)
    return found


def _stablehlo(
    run: Run, decoders: Decoders | None, place: pathlib.Path
) -> dict[str, _Trial]:
    def call(name: str, given: np.ndarray) -> Representations:
        program = jax.export.deserialize(bytearray((place / name).read_bytes()))
        return {k: np.asarray(each) for k, each in program.call(given).items()}

    _trace(
        place / "encoder.stablehlo", run.encoder.of_images(), run.encoder.input_shape
    )
    trials: dict[str, _Trial] = {
        "encoder.stablehlo": lambda samples: (
            call("encoder.stablehlo", samples.floats),
            samples.representations,
        )
    }
    if decoders:
        decode = decoders.of("full")

        def images(features: jax.Array) -> dict[str, jax.Array]:
            return {"images": jax.numpy.clip(decode(features) + 0.5, 0, 1)}

        _trace(place / "decoder.stablehlo", images, _widths(run))
        trials["decoder.stablehlo"] = lambda samples: (
            call("decoder.stablehlo", samples.representations["full"]),
            {"images": samples.decoded},
        )
    return trials


def _widths(run: Run) -> tuple[int]:
    return (run.method.two_views.encoder.num_features,)


def _trace(path: pathlib.Path, function: Callable, shape: tuple[int, ...]) -> None:
    """Writes a function of float32 arrays [n, *shape], for any n."""
    (count,) = jax.export.symbolic_shape("n")
    given = jax.ShapeDtypeStruct((count, *shape), np.float32)
    program = jax.export.export(jax.jit(function), platforms=_PLATFORMS)(given)
    path.write_bytes(program.serialize())


def _onnx(
    run: Run, decoders: Decoders | None, place: pathlib.Path
) -> dict[str, _Trial]:
    del decoders  # those are for us
    import onnxruntime  # an extra that few need

    from duet_jax.runs import onnx_file

    path = place / "encoder.onnx"
    side = run.method.two_views.stack.image_size
    shape = ("n", *run.encoder.input_shape)
    onnx_file.write(path, _network(run), shape, side=side)

    def trial(samples: _Samples) -> tuple[Representations, Representations]:
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), providers=providers)
        (found,) = session.run(None, {"images": samples.floats})
        return {"full": found}, {"full": samples.representations["full"]}

    return {path.name: trial}


_WRITERS: dict[str, Callable[..., dict[str, _Trial]]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
}
_NAMES = (
    "encoder.safetensors",
    "encoder_torch.safetensors",
    "decoder.safetensors",
    "encoder.onnx",
    "encoder.stablehlo",
    "decoder.stablehlo",
)
