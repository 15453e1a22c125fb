"""Graphs for x86 CPUs without VNNI, which add up pairs of 8-bit products in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import (
    DEQUANTIZE,
    QUANTIZE,
    EditedGraph,
    attribute,
    set_scales,
)

SAFE_WEIGHT = 64  # times 255 times 2 fits into 16 bits
FEW_CHANNELS = 4  # of images; kernels take at least as many at once


def avoid_overflow(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite layers whose integers such CPUs would add up wrongly; changed in place.

    An input of up to 255 times a weight beyond 64 makes pairs that don't fit into 16 bits; and
    where inputs are signed, kernels halve the weights for that reason. Such layers run in float,
    but for those that take an image's few channels: these take them twice, with half of each
    weight.
    """
    edited = EditedGraph(model)
    inputs_are_signed = False
    for quantize in edited.of_type(QUANTIZE):
        if edited.zeros_of(quantize).dtype == np.int8:
            inputs_are_signed = True
    for dequantize in edited.of_type(DEQUANTIZE):
        if not edited.is_constant(dequantize.input[0]):
            continue
        if inputs_are_signed:
            _use_float(edited, dequantize)
        elif _largest(edited.constant_of(dequantize, 0)) > SAFE_WEIGHT:
            of_few = _quantization_of_few(edited, dequantize)
            if of_few is None:
                _use_float(edited, dequantize)
            else:
                _take_twice(edited, dequantize, of_few)
    edited.sort()
    return model


def _largest(integers: np.ndarray) -> int:
    """The largest absolute value, which int8 can't hold for -128."""
    return int(np.abs(integers.astype(np.int16)).max())


def _use_float(edited: EditedGraph, dequantize: onnx.NodeProto) -> None:
    """Store the float32 weight that ``DequantizeLinear(integers, scales)`` makes in its place."""
    integers = edited.constant_of(dequantize, 0).astype(np.float32)
    scales = edited.scales_of(dequantize).astype(np.float32)
    view = [1] * integers.ndim
    view[attribute(dequantize, "axis")] = -1
    weight = edited.add_constant(integers * scales.reshape(view))
    edited.replace_value(dequantize.output[0], weight)
    edited.graph.node.remove(dequantize)


def _quantization_of_few(edited: EditedGraph, dequantize: onnx.NodeProto) -> onnx.NodeProto | None:
    """The quantization of the input of the convolution that takes a weight.

    Returns:
        ``QuantizeLinear``, if the input has few channels, and nothing else takes them quantized.
    """
    layer = edited.only_taker(dequantize.output[0])
    if layer is None or layer.op_type != "Conv" or attribute(layer, "group", 1) > 1:
        return None
    channels = edited.constant_of(dequantize, 0).shape[1]
    if channels > FEW_CHANNELS:
        return None
    name = layer.input[0]
    while edited.only_taker(name) is not None:
        maker = edited.maker(name)
        if maker is None or maker.op_type == QUANTIZE:
            return maker
        if maker.op_type not in (DEQUANTIZE, "Clip"):
            return None
        name = maker.input[0]
    return None


def _take_twice(edited: EditedGraph, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    """Let a convolution take its input twice, with about half of each weight.

    Together they make the same sums::

        before:  x -> QuantizeLinear -> Conv(w)
        after:   x -> Concat(x, x) -> QuantizeLinear -> Conv(w // 2, w - w // 2)
    """
    integers = edited.constant_of(dequantize, 0).astype(np.int16)
    half = integers // 2
    halves = np.concatenate([half, integers - half], axis=1)
    edited.give_constant(dequantize, 0, halves.astype(np.int8))
    scales = edited.scales_of(quantize)
    zeros = edited.zeros_of(quantize)
    if scales.size > 1:
        set_scales(edited, quantize, np.tile(scales, 2), np.tile(zeros, 2))
    twice = f"{quantize.output[0]}_twice"
    edited.add_node("Concat", [quantize.input[0]] * 2, twice, axis=1)
    quantize.input[0] = twice
