"""What share of a network is quantized, what is not and why, and whether the mode covers enough."""

from __future__ import annotations

from dataclasses import dataclass

from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers.base import QuantizedLayer, is_colour_shift
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.flow import FLOW_ESTIMATION
from adabm_basicsr.quantization.structure.roles import Role
from adabm_basicsr.quantization.structure.surgery import PRODUCTS_OFF

MAX_NAMED = 3
NO_LAYER = "computed outside of layers that can be quantized"
CONVOLUTION = "convolution"  # what operations of torch call themselves
OTHER_WEIGHT = "its weight is no parameter of the module, such as one that is computed on the fly"
FLOW_STAYS = f"{FLOW_ESTIMATION} stays in float"
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
        wanted = [skipped.reason for skipped in self.skipped.values() if skipped.wanted]
        lines = "; ".join(self._lines(wanted))
        return (
            f"{100 * self.gap:.1f} % of the MACs should be quantized in this mode and aren't: "
            f"{lines}"
        )

    def __str__(self) -> str:
        reasons = [skipped.reason for skipped in self.skipped.values()]
        lines = [f"in full precision: {line}" for line in self._lines(reasons)]
        share = f"{100 * self.macs:.1f} % of the MACs, {100 * self.weights:.1f} % of the weights"
        lines.append(f"quantized: {self.layers} layers, {share}")
        return "\n".join(lines)

    def _lines(self, reasons: list[str]) -> list[str]:
        """One line for each of the ``reasons``: what is skipped for it, and its share of MACs."""
        lines = []
        for reason in dict.fromkeys(reasons):
            found = {n: skipped for n, skipped in self.skipped.items() if skipped.reason == reason}
            names = ", ".join(list(found)[:MAX_NAMED])
            if len(found) > MAX_NAMED:
                names += f" and {len(found) - MAX_NAMED} more"
            share = sum(skipped.macs_share for skipped in found.values())
            lines.append(f"{names}: {reason}, {100 * share:.1f} % of the MACs")
        return lines


def measure_coverage(net: QuantizedNetwork) -> Coverage:
    """Coverage of a quantized network, from its structure and plan alone."""
    structure = net.structure
    total = max(structure.total_macs, 1)
    skipped = {}
    for name, reason in net.plan.skipped.items():
        in_mode = net.config.fully_quantized or structure.roles.get(name) is Role.BODY
        wanted = reason == PRODUCTS_OFF and in_mode
        share = structure.macs.get(name, 0) / total
        skipped[name] = Skipped(reason, share, wanted)
    for operation, count in structure.other_macs.items():
        _add_operation(net, skipped, operation, count / total)

    weights = 0
    for name, layer in net.layers().items():
        w_bits = net.plan.layers[name].w_bits
        if isinstance(layer, QuantizedLayer) and w_bits != FLOAT_BITS:
            weights += layer.weight.numel()
    all_weights = sum(parameter.numel() for parameter in net.base_parameters())
    quantized_macs = sum(structure.macs[name] for name in net.plan.layers)
    return Coverage(
        layers=len(net.plan.layers),
        macs=quantized_macs / total,
        weights=weights / max(all_weights, 1),
        skipped=skipped,
    )


def _add_operation(
    net: QuantizedNetwork, skipped: dict[str, Skipped], operation: str, share: float
) -> None:
    """Add to ``skipped`` an operation outside of quantizable layers.

    Args:
        net: The network.
        skipped: What was skipped so far.
        operation: ``module: operation``.
        share: Its share of the network's MACs, 0..1.
    """
    owner, _, kind = operation.rpartition(": ")
    if is_colour_shift(net.network.get_submodule(owner)):
        skipped[owner] = Skipped("colour shift", share, wanted=False)
        return
    if kind == FLOW_ESTIMATION:
        skipped[owner] = Skipped(FLOW_STAYS, share, wanted=False)
        return
    in_body = any(f"{owner}.".startswith(f"{block}.") for block in net.structure.blocks)
    wanted = net.config.fully_quantized or in_body
    reason = OTHER_WEIGHT if kind == CONVOLUTION else NO_LAYER
    if owner in skipped:
        reason = skipped.pop(owner).reason
    skipped[operation] = Skipped(reason, share, wanted)
