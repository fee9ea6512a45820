"""A finished or running training, restored for use.

import duet_jax

run = duet_jax.load_run("runs/rot")            # the newest checkpoint
features = run(images)                         # uint8 [n, side, side, channels]
features["full"]                               # float32 [n, 512]
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import types
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from etils import epy

from duet_jax.config import build, checks
from duet_jax.data.decoding import preprocessed_side
from duet_jax.data.source import short_hash
from duet_jax.errors import UsageError
from duet_jax.lazy import nnx
from duet_jax.methods import Method, SimCLR
from duet_jax.runs import workdir
from duet_jax.runs.external import External
from duet_jax.runtime import files
from duet_jax.types import Dataset, DatasetFacts

if TYPE_CHECKING:
    from duet_jax.runs.frozen_encoder import FrozenEncoder, Representations

with epy.lazy_imports():  # so that `duet_jax.load_run` is there at once
    from duet_jax.methods import networks as of_methods
    from duet_jax.runs import checkpoints, frozen_encoder, weights_file


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A restored run. Calling it returns the representations of images.

    Attributes:
      directory: its work directory.
      config: its resolved configuration.
      facts: of the images it was trained on.
      step: of the checkpoint.
      method: that it was trained with.
      encoder: with the checkpoint's parameters; or one from elsewhere, see
        `external_run`.
    """

    directory: pathlib.Path
    config: ml_collections.ConfigDict
    facts: DatasetFacts
    step: int
    method: Method
    encoder: FrozenEncoder

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the encoder's parameters and running statistics."""
        return self.encoder.fingerprint()

    def networks(self, *names: str) -> types.SimpleNamespace:
        """Returns networks of the method beside the encoder, with trained weights.

        Args:
          *names: of attributes of `Networks`, such as "projector".

        Returns:
          An object with these attributes.

        Raises:
          UsageError: the checkpoint is damaged, or was deleted.
        """
        shapes = nnx.eval_shape(lambda: self.method.init(nnx.Rngs(0)))
        parts = {name: of_methods.split(getattr(shapes, name)) for name in names}
        params = {name: params for name, (_, params, _) in parts.items()}
        batch_stats = {name: stats for name, (_, _, stats) in parts.items() if stats}
        with checkpoints.Checkpoints(
            self.directory / "checkpoints", create=False
        ) as saved:
            _, params, batch_stats = saved.restore_model(params, batch_stats, self.step)
        return types.SimpleNamespace(
            **{
                name: nnx.merge(graphdef, params[name], batch_stats.get(name, {}))
                for name, (graphdef, _, _) in parts.items()
            }
        )

    def __call__(self, images: np.ndarray) -> Representations:
        """Returns the representations of images, not augmented.

        Args:
          images: uint8, [n, side, side, channels] with the side and the channels in
            `facts`: 36 for views of 32 pixels with `dataset.center_crop`.

        Returns:
          Name -> float32 [n, dimensions]. "full": the encoder's features. DUET adds
          "content", the sum over the bins [n, features / bins], and "structure", the
          predicted distribution over the bins [n, bins]; SIE the halves of the
          features, "invariant" and "equivariant" [n, features / 2].

        Raises:
          ValueError: the images have another type or shape.
        """
        return self.encoder(images)


def load_run(
    directory: str | os.PathLike,
    step: int | str | None = None,
    *,
    batch_size: int = 0,
    config: ml_collections.ConfigDict | None = None,
) -> Run:
    """Restores the encoder of the run in `directory` on JAX's default device.

    Nothing but the encoder's parameters and running statistics is read.

    Args:
      directory: the `--workdir` of a training.
      step: of a checkpoint; the newest when None, "best" for the best one (see
        `Checkpoints.best`). The training may still be running: if it deletes
        that one while it is read, the then newest or best one is taken.
      batch_size: images on the device at a time; 0 for that of the training.
      config: resolved configuration of the run; by default that in `directory`.

    Raises:
      UsageError: no such run or checkpoint, or the two do not go together.
    """
    if batch_size < 0:
        raise UsageError(f"batch_size={batch_size} must be 1 or more, or 0.")
    directory = files.local(directory, "load_run: directory")
    if config is None:
        config = workdir.load_config(directory)
    _check_kind(directory)
    facts = workdir.load_facts(directory)
    side = preprocessed_side(config.dataset.image_size, config.dataset.center_crop)
    if facts.side != side:
        raise UsageError(
            f"{directory}: dataset.json has images of {facts.side} pixels, config.json "
            f"asks for {side}; restore the files the run was trained with."
        )
    method = build.make_method(config, facts)
    _, params, batch_stats = frozen_encoder.encoder_shapes(method)
    if not (directory / "checkpoints").is_dir():
        raise UsageError(
            f"{directory / 'checkpoints'} does not exist; train first, or name another "
            "--workdir."
        )
    with checkpoints.Checkpoints(directory / "checkpoints", create=False) as saved:
        statistics = {"encoder": batch_stats} if batch_stats else {}
        step, params, batch_stats = saved.restore_model(
            {"encoder": params}, statistics, step
        )
    encoder = frozen_encoder.FrozenEncoder(
        method, batch_size=batch_size or config.batch_size
    )
    encoder.use(params["encoder"], batch_stats.get("encoder", {}))
    return Run(directory, config, facts, step, method, encoder)


