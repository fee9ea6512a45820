import jax
import numpy as np
import pytest
from flax import nnx

from duet_jax.errors import UsageError
from duet_jax.models import torch_weights
from duet_jax.models.encoders import make_encoder
from duet_jax.models.heads import OnlineProbe, Predictor, Projector

NARROW = {"blocks": (2, 1, 1), "widths": (4, 6, 6, 8)}

NETWORKS = {
    "encoder": lambda rngs: make_encoder(
        "Cifar10_ResNet", in_channels=3, rngs=rngs, **NARROW
    ),
    "projector": lambda rngs: Projector(8, hidden=5, out_features=3, rngs=rngs),
    "online_probe": lambda rngs: OnlineProbe(8, 10, rngs=rngs),
    "predictor": lambda rngs: Predictor(8, 4, hidden=5, rngs=rngs),
}


def shapes(build):
    """Parameters and running statistics of a module, without numbers."""

    def split():
        _, params, stats = nnx.split(build(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    return jax.eval_shape(split)


def numbered(tree):
    """Fills a tree with numbers that are all different."""
    leaves, structure = jax.tree.flatten(tree)
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])
    return jax.tree.unflatten(
        structure,
        [
            (np.arange(leaf.size) + start).reshape(leaf.shape).astype(leaf.dtype)
            for leaf, start in zip(leaves, starts, strict=False)
        ],
    )


@pytest.fixture(scope="module")
def expected():
    """Shapes of parameters and running statistics of all four networks."""
    pairs = {name: shapes(build) for name, build in NETWORKS.items()}
    params = {name: params for name, (params, _) in pairs.items()}
    return params, {name: stats for name, (_, stats) in pairs.items() if stats}


@pytest.fixture
def state(expected):
    """A whole reference state dict for them, with different numbers everywhere."""
    params, stats = map(numbered, expected)
    arrays = {}
    for network, prefix in torch_weights.PREFIXES.items():
        trees = params[network], stats.get(network, {})
        for name, array in torch_weights.export_network(network, *trees).items():
            arrays[prefix + name] = array
            if name.endswith("running_var"):
                counter = name.replace("running_var", "num_batches_tracked")
                arrays[prefix + counter] = np.array(3)
    return arrays


def test_names_are_those_of_the_reference(state):
    counted = {n for n in state if "num_batches" not in n}
    for name, shape in {
        "base_network.conv1.weight": (4, 3, 3, 3),
        "base_network.bn1.running_var": (4,),
        "base_network.layer1.0.shortcut.0.weight": (6, 4, 1, 1),
        "base_network.layer1.1.bn2.bias": (6,),
        "base_network.layer3.0.conv1.weight": (8, 6, 3, 3),
        "base_network.layer3.0.shortcut.1.running_mean": (8,),
        "base_network.final_bn.1.weight": (8,),
        "head.0.weight": (5, 8),
        "head.7.running_mean": (3,),
        "heads.linear_classifier.weight": (10, 8),
        "predictor_essl.4.weight": (5,),
        "predictor_essl.6.bias": (4,),
    }.items():
        assert state[name].shape == shape
    # conv, BN (4): stem and final BN 9, four blocks of 10, three projections of 5;
    # projector 3 x (2 + 4), probe 2, predictor 3 x 2 + 2 x 2.
    assert len(counted) == 9 + 4 * 10 + 3 * 5 + 18 + 2 + 10


def test_import_undoes_export(expected, state):
    params, stats = torch_weights.import_networks(state, *expected)
    for actual, tree in ((params, expected[0]), (stats, expected[1])):
        assert jax.tree.structure(actual) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, actual, numbered(tree))
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(actual))


def test_layouts_are_transposed(expected, state):
    params, _ = torch_weights.import_networks(state, *expected)
    kernel = params["encoder"]["stage1"][1]["conv2"]["kernel"]
    weight = state["base_network.layer1.1.conv2.weight"]
    assert kernel[2, 0, 3, 5] == weight[5, 3, 2, 0]
    linear = state["heads.linear_classifier.weight"]
    assert params["online_probe"]["linear"]["kernel"][7, 2] == linear[2, 7]


def test_imported_weights_run(expected, state):
    model = nnx.eval_shape(lambda: NETWORKS["online_probe"](nnx.Rngs(0)))
    graph, *_ = nnx.split(model, nnx.Param)
    params, _ = torch_weights.import_networks(state, *expected)
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    weight, bias = (
        state[f"heads.linear_classifier.{name}"] for name in ("weight", "bias")
    )
    np.testing.assert_allclose(
        nnx.merge(graph, params["online_probe"])(x), x @ weight.T + bias, rtol=1e-5
    )


