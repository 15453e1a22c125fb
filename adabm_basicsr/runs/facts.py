"""What a report says of a network: how it was built, what was asked of it, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor, nn

from adabm_basicsr.quantization.bit_mapping import image_complexity
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.measures.cost import size_bytes
from adabm_basicsr.quantization.measures.summary import Summary
from adabm_basicsr.quantization.network import QuantizedNetwork


def describe_network(net: nn.Module, options: Mapping) -> dict:
    """What an option file asks for; ``options`` are those of ``network_g``."""
    base = options["network"]["type"] if "network" in options else options["type"]
    if not isinstance(net, QuantizedNetwork):
        return {"network": base, "recipe": None, "asked": None, "size": {"bytes": size_bytes(net)}}
    asked = {
        "w_bits": net.config.w_bits,
        "a_bits": net.config.a_bits,
        "target": dict(net.config.target),
    }
    asked["fully_quantized"] = net.config.fully_quantized
    return {
        "network": base,
        "recipe": net.config.recipe,
        "asked": asked,
        "size": describe_size(net),
    }


def describe_size(net: QuantizedNetwork) -> dict[str, int]:
    """Bytes of the weights as they are quantized, and in full precision."""
    return {"bytes": size_bytes(net), "float_bytes": net.full_precision_bytes()}


def describe_result(net: QuantizedNetwork, summary: Summary, patches: Sequence[Tensor]) -> dict:
    """What quantization came to.

    Args:
        net: The calibrated network.
        summary: Of its layers.
        patches: LR patches that it was calibrated on, each ``(1, C, H, W)`` in 0..1.
    """
    bits = [float(net.bits_for(patch)) for patch in patches]
    mapping = net.image_mapping
    return {
        "layers": describe_layers(net, summary),
        "coverage": {"layers": summary.coverage.layers, "macs": summary.coverage.macs},
        "reached": {"w_bits": mean_weight_bits(net), "a_bits": sum(bits) / len(bits)},
        "size": describe_size(net),
        "thresholds": [mapping.lower.item(), mapping.upper.item()] if mapping is not None else None,
        "calibration": {
            "complexity": [float(image_complexity(patch)) for patch in patches],
            "bits": bits,
        },
    }


def describe_layers(net: QuantizedNetwork, summary: Summary) -> list[dict]:
    """A row of `Summary` for each layer, numbered in order, with its base bits and those with its layer factor."""
    quantizers = net.activation_quantizers()
    rows = [asdict(layer) for layer in summary.layers]
    for index, row in enumerate(rows, start=1):
        row["index"] = index
        quantizer = quantizers.get(row["name"])
        row["base_bits"] = quantizer.bits if quantizer else FLOAT_BITS
        row["layer_bits"] = quantizer.bits_of_layer().item() if quantizer else FLOAT_BITS
    return rows


def mean_weight_bits(net: QuantizedNetwork) -> float:
    """Mean bits per quantized weight, over layers that are not fixed at 8 bits; over all if every one is."""
    quantizers = net.weight_quantizers()
    counted = [name for name in quantizers if not net.plan.layers[name].fixed] or list(quantizers)
    sizes = {name: net.network.get_submodule(name).weight.numel() for name in counted}
    if not sizes:
        return float(FLOAT_BITS)
    return sum(quantizers[name].bits * size for name, size in sizes.items()) / sum(sizes.values())
