import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from duet_jax.errors import UsageError
from duet_jax.models import representation
from duet_jax.models.batch_norm import BatchNorm
from duet_jax.models.encoders import (
    ENCODERS,
    EncoderSettings,
    EncoderSpec,
    ReferenceResNet,
    make_encoder,
)
from duet_jax.models.heads import OnlineProbe, Predictor, Projector
from duet_jax.models.resnet import LiftedResNet, ResNet
from duet_jax.models.vit import ViT


class FixedKey:
    """Stands in for `nnx.Rngs` where only shapes are wanted.

    The counter of a traced `nnx.Rngs` costs time that grows with the square of the
    number of layers, a minute for the deepest encoder.
    """

    def params(self):
        return jax.random.key(0)


def pure(model):
    """Parameters and running statistics of a module, as nested dicts."""
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def abstract(build):
    """The same of a module that is never filled with numbers."""
    return jax.eval_shape(lambda: pure(build(FixedKey())))


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def images(side=8, channels=3, batch=4, seed=0):
    key = jax.random.key(seed)
    return jax.random.uniform(key, (batch, side, side, channels)) - 0.5


# Batch normalisation


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 7, 3)])
def test_batch_norm_in_training_standardises_each_channel(shape):
    x = 3 * np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 2
    norm = BatchNorm(3)
    norm.scale[...] = jnp.array([1.0, 2.0, -0.5])
    norm.bias[...] = jnp.array([0.0, 1.0, 3.0])
    y = norm(x, train=True)
    axes = tuple(range(len(shape) - 1))
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(axes)) / np.sqrt(exact.var(axes) + 1e-5)
    expected = expected * np.array([1.0, 2.0, -0.5]) + np.array([0.0, 1.0, 3.0])
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6)


def test_batch_norm_moves_running_statistics_by_a_tenth_unbiased():
    x = np.random.default_rng(0).standard_normal((4, 2, 2, 3)).astype(np.float32)
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.full((3,), 5.0), jnp.full((3,), 7.0)
    norm(x, train=True)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(norm.mean[...], 0.9 * 5 + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 * 7 + 0.1 * variance, rtol=1e-6)


def test_batch_norm_in_evaluation_uses_running_statistics_and_keeps_them():
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    norm = BatchNorm(2)
    norm.mean[...], norm.var[...] = jnp.array([1.0, -1.0]), jnp.array([4.0, 0.25])
    before = pure(norm)
    y = norm(x, train=False)
    expected = (x - np.array([1.0, -1.0])) / np.sqrt(np.array([4.0, 0.25]) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, pure(norm), before)


def test_batch_norm_keeps_the_digits_of_channels_with_a_large_mean():
    x = 100 + 0.01 * np.random.default_rng(0).standard_normal((512, 1))
    x = x.astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    y = BatchNorm(1)(x, train=True)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-3)


def test_batch_norm_gradient_is_that_of_the_whole_formula():
    x, cotangent = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("f")

    def ours(x):
        return jnp.sum(BatchNorm(3)(x, train=True) * cotangent)

    def formula(x):
        mean = jnp.mean(x, 0, keepdims=True)
        var = jnp.mean((x - mean) ** 2, 0, keepdims=True)
        return jnp.sum((x - mean) / jnp.sqrt(var + 1e-5) * cotangent)

    np.testing.assert_allclose(
        jax.grad(ours)(x), jax.grad(formula)(x), rtol=0, atol=2e-6
    )


def test_batch_norm_of_one_value_is_finite():
    norm = BatchNorm(2)
    y = norm(jnp.ones((1, 2)), train=True)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(norm.var[...], 0.9)


@pytest.mark.parametrize(("mean", "limit"), [(0, 1e-6), (10, 1e-4), (200, 2e-2)])
def test_batch_norm_of_bfloat16_takes_its_statistics_in_float32(mean, limit):
    """In one pass over the input, which is as good as the input's own digits."""
    x = np.random.default_rng(0).standard_normal((4096, 4)) + mean
    x = jnp.asarray(x, jnp.bfloat16)
    norm = BatchNorm(4, dtype=jnp.bfloat16)
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert dtypes(pure(norm)) == {"float32"}
    exact = np.asarray(x, np.float64)
    moved = [0.1 * exact.mean(0), 0.9 + 0.1 * exact.var(0, ddof=1)]
    np.testing.assert_allclose(norm.mean[...], moved[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.var[...], moved[1], rtol=limit)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    # Half a unit in the last of 8 bits, besides.
    np.testing.assert_allclose(y, expected, rtol=2**-8 + limit, atol=limit)


def test_batch_norm_of_equal_bfloat16_values_is_finite():
    x = jnp.full((64, 2), 3.1, jnp.bfloat16)

    def loss(x):
        return jnp.sum(BatchNorm(2, dtype=jnp.bfloat16)(x, train=True))

    value, gradient = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, 0, atol=1)
    assert np.isfinite(gradient.astype(np.float32)).all()


