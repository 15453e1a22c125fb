"""Brings a graph of one image class into what ncnn has."""

from __future__ import annotations

import onnx

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute

CHANNELS = 1  # their axis


def know_channels(edited: EditedGraph) -> None:
    """Let what is computed of an image's channels, which tracing leaves open, be constants."""
    model = onnx.helper.make_model(edited.graph)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    channels = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input):
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) > CHANNELS and sizes[CHANNELS].HasField("dim_value"):
            channels[value.name] = sizes[CHANNELS].dim_value
    for gather in edited.of_type("Gather"):
        shape = edited.maker(gather.input[0])
        if shape is None or shape.op_type != "Shape" or shape.input[0] not in channels:
            continue
        if edited.is_constant(gather.input[1]) and edited.constant_of(gather, 1) == CHANNELS:
            count = edited.constant_of(gather, 1).dtype.type(channels[shape.input[0]])
            edited.replace_value(gather.output[0], edited.add_constant(count))
            edited.graph.node.remove(gather)
            if not edited.is_taken(shape.output[0]):
                edited.graph.node.remove(shape)


def pad_first(edited: EditedGraph) -> None:
    """Pad values before they are rounded, as ncnn rounds within the layer that takes them.

    ::

        before:  x -> QuantizeLinear -> DequantizeLinear -> Pad -> Conv
        after:   x -> Pad -> QuantizeLinear -> DequantizeLinear -> Conv
    """
    for pad in edited.of_type("Pad"):
        is_zero = len(pad.input) < 3 or not pad.input[2] or not edited.constant_of(pad, 2).any()
        if attribute(pad, "mode", b"constant") == b"constant" and not is_zero:
            continue
        for kind in (DEQUANTIZE, QUANTIZE):
            before = edited.maker(pad.input[0])
            if before is None or before.op_type != kind:
                break
            if edited.only_taker(before.output[0]) is None:
                break
            edited.swap(before, pad)
