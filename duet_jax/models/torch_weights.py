"""Conversion of weights from and to torch state dicts.

Names are the reference's, of encoders that are not its own torchvision's or timm's,
whose models load them. Import and export share the tables of names. Convolution weights
are OIHW there and HWIO here, Linear weights [out, in] there and [in, out] here.
"""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import traverse_util

from duet_jax.errors import UsageError, suggestion

PREFIXES = {
    "encoder": "base_network.",
    "projector": "head.",
    "online_probe": "heads.linear_classifier.",
    "predictor": "predictor_essl.",
}

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "class_token": "cls_token",
    "positions": "pos_embed",
}

# There the heads are numbered sequences; the missing numbers are ReLUs.
_SEQUENCE = {
    "hidden1": "0",
    "norm1": "1",
    "hidden2": "3",
    "norm2": "4",
    "output": "6",
    "norm3": "7",
}

_RESNET = {
    "resnet": None,  # inside lifted encoders; not part of the names
    "stem": "conv1",
    "stem_norm": "bn1",
    "stage1": "layer1",
    "stage2": "layer2",
    "stage3": "layer3",
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "shortcut": "shortcut",
    "conv": "0",
    "norm": "1",
    "final_norm": "final_bn.1",
}

# Part that only such an encoder has -> names of torchvision, of timm.
_ENCODERS = {
    "stage4": {
        **_RESNET,
        "stage4": "layer4",
        "conv3": "conv3",
        "norm3": "bn3",
        "shortcut": "downsample",
    },
    "blocks": {
        "tokens": None,
        "patches": "patch_embed.proj",
        "blocks": "blocks",
        "norm1": "norm1",
        "qkv": "attn.qkv",
        "projection": "attn.proj",
        "norm2": "norm2",
        "hidden": "mlp.fc1",
        "output": "mlp.fc2",
        "final_norm": "norm",
    },
}
# Their classifiers, which ours do not have.
_CLASSIFIERS = ("fc.", "head.")

_MODULES = {
    "encoder": _RESNET,
    "projector": _SEQUENCE,
    "predictor": _SEQUENCE,
    "online_probe": {"linear": None},
}


def import_networks(
    state: Mapping[str, np.ndarray], params: dict, batch_stats: dict
) -> tuple[dict, dict]:
    """Converts the state dict of a reference model to the given networks.

    The reference learns one augmentation: its features are one group, and it has one
    predictor.

    Args:
      state: arrays by torch name, with the prefixes of `PREFIXES`.
      params: parameters of the networks, by the keys of `PREFIXES`; the leaves may be
        `jax.ShapeDtypeStruct`, as only their shapes and types are used.
      batch_stats: running statistics of the networks, likewise.

    Returns:
      Parameters and running statistics with the values of `state`, as NumPy arrays.

    Raises:
      UsageError: a name is missing or unknown, an array has another shape, or there
        are several predictors.
    """
    predictor = params.get("predictor", {"hidden1": {}})
    if "hidden1" not in predictor:  # one for each code
        raise UsageError(
            f"these networks predict {' and '.join(predictor)}, the reference's one "
            "augmentation; set config.learned to the one they were trained with."
        )
    parts = {network: {} for network in params}
    for name, array in state.items():
        network = _owner(name)
        if network not in params:
            raise UsageError(
                f"weight {name!r} belongs to no network of this model, which"
                f" has {', '.join(PREFIXES[n] + '*' for n in params)}; load it with the"
                " config.method it was trained with."
            )
        parts[network][name.removeprefix(PREFIXES[network])] = array
    new_params, new_stats = {}, {}
    for network, part in parts.items():
        new_params[network], stats = import_network(
            network, part, params[network], batch_stats.get(network, {})
        )
        if network in batch_stats:
            new_stats[network] = stats
    return new_params, new_stats


