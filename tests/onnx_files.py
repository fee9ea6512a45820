"""ONNX models that do very little; what writes an encoder of ours is in the program."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from duet_jax.runs.onnx_file import Graph


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
        places = {
            axis: slice(place.start or 0, place.stop)
            if isinstance(place, slice)
            else slice(place, place + 1)
            for axis, place in part.items()
        }
        y = graph.cut(x, places)
        gone = [axis for axis, place in part.items() if isinstance(place, int)]
        y = graph.node("Squeeze", y, graph.constant(np.array(gone)))
        outputs[y] = [None] * (len(shapes[0]) - len(gone))
    graph.save(path, inputs, outputs)
