"""ResNets of torchvision and vision transformers of timm: one block by NumPy; the whole
network beside theirs, where these are installed."""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from duet_jax.errors import UsageError
from duet_jax.models import resnet, torch_weights, vit
from duet_jax.models.encoders import ENCODERS, EncoderSettings, make_encoder
from duet_jax.profiling import flops

RESNETS = ("resnet18", "resnet34", "resnet50")
VITS = ("vit_tiny", "vit_small")


def pure(module):
    """Structure, parameters and running statistics of a module, as nested dicts."""
    graph, *state = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graph, *map(nnx.to_pure_dict, state)


def shapes(build):
    """The same of a module that is never filled with numbers."""
    return pure(nnx.eval_shape(build))


def randomized(build, seed=0):
    """A module with weights and statistics of which none is 0 or 1."""
    graph, *state = shapes(build)
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        given = rng.normal(size=x.shape) / math.sqrt(max(1, math.prod(x.shape[:-1])))
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(np.exp(0.3 * given) if positive else given, x.dtype)

    return nnx.merge(graph, *jax.tree_util.tree_map_with_path(leaf, state))


def images(side, batch=2, channels=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (batch, side, side, channels)).astype(np.float32)


def value(variable):
    return np.asarray(variable[...], np.float64)


# One block, said again in NumPy and float64.


