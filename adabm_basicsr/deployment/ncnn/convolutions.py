"""Convolutions as ncnn computes them: on integers where it can, else in float.

::

    integers:  Quantize -> Dequantize -> Conv(weight: DequantizeLinear(integers, scales))
    becomes:   Convolution, which quantizes its own input

Where nothing but such convolutions takes the output of another, that one gives it as integers
already (`requantized`). Convolutions in groups of several channels, and transposed ones, have no
integers in ncnn: they run in float, on values that are rounded before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from adabm_basicsr.deployment.ncnn.layers import (
    Layer,
    Parameter,
    float_weight,
    floats,
    int8_weight,
)
from adabm_basicsr.deployment.ncnn.operators import refuse
from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute

OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1}  # of the weight
CONVOLUTIONS = tuple(OUTPUT_AXES)
BIAS = 2  # which input of a convolution it is
RELU = 1
LEAKY_RELU = 2
# ncnn's values of parameter 8.
SCALES = {"Convolution": 2, "ConvolutionDepthWise": 1}
REQUANTIZES = 100  # added to it
ROUND = 18  # of UnaryOp
HIGHEST = 127.0


class Quantized(NamedTuple):
    """A value that a convolution takes as integers.

    Attributes:
        source: Name of the value before it is rounded.
        scale: Distance of the grid points.
    """

    source: str
    scale: float


class Weight(NamedTuple):
    """A weight of integers.

    Attributes:
        integers: int8, in the order of axes that ONNX has.
        scales: Distance of the grid points of each output channel.
    """

    integers: np.ndarray
    scales: np.ndarray


def quantized_input(edited: EditedGraph, name: str) -> Quantized | None:
    """What makes a value by rounding another one; None of a value that isn't rounded."""
    dequantize = edited.maker(name)
    if dequantize is None or dequantize.op_type != DEQUANTIZE:
        return None
    quantize = edited.maker(dequantize.input[0])
    if quantize is None or quantize.op_type != QUANTIZE:
        return None
    return Quantized(quantize.input[0], float(edited.scales_of(quantize).item()))


def quantized_weight(edited: EditedGraph, conv: onnx.NodeProto) -> Weight | None:
    """The integers of a convolution's weight; None of one in float."""
    dequantize = edited.maker(conv.input[1])
    if dequantize is None:
        return None
    return Weight(edited.constant_of(dequantize, 0), edited.scales_of(dequantize))


def runs_as_integers(edited: EditedGraph, conv: onnx.NodeProto) -> bool:
    """Whether ncnn computes a convolution on integers."""
    if conv.op_type != "Conv" or quantized_input(edited, conv.input[0]) is None:
        return False
    weight = quantized_weight(edited, conv)
    if weight is None:
        return False
    groups = attribute(conv, "group", 1)
    return groups == 1 or groups == len(weight.integers)


def convolution(edited: EditedGraph, conv: onnx.NodeProto) -> list[Layer]:
    """The layer of a convolution, with the activation function that follows it."""
    output, parameters = _activation(edited, conv)
    if runs_as_integers(edited, conv):
        return [_integer_convolution(edited, conv, output, parameters)]
    return [_float_convolution(edited, conv, output, parameters)]


def rounding(edited: EditedGraph, dequantize: onnx.NodeProto) -> list[Layer]:
    """The layers that round a value and keep it in float, for what doesn't run as integers."""
    quantized = quantized_input(edited, dequantize.output[0])
    if quantized is None:
        raise refuse(dequantize, "it makes a value of integers that aren't the network's own")
    name = dequantize.output[0]
    units, rounded, clipped = f"{name}_units", f"{name}_rounded", f"{name}_clipped"
    return [
        Layer("BinaryOp", [quantized.source], [units], {0: 2, 1: 1, 2: 1 / quantized.scale}),
        Layer("UnaryOp", [units], [rounded], {0: ROUND}),
        Layer("Clip", [rounded], [clipped], {0: -HIGHEST, 1: HIGHEST}),
        Layer("BinaryOp", [clipped], [name], {0: 2, 1: 1, 2: quantized.scale}),
    ]


def fused_activation(edited: EditedGraph, conv: onnx.NodeProto) -> onnx.NodeProto | None:
    """The activation function that a convolution computes too: the only one to take its output."""
    taker = edited.only_taker(conv.output[0])
    if taker is not None and taker.op_type in ("Relu", "LeakyRelu"):
        return taker
    return None


