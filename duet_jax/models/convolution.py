"""Convolutions that are quicker on a CPU than those of XLA.

On a GPU, and for every shape that nothing here improves, they are XLA's. Both agree to
rounding, values and gradients. `_forward`, `_for_input` and `_for_kernel` say which is
used where.

XLA's own convolutions are good at small channels and lose up to a factor of three to
others at what follows (jax 0.10.2, 2 cores; docs/benchmarks.md has the times):

- 3x3 convolutions of many channels, of stride 1. Winograd's minimal filtering, F(2x2,
  3x3) of Lavin and Gray (2016), arXiv:1509.09308, takes 16 products where the direct
  way takes 36, and all of them are products of large matrices.
- Gradients of kernels, which XLA computes as a convolution whose kernel is the image.
- Gradients of the inputs of strided convolutions, which XLA dilates with zeros.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from duet_jax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Channels in and out from which Winograd's filtering is the quickest.
_WIDE = 64
# Channels in from which a strided kernel's gradient is quicker tap by tap, and XLA's
# gradient of its input is as quick as any.
_NARROW = 32


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options,
) -> Array:
    """Convolves images, like `jax.lax.conv_general_dilated`.

    It is meant as the `conv_general_dilated` of an `nnx.Conv`.

    Args:
      x: [batch, height, width, in_channels].
      kernel: [size, size, in_channels, out_channels].
      strides: rows and columns.
      padding: as there.
      **options: as there.
    """
    sides, size = x.shape[1:3], kernel.shape[0]
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(sides, kernel.shape[:2], strides, padding)
    stride = strides[0]
    usual = (
        x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:2] in ((1, 1), (3, 3))
        and tuple(strides) in ((1, 1), (2, 2))
        and [tuple(each) for each in pads] == [(size // 2, size // 2)] * 2
        and all(side % 2 == 0 for side in sides)
        and options.get("feature_group_count", 1) == 1
        and all(set(options.get(f"{k}hs_dilation") or [1]) == {1} for k in "lr")
    )
    if not usual:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    return _by_platform(_forward(kernel.shape, stride), _plain, x, kernel, stride)


def _residuals(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple]:
    return _convolve(x, kernel, stride), (x, kernel)


def _gradients(stride: int, inputs: tuple, gradient: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    shape = kernel.shape
    of_x = _by_platform(
        _for_input(shape, stride), _plain_for_input, gradient, x, kernel, stride
    )
    of_kernel = _by_platform(
        _for_kernel(shape, stride), _plain_for_kernel, gradient, x, kernel, stride
    )
    return of_x, of_kernel


_convolve.defvjp(_residuals, _gradients)


def _by_platform(on_cpu: Callable, elsewhere: Callable, *arguments) -> Array:
    """Calls one of two functions that compute the same; the last argument is static."""
    *arrays, stride = arguments
    choices = [functools.partial(f, stride=stride) for f in (on_cpu, elsewhere)]
    if on_cpu is elsewhere:
        return choices[0](*arrays)
    return lax.platform_dependent(*arrays, cpu=choices[0], default=choices[1])


def _apart(function: Callable) -> Callable:
    """Makes a function of arrays whose program XLA does not fuse with what is around.

    XLA would compute the inputs, such as a BN and a ReLU, once more for each tile, or
    in the slow order of a transposed copy.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def called(*arrays):
        with set_xla_metadata(inlineable="false"):
            return compiled(*arrays)

    return called


# What is used on a CPU, by shape of the kernel and stride.


def _forward(shape: Sequence[int], stride: int) -> Callable:
    return _winograd if _is_wide(shape, stride) else _plain


def _for_input(shape: Sequence[int], stride: int) -> Callable:
    if _is_wide(shape, stride):
        return _winograd_for_input
    if stride == 2 and shape[0] == 3 and shape[2] < _NARROW:
        return _phases_for_input
    return _plain_for_input


def _for_kernel(shape: Sequence[int], stride: int) -> Callable:
    if _is_wide(shape, stride):
        return _winograd_for_kernel
    if shape[0] == 1 or (stride == 2 and shape[2] >= _NARROW):
        return _taps_for_kernel
    return _apart_for_kernel


def _is_wide(shape: Sequence[int], stride: int) -> bool:
    return stride == 1 and shape[0] == 3 and min(shape[2:]) >= _WIDE


# XLA's.


def _plain(x: Array, kernel: Array, stride: int) -> Array:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT
    )