def convolved(x, conv, stride):
    kernel = value(conv.kernel)
    half = len(kernel) // 2
    x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    size = [(side - len(kernel)) // stride + 1 for side in x.shape[1:3]]
    out = np.zeros((len(x), *size, kernel.shape[3]))
    for i, row in enumerate(kernel):
        for j, matrix in enumerate(row):
            seen = x[:, i : i + stride * size[0] : stride]
            out += seen[:, :, j : j + stride * size[1] : stride] @ matrix
    return out


def normalized(x, norm):
    x = (x - value(norm.mean)) / np.sqrt(value(norm.var) + 1e-5)
    return x * value(norm.scale) + value(norm.bias)


def residual(block, x, strides):
    """What a block makes of x: the layers with their strides, and the shortcut."""
    y = x
    for i, stride in enumerate(strides, 1):
        y = np.maximum(y, 0) if i > 1 else y
        y = convolved(y, getattr(block, f"conv{i}"), stride)
        y = normalized(y, getattr(block, f"norm{i}"))
    if block.shortcut is not None:
        x = convolved(x, block.shortcut.conv, max(strides))
        x = normalized(x, block.shortcut.norm)
    return np.maximum(x + y, 0)


BLOCKS = {  # kind, channels in, width, strides
    "basic": (resnet.BasicBlock, 8, 8, (1, 1)),
    "basic, halving": (resnet.BasicBlock, 4, 8, (2, 1)),
    "bottleneck": (resnet.Bottleneck, 16, 4, (1, 1, 1)),
    "bottleneck, widening": (resnet.Bottleneck, 6, 4, (1, 1, 1)),
    # The stride is the second convolution's.
    "bottleneck, halving": (resnet.Bottleneck, 16, 4, (1, 2, 1)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_residual_block_is_that_of_numpy(name):
    kind, channels, width, strides = BLOCKS[name]

    def build():
        conv = functools.partial(
            resnet._conv, fan="fan_out", dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
        return kind(channels, width, max(strides), conv=conv)

    block = randomized(build)
    same = max(strides) == 1 and channels == width * kind.expansion
    assert (block.shortcut is None) == same
    x = np.random.default_rng(2).normal(size=(2, 6, 6, channels)).astype(np.float32)
    expected = residual(block, x.astype(np.float64), strides)
    assert 0 < (expected == 0).mean() < 1
    graph, *state = pure(block)
    found = call(lambda *s: nnx.merge(graph, *s[:2])(s[2], train=False), *state, x)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def layer_norm(x, norm):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    return x * value(norm.scale) + value(norm.bias)


def linear(x, layer):
    return x @ value(layer.kernel) + value(layer.bias)


def transformed(block, x):
    """A pre-norm block with two heads of four features: [tokens, 8]."""
    y = linear(layer_norm(x, block.norm1), block.qkv)
    q, k, v = (y[:, 8 * i : 8 * (i + 1)] for i in range(3))
    seen = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(4))
        seen.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    x = x + linear(np.concatenate(seen, 1), block.projection)
    y = linear(layer_norm(x, block.norm2), block.hidden)
    half = 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return x + linear(y * half, block.output)


def test_a_transformer_block_is_that_of_numpy():
    block = randomized(lambda: vit.Block(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(2).normal(size=(2, 5, 8)).astype(np.float32)
    expected = np.stack([transformed(block, each.astype(np.float64)) for each in x])
    graph, *state = pure(block)
    found = call(lambda *s: nnx.merge(graph, *s[:2])(s[2]), *state, x)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_tokens_are_patches_with_positions():
    tokens = randomized(lambda: vit.Tokens(8, 4, 2, 3, jnp.float32, nnx.Rngs(0)))
    x = images(8)
    found = np.asarray(tokens(x))
    kernel, bias = value(tokens.patches.kernel), value(tokens.patches.bias)
    positions = value(tokens.positions)[0]
    assert found.shape == (2, 5, 8)
    first = value(tokens.class_token)[0, 0] + positions[0]
    np.testing.assert_allclose(found[:, 0], np.stack([first] * 2), atol=1e-6)
    for place, (i, j) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)], 1):
        patch = x[:, i : i + 4, j : j + 4].reshape(2, -1)
        expected = patch @ kernel.reshape(-1, 8) + bias + positions[place]
        np.testing.assert_allclose(found[:, place], expected, atol=1e-5)


# Stems, widths, sides.


def test_stems_divide_the_side():
    for stem, sides in {
        "cifar": [32, 32, 16, 8, 4],
        "imagenet": [8, 8, 4, 2, 1],
    }.items():

        def maps(x, stem=stem):
            return dict(small("resnet18", stem=stem).maps(x, train=False))

        found = jax.eval_shape(maps, images(32))
        by_name = {name: each.shape[1] for name, each in found.items()}
        names = ("stem", "stage1", "stage2", "stage3", "stage4")
        assert [by_name[name] for name in names] == sides


def small(name, **settings):
    """The narrowest encoder of a name."""
    return make_encoder(
        name, in_channels=3, width_multiplier=0.01, rngs=nnx.Rngs(0), **settings
    )


def test_the_pooling_of_the_stem_is_a_maximum():
    encoder = randomized(lambda: small("resnet18", stem="imagenet"))
    x = images(16)
    _, found = next(encoder.maps(x, train=False))
    kernel = value(encoder.stem.kernel)
    padded = np.pad(x.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
    y = np.zeros((2, 8, 8, 8))
    for i in range(7):
        for j in range(7):
            y += padded[:, i : i + 16 : 2, j : j + 16 : 2] @ kernel[i, j]
    y = np.maximum(normalized(y, encoder.stem_norm), 0)
    y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))  # never above a ReLU's 0
    parts = [y[:, i : i + 8 : 2, j : j + 8 : 2] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(found, np.max(parts, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "multiplier", "expected"),
    [
        ("resnet18", 0.5, 256),
        ("resnet50", 0.125, 256),
        ("vit_tiny", 1.0, 192),
        ("vit_small", 0.5, 192),
        ("vit_tiny", 0.5, 128),  # 1.5 heads, rounded up
        ("vit_tiny", 0.01, 64),
    ],
)
def test_widths_and_heads_are_scaled(name, multiplier, expected):
    assert EncoderSettings(name, 3, multiplier).num_features == expected


def test_other_sides_take_interpolated_positions():
    graph, *state = pure(randomized(lambda: shallow_vit(side=16)))

    def maps(side):
        def forward(params, stats, x):
            network = nnx.merge(graph, params, stats)
            return network(x, train=False), dict(network.maps(x, train=False))

        return call(forward, *state, images(side))

    for side in (8, 24):
        features, found = maps(side)
        assert features.shape == (2, 16)
        assert {*found} == {"stem", "block01", "block02"}
        grid = side // 4
        assert {each.shape for each in found.values()} == {(2, grid, grid, 16)}
    tokens = nnx.merge(graph, *state).tokens
    for grid in (2, 6):
        found = np.asarray(tokens._positions_of(grid))
        np.testing.assert_array_equal(found[:, 0], value(tokens.positions)[:, 0])
        assert found.shape == (1, 1 + grid**2, 16)
    # What is constant stays so, and what rises with the column does so still.
    columns = np.broadcast_to(np.arange(4.0)[None, :, None], (4, 4, 16))
    ramp = np.concatenate([np.zeros((1, 16)), columns.reshape(16, 16)])
    tokens.positions[...] = jnp.asarray(ramp[None, :], jnp.float32)
    half = np.asarray(tokens._positions_of(2))[0, 1:].reshape(2, 2, 16)
    np.testing.assert_allclose(half[0], half[1], atol=1e-6)
    np.testing.assert_allclose(half[:, 0] + half[:, 1], 3, atol=1e-5)  # symmetric
    assert 0 < half[0, 0, 0] < 1


def test_patches_must_fill_the_images():
    with pytest.raises(UsageError, match=r"patch_size=5 must divide .* 16 pixels; use"):
        small("vit_tiny", side=16, patch_size=5)


# What they have in common with the others.


SHALLOW = {
    "basic": lambda **options: shallow_resnet(stem="imagenet", **options),
    "bottleneck": lambda **options: shallow_resnet(bottleneck=True, **options),
    "vit": lambda **options: shallow_vit(**options),
}


def shallow_resnet(**options):
    return resnet.ResNet(
        blocks=(1, 1, 1, 1),
        widths=(8, 8, 8, 8, 8),
        final_norm=False,
        fan="fan_out",
        in_channels=3,
        rngs=nnx.Rngs(0),
        **options,
    )


def shallow_vit(side=8, **options):
    return vit.ViT(
        depth=2,
        num_features=16,
        heads=2,
        patch_size=4,
        side=side,
        in_channels=3,
        rngs=nnx.Rngs(0),
        **options,
    )


def call(function, *arguments):
    """Calls a function that is compiled in no time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*arguments).compile(options)(*arguments)


@pytest.mark.parametrize("family", SHALLOW)
def test_bfloat16_is_close_and_float32_outside(family):
    _, *state = pure(randomized(SHALLOW[family]))
    x = images(16, batch=8)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, *own = shapes(lambda dtype=dtype: SHALLOW[family](dtype=dtype))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(own)} == {"float32"}

        def forward(params, stats, x, graph=graph):
            return nnx.merge(graph, params, stats)(x, train=True)

        found[dtype] = call(forward, *state, x)
        assert found[dtype].dtype == jnp.float32
    fine, rough = found.values()
    error = np.linalg.norm(rough - fine) / np.linalg.norm(fine)
    assert 1e-4 < error < 0.1  # it was computed in bfloat16, and it is the same thing


@pytest.mark.parametrize("family", SHALLOW)
def test_recomputation_changes_no_gradient(family):
    """In float64: two programs round differently, and how depends on the processor."""
    blocks = 2 if family == "vit" else 4
    found = []
    with jax.enable_x64(True):
        x = jnp.asarray(images(8, batch=4), jnp.float64)
        for remat in (False, True):
            build = functools.partial(SHALLOW[family], remat=remat, dtype=jnp.float64)
            graph, *state = pure(randomized(build))
            params, stats = jax.tree.map(lambda a: a.astype(jnp.float64), state)

            def loss(params, graph=graph, stats=stats):
                features = nnx.merge(graph, params, stats)(x, train=True)
                return jnp.sum(jnp.sin(features))

            gradient = jax.grad(loss)
            text = str(jax.make_jaxpr(gradient)(params))
            assert text.count("= remat") + text.count("= checkpoint") == remat * blocks
            found.append(call(gradient, params))
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            assert one.dtype == jnp.float64
            limit = 1e-9 * float(np.abs(one).max()) + 1e-12
            np.testing.assert_allclose(other, one, rtol=0, atol=limit)


def test_operations_of_a_transformer_block():
    """Four products with weights of 12 d^2 in all, and two of tokens with tokens."""
    block = vit.Block(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    tokens, width = 5, 8
    by_hand = 2 * 3 * (tokens * 12 * width**2 + 2 * tokens**2 * width)
    assert flops.count(block, np.zeros((3, tokens, width), np.float32)) == by_hand


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 64)])
def test_operations_of_resnet18(stem, side):
    graph, *state = shapes(
        lambda: make_encoder("resnet18", in_channels=3, stem=stem, rngs=nnx.Rngs(0))
    )

    def forward(params, stats, x):
        return nnx.merge(graph, params, stats)(x, train=False)

    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    inside = side if stem == "cifar" else side // 4
    size = 3 if stem == "cifar" else 7
    total = size**2 * 3 * 64 * (side if stem == "cifar" else side // 2) ** 2
    total += 4 * 9 * 64**2 * inside**2
    for width in (128, 256, 512):
        inside //= 2
        total += inside**2 * width * (9 * width // 2 + 3 * 9 * width + width // 2)
    assert flops.count(forward, *state, x) == 2 * total


# Beside torchvision and timm. Names and layouts are checked without them, too.


@pytest.mark.parametrize("name", [*RESNETS, *VITS])
def test_names_there_and_back(name):
    encoder = randomized(lambda: small(name))
    _, params, stats = pure(encoder)
    state = torch_weights.export_network("encoder", params, stats)
    known = {
        "resnet18": ["conv1.weight", "bn1.running_var", "layer4.1.bn2.bias"],
        "resnet34": ["layer3.5.conv2.weight", "layer2.0.downsample.0.weight"],
        "resnet50": ["layer1.0.conv3.weight", "layer1.0.downsample.1.running_mean"],
        "vit_tiny": ["cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight"],
        "vit_small": ["blocks.11.attn.qkv.weight", "blocks.0.mlp.fc1.bias"],
    }
    assert {*known[name]} <= {*state}
    assert torch_weights.has_counterpart("encoder", params)
    # A classifier is left out, and the counts of updates.
    more = {"fc.weight": np.zeros((9, 9)), "bn1.num_batches_tracked": np.zeros(())}
    again = torch_weights.import_network("encoder", state | more, params, stats)
    jax.tree.map(np.testing.assert_array_equal, again, (params, stats))
    with pytest.raises(UsageError, match=r"'base_network\.extra' has no"):
        torch_weights.import_network(
            "encoder", state | {"extra": np.zeros(3)}, params, stats
        )


def theirs(name, side):
    """Their network, without a classifier, with random weights and statistics."""
    torch = pytest.importorskip("torch")
    if name in VITS:
        timm = pytest.importorskip("timm")
        network = timm.create_model(
            f"{name}_patch16_224",
            num_classes=0,
            img_size=side,
            patch_size=4,
            dynamic_img_size=True,
        )
    else:
        models = pytest.importorskip("torchvision.models")
        network = getattr(models, name)()
        network.fc = torch.nn.Identity()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in network.state_dict().values():
            if each.ndim in (1, 3):  # norms, biases, statistics; tokens, positions
                each += 0.2 * torch.rand(each.shape, generator=generator)
    return torch, network.eval()


@pytest.mark.parametrize("name", [*RESNETS, *VITS])
def test_the_whole_network_is_theirs(name):
    """Their weights here give their features; ours are loaded there, strictly."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    side = 64 if name in RESNETS else 32
    torch, network = theirs(name, side)
    graph, params, stats = shapes(
        lambda: make_encoder(
            name, in_channels=3, stem="imagenet", side=side, rngs=nnx.Rngs(0)
        )
    )

    @jax.jit
    def features(state, x):
        return nnx.merge(graph, *state)(x, train=False)

    state = {key: each.numpy() for key, each in network.state_dict().items()}
    state = torch_weights.import_network("encoder", state, params, stats)
    for pixels in (side, side // 2):
        x = images(pixels)
        found = jax.jit(lambda *s: nnx.merge(graph, *s[:2])(s[2], train=False))(
            *state, x
        )
        with torch.no_grad():
            expected = network(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
        limit = 1e-5 * np.abs(expected).max()  # some float32 roundings
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    arrays = torch_weights.export_network("encoder", *state)
    ours = {key: torch.tensor(np.ascontiguousarray(a)) for key, a in arrays.items()}
    counts = {k: v for k, v in network.state_dict().items() if "num_batches" in k}
    network.load_state_dict(ours | counts, strict=True)


def test_every_row_says_what_it_is():
    for name, spec in ENCODERS.items():
        assert len(spec.summary) > 20, name
    assert "encoder.stem" in ENCODERS["resnet18"].summary
    assert "bottlenecks" in ENCODERS["resnet50"].summary
    assert "6 heads" in ENCODERS["vit_small"].summary
