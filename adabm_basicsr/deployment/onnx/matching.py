"""What rewrites look for in a graph: constants of a layer, and constants of channels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph

CONVOLVE = "Conv"
CLIP = "Clip"
MAXIMUM = "Max"
MINIMUM = "Min"
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu")
WEIGHT = 1  # which input of a convolution it is
BIAS = 2
CHANNEL_AXIS = -3  # of an image


class Slot(NamedTuple):
    """An input of a node.

    Attributes:
        node: The node.
        place: Which of its inputs.
    """

    node: onnx.NodeProto
    place: int


def constants_of(edited: EditedGraph, conv: onnx.NodeProto) -> list[Slot]:
    """Where a convolution's constants stand, each with the output channels first.

    Returns:
        Of a float weight: weight and bias. Of a quantized one: integers and scales, inputs of its
        ``DequantizeLinear``, and the bias. Empty where something else uses the weight too.
    """
    bias = []
    if len(conv.input) > BIAS:
        bias = [Slot(conv, BIAS)]
    weight = conv.input[WEIGHT]
    if edited.is_constant(weight):
        return [Slot(conv, WEIGHT), *bias]
    maker = edited.maker(weight)
    if maker is None or maker.op_type != DEQUANTIZE or not edited.is_constant(maker.input[0]):
        return []
    if edited.only_taker(weight) is None:
        return []
    return [Slot(maker, 0), Slot(maker, 1), *bias]


def is_of_channels(node: onnx.NodeProto, value: np.ndarray) -> bool:
    """Whether a constant that a node takes is the same at all pixels of a channel."""
    if value.size == 1:
        return True
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return value.ndim == 1
    if value.ndim < -CHANNEL_AXIS:
        return False
    return value.shape[CHANNEL_AXIS] == value.size


def of_channels(values: np.ndarray) -> np.ndarray:
    """A value per channel, ``(C,)``, or a single one, as it broadcasts to images."""
    return values if values.size == 1 else values.reshape(-1, 1, 1)
