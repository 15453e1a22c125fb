"""Brings graphs whose values are integers from layer to layer into the form that engines fuse.

Engines such as ONNX Runtime take ``DequantizeLinear -> layer or sum -> QuantizeLinear`` for one
operation on integers. The graph of a network that was quantized for them (`quantization.engines`)
has these around all that it makes; here goes what stands between them for nothing.
"""

from __future__ import annotations

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, ZERO, EditedGraph
from adabm_basicsr.deployment.onnx.matching import BIAS, CONVOLVE, WEIGHT

# Largest integer of a bias.
LARGEST = 2**31 - 1


def drop_ones(edited: EditedGraph) -> None:
    """Take out multiplications by one."""
    for product in edited.of_type("Mul", "Div"):
        if edited.is_constant(product.input[1]) and np.all(edited.constant_of(product, 1) == 1):
            edited.bypass(product)


def scale_integers(edited: EditedGraph) -> None:
    """Multiply integers by a number where they become floats.

    ::

        before:  DequantizeLinear(scale) -> Mul(factor)
        after:   DequantizeLinear(scale * factor)
    """
    for product in edited.of_type("Mul", "Div"):
        dequantize = edited.maker(product.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        if edited.is_constant(dequantize.input[0]) or not edited.is_constant(product.input[1]):
            continue
        factor = edited.constant_of(product, 1)
        if factor.size > 1 or factor <= 0:
            continue
        scale = edited.scales_of(dequantize)
        scaled = scale / factor if product.op_type == "Div" else scale * factor
        integers, _, zero = dequantize.input
        name = edited.add_constant(scaled.reshape(()).astype(np.float32))
        edited.add_node(DEQUANTIZE, [integers, name, zero], f"{product.output[0]}_scaled")
        edited.replace_value(product.output[0], f"{product.output[0]}_scaled")
        edited.graph.node.remove(product)


def quantize_once(edited: EditedGraph) -> None:
    """Take out quantizations of what has the same integers already.

    ::

        before:  Quantize(s) -> Dequantize(s) -> Quantize(s) -> Dequantize(s)
        after:   Quantize(s) -> Dequantize(s)
    """
    for quantize in edited.of_type(QUANTIZE):
        dequantize = edited.maker(quantize.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        if _grid(edited, dequantize) == _grid(edited, quantize):
            edited.replace_value(quantize.output[0], dequantize.input[0])
            edited.graph.node.remove(quantize)


def merge_equal(edited: EditedGraph) -> None:
    """Quantize a value once for all that take it, and make floats of its integers once."""
    for kind in (QUANTIZE, DEQUANTIZE):
        first: dict[tuple, onnx.NodeProto] = {}
        for node in edited.of_type(kind):
            if edited.is_constant(node.input[0]):
                continue
            same = first.setdefault((node.input[0], _grid(edited, node)), node)
            if same is not node:
                edited.replace_value(node.output[0], same.output[0])
                edited.graph.node.remove(node)


def round_biases(edited: EditedGraph) -> None:
    """Store biases of integer convolutions as integers of 32 bits, which sums of products have.

    Old versions of ONNX Runtime run convolutions with float biases in float.
    """
    for conv in edited.of_type(CONVOLVE):
        if len(conv.input) <= BIAS or not edited.is_constant(conv.input[BIAS]):
            continue
        scales = []
        for place in (0, WEIGHT):
            maker = edited.maker(conv.input[place])
            if maker is not None and maker.op_type == DEQUANTIZE:
                scales.append(edited.scales_of(maker))
        if len(scales) < 2:
            continue
        scale = (scales[0] * scales[1]).astype(np.float32)
        bias = edited.constant_of(conv, BIAS)
        integers = np.divide(bias, scale, out=np.zeros_like(bias), where=scale > 0).round()
        if np.abs(integers).max() > LARGEST or bias[np.broadcast_to(scale == 0, bias.shape)].any():
            continue
        names = [edited.add_constant(integers.astype(np.int32)), edited.add_constant(scale)]
        output = f"{conv.output[0]}_bias"
        edited.add_node(DEQUANTIZE, names, output, axis=0)
        conv.input[BIAS] = output


def _grid(edited: EditedGraph, node: onnx.NodeProto) -> tuple[bytes, bytes]:
    """Scale and zero point of a node, such that equal ones compare equal."""
    scale = np.float32(edited.scales_of(node)).tobytes()
    zero = edited.constant_of(node, ZERO)
    return scale, f"{zero.dtype} {zero.tolist()}".encode()
