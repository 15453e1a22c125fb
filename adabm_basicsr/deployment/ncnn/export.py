"""Writes a quantized network as a pair of files that ncnn runs as integers of 8 bits.

The network takes a blob ``data``, an RGB image in 0..1, and makes ``output``, likewise. Weights of
fewer bits take 8 bits in these files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from adabm_basicsr.deployment.ncnn.convolutions import (
    CONVOLUTIONS,
    convolution,
    fused_activation,
    rounding,
    runs_as_integers,
)
from adabm_basicsr.deployment.ncnn.files import (
    BIN_SUFFIX,
    JSON_SUFFIX,
    PARAM_SUFFIX,
    Description,
    checksum,
)
from adabm_basicsr.deployment.ncnn.layers import Layer, bin_bytes, param_text, with_splits
from adabm_basicsr.deployment.ncnn.operators import CONVERTERS, refuse
from adabm_basicsr.deployment.ncnn.rewrites import know_channels, pad_first
from adabm_basicsr.deployment.onnx.editing import DEQUANTIZE, QUANTIZE, EditedGraph
from adabm_basicsr.deployment.onnx.export import to_onnx
from adabm_basicsr.deployment.onnx.level import IMAGE, MIDDLE, OUTPUT, at_level
from adabm_basicsr.errors import ExportError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.network import QuantizedNetwork

ENGINE = "ncnn"


class Written(NamedTuple):
    """What runs how.

    Attributes:
        integers: Names of the convolutions that run as integers.
        floats: Names of those that run in float.
    """

    integers: list[str]
    floats: list[str]


def save_ncnn(net: QuantizedNetwork, path: str | os.PathLike) -> Written:
    """Write a calibrated network for ncnn: ``.param``, ``.bin`` and a ``.json`` on both.

    All three are written whole, or earlier ones stay.

    Args:
        net: The network, quantized with ``engine: ncnn``.
        path: The ``.param``; the others stand beside it, under the same name.

    Returns:
        Which convolutions run as integers.

    Raises:
        AdaBMError: The network was made for another engine, isn't calibrated, has an operation that
            ncnn files can't hold, or a file can't be written.
    """
    if net.config.engine != ENGINE:
        raise ExportError(
            f"the network was quantized with engine: {net.config.engine}, whose integers ncnn "
            f"doesn't have; set network_g: engine: {ENGINE} (and a_bits: 8) and quantize it again"
        )
    model = at_level(to_onnx(net, pads=False), MIDDLE)
    description = getattr(net, "description", None)
    return write_graph(model, path, net.in_channels, net.size_multiple, description)


def write_graph(
    model: onnx.ModelProto,
    path: str | os.PathLike,
    in_channels: int,
    size_multiple: int = 1,
    description: dict[str, Any] | None = None,
) -> Written:
    """Write a graph of one image class, or of a network in float, as `save_ncnn` does.

    Args:
        model: The graph, from ``image`` to ``output``; it is changed.
        path: The ``.param``; the others stand beside it, under the same name.
        in_channels: Channels of the images that the network takes.
        size_multiple: Their sides have to be multiples of this many pixels.
        description: How the network was built and quantized.

    Returns:
        Which convolutions run as integers.

    Raises:
        AdaBMError: The graph has an operation that ncnn files can't hold, or a file can't be
            written.
    """
    know_channels(EditedGraph(model))
    edited = EditedGraph(model)  # what follows from channels is constant now
    pad_first(edited)
    edited.sort()
    written = _written(edited)
    layers = with_splits(_layers(edited))
    param = param_text(layers).encode()
    weights = bin_bytes(layers)
    facts = Description(
        in_channels=in_channels,
        size_multiple=size_multiple,
        sha256={PARAM_SUFFIX: checksum(param), BIN_SUFFIX: checksum(weights)},
        description=description,
    )
    path = Path(path)
    with (
        atomic_path(path) as of_param,
        atomic_path(path.with_suffix(BIN_SUFFIX)) as of_bin,
        atomic_path(path.with_suffix(JSON_SUFFIX)) as of_json,
    ):
        of_param.write_bytes(param)
        of_bin.write_bytes(weights)
        of_json.write_text(facts.model_dump_json(indent=1), encoding="utf-8")
    return written


def _written(edited: EditedGraph) -> Written:
    written = Written([], [])
    for conv in edited.of_type(*CONVOLUTIONS):
        names = written.integers if runs_as_integers(edited, conv) else written.floats
        names.append(conv.name)
    return written


def _layers(edited: EditedGraph) -> list[Layer]:
    """The layers of a graph of one image class, in the order in which they run."""
    layers = [Layer("Input", [], [IMAGE])]
    fused = set()
    for node in edited.graph.node:
        if node.name in fused:
            continue
        if node.op_type in CONVOLUTIONS:
            layers += convolution(edited, node)
            function = fused_activation(edited, node)
            if function is not None:
                fused.add(function.name)
        elif node.op_type == DEQUANTIZE:
            if _is_wanted(edited, node):
                layers += rounding(edited, node)
        elif node.op_type == QUANTIZE:
            continue  # a part of what takes it
        elif node.op_type in CONVERTERS:
            layers += CONVERTERS[node.op_type](edited, node)
        else:
            supported = ", ".join(sorted([*CONVERTERS, *CONVOLUTIONS]))
            raise refuse(node, f"ncnn files hold no {node.op_type}, but {supported}")
    return _renamed(layers)


def _is_wanted(edited: EditedGraph, dequantize: onnx.NodeProto) -> bool:
    """Whether something takes rounded values in float."""
    if edited.is_constant(dequantize.input[0]):
        return False
    for node in edited.graph.node:
        if dequantize.output[0] not in node.input:
            continue
        if node.op_type not in CONVOLUTIONS or not runs_as_integers(edited, node):
            return True
    return False


def _renamed(layers: list[Layer]) -> list[Layer]:
    """The layers with short names of blobs; a long path of modules may be more than ncnn reads."""
    names = {IMAGE: "data", OUTPUT: "output"}
    for layer in layers:
        for name in layer.outputs:
            names.setdefault(name, str(len(names)))
    for layer in layers:
        layer.inputs = [names[name] for name in layer.inputs]
        layer.outputs = [names[name] for name in layer.outputs]
    return layers