def import_network(
    network: str, state: Mapping[str, np.ndarray], params: dict, batch_stats: dict
) -> tuple[dict, dict]:
    """Converts the state dict of one reference network; see `import_networks`.

    Args:
      network: a key of `PREFIXES`.
      state: arrays by torch name, without prefix.
      params: parameters of the network.
      batch_stats: its running statistics; {} if it has none.
    """
    prefix = PREFIXES[network]
    expected = {
        name
        for tree in (params, batch_stats)
        for name, *_ in _named_leaves(network, tree)
    }
    ignored = _CLASSIFIERS if _modules(network, params) in _ENCODERS.values() else ()
    for name in state:
        # Here the number of updates is part of the train state.
        counts = name.endswith("num_batches_tracked")
        if name not in expected and not counts and not name.startswith(ignored):
            field = "projector" if network == "projector" else "encoder.name"
            raise UsageError(
                f"weight {prefix + name!r} has no counterpart in the"
                f" {network}.{suggestion(name, expected)} Set config.{field} to"
                " the one it was trained with."
            )
    return _filled(network, state, params), _filled(network, state, batch_stats)


def has_counterpart(network: str, params: dict) -> bool:
    """Returns whether PyTorch, there, has a network of these modules.

    Args:
      network: name of a network of ours.
      params: its parameters.
    """
    known = _modules(network, params)
    parts = {p for path in traverse_util.flatten_dict(params) for p in path[:-1]}
    if network == "projector" and parts != {*known}:  # fewer layers, or no norm
        return False
    return network in PREFIXES and all(p in known for p in parts if isinstance(p, str))


def export_network(network: str, *trees: dict) -> dict[str, np.ndarray]:
    """Converts arrays of a network to a torch state dict.

    Args:
      network: a key of `PREFIXES`.
      *trees: nested dicts with the structure of the network's parameters (such as
        gradients) or running statistics.

    Returns:
      Arrays in torch's layout by torch name, without prefix.
    """
    return {
        name: _to_torch(np.asarray(leaf))
        for tree in trees
        for name, _, leaf in _named_leaves(network, tree)
    }


def _named_leaves(
    network: str, tree: dict
) -> Iterator[tuple[str, tuple, jax.Array | jax.ShapeDtypeStruct]]:
    """Yields the torch name, the path and the leaf of every array of a network."""
    modules = _modules(network, tree)
    for path, leaf in traverse_util.flatten_dict(tree).items():
        # Numbers are positions of blocks in a stage, the same in both.
        parts = [modules[p] if isinstance(p, str) else str(p) for p in path[:-1]]
        parts.append(_LEAVES[path[-1]])
        yield ".".join(part for part in parts if part is not None), path, leaf


def _modules(network: str, tree: dict) -> dict[str, str | None]:
    """Returns the torch names of a network's modules; {} if it has none."""
    if network == "encoder":
        for part, names in _ENCODERS.items():
            if part in tree:
                return names
    return _MODULES.get(network, {})


def _filled(network: str, state: Mapping[str, np.ndarray], tree: dict) -> dict:
    """Returns `tree` with every leaf replaced by its array in `state`."""
    filled = {}
    for name, path, leaf in _named_leaves(network, tree):
        full_name = PREFIXES[network] + name
        if name not in state:
            raise UsageError(
                f"weight {full_name!r} is missing from the file; the"
                f" {network} of this configuration needs it: set config.encoder and"
                " config.method to those the weights were trained with."
            )
        given = np.asarray(state[name])
        array = _from_torch(given)
        if array.shape != leaf.shape:
            raise UsageError(
                f"weight {full_name!r} has shape {given.shape}, but the"
                f" {network} of this configuration needs"
                f" {_to_torch(np.empty(leaf.shape, bool)).shape}; set config.encoder"
                " and config.method to those the weights were trained with."
            )
        filled[path] = array.astype(leaf.dtype)
    return traverse_util.unflatten_dict(filled)


def _owner(name: str) -> str | None:
    """Returns the network that a prefixed torch name belongs to, or None."""
    for network, prefix in PREFIXES.items():
        if name.startswith(prefix):
            return network
    return None


def _from_torch(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, [out, in] to [in, out]; vectors and tokens stay."""
    return array.transpose({3: (0, 1, 2), 4: (2, 3, 1, 0)}.get(array.ndim))


def _to_torch(array: np.ndarray) -> np.ndarray:
    """HWIO to OIHW, [in, out] to [out, in]; vectors and tokens stay."""
    return array.transpose({3: (0, 1, 2), 4: (3, 2, 0, 1)}.get(array.ndim))
