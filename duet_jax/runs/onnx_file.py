"""Writes an encoder as ONNX, layer by layer.

The tools that convert a traced JAX program bring many packages, or fail at our
convolutions; a ResNet has few kinds of layers.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from duet_jax.models import batch_norm, resnet

# What every version of ONNX Runtime that we allow can read.
_OPSET, _FORMAT = 17, 8
_ENDS = ("start", "stop")


class Graph:
    """Nodes and constants, in order; each function returns the name of its output."""

    def __init__(self):
        """Begins without any."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, name: str = "", **attributes) -> str:
        """Adds an operation of ONNX with its attributes; `name` is of its output."""
        output = name or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array: np.ndarray | float) -> str:
        """Adds an array."""
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def cut(self, x: str, places: Mapping[int, slice]) -> str:
        """Adds a slice; `places` are by axis, each with a start and a stop."""
        starts, stops = ([getattr(p, end) for p in places.values()] for end in _ENDS)
        values = (np.array(each, np.int64) for each in (starts, stops, [*places]))
        return self.node("Slice", x, *map(self.constant, values))

    def save(
        self,
        path: pathlib.Path,
        inputs: Mapping[str, Sequence[int | str | None]],
        outputs: Mapping[str, Sequence[int | str | None]],
    ) -> None:
        """Writes a file.

        Args:
          path: of the file.
          inputs: names with their shapes, all float32; a text is a size that is open.
          outputs: likewise.
        """
        given, made = (
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [*shape])
                for name, shape in each.items()
            ]
            for each in (inputs, outputs)
        )
        graph = helper.make_graph(self._nodes, path.stem, given, made, self._constants)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_FORMAT)
        model.producer_name = "duet_jax"
        onnx.checker.check_model(model)
        onnx.save(model, path)


def write(
    path: pathlib.Path,
    network: resnet.ResNet,
    shape: Sequence[int | str | None],
    *,
    side: int,
) -> None:
    """Writes a trained encoder, which computes in float32.

    It takes `images` in [0, 1], of which it crops the center, and returns `features`.

    Args:
      path: of the file.
      network: with its weights.
      shape: of the images: "n" for any number of them, then side, side and channels.
      side: of the crop.

    Raises:
      OSError: it cannot be written.
    """
    graph = Graph()
    x = "images"
    if shape[1] != side:
        start = (shape[1] - side) // 2
        x = graph.cut(x, dict.fromkeys((1, 2), slice(start, start + side)))
    x = graph.node("Sub", x, graph.constant(np.float32(0.5)))
    x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    x = _convolved(graph, x, network.stem, network.stem_norm)
    x = graph.node("Relu", x)
    if network.pooled:
        x = graph.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    for name in network.stages:
        for block in getattr(network, name):
            x = _block(graph, x, block)
    x = graph.node("GlobalAveragePool", x)
    if network.final_norm is None:
        graph.node("Flatten", x, name="features")
    else:
        x = graph.node("Flatten", x)
        _normalized(graph, x, network.final_norm, name="features")
    graph.save(path, {"images": shape}, {"features": [shape[0], network.num_features]})


def _block(graph: Graph, x: str, block: resnet.Residual) -> str:
    y = x
    for i, (conv, norm) in enumerate(block.layers):
        y = _convolved(graph, graph.node("Relu", y) if i else y, conv, norm)
    if block.shortcut is not None:
        x = _convolved(graph, x, block.shortcut.conv, block.shortcut.norm)
    return graph.node("Relu", graph.node("Add", x, y))


def _convolved(graph: Graph, x: str, conv: nnx.Conv, norm: batch_norm.BatchNorm) -> str:
    kernel = np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)
    size, stride = kernel.shape[2], conv.strides
    strides = [stride] * 2 if isinstance(stride, int) else [*stride]
    y = graph.node(
        "Conv", x, graph.constant(kernel), pads=[size // 2] * 4, strides=strides
    )
    return _normalized(graph, y, norm)


def _normalized(
    graph: Graph, x: str, norm: batch_norm.BatchNorm, name: str = ""
) -> str:
    arrays = (norm.scale, norm.bias, norm.mean, norm.var)
    values = [graph.constant(np.asarray(each[...])) for each in arrays]
    return graph.node(
        "BatchNormalization", x, *values, name=name, epsilon=batch_norm.EPSILON
    )
