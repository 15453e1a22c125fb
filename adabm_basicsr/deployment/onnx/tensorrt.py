"""Writes a quantized network as ONNX files for TensorRT, and checks what TensorRT asks of them.

TensorRT 11 takes networks as they are typed: what has ``QuantizeLinear`` and ``DequantizeLinear``
around runs as INT8, everything else in the file's own type. So there are two files, one whose
floats have 32 bits, and a copy whose floats have 16.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx

from adabm_basicsr.deployment.onnx.description import describe
from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute
from adabm_basicsr.deployment.onnx.export import to_onnx, write_checked
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.integers import Convolutions, convolutions
from adabm_basicsr.deployment.onnx.level import MIDDLE, OUTPUT, at_level
from adabm_basicsr.deployment.onnx.matching import CONVOLVE
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.engines import RESIDUAL
from adabm_basicsr.quantization.network import QuantizedNetwork

HALF = "_fp16"  # behind the name of the copy
# Operators that keep a quantization from being part of the layer before it, where they take
# constants: these could be part of the layer. Gates such as those of channel attention couldn't.
BETWEEN = ("Mul", "Div", "Clip", "Max", "Min")


def half_path(path: str | os.PathLike) -> Path:
    """Where the copy in float16 of a file stands."""
    path = Path(path)
    return path.with_name(f"{path.stem}{HALF}{path.suffix}")


def save_tensorrt(net: QuantizedNetwork, path: str | os.PathLike) -> Convolutions:
    """Write a calibrated network for TensorRT, and a copy in float16 beside it.

    Args:
        net: The network, quantized with ``engine: tensorrt``.
        path: The file to write; the copy's name ends in ``_fp16``.

    Returns:
        Which convolutions run as integers.

    Raises:
        AdaBMError: The network isn't calibrated, its operations can't be expressed, TensorRT
            wouldn't take the graph, or a file can't be written.
    """
    model = fuse(at_level(to_onnx(net), MIDDLE), RESIDUAL)
    describe(model, net, level=MIDDLE)
    broken = broken_rules(model)
    if broken:
        raise ExportError(f"TensorRT wouldn't run the graph as integers: {broken[0]}")
    copy = in_float16(model)  # before a file is written: it may fail
    write_checked(model, path)
    write_checked(copy, half_path(path))
    return convolutions(EditedGraph(model))


def in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose floats have 16 bits; those that go in and come out keep 32."""
    import_runtime("onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    EditedGraph(converted).sort()
    return converted


def broken_rules(model: onnx.ModelProto) -> list[str]:
    """What TensorRT 11 doesn't take of a graph, or would run in float for no need.

    Returns:
        A sentence for each quantization that breaks a rule; none of a graph as it should be.
    """
    edited = EditedGraph(model)
    broken = []
    for node in edited.of_type(QUANTIZE, DEQUANTIZE):
        if not _is_symmetric(edited, node):
            broken.append(f"{node.name} has a zero point, or integers that aren't int8")
        scales = edited.scales_of(node)
        is_weight = edited.is_constant(node.input[0])
        if is_weight and scales.ndim and attribute(node, "axis", 1) != _output_axis(edited, node):
            broken.append(f"{node.name} has scales of another axis than the output channels")
        if not is_weight and scales.ndim:
            broken.append(f"{node.name} has a scale for each channel of activations")
        if node.op_type == QUANTIZE:
            broken += _broken_by_neighbours(edited, node)
    for total in edited.of_type("Add"):
        makers = [edited.maker(name) for name in total.input]
        if all(maker is not None and maker.op_type == DEQUANTIZE for maker in makers):
            broken.append(f"{total.name} adds up integers alone, which no layer takes over")
    return broken


def _broken_by_neighbours(edited: EditedGraph, quantize: onnx.NodeProto) -> list[str]:
    maker = edited.maker(quantize.input[0])
    if maker is None:
        return []
    takes_constants = any(edited.is_constant(name) for name in maker.input)
    if maker.op_type in BETWEEN and takes_constants and _comes_from_layer(edited, maker):
        return [f"{maker.name} stands between a convolution and {quantize.name}"]
    if quantize.output[0] == OUTPUT:
        return [f"{quantize.name} makes an output of integers"]
    return []


def _is_symmetric(edited: EditedGraph, node: onnx.NodeProto) -> bool:
    if len(node.input) < 3:
        return True
    zeros = edited.zeros_of(node)
    return zeros.dtype == np.int8 and not zeros.any()


def _output_axis(edited: EditedGraph, dequantize: onnx.NodeProto) -> int:
    """Axis of the output channels in the weight that a node makes."""
    layers = edited.takers(dequantize)
    return 0 if any(layer.op_type == CONVOLVE for layer in layers) else 1


def _comes_from_layer(edited: EditedGraph, node: onnx.NodeProto) -> bool:
    makers = [edited.maker(name) for name in node.input]
    return any(maker is not None and maker.op_type == CONVOLVE for maker in makers)
