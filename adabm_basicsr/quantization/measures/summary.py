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
from adabm_basicsr.quantization.measures.memory import within_memory
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer

BINS = 40  # of the distributions of inputs
NAN = float("nan")
INFINITE = float("inf")
HEADERS = (
    "layer",
    "role",
    "w bits",
    "a bits",
    "lower",
    "upper",
    "lowest",
    "highest",
    "clipped",
    "SQNR (dB)",
    "MACs",
)


@dataclass
class LayerSummary:
    """One quantized layer, or one operand of a quantized product.

    Attributes:
        name: Its name in the base network.
        role: head, body, trunk end or tail.
        w_bits: Bits of its weight; 32 where it has none.
        a_bits: Bits of its input (of a product: of one operand), averaged over the images; 32 for
            full precision.
        lower: Lower end of its clipping range, in units of its input as all values here; where
            channels and image classes have ranges of their own, the lowest of their ends.
        upper: Upper end of its clipping range, or the highest.
        lowest: Smallest value of its input that was seen.
        highest: Largest value of its input that was seen.
        counts: How many values of its input lay in each of `BINS` equal parts of
            ``[lowest, highest]``.
        clipped: Share of the values of its input outside the range of their channel and image
            class by more than half a scale, 0..1.
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
    clipped: float
    sqnr_db: float
    macs_share: float

    def cells(self) -> list[object]:
        """What the table shows of it, under `HEADERS`."""
        return [
            self.name,
            self.role,
            self.w_bits,
            f"{self.a_bits:.2f}",
            f"{self.lower:.4g}",
            f"{self.upper:.4g}",
            f"{self.lowest:.4g}",
            f"{self.highest:.4g}",
            f"{100 * self.clipped:.2f} %",
            f"{self.sqnr_db:.1f}",
            f"{100 * self.macs_share:.1f} %",
        ]


@dataclass
class Summary:
    """All layers of a quantized network; ``str()`` gives the table.

    Attributes:
        layers: Quantized layers in execution order.
        coverage: Share of the network that they make up, and what is left in full precision.
        fab: Mean bit-width over quantized layers not fixed at 8 bits and over the images; each
            layer counts as one.
        bits_by_macs: The same, each layer weighted by its MACs.
    """

    layers: list[LayerSummary]
    coverage: Coverage
    fab: float
    bits_by_macs: float

    def __str__(self) -> str:
        table = tabulate(
            [layer.cells() for layer in self.layers],
            headers=HEADERS,
            disable_numparse=True,
            colalign=("left", "left", *["right"] * (len(HEADERS) - 2)),
        )
        bits = f"average bits (FAB): {self.fab:.2f}, weighted by MACs {self.bits_by_macs:.2f}"
        return f"{table}\n{self.coverage}; {bits}"


@torch.no_grad()
def summarize(net: QuantizedNetwork, images: Tensor) -> Summary:
    """Measure every quantized layer of a calibrated network.

    Args:
        net: The network.
        images: What to measure on, ``(B, C, H, W)`` in 0..1; of networks that take far more memory
            than others do, their centres.
    """
    images = within_memory(net, images)
    seen: dict[nn.Module, _Seen] = {}

    def measure(quantizer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        seen[quantizer] = _see(quantizer, args[0], output)

    hooks = []
    for quantizer in net.activation_quantizers().values():
        hooks.append(quantizer.register_forward_hook(measure))
    try:
        bits = net(images, details=True).bits
        bits = bits.masked_fill(net.in_full_precision(images), FLOAT_BITS)
    finally:
        for hook in hooks:
            hook.remove()

    rows = []
    counted = []
    for name, layer in net.layers().items():
        rows_of_layer = _rows(net, name, layer, seen)
        rows += rows_of_layer
        if not net.plan.layers[name].fixed:
            counted += rows_of_layer
    fab = float(bits.mean())
    return Summary(rows, measure_coverage(net), fab, _bits_by_macs(counted, otherwise=fab))


def _bits_by_macs(rows: list[LayerSummary], otherwise: float) -> float:
    """Mean bit-width of ``rows``, weighted by MACs; ``otherwise`` if nothing counts."""
    # Neither what is in full precision nor what never ran.
    counted = [row for row in rows if 0 < row.a_bits < FLOAT_BITS]
    macs = sum(row.macs_share for row in counted)
    if not macs:
        return otherwise
    return sum(row.a_bits * row.macs_share for row in counted) / macs


class _Seen(NamedTuple):
    """What came by a quantizer; the fields are those of `LayerSummary`."""

    lowest: float
    highest: float
    counts: list[int]
    clipped: float
    sqnr_db: float


def _see(quantizer: ActivationQuantizer, x: Tensor, output: Tensor) -> _Seen:
    signal = x.square().mean()
    error = (output - x).square().mean()
    sqnr_db = 10 * torch.log10(signal / error)
    smallest, largest = torch.aminmax(x)
    lowest = smallest.item()
    highest = largest.item()
    counts = torch.histc(x, BINS, lowest, highest).long().tolist()
    return _Seen(lowest, highest, counts, quantizer.clipped_share(x), float(sqnr_db))


def _rows(
    net: QuantizedNetwork,
    name: str,
    layer: QuantizedLayer | QuantizedProduct,
    seen: dict[nn.Module, _Seen],
) -> list[LayerSummary]:
    """Row of a layer, or of both operands of a product."""
    inputs = layer.inputs(name)
    share = net.structure.macs[name] / net.structure.total_macs
    rows = []
    for row_name, quantizer in inputs.items():
        if isinstance(quantizer, ActivationQuantizer):
            a_bits = NAN  # until it runs
            if quantizer.last_bits is not None:
                a_bits = float(quantizer.last_bits.mean())
            lower, upper = quantizer.clipping_range
            values = seen.get(quantizer, _Seen(NAN, NAN, [], NAN, NAN))
        else:
            a_bits = FLOAT_BITS
            lower, upper = -INFINITE, INFINITE
            values = _Seen(NAN, NAN, [], 0.0, INFINITE)
        row = LayerSummary(
            name=row_name,
            role=net.structure.roles[name].value,
            w_bits=weight_bits(layer),
            a_bits=a_bits,
            lower=lower,
            upper=upper,
            lowest=values.lowest,
            highest=values.highest,
            counts=values.counts,
            clipped=values.clipped,
            sqnr_db=values.sqnr_db,
            macs_share=share / len(inputs),
        )
        rows.append(row)
    return rows
