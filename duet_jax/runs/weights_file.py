"""Weights of networks in a file: safetensors of ours, or a state dict of PyTorch.

A file of ours names each array by its path, such as `encoder.stage1.0.conv1.kernel`.
Its metadata are texts: `config` and `dataset`, the JSON of config.json and dataset.json
without what is of one machine, `method`, `step`, `weights` (the fingerprint of the
encoder) and `program`. A state dict, of the reference, torchvision or timm, is a
`.safetensors`, or what `torch.save` has written. Messages begin with the path of the
file.
"""

import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from flax import traverse_util

import duet_jax
from duet_jax.errors import UsageError, suggestion
from duet_jax.models import torch_weights
from duet_jax.runs import torch_file, workdir
from duet_jax.runs.history import SAFETENSORS, WEIGHTS
from duet_jax.runtime import files
from duet_jax.types import DatasetFacts

# Fields that say where something is, or what one machine has.
_OF_A_MACHINE = (
    "dataset.path",
    "dataset.cache_dir",
    "compilation_cache",
    "device",
    "wandb",
)
# What checkpoints of PyTorch keep a state dict under.
_NESTED = ("state_dict", "model_state_dict", "model")
# Of a ResNet, of the reference or of torchvision, and of a transformer of timm.
_FIRST = ("conv1.weight", "patch_embed.proj.weight")


class About(NamedTuple):
    """What a file of ours says of its weights.

    Attributes:
      config: of their training, with every field there is.
      facts: of its images.
      step: of the checkpoint.
    """

    config: ml_collections.ConfigDict
    facts: DatasetFacts
    step: int


class WeightsFile(NamedTuple):
    """Arrays that were read from a file.

    Attributes:
      path: of the file.
      arrays: by name.
      of_torch: whether names and layouts are those of PyTorch.
    """

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    of_torch: bool

    def networks(self, params: dict, batch_stats: dict) -> tuple[dict, dict]:
        """Returns the networks whose arrays are all there, with the right shapes.

        Args:
          params: shapes and types of the parameters, by name of the network.
          batch_stats: of the running statistics, likewise.

        Returns:
          Parameters and running statistics by name of the network, as NumPy arrays.

        Raises:
          UsageError: the encoder is not among them.
        """
        convert = _of_torch if self.of_torch else _of_ours
        found: tuple[dict, dict] = {}, {}
        for name, tree in params.items():
            try:
                parts = convert(name, self.arrays, tree, batch_stats.get(name, {}))
            except UsageError as error:
                if name == "encoder":
                    raise UsageError(f"{self.path}: {error}") from error
                continue
            found[0][name] = parts[0]
            if name in batch_stats:
                found[1][name] = parts[1]
        return found


def check(path: pathlib.Path) -> None:
    """Raises a UsageError unless `path` is a file that can be opened here."""
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file; name a file of weights ({', '.join(WEIGHTS)}), or "
            "the --workdir of a training."
        )
    if path.suffix == SAFETENSORS:
        check_installed("safetensors", str(path))


def check_installed(package: str, what: str) -> None:
    """Raises a UsageError, which begins with `what`, without an optional package."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{what} needs a package that is not installed: pip install {package}"
        )


def about(path: pathlib.Path) -> About | None:
    """Returns what a file of ours says of its weights; None for others.

    The weights themselves are not read.

    Raises:
      UsageError: the file is damaged, or there is none.
    """
    check(path)
    if path.suffix != SAFETENSORS:
        return None
    metadata = _open(path, lambda file: file.metadata()) or {}
    if "config" not in metadata:
        return None
    try:
        config = workdir.completed_config(json.loads(metadata["config"]))
        facts = workdir.checked_facts(json.loads(metadata["dataset"]))
        return About(config, facts, int(metadata["step"]))
    except UsageError as error:  # before ValueError, of which it is one
        raise UsageError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged (its metadata: {type(error).__name__}: {error}); "
            "export it again."
        ) from error


def read(path: pathlib.Path) -> WeightsFile:
    """Returns the arrays of a file.

    Raises:
      UsageError: it is damaged, or holds no encoder.
    """
    check(path)
    if path.suffix == SAFETENSORS:
        found = arrays(path)
        if any(name.startswith("encoder.") for name in found):
            return WeightsFile(path, found, of_torch=False)
    else:
        found = torch_file.read(path)
    return WeightsFile(path, _state_dict(path, found), of_torch=True)


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name.

    Raises:
      UsageError: it is damaged.
    """

    def take(file: Any) -> dict[str, np.ndarray]:
        names = file.keys()  # it is no dict
        return {name: file.get_tensor(name) for name in names}

    return _open(path, take)


