"""Parts of an adaptive graph: what chooses the image level, and what runs at one level."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

IMAGE, LEVEL, OUTPUT = "image", "level", "output"
MIDDLE = 1  # the image level of networks that know none
SAFE_WEIGHT = 64  # times 255 times 2 fits into 16 bits


def chooser(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of an adaptive graph that computes the level of the image."""
    return Extractor(model).extract_model([IMAGE], [LEVEL])


def is_adaptive(model: onnx.ModelProto) -> bool:
    """Whether the level depends on the image."""
    return any(IMAGE in node.input for node in chooser(model).graph.node)


def at_level(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    """An adaptive graph with the level as a constant, so that runtimes fold all that depends on it.

    INT4 weights become INT8, the type that integer kernels of CPUs take.

    Args:
        model: An adaptive graph; left alone.
        level: 0, 1 or 2.
    """
    fixed = Extractor(model).extract_model([IMAGE, LEVEL], [OUTPUT])
    fixed.metadata_props.extend(model.metadata_props)
    graph = fixed.graph
    del graph.input[[value.name for value in graph.input].index(LEVEL)]
    graph.initializer.append(helper.make_tensor(LEVEL, TensorProto.INT64, (), [level]))
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int8), tensor.name))
    return fixed


def take_batches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the graph of one level take several images at once; changed in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def avoid_overflow(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn weights back to float32 where x86 CPUs without VNNI would err; changed in place.

    They add up pairs of products in 16 bits. An input of up to 255 times a weight beyond 64 makes pairs that don't fit;
    and where inputs are signed, kernels halve the weights for that reason.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    signed = any(tensor.data_type == TensorProto.INT8 for tensor in _zero_points(graph))
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]:
        integers, step = (numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input[:2])
        if signed or np.abs(integers).max() > SAFE_WEIGHT:
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            view = [-1 if of == axis else 1 for of in range(integers.ndim)]
            graph.initializer.append(numpy_helper.from_array(integers * step.reshape(view), node.output[0]))
            graph.node.remove(node)
    return model


def _zero_points(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    used = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    return [tensor for tensor in graph.initializer if tensor.name in used]
