"""One table of what was quantized, what was not and why, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor

from adabm_basicsr.quantization.adaptive import ActivationQuantizer
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork


@dataclass
class LayerSummary:
    """One quantized layer.

    Attributes:
        name: Its name in the base network.
        role: head, body, trunk end or tail.
        w_bits: Bits of its weight.
        a_bits: Bits of its input, averaged over the images; 32 for full precision.
        lower: Lower end of its clipping range.
        upper: Upper end of its clipping range.
        sqnr_db: Signal to quantization noise of its input, in dB.
        macs_share: Its share of the network's MACs, 0..1.
    """

    name: str
    role: str
    w_bits: int
    a_bits: float
    lower: float
    upper: float
    sqnr_db: float
    macs_share: float


@dataclass
class Summary:
    """All layers of a quantized network; ``str()`` gives the table.

    Attributes:
        layers: Quantized layers in execution order.
        skipped: Reason for each layer left in full precision.
        macs_covered: Share of the network's MACs in quantized layers, 0..1.
        fab: Mean bits over quantized layers not fixed at 8 bits and over the images.
    """

    layers: list[LayerSummary]
    skipped: dict[str, str]
    macs_covered: float
    fab: float

    def __str__(self) -> str:
        rows = [
            [
                *(s.name, s.role, s.w_bits, f"{s.a_bits:.2f}", f"{s.lower:.4g}", f"{s.upper:.4g}"),
                *(f"{s.sqnr_db:.1f}", f"{100 * s.macs_share:.1f} %"),
            ]
            for s in self.layers
        ]
        headers = ["layer", "role", "w bits", "a bits", "lower", "upper", "SQNR (dB)", "MACs"]
        lines = [tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "left", *["right"] * 6))]
        lines += [f"in full precision: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"quantized: {100 * self.macs_covered:.1f} % of the MACs; average bits (FAB): {self.fab:.2f}"]
        return "\n".join(lines)


@torch.no_grad()
def summarize(net: QuantizedNetwork, images: Tensor) -> Summary:
    """Measure every quantized layer of a calibrated network on ``images``, ``(B, C, H, W)`` in 0..1."""
    noise: dict[QuantizedLayer, float] = {}

    def measure(layer: QuantizedLayer, args: tuple) -> None:
        error = layer.input_quantizer(args[0]) - args[0]
        noise[layer] = float(10 * torch.log10(args[0].square().mean() / error.square().mean()))

    layers = net.layers()
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers.values()]
    try:
        bits = net(images, details=True).bits
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(net.structure.macs.values())
    rows = [_row(net, name, layer, noise.get(layer, float("nan")), total) for name, layer in layers.items()]
    return Summary(rows, net.plan.skipped, sum(row.macs_share for row in rows), float(bits.mean()))


def _row(net: QuantizedNetwork, name: str, layer: QuantizedLayer, noise: float, total_macs: float) -> LayerSummary:
    quantizer = layer.input_quantizer
    share = net.structure.macs[name] / total_macs
    role, w_bits = net.structure.roles[name].value, net.plan.layers[name].w_bits
    if not isinstance(quantizer, ActivationQuantizer):
        return LayerSummary(name, role, w_bits, FLOAT_BITS, float("-inf"), float("inf"), float("inf"), share)
    bits = float(quantizer.last_bits.mean()) if quantizer.last_bits is not None else float("nan")
    return LayerSummary(name, role, w_bits, bits, quantizer.lower.item(), quantizer.upper.item(), noise, share)