def _plain_for_input(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    return jax.linear_transpose(lambda x: _plain(x, kernel, stride), x)(gradient)[0]


def _plain_for_kernel(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    return jax.linear_transpose(lambda k: _plain(x, k, stride), kernel)(gradient)[0]


# Winograd's: the image in overlapping tiles of 4x4, the kernel and tiles of 2x2 of the
# output are transformed to 4x4 values each, along the height and then the width. A 4x4
# is a list of lists of arrays, each of all tiles: a single array would be copied.


def _winograd(x: Array, kernel: Array, stride: int) -> Array:
    del stride  # 1
    return _filtered(x, _twice(_kernel_values, kernel, axes=(0, 0)), over=0)


def _winograd_for_input(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    del x, stride
    kernels = _twice(_kernel_values, kernel, axes=(0, 0))
    # Those of the kernel upside down and left to right.
    first_last = [row[3:] + row[1:3] + row[:1] for row in kernels]
    turned = first_last[3:] + first_last[1:3] + first_last[:1]
    return _filtered(gradient, turned, over=1)


def _filtered(x: Array, kernels: list[list[Array]], over: int) -> Array:
    """Convolves with transformed kernels [c, o], whose axis `over` is that of `x`."""
    products = [
        [
            lax.dot_general(tile, matrix, (((3,), (over,)), ((), ())))
            for tile, matrix in zip(*rows, strict=True)
        ]
        for rows in zip(_tiles(x), kernels, strict=True)
    ]
    return _output(products)


@_apart
def _output(products: list[list[Array]]) -> Array:
    return _woven(_both(_output_values, products))


@_apart
def _tiles(x: Array) -> list[list[Array]]:
    return _twice(_tile_values, x, axes=(1, 2))


@_apart
def _outputs(gradient: Array) -> list[list[Array]]:
    return _twice(_output_gradients, gradient, axes=(1, 2))


@_apart
def _as_they_are(*arrays: Array) -> tuple[Array, ...]:
    return arrays


def _apart_for_kernel(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    gradient, x = _as_they_are(gradient, x)
    return _plain_for_kernel(gradient, x, kernel, stride)


def _winograd_for_kernel(
    gradient: Array, x: Array, kernel: Array, stride: int
) -> Array:
    del kernel, stride
    products = [
        [_over_pixels(tile, output) for tile, output in zip(*rows, strict=True)]
        for rows in zip(_tiles(x), _outputs(gradient), strict=True)
    ]
    rows = _both(_kernel_gradients, products)
    return jnp.stack([jnp.stack(row) for row in rows])


def _twice(transform: Callable, array: Array, axes: tuple[int, int]) -> list[list]:
    """Transforms along two axes, one after the other; a list for each of the first."""
    return [transform(row, axes[1]) for row in transform(array, axes[0])]


def _both(transform: Callable, grid: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """Transforms the columns of a grid, and then the rows."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _tile_values(x: Array, axis: int) -> list[Array]:
    side = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    a, b, c, d = (
        lax.slice_in_dim(padded, i, i + side - 1, 2, axis=axis) for i in range(4)
    )
    return [a - c, b + c, c - b, b - d]


def _kernel_values(kernel: Array, axis: int) -> list[Array]:
    a, b, c = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _kernel_gradients(values: Sequence[Array]) -> list[Array]:
    """The transpose of `_kernel_values`."""
    a, b, c, d = values
    return [a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d]


def _output_values(values: Sequence[Array]) -> list[Array]:
    a, b, c, d = values
    return [a + b + c, b - c - d]


def _output_gradients(gradient: Array, axis: int) -> list[Array]:
    """The transpose of `_output_values`."""
    side = gradient.shape[axis]
    a, b = (lax.slice_in_dim(gradient, i, side, 2, axis=axis) for i in range(2))
    return [a, a + b, a - b, -b]


def _woven(grid: Sequence[Sequence[Array]]) -> Array:
    """Returns the image of which a 2x2 grid has the pixels of even and odd places."""
    n, h, w, c = grid[0][0].shape
    rows = [jnp.stack(row, axis=3).reshape(n, h, 2 * w, c) for row in grid]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, c)


def _over_pixels(left: Array, right: Array) -> Array:
    """Returns the product of [n, h, w, c] and [n, h, w, o] as [c, o]."""
    axes = (0, 1, 2)
    return lax.dot_general(left, right, ((axes, axes), ((), ())))


# Others.


def _taps_for_kernel(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    """A product for each tap of the kernel."""
    size, (rows, columns) = kernel.shape[0], gradient.shape[1:3]
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))

    def tap(i: int, j: int) -> Array:
        seen = padded[:, i:, j:][
            :, : rows * stride : stride, : columns * stride : stride
        ]
        return _over_pixels(seen, gradient)

    return jnp.stack([jnp.stack([tap(i, j) for j in range(size)]) for i in range(size)])


def _phases_for_input(gradient: Array, x: Array, kernel: Array, stride: int) -> Array:
    """A small convolution for each of the four kinds of pixels, by even and odd.

    An even row is seen by the middle row of the kernel only, and an odd one by the last
    and, one step later, the first.
    """
    del stride  # 2
    even, odd = (1,), (2, 0)

    def phase(rows: tuple[int, ...], columns: tuple[int, ...]) -> Array:
        seen = kernel[jnp.array(rows)][:, jnp.array(columns)].swapaxes(2, 3)
        padding = [(0, len(rows) - 1), (0, len(columns) - 1)]
        return lax.conv_general_dilated(
            gradient, seen, (1, 1), padding, dimension_numbers=_LAYOUT
        )

    grid = [[phase(row, column) for column in (even, odd)] for row in (even, odd)]
    return _woven(grid)