# Encoders


def small(name):
    """Arguments that make the named encoder as narrow as it can be."""
    if name == "Cifar10_ResNet":
        return {"blocks": (1, 2, 1), "widths": (4, 6, 10, 12)}
    return {"width_multiplier": 0.01}


OF_REFERENCE = {n: e for n, e in ENCODERS.items() if isinstance(e, ReferenceResNet)}
# Parameters without a classifier: as torchvision and timm count them at 224 pixels.
OF_OTHERS = {
    "resnet18": (11_176_512, {"stem": "imagenet"}),
    "resnet34": (21_284_672, {"stem": "imagenet"}),
    "resnet50": (23_508_032, {"stem": "imagenet"}),
    "vit_tiny": (5_524_416, {"patch_size": 16, "side": 224}),
    "vit_small": (21_665_664, {"patch_size": 16, "side": 224}),
}


def test_the_eighteen_encoders_are_there():
    depths = (20, 32, 44, 56, 110, 1202)
    names = {f"{p}cifar10_resnet{d}" for p in ("", "lifted_") for d in depths}
    assert set(OF_REFERENCE) == names | {"Cifar10_ResNet"}
    assert set(ENCODERS) == {*OF_REFERENCE, *OF_OTHERS}
    assert all(isinstance(spec, EncoderSpec) for spec in ENCODERS.values())
    for name, spec in OF_REFERENCE.items():
        if spec.blocks is not None:
            # Two convolutions a block, the stem, and a classifier that is not ours.
            assert 2 * sum(spec.blocks) + 2 == int(name.rpartition("resnet")[2])


@pytest.mark.parametrize("name", OF_OTHERS)
def test_parameter_counts_of_torchvision_and_timm(name):
    expected, settings = OF_OTHERS[name]
    params, stats = abstract(
        lambda rngs: make_encoder(name, in_channels=3, rngs=rngs, **settings)
    )
    assert count(params) == expected
    assert dtypes((params, stats)) == {"float32"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [n for n in ENCODERS if "1202" not in n])
def test_every_encoder_gives_features(name, channels):
    x = jax.ShapeDtypeStruct((2, 16, 16, channels), jnp.float32)

    def features(x):
        encoder = make_encoder(
            name, in_channels=channels, rngs=FixedKey(), **small(name)
        )
        settings = EncoderSettings(name, channels, **small(name))
        assert encoder.num_features == settings.num_features
        kind = {"lifted": LiftedResNet, "vit": ViT}.get(name.partition("_")[0], ResNet)
        assert isinstance(encoder, kind)
        return encoder(x, train=False)

    narrowest = {"Cifar10_ResNet": 12, "resnet50": 32, "vit_tiny": 64, "vit_small": 64}
    expected = (2, narrowest.get(name, 8))
    y = jax.eval_shape(features, x)
    assert (y.shape, y.dtype) == (expected, jnp.float32)


# Closed form: 3x3 convolutions, projections and BN of stem 64, stages 128, 256, 512.
def resnet_parameters(blocks, widths, in_channels):
    total, previous = 9 * in_channels * widths[0] + 2 * widths[0], widths[0]
    for depth, width in zip(blocks, widths[1:], strict=True):
        total += previous * width + 2 * width  # projection
        total += 9 * previous * width + (2 * depth - 1) * 9 * width * width
        total += 2 * depth * 2 * width
        previous = width
    return total + 2 * previous


# Without the deepest lifted one, which would show nothing that the others do not.
COUNTED = [
    name
    for name, spec in OF_REFERENCE.items()
    if spec.blocks and name != "lifted_cifar10_resnet1202"
]