def load_file(path: str | os.PathLike, *, batch_size: int = 0) -> Run:
    """Returns the encoder in a file that `--mode=export` wrote, as a run.

    It can be called; only what has a work directory can be evaluated, see --init_from.

    Args:
      path: of a `.safetensors` file, by either names.
      batch_size: images on the device at a time; 0 for that of the training.

    Raises:
      UsageError: there is no such file, it is damaged, or says nothing of its encoder.
    """
    path = files.local(path, "load_file: path")
    about = weights_file.about(path)
    if about is None:
        raise UsageError(
            f"{path} does not say what its encoder is; take a file of --mode=export, "
            "or make a run of it with --init_from and --config."
        )
    method = build.make_method(about.config, about.facts)
    _, params, batch_stats = frozen_encoder.encoder_shapes(method)
    found = weights_file.read(path).networks(
        {"encoder": params}, {"encoder": batch_stats}
    )
    params, batch_stats = (each["encoder"] for each in found)
    encoder = frozen_encoder.FrozenEncoder(
        method, batch_size=batch_size or about.config.batch_size
    )
    encoder.use(params, batch_stats)
    config, facts, step = about
    return Run(path.parent, config, facts, step, method, encoder)


def external_run(
    external: External,
    config: ml_collections.ConfigDict,
    facts: DatasetFacts,
    directory: pathlib.Path,
    *,
    name: str,
) -> Run:
    """Returns an encoder from elsewhere as a run that can be evaluated.

    Its method is SimCLR: two views of the stack, no structure. Its step is 0. The
    encoder is tried on two gray images.

    Args:
      external: the encoder.
      config: resolved; says how views are made and measured.
      facts: of the images.
      directory: for the results.
      name: what results call it, in the place of a method.

    Raises:
      UsageError: the encoder does not take these views, or returns no features.
    """
    method = SimCLR(build.two_views(config, facts))
    # What the encoder was trained with is not known; so nothing else is kept.
    kept = ml_collections.ConfigDict({k: config[k] for k in checks.OF_EXTERNAL})
    kept.method = name
    settings = {
        field: value
        for field, value in checks.fields(kept)
        if checks.alters_external(field)
    }
    encoder = frozen_encoder.ExternalEncoder(
        method,
        external,
        batch_size=config.batch_size,
        fingerprint=short_hash([external.digest, settings]),
    )
    side = method.two_views.stack.image_size
    external.features(np.full((2, side, side, facts.channels), 0.5, np.float32))
    return Run(directory, kept, facts, 0, method, encoder)


def _check_kind(directory: pathlib.Path) -> None:
    """Raises a UsageError if a directory holds decoders, which look like a run."""
    _, history = workdir.load_history(directory)
    if history.of_decoders:
        raise UsageError(
            f"{directory} holds the decoders of a run, in whose work directory it "
            f"lies; name that one: --workdir={directory.resolve().parent}."
        )


def check_dataset(run: Run, dataset: Dataset) -> None:
    """Raises a UsageError unless `dataset` has the training's classes and shape.

    The number of images may differ.
    """
    for field in ("side", "channels", "class_names"):
        expected, found = getattr(run.facts, field), getattr(dataset, field)
        if found != expected:
            raise UsageError(
                f"config.dataset.name={dataset.name!r} has {field}={_short(found)}, "
                f"but {run.directory} was trained with {_short(expected)}; name its "
                "data with --config.dataset.path, or use --mode=transfer."
            )


def _short(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    more = f", ... ({len(value)})" if len(value) > 3 else ""
    return f"{', '.join(value[:3])}{more}"
