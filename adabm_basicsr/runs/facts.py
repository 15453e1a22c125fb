"""What a run notes of its network: how it was built, what was asked of it, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.measures.cost import mean_weight_bits, size_bytes
from adabm_basicsr.quantization.measures.summary import Summary
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

IMAGE_FACTORS = (-1, 0, 1)  # of simple, middle and complex images


def describe_network(net: nn.Module, options: Mapping) -> dict[str, Any]:
    """What an option file asks for.

    Args:
        net: The network, quantized or not.
        options: Those of ``network_g``.
    """
    base = options.get("network", options)
    if not isinstance(net, QuantizedNetwork):
        return {
            "network": base["type"],
            "recipe": None,
            "asked": None,
            "size": {"bytes": size_bytes(net)},
        }
    config = net.config
    return {
        "network": base["type"],
        "recipe": config.recipe,
        "asked": {
            "w_bits": config.w_bits,
            "a_bits": config.a_bits,
            "target": dict(config.target),
            "fully_quantized": config.fully_quantized,
        },
        "size": describe_size(net),
    }


def describe_size(net: QuantizedNetwork) -> dict[str, int]:
    """Bytes of the weights as they are quantized, and in full precision."""
    return {"bytes": size_bytes(net), "float_bytes": net.full_precision_bytes()}


def describe_result(
    net: QuantizedNetwork, summary: Summary, patches: Sequence[Tensor]
) -> dict[str, Any]:
    """What quantization came to.

    Args:
        net: The calibrated network.
        summary: Of its layers.
        patches: LR patches that it was calibrated on, each ``(1, C, H, W)`` in 0..1.
    """
    bits = [float(net.bits_for(patch)) for patch in patches]
    complexity = [float(image_complexity(patch)) for patch in patches]
    mapping = net.image_mapping
    thresholds = None
    if mapping is not None:
        thresholds = [mapping.lower.item(), mapping.upper.item()]
    return {
        "layers": describe_layers(net, summary),
        "coverage": {
            "layers": summary.coverage.layers,
            "macs": summary.coverage.macs,
        },
        "reached": {
            "w_bits": mean_weight_bits(net),
            "a_bits": sum(bits) / len(bits),
        },
        "size": describe_size(net),
        "thresholds": thresholds,
        "calibration": {"complexity": complexity, "bits": bits},
    }


def describe_layers(net: QuantizedNetwork, summary: Summary) -> list[dict[str, Any]]:
    """A row of `Summary` for each layer, numbered in order, and its bits without the image factor.

    ``base_bits`` are those before the layer factor, ``layer_bits`` those after it.
    """
    quantizers: dict[str, nn.Module] = {}
    for name, quantized in net.layers().items():
        quantizers.update(quantized.inputs(name))
    rows = []
    for index, layer in enumerate(summary.layers, start=1):
        row = asdict(layer)
        row["index"] = index
        quantizer = quantizers.get(layer.name)
        if not isinstance(quantizer, ActivationQuantizer):
            row["base_bits"] = FLOAT_BITS
            row["layer_bits"] = FLOAT_BITS
        else:
            row["base_bits"] = quantizer.bits
            row["layer_bits"] = quantizer.bits_of_layer().item()
        rows.append(row)
    return rows


@torch.no_grad()
def describe_classes(net: QuantizedNetwork) -> list[dict[str, float | None]]:
    """What each class of images, simple, middle and complex, means for a network.

    Returns:
        For each class ``bits``, the mean bit-width of layers that aren't fixed at 8 bits, and the
        factor on the clipping ranges: ``range_factor`` is the mean over layers,
        ``smallest_factor`` and ``largest_factor`` are its extremes. The factors are None where all
        classes share their ranges.
    """
    quantizers = list(net.activation_quantizers().values())
    counted = [quantizer for quantizer in quantizers if not quantizer.fixed]
    ranges = []
    for quantizer in quantizers:
        if quantizer.level_ranges is not None:
            ranges.append(quantizer.level_ranges.tolist())
    classes = []
    for index, image_factor in enumerate(IMAGE_FACTORS):
        bits = _bits_of_class(net, counted or quantizers, image_factor)
        factors = [of_layer[index] for of_layer in ranges]
        found: dict[str, float | None] = {
            "bits": mean(bits) if bits else float(FLOAT_BITS),
            "range_factor": mean(factors) if factors else None,
            "smallest_factor": min(factors, default=None),
            "largest_factor": max(factors, default=None),
        }
        classes.append(found)
    return classes


def _bits_of_class(
    net: QuantizedNetwork, quantizers: Sequence[ActivationQuantizer], image_factor: int
) -> list[float]:
    """Bit-width of each quantizer on an image of that factor."""
    bits = []
    with net.lock:
        for quantizer in quantizers:
            quantizer.image_factor = quantizer.lower.new_tensor([image_factor])
            bits.append(quantizer.bits_used().item())
            quantizer.image_factor = None
    return bits
