"""Networks against the reference's outputs, gradients and running statistics."""

import contextlib
import functools
import re
import zlib
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from duet_jax.models import representation, torch_weights
from duet_jax.models.heads import Predictor, Projector
from duet_jax.models.resnet import ResNet
from golden_parts.arrays import load

# Ten times the differences between float32 and float64 that `golden/README.md` lists.
# Gradients are relative to the largest entry of the tensor: of the encoder's, float32
# is up to 7e-6 off here, 2e-5 when inputs and weights are wrong by one unit in the last
# place, and the same with the instructions of other processors.
MODELS_LIMITS = {
    "float32": {"encoder": 1e-4, "head": 2e-5, "statistics": 2e-6},
    "float64": {"encoder": 1e-9, "head": 1e-9},
}
PRECISIONS = tuple(MODELS_LIMITS)


class ModelsResult(NamedTuple):
    """One network on one input; gradients are those of sum(train * cotangent)."""

    eval: np.ndarray
    train: np.ndarray
    after_train: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    grad_input: np.ndarray
    gates: tuple[np.ndarray, ...]


@contextlib.contextmanager
def models_gates(given=None):
    """What the ReLUs that are traced inside let through; they obey the `given` gates.

    An input of a ReLU that rounding carries over zero changes the gradient of what lies
    behind it, by a few percent in a network as small as these, and on which processor
    one does is chance. A gradient in float32 is therefore taken with the gates of the
    same network in float64, whose rounding is far below the smallest such input: so it
    differs from the reference's by rounding alone, whatever the order of sums.
    """
    real, used = nnx.relu, []

    def relu(y):
        used.append(y > 0 if given is None else given[len(used)])
        return real(y) if given is None else jnp.where(used[-1], y, 0)

    with mock.patch.object(nnx, "relu", relu):
        yield used
    assert used, "the networks call their ReLU by another name than nnx.relu"
    assert given is None or len(used) == len(given)


def models_precision(precision):
    """The context to compute in `precision` in."""
    if precision == "float64":
        return jax.enable_x64(True)
    return contextlib.nullcontext()


def models_state(arrays, prefix):
    """The arrays below `prefix`, by what follows it."""
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def models_load(network, build, state, dtype):
    """Graph, parameters and running statistics of a network with the reference's."""
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = torch_weights.import_network(
        network, state, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    )
    return graph, *jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, stats))


def models_call(model, x, train):
    """Calls a network, most of which tell training from evaluation."""
    return model(x) if isinstance(model, Predictor) else model(x, train=train)


@functools.partial(jax.jit, static_argnums=0)
def models_forward(graph, params, stats, x):
    """Outputs in evaluation and training, and the statistics after training."""
    evaluated = models_call(nnx.merge(graph, params, stats), x, False)
    model = nnx.merge(graph, params, stats)
    trained = models_call(model, x, True)
    return evaluated, trained, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@functools.partial(jax.jit, static_argnums=0)
def models_backward(graph, params, stats, x, cotangent, gates):
    """Gradients with respect to the parameters and the input, and the gates used."""

    def objective(params, x):
        with models_gates(gates) as used:
            trained = models_call(nnx.merge(graph, params, stats), x, True)
        return jnp.sum(trained * cotangent), tuple(used)

    (grads, grad_input), used = jax.grad(objective, (0, 1), has_aux=True)(params, x)
    return grads, grad_input, used


def models_run(network, build, state, x, cotangent, gates=None):
    """Runs a network both ways, and back: in float32 if it is given `gates`."""
    precision = "float64" if gates is None else "float32"
    with models_precision(precision):
        dtype = jnp.dtype(precision)
        build = functools.partial(build, dtype=dtype)
        graph, params, stats = models_load(network, build, state, dtype)
        x, cotangent = jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype)
        *outputs, after = models_forward(graph, params, stats, x)
        back = models_backward(graph, params, stats, x, cotangent, gates)
        grads, grad_input, used = jax.tree.map(np.asarray, back)
        assert all(a.dtype == dtype for a in (*outputs, grad_input))
        after, grads = (
            torch_weights.export_network(network, t) for t in (after, grads)
        )
        return ModelsResult(*map(np.asarray, outputs), after, grads, grad_input, used)


