"""Brings a graph of one image class into what ncnn has."""

from __future__ import annotations

import onnx

from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph, attribute

CHANNELS = 1  # their axis


def know_channels(edited: EditedGraph) -> None:
    """Let what is computed of an image's channels, which tracing leaves open, be constants.

    ::

        before:  x -> Shape -> Gather(1)
        after:   the number of channels of x
    """
    channels = _channels_of_values(edited)
    for gather in edited.of_type("Gather"):
        shape = edited.maker(gather.input[0])
        if shape is None or shape.op_type != "Shape":
            continue
        count = channels.get(shape.input[0])
        if count is None or not _takes_channels(edited, gather):
            continue
        index = edited.constant_of(gather, 1)
        constant = edited.add_constant(index.dtype.type(count))
        edited.replace_value(gather.output[0], constant)
        edited.graph.node.remove(gather)
        if not edited.is_taken(shape.output[0]):
            edited.graph.node.remove(shape)


def _channels_of_values(edited: EditedGraph) -> dict[str, int]:
    """Number of channels of each value for which it follows from the graph."""
    model = onnx.helper.make_model(edited.graph)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    channels = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input):
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) > CHANNELS and sizes[CHANNELS].HasField("dim_value"):
            channels[value.name] = sizes[CHANNELS].dim_value
    return channels


def _takes_channels(edited: EditedGraph, gather: onnx.NodeProto) -> bool:
    """Whether a node takes the number of channels from a shape."""
    index = gather.input[1]
    return edited.is_constant(index) and edited.constant(index) == CHANNELS


def pad_first(edited: EditedGraph) -> None:
    """Pad values before they are rounded, as ncnn rounds within the layer that takes them.

    ::

        before:  x -> QuantizeLinear -> DequantizeLinear -> Pad -> Conv
        after:   x -> Pad -> QuantizeLinear -> DequantizeLinear -> Conv
    """
    for pad in edited.of_type("Pad"):
        if not _keeps_integers(edited, pad):
            continue
        for kind in (DEQUANTIZE, QUANTIZE):
            before = edited.maker(pad.input[0])
            if before is None or before.op_type != kind:
                break
            if edited.only_taker(before.output[0]) is None:
                break
            edited.swap(before, pad)


def _keeps_integers(edited: EditedGraph, pad: onnx.NodeProto) -> bool:
    """Whether what a node pads with is rounded to itself: pixels of the image, or zeros."""
    if attribute(pad, "mode", b"constant") != b"constant":
        return True
    has_value = len(pad.input) > 2 and bool(pad.input[2])
    return not has_value or not edited.constant_of(pad, 2).any()
