"""Forms of the graph of one image class in which float32 rounds no more than in the simulation.

A value near the edge between two grid points that is rounded otherwise comes to the other one, and
moves its neighbours in all layers that follow. Whole numbers are added up exactly, so what is left
is to keep to them.
"""

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

ARITHMETIC = ("Mul", "Div", "Add", "Sub")
FLOATS = np.finfo(np.float32)
OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}  # of the weight
WEIGHT = 1  # which input of a layer it is
BIAS = 2
LITTLE = np.float32(1e-30)  # beside any value but 0 it is nothing


def add_up_integers(edited: EditedGraph) -> None:
    """Let layers that run in float add up whole numbers, as the simulation does.

    Sums of up to 24 bits are exact in float32 then; sums of scaled values are rounded at each
    addition. With ``q`` and ``w`` the integers of input and weight::

        before:  layer(scale * (q - zero), scales * w, bias)
        after:   layer(q - zero, w) * (scale * scales) + bias

    It takes one scale for the input, and one for each output channel of the weight.
    """
    for layer in edited.of_type(*OUTPUT_AXES):
        dequantized_input = _dequantization_of(edited, layer.input[0])
        dequantized_weight = _dequantization_of(edited, layer.input[1])
        if dequantized_input is None or dequantized_weight is None:
            continue
        if not edited.is_constant(dequantized_weight.input[0]):
            continue
        scale = edited.scales_of(dequantized_input)
        weight = edited.constant_of(dequantized_weight, 0)
        weight_scales = edited.scales_of(dequantized_weight)
        channels = weight.shape[OUTPUT_AXES[layer.op_type]]
        if scale.size != 1 or weight_scales.size != channels:
            continue
        _take_integers(edited, layer, dequantized_input, weight)
        groups = 1
        if layer.op_type == "ConvTranspose":  # its groups of channels share their scales
            groups = attribute(layer, "group", 1)
        factors = np.tile(weight_scales * scale, groups)
        view = [-1] + [1] * (weight.ndim - 2)
        _scale_sums(edited, layer, factors.reshape(view))


def _dequantization_of(edited: EditedGraph, name: str) -> onnx.NodeProto | None:
    """The ``DequantizeLinear`` that makes a value, if its scale is constant."""
    maker = edited.maker(name)
    if maker is None or maker.op_type != DEQUANTIZE:
        return None
    return maker if edited.is_constant(maker.input[1]) else None


def _take_integers(
    edited: EditedGraph, layer: onnx.NodeProto, dequantize: onnx.NodeProto, weight: np.ndarray
) -> None:
    """Let a layer take its input in units of the scale, and its weight as it is stored."""
    one = edited.add_constant(np.float32(1))
    quantized, _, *zero_point = dequantize.input
    integers = f"{layer.output[0]}_integers"
    edited.add_node(DEQUANTIZE, [quantized, one, *zero_point], integers)
    layer.input[0] = integers
    edited.give_constant(layer, WEIGHT, weight.astype(np.float32))


def _scale_sums(edited: EditedGraph, layer: onnx.NodeProto, factors: np.ndarray) -> None:
    """Multiply what a layer gives by factors of its channels, and add its bias after that.

    Args:
        edited: The graph.
        layer: ``Conv``, ``ConvTranspose`` or ``MatMul``.
        factors: As they broadcast to its output, ``(C, 1, 1)`` for a convolution of images.
    """
    result = layer.output[0]
    sums = f"{result}_sums"
    layer.output[0] = sums
    factors_name = edited.add_constant(factors)
    if len(layer.input) <= BIAS:
        edited.add_node("Mul", [sums, factors_name], result)
        return
    bias = edited.constant(layer.input.pop())
    scaled = f"{result}_scaled"
    edited.add_node("Mul", [sums, factors_name], scaled)
    bias_name = edited.add_constant(bias.reshape(factors.shape))
    edited.add_node("Add", [scaled, bias_name], result)


def round_first(edited: EditedGraph) -> None:
    """Round what was clipped before it is quantized, where a zero point is added.

    OpenVINO adds the zero point before it rounds, and the sum has fewer digits left behind the
    point than the value::

        before:  x -> Max -> Min -> QuantizeLinear(scales, zero)
        after:   x -> Max -> Min -> Mul(1 / scales) -> Round -> QuantizeLinear(1, zero)
    """
    for quantize in edited.of_type(QUANTIZE):
        scales = edited.scales_of(quantize)
        zeros = edited.zeros_of(quantize)
        # OpenVINO moves signed integers up before it rounds, even where their zero point is 0.
        is_moved = zeros.any() or zeros.dtype == np.int8
        if not is_moved or not _is_clipped(edited, quantize):
            continue
        if scales.size > 1:
            scales = scales.reshape(-1, 1, 1)
        inverse = edited.add_constant(1 / scales)
        edited.insert("Mul", [inverse], quantize, f"{quantize.output[0]}_units")
        edited.insert("Round", [], quantize, f"{quantize.output[0]}_rounded")
        set_scales(edited, quantize, np.float32(1), zeros.flat[0])