def models_assert_gradient(actual, expected, limit, name):
    """Compares gradients relative to the largest entry of the tensor."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=limit * scale, err_msg=name
    )


def models_encoder_build(state):
    """The constructor of the narrow encoder that `state` describes."""
    blocks = tuple(
        1 + max(int(m[1]) for n in state if (m := re.match(rf"layer{i}\.(\d+)\.", n)))
        for i in (1, 2, 3)
    )
    outputs = [state["conv1.weight"]]
    outputs += [state[f"layer{i}.0.conv2.weight"] for i in (1, 2, 3)]

    def build(rngs, dtype=jnp.float32):
        return ResNet(
            blocks=blocks,
            widths=tuple(w.shape[0] for w in outputs),
            in_channels=state["conv1.weight"].shape[1],
            dtype=dtype,
            rngs=rngs,
        )

    return build


ENCODER_INPUTS = sorted(n for n in load("encoder") if re.fullmatch(r"x\d+", n))


@functools.cache
def models_encoder_result(name, precision):
    gates = None
    if precision == "float32":
        gates = models_encoder_result(name, "float64").gates
    golden = load("encoder")
    state = models_state(golden, "state/")
    x = golden[name].transpose(0, 2, 3, 1)
    build = models_encoder_build(state)
    return models_run("encoder", build, state, x, golden["cotangent"], gates)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ENCODER_INPUTS)
def test_encoder_outputs_and_input_gradient(name, precision):
    golden, limits = load("encoder"), MODELS_LIMITS[precision]
    suffix = "_f64" if precision == "float64" else ""
    result = models_encoder_result(name, precision)
    for mode in ("eval", "train"):
        expected = golden[f"{name}_{mode}{suffix}"]
        np.testing.assert_allclose(
            getattr(result, mode), expected, rtol=0, atol=limits["encoder"]
        )
    grad_input = result.grad_input.transpose(0, 3, 1, 2)
    # Of float64 for both: the reference's float32 may have met an input near zero.
    expected = golden[f"{name}_grad_input_f64"]
    models_assert_gradient(grad_input, expected, limits["encoder"], name)


ENCODER_GRADIENTS = [
    n for n in ENCODER_INPUTS if f"{n}_grad/conv1.weight" in load("encoder")
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ENCODER_GRADIENTS)
def test_encoder_weight_gradients(name, precision):
    expected = models_state(load("encoder"), f"{name}_grad/")
    grads = models_encoder_result(name, precision).grads
    assert set(grads) == set(expected)
    for weight, gradient in expected.items():  # the stored ones are float32
        limit = MODELS_LIMITS["float32"]["encoder"]
        models_assert_gradient(grads[weight], gradient, limit, weight)


ENCODER_STATISTICS = [
    n for n in ENCODER_INPUTS if f"{n}_after_train/bn1.running_mean" in load("encoder")
]


@pytest.mark.parametrize("name", ENCODER_STATISTICS)
def test_encoder_running_statistics_after_one_training_forward(name):
    expected = models_state(load("encoder"), f"{name}_after_train/")
    assert expected.pop("num_batches_tracked") == 1
    after = models_encoder_result(name, "float32").after_train
    assert set(after) == set(expected)
    for statistic, value in expected.items():
        limit = MODELS_LIMITS["float32"]["statistics"]
        np.testing.assert_allclose(after[statistic], value, rtol=limit, atol=limit)


def test_encoder_activations_inside():
    golden = load("encoder")
    state = models_state(golden, "state/")
    graph, params, stats = models_load(
        "encoder", models_encoder_build(state), state, jnp.float32
    )

    @jax.jit
    def activations(x):
        model = nnx.merge(graph, params, stats)
        y = {"stem": nnx.relu(model.stem_norm(model.stem(x), train=False))}
        x = y["stem"]
        for i, stage in enumerate((model.stage1, model.stage2, model.stage3), 1):
            for block in stage:
                x = block(x, train=False)
            y[f"layer{i}"] = x
        return y

    expected = {
        m[2]: (m[1], value)
        for name, value in golden.items()
        if (m := re.fullmatch(r"(x\d+)_sample0_eval_(\w+)", name))
    }
    assert set(expected) == {"stem", "layer1", "layer2", "layer3"}
    (source,) = {source for source, _ in expected.values()}
    actual = activations(golden[source][:1].transpose(0, 2, 3, 1))
    for name, (_, value) in expected.items():
        np.testing.assert_allclose(
            actual[name].transpose(0, 3, 1, 2), value, rtol=0, atol=1e-4, err_msg=name
        )


def models_full_width_array(name, shape):
    """A weight of the full-width encoder; its name is the seed of its values."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("running_mean"):
        value = 0.1 * random.standard_normal(shape)
    elif name.endswith("running_var"):
        value = 0.5 + random.random_sample(shape)
    elif len(shape) == 4:
        value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 0.5 + random.random_sample(shape)
    else:
        value = 0.1 * random.standard_normal(shape)
    return value.astype(np.float32)


@pytest.fixture(scope="module")
def full_width_state():
    golden = load("full_width")
    state = {}
    for name, shape in zip(golden["state_names"], golden["state_shapes"], strict=True):
        shape = tuple(int(n) for n in re.findall(r"\d+", shape))
        state[str(name)] = models_full_width_array(str(name), shape)
    return state


