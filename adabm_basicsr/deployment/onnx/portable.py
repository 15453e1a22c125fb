"""Writes a quantized network as an ONNX file that programs of others run, old ones too.

The graph has one input and one output, ``(1, C, H, W)`` float32 in 0..1, and the operators of
opset 17. All scales are constants, so that it takes one image class. Weights take 8 bits each. They
have at most 7, so that CPUs without VNNI, which add up pairs of products with activations in 16
bits, add them up rightly: ``2 * 255 * 64 < 2 ** 15``.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.description import describe
from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph
from adabm_basicsr.deployment.onnx.exact import keep_borders
from adabm_basicsr.deployment.onnx.export import to_onnx, write_checked
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.level import MIDDLE, at_level
from adabm_basicsr.deployment.onnx.matching import BIAS, CONVOLVE, WEIGHT
from adabm_basicsr.deployment.onnx.shuffles import ENLARGE, SHUFFLE
from adabm_basicsr.quantization.network import QuantizedNetwork

OPSET = 17
IR_VERSION = 8  # of opset 17; newer ones are refused by runtimes of its time
INT32 = np.iinfo(np.int32)


class Convolutions(NamedTuple):
    """How the convolutions of a graph run, by their names.

    Attributes:
        integers: Input, weight and output are quantized: as integers in every program.
        float_outputs: Only the output isn't: as integers in OpenVINO, in float in ONNX Runtime.
        floats: Input or weight aren't quantized.
    """

    integers: list[str]
    float_outputs: list[str]
    floats: list[str]


def save_portable(net: QuantizedNetwork, path: str | os.PathLike) -> Convolutions:
    """Write a calibrated network as an ONNX file for programs of others.

    Args:
        net: The network, quantized with ``engine: portable``.
        path: The file to write.

    Returns:
        Which convolutions run as integers.

    Raises:
        AdaBMError: The network isn't calibrated, its operations can't be expressed, or the file
            can't be written.
    """
    model = fuse(at_level(to_onnx(net, opset=OPSET), MIDDLE))
    model.ir_version = IR_VERSION
    edited = EditedGraph(model)
    keep_borders(edited)
    round_again(edited)
    store_whole_biases(edited)
    edited.sort()
    describe(model, net, level=MIDDLE)
    write_checked(model, path)
    return convolutions(edited)


def round_again(edited: EditedGraph) -> None:
    """Round once more what was moved since it was rounded, so that its takers find integers.

    The values are on grid points already, so that none changes::

        before:  DequantizeLinear(s, z) -> DepthToSpace -> Conv
        after:   DequantizeLinear(s, z) -> DepthToSpace -> QuantizeLinear(s, z)
                     -> DequantizeLinear(s, z) -> Conv
    """
    for node in edited.of_type(SHUFFLE, ENLARGE):
        dequantize = edited.maker(node.input[0])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            continue
        grid = list(dequantize.input[1:])
        if not all(edited.is_constant(name) and edited.constant(name).ndim == 0 for name in grid):
            continue
        result = node.output[0]
        moved = f"{result}_moved"
        integers = f"{result}_integers"
        node.output[0] = moved
        edited.add_node(QUANTIZE, [moved, *grid], integers)
        edited.add_node(DEQUANTIZE, [integers, *grid], result)


def store_whole_biases(edited: EditedGraph) -> None:
    """Store biases of convolutions of integers as integers of 32 bits, in units of their sums.

    ONNX Runtime of before 2024 runs no others as integers. A bias of zeros becomes one unit, far
    less than what is rounded: with none, OpenVINO 2026.4 takes a wrong sum where several nodes take
    the output.
    """
    for conv in edited.of_type(CONVOLVE):
        grid = _grid_of_sums(edited, conv)
        if grid is None:
            continue
        bias = np.zeros_like(grid)
        if len(conv.input) > BIAS:
            bias = edited.constant_of(conv, BIAS)
        whole = np.round(bias.astype(np.float64) / grid)
        if np.abs(whole).max() > INT32.max:
            continue
        if not whole.any():
            whole += 1
        if len(conv.input) <= BIAS:
            conv.input.append("")
        integers = edited.add_constant(whole.astype(np.int32))
        scales = edited.add_constant(grid)
        dequantized = f"{conv.output[0]}_bias"
        edited.add_node(DEQUANTIZE, [integers, scales], dequantized, axis=0)
        conv.input[BIAS] = dequantized


def _grid_of_sums(edited: EditedGraph, conv: onnx.NodeProto) -> np.ndarray | None:
    """Scales of what a convolution of integers adds up, ``(O,)``.

    None of one that isn't of integers, or has channels whose weights are all zero, without a scale.
    """
    if not _takes_integers(edited, conv):
        return None
    if len(conv.input) > BIAS and not edited.is_constant(conv.input[BIAS]):
        return None
    of_input = edited.maker(conv.input[0])
    of_weight = edited.maker(conv.input[WEIGHT])
    assert of_input is not None
    assert of_weight is not None
    scale = edited.scales_of(of_input)
    if scale.ndim > 0:
        return None
    grid = scale * edited.scales_of(of_weight)
    return grid if (grid > 0).all() else None


def convolutions(edited: EditedGraph) -> Convolutions:
    """How the convolutions of a graph of one image class run."""
    found = Convolutions([], [], [])
    for conv in edited.of_type(CONVOLVE, "ConvTranspose"):
        if conv.op_type != CONVOLVE or not _takes_integers(edited, conv):
            found.floats.append(conv.name)
        elif _makes_integers(edited, conv):
            found.integers.append(conv.name)
        else:
            found.float_outputs.append(conv.name)
    return found


def _takes_integers(edited: EditedGraph, conv: onnx.NodeProto) -> bool:
    """Whether input and weight of a convolution are dequantized right before it."""
    makers = [edited.maker(name) for name in (conv.input[0], conv.input[WEIGHT])]
    return all(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)


def _makes_integers(edited: EditedGraph, conv: onnx.NodeProto) -> bool:
    """Whether nothing but a quantization takes a convolution's output, or a ReLU before one."""
    taker = edited.only_taker(conv.output[0])
    if taker is not None and taker.op_type == "Relu":
        taker = edited.only_taker(taker.output[0])
    return taker is not None and taker.op_type == QUANTIZE