def _is_clipped(edited: EditedGraph, quantize: onnx.NodeProto) -> bool:
    """Whether maximum and minimum with constants, in this order, stand before a quantization."""
    name = quantize.input[0]
    for kind in ("Min", "Max"):
        clip = edited.maker(name)
        if clip is None or clip.op_type != kind or not edited.is_constant(clip.input[1]):
            return False
        name = clip.input[0]
    return True


def keep_order(edited: EditedGraph) -> None:
    """Part constants of the network from the layer, or from other constants, before them.

    OpenVINO would multiply or add them up into one, which rounds otherwise than one after the
    other::

        before:  Conv -> Mul(constant)
        after:   Conv -> Clip(all of float32) -> Mul(constant)

    Constants of channels are kept apart by a maximum, which isn't computed within the layer: within
    it, OpenVINO 2026.4 takes them for the output itself where that has a single pixel.
    """
    lowest = edited.add_constant(FLOATS.min)
    highest = edited.add_constant(FLOATS.max)
    for node in edited.of_type(*ARITHMETIC):
        place = _place_beside_constant(edited, node)
        if place is None:
            continue
        before = edited.maker(node.input[place])
        if before is None or not _would_merge(edited, before, node):
            continue
        apart = f"{node.output[0]}_apart"
        if edited.constant_of(node, 1 - place).size == 1:
            edited.add_node("Clip", [node.input[place], lowest, highest], apart)
        else:
            edited.add_node("Max", [node.input[place], lowest], apart)
        node.input[place] = apart


def keep_borders(edited: EditedGraph) -> None:
    """Part an average from what is before it, where it counts zeros beyond the border.

    OpenVINO would take factors and terms that are the same for all pixels of a channel, such as
    those of a batch normalisation, out of the average. That is the same inside of the image alone::

        before:  x * factor + term -> AveragePool(pads)
        after:   x * factor + term -> Max(lowest float32) -> AveragePool(pads)

    It would take them out of a ``Clip`` too.
    """
    lowest = edited.add_constant(FLOATS.min)
    for pool in edited.of_type("AveragePool"):
        counts_zeros = attribute(pool, "count_include_pad", 0)
        if counts_zeros and any(attribute(pool, "pads", [0])):
            edited.insert("Max", [lowest], pool, f"{pool.output[0]}_apart")


def fill_biases(edited: EditedGraph) -> None:
    """Give convolutions of integers that have no bias, or zeros for one, a bias of next to nothing.

    Where a sum takes the output of one without a bias, and something else does too, OpenVINO 2026.4
    adds up what isn't that output.
    """
    for layer in edited.of_type("Conv", "ConvTranspose"):
        dequantize = _dequantization_of(edited, layer.input[WEIGHT])
        if dequantize is None or not edited.is_constant(dequantize.input[0]):
            continue
        channels = edited.constant_of(dequantize, 0).shape[OUTPUT_AXES[layer.op_type]]
        if layer.op_type == "ConvTranspose":
            channels *= attribute(layer, "group", 1)
        bias = edited.add_constant(np.full(channels, LITTLE))
        if len(layer.input) <= BIAS:
            layer.input.append(bias)
        elif edited.is_constant(layer.input[BIAS]) and not edited.constant_of(layer, BIAS).any():
            layer.input[BIAS] = bias


def _place_beside_constant(edited: EditedGraph, node: onnx.NodeProto) -> int | None:
    """Which input of two stands beside a float constant; None beside none, or beside a size."""
    for place, other in ((0, 1), (1, 0)):
        if edited.is_constant(node.input[other]):
            value = edited.constant_of(node, other)
            return place if value.dtype == np.float32 else None
    return None


def _would_merge(edited: EditedGraph, before: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Whether constants of a node would merge with those before it, and shouldn't."""
    if before.op_type == "MatMul":
        return node.op_type in ("Mul", "Div")  # what is added is the bias of a linear layer
    if before.op_type in OUTPUT_AXES:
        return True
    if before.op_type not in ARITHMETIC:
        return False
    return any(edited.is_constant(name) for name in before.input)
