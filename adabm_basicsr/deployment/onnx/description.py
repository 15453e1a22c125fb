"""What an ONNX file says of itself: how its network was built and quantized, and what it takes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import onnx
from onnx import helper

from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.network import QuantizedNetwork

FORMAT = 1


def describe(
    model: onnx.ModelProto,
    net: QuantizedNetwork,
    symmetric: bool = False,
    level: int | None = None,
    form: str | None = None,
) -> None:
    """Write into the metadata of a model how its network was built and quantized.

    Args:
        model: The model; what it says of itself is replaced.
        net: The network.
        symmetric: Whether inputs are quantized without zero points, whatever the network has.
        level: The image class that the graph is for; None where it is for all.
        form: What `OnnxNetwork` makes of the graph for OpenVINO, a key of `fusion.FORMS`; None for
            its own choice.
    """
    description: dict[str, Any] = {
        "format": FORMAT,
        "size_multiple": net.size_multiple,
        "engine": net.config.engine,
        "level": level,
        "form": form,
        "symmetric": symmetric or not net.config.integers_of.zero_points,
        "arithmetic": _arithmetic(net, symmetric),
        "clips": asdict(net.clips) if net.clips is not None else None,
    }
    description.update(getattr(net, "description", None) or {})
    helper.set_model_props(model, {DESCRIPTION_KEY: json.dumps(description)})


def _arithmetic(net: QuantizedNetwork, symmetric: bool) -> str:
    """In words, which integers a graph has."""
    has_zero_points = net.config.integers_of.zero_points and not symmetric
    kind = "uint8 with zero points" if has_zero_points else "int8 without zero points"
    scales = "each channel" if net.config.arithmetic.channel_grids else "all channels"
    return f"activations {kind} and a scale for {scales}; weights int8, a scale for each channel"
