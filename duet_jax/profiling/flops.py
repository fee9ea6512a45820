"""Counts the floating-point operations of matrix products and convolutions."""

import math
from collections.abc import Callable

import jax
from jax.extend import core


def count(function: Callable, *arguments) -> int:
    """Returns the operations of matrix products and convolutions in a call.

    A multiplication and an addition count as two. Everything else, such as
    normalization, is excluded: it is small and does not use the matrix units. Products
    with the zeros between the rows in the gradient of a strided convolution are
    excluded as well; those with the padding at the border are included.

    Args:
      function: to be traced.
      *arguments: arrays or their shapes.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if equation.params.get("branches_platforms"):
        # The last is XLA's own convolution; others may save operations.
        return _of_jaxpr(equation.params["branches"][-1].jaxpr)
    inner = sum(map(_of_jaxpr, core.jaxprs_in_params(equation.params)))
    return inner * equation.params.get("length", 1) if name == "scan" else inner


def _product(equation) -> int:
    left = equation.invars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(left.shape[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel.shape) // kernel.shape[out_features]
    zeros = math.prod(equation.params["lhs_dilation"])
    outputs = math.prod(equation.outvars[0].aval.shape)
    return 2 * outputs * per_output // zeros
