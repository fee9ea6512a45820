"""ONNX files: an encoder of ours, layer by layer, and models that do very little."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from duet_jax.models import batch_norm, resnet

# What every version of ONNX Runtime that we allow can read.
_OPSET, _FORMAT = 17, 8


class Graph:
    """Nodes and constants, in order; each function returns the name of its output."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def save(
        self,
        path: pathlib.Path,
        inputs: Mapping[str, Sequence],
        outputs: Mapping[str, Sequence],
    ) -> None:
        """Writes a file; inputs and outputs are names with their shapes."""
        given, made = (
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [*shape])
                for name, shape in each.items()
            ]
            for each in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, path.stem, given, made, self.constants)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_FORMAT)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def parts(path: pathlib.Path, shapes: Sequence, *wanted: Mapping) -> None:
    """Writes a model whose outputs are parts of the sum of its inputs.

    Args:
      path: of the file.
      shapes: of the inputs.
      *wanted: for each output, axis -> index or slice.
    """
    graph, inputs = Graph(), {f"x{i}": shape for i, shape in enumerate(shapes)}
    x = graph.node("Sum", *inputs)
    outputs = {}
    for part in wanted:
        y = x
        for axis, place in part.items():
            start, stop = (
                (place.start or 0, place.stop)
                if isinstance(place, slice)
                else (place, place + 1)
            )
            ends = (graph.constant(np.array([end])) for end in (start, stop, axis))
            y = graph.node("Slice", y, *ends)
        gone = [axis for axis, place in part.items() if isinstance(place, int)]
        y = graph.node("Squeeze", y, graph.constant(np.array(gone)))
        outputs[y] = [None] * (len(shapes[0]) - len(gone))
    graph.save(path, inputs, outputs)


def encoder(path: pathlib.Path, network: resnet.ResNet, shape: Sequence) -> None:
    """Writes a trained encoder, which takes images in [0, 1] of a shape."""
    graph = Graph()
    x = graph.node("Sub", "images", graph.constant(np.float32(0.5)))
    x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    x = _convolved(graph, x, network.stem, network.stem_norm)
    x = graph.node("Relu", x)
    for stage in (network.stage1, network.stage2, network.stage3):
        for block in stage:
            x = _block(graph, x, block)
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    x = _normalized(graph, x, network.final_norm)
    graph.save(path, {"images": shape}, {x: [None, network.num_features]})


def _block(graph: Graph, x: str, block: resnet.BasicBlock) -> str:
    y = graph.node("Relu", _convolved(graph, x, block.conv1, block.norm1))
    y = _convolved(graph, y, block.conv2, block.norm2)
    if block.shortcut is not None:
        x = _convolved(graph, x, block.shortcut.conv, block.shortcut.norm)
    return graph.node("Relu", graph.node("Add", x, y))


def _convolved(graph: Graph, x: str, conv, norm) -> str:
    kernel = np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)
    size, stride = kernel.shape[2], conv.strides
    strides = [stride] * 2 if isinstance(stride, int) else [*stride]
    y = graph.node(
        "Conv", x, graph.constant(kernel), pads=[size // 2] * 4, strides=strides
    )
    return _normalized(graph, y, norm)


def _normalized(graph: Graph, x: str, norm: batch_norm.BatchNorm) -> str:
    arrays = (norm.scale, norm.bias, norm.mean, norm.var)
    values = [graph.constant(np.asarray(each[...])) for each in arrays]
    return graph.node("BatchNormalization", x, *values, epsilon=batch_norm.EPSILON)
