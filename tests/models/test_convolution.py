"""Convolutions on a CPU against those of XLA, which are used everywhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from duet_jax.models import convolution
from duet_jax.profiling import flops

LAYOUT = ("NHWC", "HWIO", "NHWC")


def operands(channels, *, size=3, stride=1, side=8, batch=4, dtype=np.float32):
    """Images, a kernel, and a gradient of the output."""
    rng = np.random.default_rng(0)
    inputs, outputs = channels
    x = rng.standard_normal((batch, side, side, inputs))
    kernel = rng.standard_normal((size, size, inputs, outputs))
    gradient = rng.standard_normal(
        (batch, -(-side // stride), -(-side // stride), outputs)
    )
    return [jnp.asarray(each, dtype) for each in (x, kernel, gradient)]


def value_and_gradients(convolve, x, kernel, gradient, stride, padding=None):
    padding = padding or [(kernel.shape[0] // 2,) * 2] * 2

    def of(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    @jax.jit
    def everything(x, kernel, gradient):
        value, back = jax.vjp(of, x, kernel)
        return value, *back(gradient)

    return everything(x, kernel, gradient)


def difference(value, expected):
    """The largest difference as a fraction of the largest value."""
    return float(jnp.abs(value - expected).max() / jnp.abs(expected).max())


# Kernel size, stride, channels in and out: one for each way of computing.
SHAPES = {
    "stem": (3, 1, (3, 16)),
    "narrow": (3, 1, (16, 16)),
    "wide": (3, 1, (64, 64)),
    "widening": (3, 1, (64, 96)),
    "strided, narrow": (3, 2, (16, 32)),
    "strided": (3, 2, (32, 64)),
    "shortcut": (1, 2, (32, 64)),
    "1x1": (1, 1, (16, 32)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [2, 8, 9])
def test_they_are_those_of_xla(shape, side):
    size, stride, channels = SHAPES[shape]
    arrays = operands(channels, size=size, stride=stride, side=side)
    ours = value_and_gradients(convolution.convolve, *arrays, stride)
    theirs = value_and_gradients(lax.conv_general_dilated, *arrays, stride)
    for value, expected in zip(ours, theirs, strict=True):
        assert value.shape == expected.shape
        assert difference(value, expected) < 1e-5


def test_padding_in_words():
    arrays = operands((64, 64))
    ours = value_and_gradients(convolution.convolve, *arrays, 1, "SAME")
    theirs = value_and_gradients(lax.conv_general_dilated, *arrays, 1, "SAME")
    for value, expected in zip(ours, theirs, strict=True):
        assert difference(value, expected) < 1e-5


def program(channels, platform, dtype=np.float32):
    x, kernel, _ = operands(channels, dtype=dtype)

    def loss(x, kernel):
        padding = [(1, 1), (1, 1)]
        y = convolution.convolve(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)
        return jnp.sum(jnp.square(y))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("channels", [(16, 16), (64, 64)])
def test_a_gpu_runs_those_of_xla(channels):
    text = program(channels, "cuda")
    assert text.count("stablehlo.convolution") == 3
    assert "dot_general" not in text
    assert "inlineable" not in text


def test_a_cpu_runs_products():
    assert "stablehlo.convolution" not in program((64, 64), "cpu")
    assert program((64, 64), "cpu").count("dot_general") == 48


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_are_left_to_xla(dtype):
    assert program((64, 64), "cpu", dtype).count("stablehlo.convolution") == 3


def test_operations_are_counted_as_everywhere():
    arrays = operands((64, 64))[:2]
    padding = [(1, 1), (1, 1)]

    def counted(convolve):
        def of(x, kernel):
            return convolve(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT).sum()

        return flops.count(jax.grad(of, argnums=(0, 1)), *arrays)

    assert counted(convolution.convolve) == counted(lax.conv_general_dilated)
