"""One table of what was quantized, what was not and why, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.measures.cost import weight_bits
from adabm_basicsr.quantization.measures.coverage import Coverage, measure_coverage
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

BINS = 40  # of the distributions of inputs


@dataclass
class LayerSummary:
    """One quantized layer, or one operand of a quantized product.

    Attributes:
        name: Its name in the base network.
        role: head, body, trunk end or tail.
        w_bits: Bits of its weight; 32 where it has none.
        a_bits: Bits of its input (of a product: of one operand), averaged over the images; 32 for full precision.
        lower: Lower end of its clipping range; where channels have ranges of their own, the common one that these and
            the values below are moved to.
        upper: Upper end of its clipping range.
        lowest: Smallest value of its input that was seen.
        highest: Largest value of its input that was seen.
        counts: How many values of its input lay in each of `BINS` equal parts of ``[lowest, highest]``.
        sqnr_db: Signal to quantization noise of its input, in dB.
        macs_share: Its share of the network's MACs, 0..1.
    """

    name: str
    role: str
    w_bits: int
    a_bits: float
    lower: float
    upper: float
    lowest: float
    highest: float
    counts: list[int]
    sqnr_db: float
    macs_share: float


@dataclass
class Summary:
    """All layers of a quantized network; ``str()`` gives the table.

    Attributes:
        layers: Quantized layers in execution order.
        coverage: Share of the network that they make up, and what is left in full precision.
        fab: Mean bits over quantized layers not fixed at 8 bits and over the images; each layer counts as one.
        bits_by_macs: The same, each layer weighted by its MACs.
    """

    layers: list[LayerSummary]
    coverage: Coverage
    fab: float
    bits_by_macs: float

    def __str__(self) -> str:
        rows = [
            [
                *(s.name, s.role, s.w_bits, f"{s.a_bits:.2f}", f"{s.lower:.4g}", f"{s.upper:.4g}"),
                *(
                    f"{s.lowest:.4g}",
                    f"{s.highest:.4g}",
                    f"{s.sqnr_db:.1f}",
                    f"{100 * s.macs_share:.1f} %",
                ),
            ]
            for s in self.layers
        ]
        headers = [
            "layer",
            "role",
            "w bits",
            "a bits",
            "lower",
            "upper",
            "lowest",
            "highest",
            "SQNR (dB)",
            "MACs",
        ]
        lines = [
            tabulate(
                rows,
                headers=headers,
                disable_numparse=True,
                colalign=("left", "left", *["right"] * 8),
            )
        ]
        bits = f"average bits (FAB): {self.fab:.2f}, weighted by MACs {self.bits_by_macs:.2f}"
        return "\n".join([*lines, f"{self.coverage}; {bits}"])


@torch.no_grad()
def summarize(net: QuantizedNetwork, images: Tensor) -> Summary:
    """Measure every quantized layer of a calibrated network on ``images``, ``(B, C, H, W)`` in 0..1."""
    seen: dict[nn.Module, _Seen] = {}

    def measure(quantizer: ActivationQuantizer, args: tuple, output: Tensor) -> None:
        seen[quantizer] = _see(quantizer, args[0], output)

    hooks = [
        quantizer.register_forward_hook(measure)
        for quantizer in net.activation_quantizers().values()
    ]
    try:
        bits = net(images, details=True).bits
    finally:
        for hook in hooks:
            hook.remove()
    rows = {name: _rows(net, name, layer, seen) for name, layer in net.layers().items()}
    adaptive = [
        row for name, found in rows.items() if not net.plan.layers[name].fixed for row in found
    ]
    layers, fab = [row for found in rows.values() for row in found], float(bits.mean())
    return Summary(layers, measure_coverage(net), fab, _weighted_by_macs(adaptive, fab))


def _weighted_by_macs(rows: list[LayerSummary], otherwise: float) -> float:
    counted = [
        row for row in rows if 0 < row.a_bits < FLOAT_BITS
    ]  # neither in full precision nor never run
    macs = sum(row.macs_share for row in counted)
    return sum(row.a_bits * row.macs_share for row in counted) / macs if macs else otherwise


class _Seen(NamedTuple):
    """What came by a quantizer, in units of its range, to which each channel is moved."""

    lowest: float
    highest: float
    counts: list[int]
    sqnr_db: float


def _see(quantizer: ActivationQuantizer, x: Tensor, output: Tensor) -> _Seen:
    signal, error = x.square().mean(), (output - x).square().mean()
    values = quantizer.in_common_range(x)
    lowest, highest = (end.item() for end in torch.aminmax(values))
    counts = torch.histc(values, BINS, lowest, highest).long().tolist()
    return _Seen(lowest, highest, counts, float(10 * torch.log10(signal / error)))


def _rows(
    net: QuantizedNetwork,
    name: str,
    layer: QuantizedLayer | QuantizedProduct,
    seen: dict[nn.Module, _Seen],
) -> list[LayerSummary]:
    inputs = layer.inputs(name)
    total = sum(net.structure.macs.values()) + sum(net.structure.other_macs.values())
    share = net.structure.macs[name] / total / len(inputs)
    role, w_bits = net.structure.roles[name].value, weight_bits(layer)
    return [
        LayerSummary(row_name, role, w_bits, *_measured(quantizer, seen), share)
        for row_name, quantizer in inputs.items()
    ]


def _measured(quantizer: nn.Module, seen: dict[nn.Module, _Seen]) -> tuple:
    """Bits, lower and upper end, and what was seen."""
    if not isinstance(quantizer, ActivationQuantizer):
        nothing = _Seen(float("nan"), float("nan"), [], float("inf"))
        return FLOAT_BITS, float("-inf"), float("inf"), *nothing
    bits = float(quantizer.last_bits.mean()) if quantizer.last_bits is not None else float("nan")
    nothing = _Seen(float("nan"), float("nan"), [], float("nan"))
    return bits, *quantizer.clipping_range, *seen.get(quantizer, nothing)
