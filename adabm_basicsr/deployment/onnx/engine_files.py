"""Writes a quantized network as an ONNX file that an engine runs as integers, by itself.

The graph has one input and one output, ``(1, C, H, W)`` float32 in 0..1. All scales are constants,
so that it takes one image class. Weights take 8 bits each.
"""

from __future__ import annotations

import os

from adabm_basicsr.deployment.onnx.description import describe
from adabm_basicsr.deployment.onnx.editing import EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx, write_checked
from adabm_basicsr.deployment.onnx.fusion import fuse
from adabm_basicsr.deployment.onnx.integers import Convolutions, convolutions
from adabm_basicsr.deployment.onnx.level import MIDDLE, at_level
from adabm_basicsr.quantization.engines import ALL_SUMS
from adabm_basicsr.quantization.network import QuantizedNetwork

# Operators of these are what programs of 2024 know.
OPSET = 17
IR_VERSION = 8  # of opset 17; newer ones are refused by runtimes of its time


def save_integers(
    net: QuantizedNetwork, path: str | os.PathLike, form: str = ALL_SUMS
) -> Convolutions:
    """Write a calibrated network as an ONNX file for engines.

    Args:
        net: The network, quantized for such an engine.
        path: The file to write.
        form: Of the graph, a key of `fusion.FORMS`.

    Returns:
        Which convolutions run as integers.

    Raises:
        AdaBMError: The network isn't calibrated, its operations can't be expressed, or the file
            can't be written.
    """
    model = fuse(at_level(to_onnx(net, opset=OPSET), MIDDLE), form)
    model.ir_version = IR_VERSION
    # The graph for OpenVINO has its form already, and keeps it.
    describe(model, net, level=MIDDLE, form=None if form == ALL_SUMS else form)
    write_checked(model, path)
    return convolutions(EditedGraph(model), moves_integers=form != ALL_SUMS)
