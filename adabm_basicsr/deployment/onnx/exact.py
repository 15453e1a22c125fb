"""Forms of the graph of one level in which float32 rounds no more than in the simulation.

A value near the edge of two levels that is rounded otherwise comes to the other level, and moves its neighbours in all
layers that follow. Whole numbers are added up exactly, so what is left is to keep to them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute

MOST, LEAST = "Max", "Min"
ARITHMETIC = ("Mul", "Div", "Add", "Sub")
FLOATS = np.finfo(np.float32)
OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}  # of the weight


def add_up_integers(edited: EditedGraph) -> None:
    """Let layers that run in float add up whole numbers, then scale the sums and add the bias, as the simulation does.

    Sums of up to 24 bits are exact in float32 then; sums of scaled values are rounded at each addition.
    """
    for layer in edited.of_type(*OUTPUT_AXES):
        inputs, weights = (_dequantize_before(edited, name) for name in layer.input[:2])
        if inputs is None or weights is None or not edited.is_constant(weights.input[0]):
            continue
        integers, steps, step = (edited.constant(n) for n in (*weights.input[:2], inputs.input[1]))
        if step.size == 1 and steps.size == integers.shape[OUTPUT_AXES[layer.op_type]]:
            _use_integers(edited, layer, inputs, integers)
            of_output = np.tile(steps * step, _groups(layer)).reshape(
                -1, *[1] * (integers.ndim - 2)
            )
            _scale_sums(edited, layer, of_output)


def _dequantize_before(edited: EditedGraph, name: str) -> onnx.NodeProto | None:
    maker = edited.maker(name)
    found = maker is not None and maker.op_type == DEQUANTIZE and edited.is_constant(maker.input[1])
    return maker if found else None


def _groups(layer: onnx.NodeProto) -> int:
    """How many groups of channels share their steps."""
    return attribute(layer, "group", 1) if layer.op_type == "ConvTranspose" else 1


def _use_integers(
    edited: EditedGraph, layer: onnx.NodeProto, inputs: onnx.NodeProto, weights: np.ndarray
) -> None:
    one, name = edited.add_constant(np.float32(1)), f"{layer.output[0]}_integers"
    edited.add_node(DEQUANTIZE, [inputs.input[0], one, *inputs.input[2:]], name)
    layer.input[0], layer.input[1] = name, edited.add_constant(weights.astype(np.float32))


def _scale_sums(edited: EditedGraph, layer: onnx.NodeProto, factors: np.ndarray) -> None:
    """Multiply what a layer gives by ``factors`` of its channels, and add its bias after that."""
    name, terms = layer.output[0], [("Mul", factors)]
    if len(layer.input) > 2:
        terms.append(("Add", edited.constant(layer.input.pop()).reshape(factors.shape)))
    value = layer.output[0] = f"{name}_sums"
    for kind, constant in terms:
        output = name if kind == terms[-1][0] else f"{name}_scaled"
        edited.add_node(kind, [value, edited.add_constant(constant)], output)
        value = output


def round_first(edited: EditedGraph) -> None:
    """Bring what was clipped to whole numbers before it is quantized, where a zero point is added.

    OpenVINO adds the zero point before it rounds, and the sum has fewer digits left behind the point than the value.
    """
    for quantize in edited.of_type(QUANTIZE):
        scales, zeros = (edited.constant(name) for name in quantize.input[1:3])
        if not _is_clipped(edited, quantize) or not (zeros.any() or zeros.dtype == np.int8):
            continue
        of_channels = scales.reshape(-1, 1, 1) if scales.size > 1 else scales
        units, rounded = (f"{quantize.output[0]}_{what}" for what in ("units", "rounded"))
        edited.add_node("Mul", [quantize.input[0], edited.add_constant(1 / of_channels)], units)
        edited.add_node("Round", [units], rounded)
        quantize.input[0] = rounded
        set_scales(edited, quantize, np.float32(1), zeros.flat[0])


def _is_clipped(edited: EditedGraph, quantize: onnx.NodeProto) -> bool:
    """Whether maximum and minimum with constants, in this order, stand before a quantization."""
    name = quantize.input[0]
    for kind in (LEAST, MOST):
        clip = edited.maker(name)
        if clip is None or clip.op_type != kind or not edited.is_constant(clip.input[1]):
            return False
        name = clip.input[0]
    return True


def keep_order(edited: EditedGraph) -> None:
    """Part constants of the network from the layer, or from other constants, before them.

    OpenVINO would multiply or add them up into one, which rounds otherwise than one after the other.
    """
    ends = [edited.add_constant(end) for end in (FLOATS.min, FLOATS.max)]
    for node in edited.of_type(*ARITHMETIC):
        at = next((at for at in (0, 1) if edited.is_constant(node.input[1 - at])), None)
        is_float = (
            at is not None and edited.constant(node.input[1 - at]).dtype == np.float32
        )  # rather than a size
        before = edited.maker(node.input[at]) if is_float else None
        if before is not None and _merges(edited, before, node):
            name = f"{node.output[0]}_apart"
            edited.add_node("Clip", [node.input[at], *ends], name)
            node.input[at] = name


def _merges(edited: EditedGraph, before: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Whether constants of a node would merge with those before it; the bias of a linear layer is to do so."""
    if before.op_type in OUTPUT_AXES:
        return before.op_type != "MatMul" or node.op_type in ("Mul", "Div")
    return before.op_type in ARITHMETIC and any(edited.is_constant(name) for name in before.input)


def set_scales(
    edited: EditedGraph, quantize: onnx.NodeProto, scales: np.ndarray, zeros: np.ndarray
) -> None:
    """Give a quantization other scales and zero points: ``(C,)``, of channels on axis 1, or one for all, ``()``."""
    quantize.input[1], quantize.input[2] = (
        edited.add_constant(np.asarray(values)) for values in (scales, zeros)
    )
    del quantize.attribute[:]
    if np.ndim(scales):
        quantize.attribute.append(helper.make_attribute("axis", 1))