@pytest.mark.parametrize("name", COUNTED)
def test_parameter_count_of_every_encoder(name):
    spec = ENCODERS[name]
    params, stats = abstract(lambda rngs: make_encoder(name, in_channels=3, rngs=rngs))
    inputs = 54 if spec.lifted else 3
    assert count(params) == resnet_parameters(spec.blocks, spec.widths, inputs)
    assert dtypes((params, stats)) == {"float32"}


TOTALS = [
    ("cifar10_resnet20", 17_218_624, 21_823_946, 22_741_450, 28_004_814),
    ("cifar10_resnet32", 29_612_096, 34_217_418, 35_134_922, 40_398_286),
]


@pytest.mark.parametrize(("name", "alone", "duet", "simclr", "essl"), TOTALS)
def test_parameter_counts_of_the_reference(name, alone, duet, simclr, essl):
    def total(build):
        return count(abstract(build)[0])

    encoder = total(lambda rngs: make_encoder(name, in_channels=3, rngs=rngs))
    probe = total(lambda rngs: OnlineProbe(512, 10, rngs=rngs))
    narrow = total(lambda rngs: Projector(512 // 8, rngs=rngs))
    wide = total(lambda rngs: Projector(512, rngs=rngs))
    predictor = total(lambda rngs: Predictor(512, 4, rngs=rngs))
    assert encoder == alone
    assert encoder + probe + narrow == duet
    assert encoder + probe + wide == simclr
    assert encoder + probe + wide + predictor == essl


WIDTHS = [
    (1.0, 512),
    (0.5, 256),
    (0.3, 152),  # 153.6, of which 152 is the nearest multiple of 8
    (0.0001, 8),
    (2, 1024),
]


@pytest.mark.parametrize(("multiplier", "expected"), WIDTHS)
def test_width_multiplier_rounds_to_multiples_of_eight(multiplier, expected):
    settings = EncoderSettings("cifar10_resnet20", 3, multiplier)
    assert settings.num_features == expected


def test_width_multiplier_of_one_keeps_the_widths_given():
    arguments = {"blocks": [1, 1, 1], "widths": [3, 5, 7, 9]}
    params, _ = abstract(
        lambda rngs: make_encoder(
            "Cifar10_ResNet", in_channels=1, rngs=rngs, **arguments
        )
    )
    assert EncoderSettings("Cifar10_ResNet", 1, **arguments).num_features == 9
    assert params["stem"]["kernel"].shape == (3, 3, 1, 3)
    assert params["stage3"][0]["conv2"]["kernel"].shape == (3, 3, 9, 9)
    assert count(params) == resnet_parameters((1, 1, 1), (3, 5, 7, 9), 1)


def test_unknown_encoder():
    message = (
        r"config\.encoder\.name='cifar10_resnet18' is not known; choose one of "
        r"cifar10_resnet20, .*Did you mean"
    )
    with pytest.raises(UsageError, match=message):
        make_encoder("cifar10_resnet18", in_channels=3, rngs=FixedKey())
    with pytest.raises(UsageError, match=message):
        _ = EncoderSettings("cifar10_resnet18", 3).num_features


def narrow(rngs, dtype=jnp.float32):
    return make_encoder(
        "Cifar10_ResNet",
        in_channels=3,
        blocks=(1, 2, 1),
        widths=(16, 16, 16, 16),
        dtype=dtype,
        rngs=rngs,
    )


@pytest.fixture(scope="module")
def encoder():
    """Graph, parameters and running statistics of a narrow encoder."""
    model = narrow(nnx.Rngs(0))
    graph, *_ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, *pure(model)


def test_encoder_round_trips_through_pure_dicts(encoder):
    graph, params, stats = encoder
    run = jax.jit(lambda p, s, x: nnx.merge(graph, p, s)(x, train=False))
    numpy = jax.tree.map(np.asarray, (params, stats))
    x = images()
    np.testing.assert_array_equal(run(*numpy, x), run(params, stats, x))
    again = pure(nnx.merge(graph, *numpy))
    assert jax.tree.structure(again) == jax.tree.structure((params, stats))
    jax.tree.map(np.testing.assert_array_equal, again, numpy)


def test_encoder_training_moves_every_statistic_and_no_parameter(encoder):
    graph, params, stats = encoder

    @jax.jit
    def forward(params, stats, x):
        model = nnx.merge(graph, params, stats)
        return model(x, train=True), pure(model)

    y, (params_after, stats_after) = forward(params, stats, images(batch=16))
    jax.tree.map(np.testing.assert_array_equal, params_after, params)
    moved = jax.tree.map(lambda a, b: bool(np.all(a != b)), stats_after, stats)
    assert all(jax.tree.leaves(moved))
    # The BN on the features leaves them standardised over the batch.
    np.testing.assert_allclose(np.mean(y, 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(y, 0), 1, rtol=0.05)


def test_encoder_in_bfloat16_keeps_float32_state_and_is_close(encoder):
    graph, params, stats = encoder
    low = functools.partial(narrow, dtype=jnp.bfloat16)
    low_graph, low_params, _ = nnx.split(
        nnx.eval_shape(lambda: low(nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )
    assert dtypes(low_params) == {"float32"}

    def forward(graph):
        def run(params, stats, x):
            model = nnx.merge(graph, params, stats)
            return model(x, train=True), pure(model)[1]

        return jax.jit(run)(params, stats, images(batch=16))

    (exact, exact_stats), (rough, rough_stats) = forward(graph), forward(low_graph)
    assert rough.dtype == jnp.float32
    assert dtypes(rough_stats) == {"float32"}
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.1  # it was computed in bfloat16, and it is the same thing
    for a, b in zip(*map(jax.tree.leaves, (rough_stats, exact_stats)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_convolutions_start_kaiming_normal():
    encoder = make_encoder(
        "Cifar10_ResNet",
        in_channels=3,
        blocks=(1, 1, 1),
        widths=(64, 64, 64, 64),
        rngs=nnx.Rngs(0),
    )
    params, stats = pure(encoder)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        if kind != "kernel":
            np.testing.assert_array_equal(leaf, {"scale": 1, "bias": 0}[kind])
            continue
        std = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        error = 5 / math.sqrt(2 * leaf.size)  # five deviations of a deviation
        np.testing.assert_allclose(np.std(leaf), std, rtol=error)
        if leaf.size > 30_000:  # not truncated: some values beyond three deviations
            assert 3.3 < np.abs(leaf).max() / std < 6
    kinds = {"mean": 0, "var": 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stats):
        np.testing.assert_array_equal(leaf, kinds[path[-1].key])


# Heads


HEADS = {
    "projector": lambda dtype, rngs: Projector(
        12, hidden=40, out_features=6, dtype=dtype, rngs=rngs
    ),
    "predictor": lambda dtype, rngs: Predictor(
        12, 6, hidden=40, dtype=dtype, rngs=rngs
    ),
    "online_probe": lambda dtype, rngs: OnlineProbe(12, 6, rngs=rngs),
}


@functools.partial(jax.jit, static_argnums=0)
def call_in_training(graph, params, stats, x):
    head = nnx.merge(graph, params, stats)
    return head(x, train=True) if isinstance(head, Projector) else head(x)


def call(head, x):
    graph, params, stats = nnx.split(head, nnx.Param, nnx.BatchStat)
    return call_in_training(graph, params, stats, x)


@pytest.mark.parametrize("name", HEADS)
def test_linear_layers_start_uniform_in_weights_and_biases(name):
    params, _ = pure(HEADS[name](jnp.float32, nnx.Rngs(0)))
    layers = [p for p in params.values() if "kernel" in p]
    assert len(layers) == (1 if name == "online_probe" else 3)
    for layer in layers:
        bound = layer["kernel"].shape[0] ** -0.5
        for value in layer.values():
            assert np.abs(value).max() <= bound
            error = 5 * 0.52 / math.sqrt(value.size)  # uniform: std 0.58 of the bound
            np.testing.assert_allclose(np.std(value), bound / math.sqrt(3), rtol=error)
        assert np.abs(layer["kernel"]).max() > 0.95 * bound


@pytest.mark.parametrize("name", HEADS)
def test_heads_in_bfloat16_return_float32_close_to_exact(name):
    x = jax.random.normal(jax.random.key(1), (32, 12))
    exact = call(HEADS[name](jnp.float32, nnx.Rngs(0)), x)
    head = HEADS[name](jnp.bfloat16, nnx.Rngs(0))
    rough = call(head, x)
    assert exact.shape == rough.shape == (32, 6)
    assert exact.dtype == rough.dtype == jnp.float32
    assert dtypes(pure(head)) == {"float32"}
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert error == 0 if name == "online_probe" else 1e-4 < error < 0.05


def test_predictor_does_not_depend_on_the_rest_of_the_batch():
    head = HEADS["predictor"](jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (8, 12))
    np.testing.assert_allclose(call(head, x)[:3], call(head, x[:3]), rtol=0, atol=1e-6)


def test_projector_embeddings_are_standardised():
    head = HEADS["projector"](jnp.float32, nnx.Rngs(0))
    y = call(head, jax.random.normal(jax.random.key(1), (64, 12)))
    np.testing.assert_allclose(np.mean(y, 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(y, 0), 1, rtol=1e-2)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_the_projector_is_its_layers(layers, norm):
    """Written out in NumPy, on batch statistics; by the names of the parameters."""
    head = Projector(
        12, hidden=40, out_features=6, layers=layers, norm=norm, rngs=nnx.Rngs(0)
    )
    params, stats = pure(head)
    names = ["hidden1", "hidden2", "output"] if layers == 3 else ["hidden1", "output"]
    norms = ["norm1", "norm2", "norm3"] if layers == 3 else ["norm1", "norm3"]
    assert {*params} == {*names, *(norms if norm else ())}
    assert {*stats} == {*(norms if norm else ())}
    y = x = np.asarray(jax.random.normal(jax.random.key(1), (32, 12)))
    for name in names:
        y = y @ params[name]["kernel"] + params[name]["bias"][None]
        if norm:  # whose scale is 1 and bias 0 at first
            y = (y - y.mean(0)[None]) / np.sqrt(y.var(0)[None] + 1e-5)
        y = np.maximum(y, 0) if name != "output" else y
    np.testing.assert_allclose(call(head, x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_a_short_projector_in_bfloat16_returns_float32(norm):
    def build(dtype):
        return Projector(
            12,
            hidden=40,
            out_features=6,
            layers=2,
            norm=norm,
            dtype=dtype,
            rngs=nnx.Rngs(0),
        )

    x = jax.random.normal(jax.random.key(1), (32, 12))
    exact, rough = (call(build(dtype), x) for dtype in (jnp.float32, jnp.bfloat16))
    assert exact.dtype == rough.dtype == jnp.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05


# Content and structure


def test_features_are_bins_times_channels():
    features = jnp.arange(12.0).reshape(1, 12)
    matrix = representation.as_matrix(features, num_bins=3)
    np.testing.assert_array_equal(
        matrix[0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    )
    np.testing.assert_array_equal(representation.content(matrix), [[12, 15, 18, 21]])
    np.testing.assert_array_equal(
        representation.structure_logits(matrix), [[1.5, 5.5, 9.5]]
    )


def test_structure_is_a_distribution_for_any_logits():
    matrix = jnp.array([[[0.0], [1e4]], [[jnp.log(3.0)], [0.0]]])
    np.testing.assert_allclose(
        representation.structure(matrix), [[0, 1], [0.75, 0.25]], rtol=1e-6
    )


# Recomputation


@pytest.mark.parametrize("lifted", [False, True])
def test_remat_changes_no_number(lifted):
    """Neither the features nor gradients nor running statistics.

    In float64: two programs round differently, and how depends on the processor.
    """
    name = "lifted_cifar10_resnet20" if lifted else "cifar10_resnet20"
    with jax.enable_x64(True):
        one, other = (differentiated(name, remat=remat) for remat in (False, True))
    for left, right in zip(one, other, strict=True):
        assert left.dtype == jnp.float64
        limit = 1e-9 * float(np.abs(left).max()) + 1e-12
        np.testing.assert_allclose(right, left, rtol=0, atol=limit)


def differentiated(name, *, remat):
    """Gradients, features and running statistics of an encoder in float64."""
    images = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 8, 8, 3))
    network = make_encoder(
        name,
        in_channels=3,
        remat=remat,
        dtype=jnp.float64,
        rngs=nnx.Rngs(0),
        **small(name),
    )
    graphdef, *state = nnx.split(network, nnx.Param, nnx.BatchStat)
    params, stats = jax.tree.map(
        lambda x: x.astype(jnp.float64), [nnx.to_pure_dict(part) for part in state]
    )

    def loss(params):
        network = nnx.merge(graphdef, params, stats)
        features = network(jnp.asarray(images), train=True)
        after = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return jnp.sum(jnp.sin(features)), (features, after)

    gradient = jax.grad(loss, has_aux=True)
    text = str(jax.make_jaxpr(gradient)(params))
    assert ("remat" in text or "checkpoint" in text) == remat
    return [np.asarray(x) for x in jax.tree.leaves(jax.jit(gradient)(params))]
