"""Parts of an adaptive graph: what chooses the image level, and what runs at one level."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute
from adabm_basicsr.deployment.onnx.exact import set_scales

IMAGE, LEVEL, OUTPUT = "image", "level", "output"
MIDDLE = 1  # the image level of networks that know none
SAFE_WEIGHT = 64  # times 255 times 2 fits into 16 bits
FEW_CHANNELS = 4  # of images; kernels take at least as many at once


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
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int8), tensor.name)
            )
    return fixed


def take_batches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the graph of one level take several images at once; changed in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def avoid_overflow(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite layers whose integers x86 CPUs without VNNI would add up wrongly; changed in place.

    They add up pairs of products in 16 bits. An input of up to 255 times a weight beyond 64 makes pairs that don't fit;
    and where inputs are signed, kernels halve the weights for that reason. Such layers run in float, but for those that
    take an image's few channels: these take them twice, with half of each weight.
    """
    edited = EditedGraph(model)
    signed = any(
        edited.constant(node.input[2]).dtype == np.int8 for node in edited.of_type(QUANTIZE)
    )
    for node in edited.of_type(DEQUANTIZE):
        if not edited.is_constant(node.input[0]):
            continue
        integers = edited.constant(node.input[0])
        if signed:
            _use_float(edited, node)
        elif np.abs(integers.astype(np.int16)).max() > SAFE_WEIGHT:
            quantize = _quantization_of_few(edited, node)
            if quantize is None:
                _use_float(edited, node)
            else:
                _take_twice(edited, node, quantize)
    edited.sort()
    return model


def _use_float(edited: EditedGraph, weights: onnx.NodeProto) -> None:
    integers, step = (edited.constant(name).astype(np.float32) for name in weights.input[:2])
    view = [-1 if of == attribute(weights, "axis") else 1 for of in range(integers.ndim)]
    value = edited.add_constant(integers * step.reshape(view))
    for taker in edited.graph.node:
        for at in [at for at, name in enumerate(taker.input) if name == weights.output[0]]:
            taker.input[at] = value
    edited.graph.node.remove(weights)


def _quantization_of_few(edited: EditedGraph, weights: onnx.NodeProto) -> onnx.NodeProto | None:
    """The quantization of a convolution's input, if it has few channels and nothing else takes them quantized."""
    layer = edited.only_taker(weights.output[0])
    if (
        layer is None
        or layer.op_type != "Conv"
        or edited.constant(weights.input[0]).shape[1] > FEW_CHANNELS
    ):
        return None
    if attribute(layer, "group", 1) > 1:
        return None
    name = layer.input[0]
    while (maker := edited.maker(name)) is not None and edited.only_taker(name) is not None:
        if maker.op_type == QUANTIZE:
            return maker
        if maker.op_type not in (DEQUANTIZE, "Clip"):
            break
        name = maker.input[0]
    return None


def _take_twice(edited: EditedGraph, weights: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    """Let a convolution take its input twice, with about half of each weight: together, they make the same sums."""
    integers = edited.constant(weights.input[0]).astype(np.int16)
    halves = integers // 2, integers - integers // 2
    weights.input[0] = edited.add_constant(np.concatenate(halves, 1).astype(np.int8))
    scales, zeros = (edited.constant(name) for name in quantize.input[1:3])
    if scales.size > 1:
        set_scales(edited, quantize, np.tile(scales, 2), np.tile(zeros, 2))
    twice = f"{quantize.output[0]}_twice"
    edited.add_node("Concat", [quantize.input[0]] * 2, twice, axis=1)
    quantize.input[0] = twice