def test_full_width_weights_are_regenerated(full_width_state):
    spots = models_state(load("full_width"), "probe/")
    assert spots
    for spot, expected in spots.items():
        name, index = re.fullmatch(r"(.*?)\[(.*)\]", spot).groups()
        index = tuple(
            slice(int(i[1:])) if i.startswith(":") else int(i) for i in index.split(",")
        )
        np.testing.assert_array_equal(full_width_state[name][index], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_width_encoder(full_width_state, precision):
    golden, limits = load("full_width"), MODELS_LIMITS[precision]
    suffix = "_f64" if precision == "float64" else ""
    with models_precision(precision):
        dtype = jnp.dtype(precision)
        build = functools.partial(models_encoder_build(full_width_state), dtype=dtype)
        model = models_load("encoder", build, full_width_state, dtype)
        x = jnp.asarray(golden["x"].transpose(0, 2, 3, 1), dtype)
        evaluated, trained, after = models_forward(*model, x)
        after = torch_weights.export_network("encoder", after)
    # Ten times the difference that was measured, larger here than when narrow.
    limit = 3.5e-4 if precision == "float32" else limits["encoder"]
    for actual, mode in ((evaluated, "eval"), (trained, "train")):
        np.testing.assert_allclose(
            actual, golden[f"{mode}{suffix}"], rtol=0, atol=limit, err_msg=mode
        )
    for statistic, value in models_state(golden, "after_train/").items():
        limit = MODELS_LIMITS["float32"]["statistics"]
        np.testing.assert_allclose(after[statistic], value, rtol=limit, atol=limit)


HEADS = sorted({n.split("/")[0] for n in load("heads") if "/state/" in n})


@functools.cache
def models_head_result(head, precision):
    gates = None
    if precision == "float32":
        gates = models_head_result(head, "float64").gates
    golden = load("heads")
    state = models_state(golden, f"{head}/state/")
    hidden, in_features = state["0.weight"].shape
    outputs = state["6.weight"].shape[0]

    def build_projector(rngs, dtype=jnp.float32):
        return Projector(
            in_features, hidden=hidden, out_features=outputs, dtype=dtype, rngs=rngs
        )

    def build_predictor(rngs, dtype=jnp.float32):
        return Predictor(in_features, outputs, hidden=hidden, dtype=dtype, rngs=rngs)

    network, build = "predictor", build_predictor
    if "1.running_mean" in state:
        network, build = "projector", build_projector
    x, cotangent = golden[f"{head}/x"], golden[f"{head}/cotangent"]
    return models_run(network, build, state, x, cotangent, gates)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", HEADS)
def test_head_outputs_and_input_gradient(head, precision):
    golden = models_state(load("heads"), f"{head}/")
    suffix = "_f64" if precision == "float64" else ""
    result, limits = models_head_result(head, precision), MODELS_LIMITS[precision]
    for mode in ("eval", "train"):
        np.testing.assert_allclose(
            getattr(result, mode), golden[mode + suffix], rtol=0, atol=limits["head"]
        )
    # Heads are shallow: their gradients are as exact as their outputs.
    expected = golden["grad_input_f64"]
    models_assert_gradient(result.grad_input, expected, limits["head"], head)


@pytest.mark.parametrize("head", HEADS)
def test_head_weight_gradients(head):
    golden = models_state(load("heads"), f"{head}/")
    grads, expected = (
        models_head_result(head, "float32").grads,
        models_state(golden, "grad/"),
    )
    assert set(grads) == set(expected)
    for name, gradient in expected.items():
        layer, kind = name.split(".")
        if kind == "bias" and f"state/{int(layer) + 1}.running_mean" in golden:
            # In front of a BN the gradient is zero, and all that is left is rounding.
            assert np.abs(grads[name]).max() < 1e-4
        else:
            limit = MODELS_LIMITS["float32"]["head"]
            models_assert_gradient(grads[name], gradient, limit, name)


@pytest.mark.parametrize("head", HEADS)
def test_head_running_statistics_after_one_training_forward(head):
    expected = models_state(load("heads"), f"{head}/after_train/")
    expected.pop("num_batches_tracked", None)
    after = models_head_result(head, "float32").after_train
    assert set(after) == set(expected)
    for statistic, value in expected.items():
        limit = MODELS_LIMITS["float32"]["statistics"]
        np.testing.assert_allclose(after[statistic], value, rtol=limit, atol=limit)


MODELS_BINS = sorted(
    int(m[1]) for n in load("heads") if (m := re.fullmatch(r"layer/G(\d+)_content", n))
)


@pytest.mark.parametrize("num_bins", MODELS_BINS)
def test_content_and_structure(num_bins):
    golden = models_state(load("heads"), f"layer/G{num_bins}_")
    matrix = representation.as_matrix(load("heads")["layer/z"], num_bins)
    logits = golden["group_logits"][:, 0]
    np.testing.assert_array_equal(matrix, golden["joint"][:, 0])
    np.testing.assert_allclose(
        representation.content(matrix), golden["content"], rtol=0, atol=2e-6
    )
    np.testing.assert_allclose(
        representation.structure_logits(matrix), logits, rtol=0, atol=1e-6
    )
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        representation.structure(matrix), softmax, rtol=0, atol=1e-6
    )