def test_networks_that_are_not_asked_for_must_not_be_in_the_file(expected, state):
    params, stats = expected
    fewer = {name: tree for name, tree in params.items() if name != "predictor"}
    with pytest.raises(UsageError, match=r"'predictor_essl\..*config\.method"):
        torch_weights.import_networks(state, fewer, stats)
    state = {n: a for n, a in state.items() if not n.startswith("predictor_essl")}
    assert set(torch_weights.import_networks(state, fewer, stats)[0]) == set(fewer)


def test_the_reference_has_one_predictor(expected, state):
    params, stats = expected
    several = {**params, "predictor": {"rot": {}, "hue": {}}}
    with pytest.raises(UsageError, match=r"predict rot and hue, .*config\.learned"):
        torch_weights.import_networks(state, several, stats)


def drop(name):
    return lambda state: state.pop(name)


def put(name, shape):
    return lambda state: state.update({name: np.zeros(shape)})


FAULTS = {
    "missing": (
        drop("head.4.running_var"),
        r"'head\.4\.running_var' is missing .* projector",
    ),
    "missing_network": (
        drop("heads.linear_classifier.weight"),
        r"'heads\.linear_classifier\.weight' is missing",
    ),
    "deeper": (
        put("base_network.layer1.2.conv1.weight", (6, 6, 3, 3)),
        r"'base_network\.layer1\.2\.conv1\.weight' has no counterpart in the encoder",
    ),
    "misspelt": (
        put("base_network.layer1.1.conv3.weight", (6, 6, 3, 3)),
        r"no counterpart .* Did you mean 'layer1\.1\.conv.\.weight'\?",
    ),
    "foreign": (
        put("optimizer.step", ()),
        r"'optimizer\.step' belongs to no network .* has base_network\.\*, head\.\*",
    ),
    "wider": (
        put("base_network.conv1.weight", (8, 3, 3, 3)),
        r"'base_network\.conv1\.weight' has shape \(8, 3, 3, 3\), but the encoder of "
        r"this configuration needs \(4, 3, 3, 3\)",
    ),
    "other_rank": (
        put("base_network.conv1.weight", (4, 27)),
        r"has shape \(4, 27\), but the encoder .* needs \(4, 3, 3, 3\)",
    ),
    "other_head": (
        put("head.0.weight", (5, 64)),
        r"'head\.0\.weight' has shape \(5, 64\), .* projector .* needs \(5, 8\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_named(fault, expected, state):
    damage, message = FAULTS[fault]
    damage(state)
    with pytest.raises(UsageError, match=message) as error:
        torch_weights.import_networks(state, *expected)
    assert "\n" not in str(error.value)


OTHER_PROJECTORS = {
    "two layers": ({"layers": 2}, r"'head\.(3|4)\..*' has no counterpart"),
    "no norm": ({"norm": False}, r"'head\.(1|4|7)\..*' has no counterpart"),
    "neither": ({"layers": 2, "norm": False}, r"'head\..*' has no counterpart"),
}


@pytest.mark.parametrize("case", OTHER_PROJECTORS)
def test_the_reference_has_one_projector(case, expected, state):
    settings, message = OTHER_PROJECTORS[case]
    params, stats = expected
    own = shapes(
        lambda rngs: Projector(8, hidden=5, out_features=3, rngs=rngs, **settings)
    )
    ours = {**params, "projector": own[0]}, {**stats, "projector": own[1]}
    with pytest.raises(UsageError, match=message) as error:
        torch_weights.import_networks(state, *ours)
    assert str(error.value).endswith(
        "Set config.projector to the one it was trained with."
    )
    assert "\n" not in str(error.value)
    assert not torch_weights.has_counterpart("projector", own[0])
    assert torch_weights.has_counterpart("projector", params["projector"])


def test_plain_weights_do_not_fit_a_lifted_encoder(state):
    lifted = shapes(
        lambda rngs: make_encoder(
            "lifted_cifar10_resnet20", in_channels=3, width_multiplier=0.01, rngs=rngs
        )
    )
    part = {
        name.removeprefix("base_network."): array
        for name, array in state.items()
        if name == "base_network.conv1.weight"
    }
    with pytest.raises(UsageError, match=r"needs \(8, 54, 3, 3\)|is missing"):
        torch_weights.import_network("encoder", part, *lifted)