def requantized(edited: EditedGraph, name: str) -> float | None:
    """The scale that a convolution's output is rounded by, if integers are all that is wanted."""
    quantize = edited.only_taker(name)
    if quantize is None or quantize.op_type != QUANTIZE:
        return None
    dequantize = edited.only_taker(quantize.output[0])
    if dequantize is None:
        return None
    for node in edited.graph.node:
        takes_it = dequantize.output[0] in node.input
        if takes_it and (node.op_type not in CONVOLUTIONS or not runs_as_integers(edited, node)):
            return None
    return float(edited.scales_of(quantize).item())


def _activation(edited: EditedGraph, conv: onnx.NodeProto) -> tuple[str, dict[int, Parameter]]:
    """Name of the output behind the activation function, and its parameters."""
    function = fused_activation(edited, conv)
    if function is None:
        return conv.output[0], {}
    if function.op_type == "Relu":
        return function.output[0], {9: RELU}
    slope = float(attribute(function, "alpha", 0.01))
    return function.output[0], {9: LEAKY_RELU, 10: [slope]}


def _integer_convolution(
    edited: EditedGraph, conv: onnx.NodeProto, output: str, activation: dict[int, Parameter]
) -> Layer:
    quantized = quantized_input(edited, conv.input[0])
    weight = quantized_weight(edited, conv)
    assert quantized is not None
    assert weight is not None
    kind, parameters = _parameters(edited, conv, weight.integers)
    parameters.update(activation)
    parameters[8] = SCALES[kind]
    weights = [int8_weight(weight.integers), *_bias(edited, conv)]
    # Channels whose weights are all zero have no scale.
    inverse = np.divide(1, weight.scales, out=np.zeros_like(weight.scales), where=weight.scales > 0)
    weights += [floats(inverse), floats([1 / quantized.scale])]
    scale = requantized(edited, output)
    if scale is not None:
        parameters[8] = SCALES[kind] + REQUANTIZES
        weights.append(floats([1 / scale]))
    return Layer(kind, [quantized.source], [output], parameters, weights)


def _float_convolution(
    edited: EditedGraph, conv: onnx.NodeProto, output: str, activation: dict[int, Parameter]
) -> Layer:
    of_integers = quantized_weight(edited, conv)
    if of_integers is None:
        weight = edited.constant_of(conv, 1)
    else:
        view = [1] * of_integers.integers.ndim
        view[OUTPUT_AXES[conv.op_type]] = -1
        weight = of_integers.integers.astype(np.float32) * of_integers.scales.reshape(view)
    kind, parameters = _parameters(edited, conv, weight)
    parameters.update(activation)
    if conv.op_type == "ConvTranspose":
        # ncnn has output channels first, of each group.
        groups = attribute(conv, "group", 1)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        weight = grouped.swapaxes(1, 2)
    weights = [float_weight(weight), *_bias(edited, conv)]
    return Layer(kind, [conv.input[0]], [output], parameters, weights)


def _bias(edited: EditedGraph, conv: onnx.NodeProto) -> list[bytes]:
    if len(conv.input) <= BIAS:
        return []
    return [floats(edited.constant_of(conv, BIAS))]


def _parameters(
    edited: EditedGraph, conv: onnx.NodeProto, weight: np.ndarray
) -> tuple[str, dict[int, Parameter]]:
    """Type of the layer, and what it has whatever its numbers are."""
    groups = attribute(conv, "group", 1)
    is_transposed = conv.op_type == "ConvTranspose"
    outputs = weight.shape[1] * groups if is_transposed else len(weight)
    kernel = attribute(conv, "kernel_shape")
    if len(kernel) != 2:
        raise refuse(conv, "it isn't a convolution of images")
    dilations = attribute(conv, "dilations", [1, 1])
    strides = attribute(conv, "strides", [1, 1])
    top, left, bottom, right = attribute(conv, "pads", [0] * 4)
    parameters: dict[int, Parameter] = {
        0: outputs,
        1: kernel[1],
        11: kernel[0],
        2: dilations[1],
        12: dilations[0],
        3: strides[1],
        13: strides[0],
        4: left,
        14: top,
        15: right,
        16: bottom,
        5: int(len(conv.input) > BIAS),
        6: weight.size,
    }
    kind = "Deconvolution" if is_transposed else "Convolution"
    if groups > 1:
        kind += "DepthWise"
        parameters[7] = groups
    if is_transposed:
        added = attribute(conv, "output_padding", [0, 0])
        parameters[18] = added[1]
        parameters[19] = added[0]
    return kind, parameters