def write(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    import safetensors.numpy  # an extra that few need

    # Bytes are taken as they lie.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with files.replacing(path) as partial:
        partial.write_bytes(safetensors.numpy.save(arrays, dict(metadata)))


def describe(
    config: ml_collections.ConfigDict, facts: DatasetFacts, step: int, fingerprint: str
) -> dict[str, str]:
    """Returns the metadata of a file, from which `about` restores what it returns."""
    record = json.loads(config.to_json())
    for name in _OF_A_MACHINE:
        section, _, leaf = name.rpartition(".")
        (record.get(section, {}) if section else record).pop(leaf, None)
    return {
        "program": f"duet_jax {duet_jax.__version__}",
        "method": config.method,
        "step": str(step),
        "weights": fingerprint,
        "config": json.dumps(record),
        "dataset": json.dumps(facts._asdict()),
    }


def named(network: str, *trees: dict) -> dict[str, np.ndarray]:
    """Returns the arrays of a network by the names that a file of ours gives them.

    Args:
      network: what the names begin with.
      *trees: nested dicts: parameters, running statistics.
    """
    return {
        name: np.asarray(leaf)
        for tree in trees
        for name, leaf in _leaves(network, tree).items()
    }


def _open(path: pathlib.Path, take: Any) -> Any:
    """Returns what `take` makes of an open safetensors file."""
    import safetensors  # an extra that few need

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return take(file)
    # Of types of its own, and of NumPy for element types that it does not have.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"{path} cannot be read as safetensors ({reason}); restore it from a copy."
        ) from error


def _leaves(network: str, tree: dict) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree)
    return {".".join(map(str, (network, *path))): leaf for path, leaf in flat.items()}


def _of_ours(
    network: str, arrays: Mapping[str, np.ndarray], *trees: dict
) -> tuple[dict, ...]:
    """Returns trees of shapes with the arrays of those names in their places."""
    wanted = {k: leaf for tree in trees for k, leaf in _leaves(network, tree).items()}
    given = {k for k in arrays if k.startswith(f"{network}.")}
    for name in sorted(given | {*wanted}):
        here = wanted[name].shape if name in wanted else "missing"
        there = arrays[name].shape if name in given else "missing"
        if here != there:
            raise UsageError(
                f"its {network} is another than config.encoder asks for ({name} is "
                f"{there} there and {here} here); repeat the fields of config.encoder "
                "and the channels of its training."
            )
    flat = (traverse_util.flatten_dict(tree) for tree in trees)
    return tuple(
        traverse_util.unflatten_dict(
            {
                path: arrays[".".join(map(str, (network, *path)))].astype(leaf.dtype)
                for path, leaf in each.items()
            }
        )
        for each in flat
    )


def _of_torch(
    network: str, arrays: Mapping[str, np.ndarray], params: dict, batch_stats: dict
) -> tuple[dict, dict]:
    """Returns trees of shapes with the arrays of a state dict in their places."""
    if not torch_weights.has_counterpart(network, params):
        raise UsageError(f"there is no such {network} in PyTorch.")
    prefix = torch_weights.PREFIXES[network]
    part = {
        k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)
    }
    return torch_weights.import_network(network, part, params, batch_stats)


def _state_dict(path: pathlib.Path, found: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict, those of the encoder with their prefix.

    It may lie in another dict, all names may have a prefix such as `module.`, and it
    may be of the encoder alone, without the prefix of that.
    """
    for name in _NESTED:
        if isinstance(found.get(name), Mapping):
            found = found[name]
    arrays = {str(k): a for k, a in found.items() if isinstance(a, np.ndarray)}
    encoder = torch_weights.PREFIXES["encoder"]
    for first, added in (
        *((f"{encoder}{name}", "") for name in _FIRST),
        *((name, encoder) for name in _FIRST),
    ):
        named = [k for k in arrays if f".{k}".endswith(f".{first}")]
        if named:
            before = min(named, key=len).removesuffix(first)
            return {
                f"{added}{k.removeprefix(before)}": a
                for k, a in arrays.items()
                if k.startswith(before)
            }
    known = ", ".join([*arrays][:3]) or "no arrays"
    guess = suggestion(_FIRST[0], arrays)
    raise UsageError(
        f"{path} holds no encoder: there is no encoder.* as in files of ours and no "
        f"*{' or *'.join(_FIRST)} as in those of PyTorch, but {known}.{guess}"
    )
