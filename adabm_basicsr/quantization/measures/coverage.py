"""What share of a network is quantized, what is not and why, and whether the chosen mode should have covered it."""

from __future__ import annotations

from dataclasses import dataclass

from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers.base import is_colour_shift
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.roles import Role
from adabm_basicsr.quantization.structure.surgery import PRODUCTS_OFF

MAX_NAMED = 3
NO_LAYER = "computed outside of layers that can be quantized"
SMALLEST_GAP = 0.0005  # shares below this would be shown as 0.0 %


@dataclass
class Skipped:
    """A layer, product or operation that stays in full precision.

    Attributes:
        reason: Why.
        macs_share: Its share of the network's MACs, 0..1.
        wanted: Whether the mode (body alone, or fully quantized) should have covered it.
    """

    reason: str
    macs_share: float
    wanted: bool


@dataclass
class Coverage:
    """How much of a network is quantized.

    Attributes:
        layers: Number of quantized layers and products.
        macs: Their share of the network's MACs, 0..1.
        weights: Their share of its parameters, 0..1.
        skipped: Everything else that computes MACs or holds weights, by name.
    """

    layers: int
    macs: float
    weights: float
    skipped: dict[str, Skipped]

    @property
    def gap(self) -> float:
        """Share of the MACs that the chosen mode should cover and doesn't, 0..1."""
        return sum(skipped.macs_share for skipped in self.skipped.values() if skipped.wanted)

    def warning(self) -> str | None:
        """One line on the gap, None if there is none."""
        if self.gap < SMALLEST_GAP:
            return None
        told = "; ".join(self._lines(wanted=True))
        return f"{100 * self.gap:.1f} % of the MACs should be quantized in this mode and aren't: {told}"

    def __str__(self) -> str:
        lines = [f"in full precision: {line}" for line in self._lines()]
        share = f"{100 * self.macs:.1f} % of the MACs, {100 * self.weights:.1f} % of the weights"
        return "\n".join([*lines, f"quantized: {self.layers} layers, {share}"])

    def _lines(self, wanted: bool = False) -> list[str]:
        reasons = dict.fromkeys(s.reason for s in self.skipped.values() if s.wanted or not wanted)
        return [self._line(reason) for reason in reasons]

    def _line(self, reason: str) -> str:
        found = {name: s.macs_share for name, s in self.skipped.items() if s.reason == reason}
        names = ", ".join(list(found)[:MAX_NAMED])
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        return f"{names}{more}: {reason}, {100 * sum(found.values()):.1f} % of the MACs"


def measure_coverage(net: QuantizedNetwork) -> Coverage:
    """Coverage of a quantized network, from its structure and plan alone."""
    macs, others = net.structure.macs, net.structure.other_macs
    total = max(sum(macs.values()) + sum(others.values()), 1)
    skipped = {}
    for name, reason in net.plan.skipped.items():
        of_mode = net.config.fully_quantized or net.structure.roles.get(name) is Role.BODY
        skipped[name] = Skipped(
            reason, macs.get(name, 0) / total, reason == PRODUCTS_OFF and of_mode
        )
    for operation, count in others.items():
        _add_operation(net, skipped, operation, count / total)
    quantized = [
        net.network.get_submodule(n)
        for n, plan in net.plan.layers.items()
        if plan.w_bits != FLOAT_BITS
    ]
    weights = sum(layer.weight.numel() for layer in quantized if hasattr(layer, "weight"))
    all_weights = sum(parameter.numel() for parameter in net.base_parameters())
    covered = sum(macs[name] for name in net.plan.layers) / total
    return Coverage(len(net.plan.layers), covered, weights / max(all_weights, 1), skipped)


def _add_operation(
    net: QuantizedNetwork, skipped: dict[str, Skipped], operation: str, share: float
) -> None:
    owner = operation.rpartition(": ")[0]
    if is_colour_shift(net.network.get_submodule(owner)):
        skipped[owner] = Skipped("colour shift", share, wanted=False)
        return
    in_body = any(f"{owner}.".startswith(f"{block}.") for block in net.structure.blocks)
    wanted = net.config.fully_quantized or in_body
    reason = skipped.pop(owner).reason if owner in skipped else NO_LAYER
    skipped[operation] = Skipped(reason, share, wanted)
