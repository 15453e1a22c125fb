"""What each phase of fine-tuning trains, and the optimizer whose steps are in units of each parameter's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.network import QuantizedNetwork

BIT_MAPPING = "bit_mapping"
RATED_LEVELS = 2**4  # that the learning rates of ranges and biases are for
MAX_PROMISE = (
    0.15  # share of the loss that a step may promise to take away; with 0.3 some networks diverged
)


class RelativeAdam(torch.optim.Adam):
    """Adam whose steps are in units of each parameter's own, so that learning doesn't depend on a network's scale.

    Each group of parameters has ``units``: a tensor per parameter, of its shape or broadcastable to it. They stay what
    they were at the start, and are saved with the optimizer's state.
    """

    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, loss: float = math.inf
    ) -> float | None:
        """One Adam step, each component times its unit.

        Args:
            closure: As in ``torch.optim.Adam``.
            loss: What the gradients are of. Steps that by these would lower it by more than `MAX_PROMISE` of it are
                shortened: how far a network can go in a step depends on how its layers' errors add up.
        """
        pairs = [
            pair for group in self.param_groups for pair in zip(group["params"], group["units"])
        ]
        with torch.enable_grad():
            result = closure() if closure else None
        before = [parameter.clone() for parameter, _ in pairs]
        try:
            for parameter, _ in pairs:
                parameter.zero_()  # Adam's steps are of order one, and would be rounded away beside large values
            super().step()
            moves = [parameter * unit.to(parameter.device) for parameter, unit in pairs]
        finally:
            for (parameter, _), old in zip(pairs, before):
                parameter.copy_(old)
        promised = -sum(
            float((p.grad * move).sum()) for (p, _), move in zip(pairs, moves) if p.grad is not None
        )
        shortened = min(MAX_PROMISE * loss / promised, 1.0) if promised > 0 else 1.0
        for (parameter, _), move in zip(pairs, moves):
            parameter.add_(shortened * move)
        return result


def parameter_groups(net: QuantizedNetwork, phase: str, rates: dict[str, float]) -> list[dict]:
    """What a phase trains, as groups of an optimizer.

    Args:
        net: The quantized network.
        phase: One of `PHASES`.
        rates: Learning rates by the names of groups: ``weight_range``, ``activation_range``, ``layer_factor``, ...

    Returns:
        A group for each name that the network has parameters of, with ``units`` if the recipe doesn't depend on scale.
    """
    named = _TRAINED[phase](net)
    return [
        _group(units, rates[name], net.config.finetuning.relative_steps)
        for name, units in named.items()
        if units
    ]


def _weight_ranges(net: QuantizedNetwork) -> dict[str, dict[nn.Parameter, Tensor]]:
    return {
        "weight_range": {
            quantizer.upper: quantizer.upper for quantizer in net.weight_quantizers().values()
        }
    }


def _activation_ranges(net: QuantizedNetwork) -> dict[str, dict[nn.Parameter, Tensor]]:
    units, fineness = {}, _fineness(net)
    for quantizer in net.activation_quantizers().values():
        width = fineness * (quantizer.upper - quantizer.lower)
        units |= {quantizer.lower: width, quantizer.upper: width}
        if quantizer.level_ranges is not None:
            units[quantizer.level_ranges] = torch.full((1,), fineness)
    return {"activation_range": units}


def _fineness(net: QuantizedNetwork) -> float:
    """Factor on what ranges and biases move by: steps that suit four bits are as large as the levels of eight."""
    return min(RATED_LEVELS / 2 ** min(net.config.w_bits, net.config.a_bits), 1.0)


def _bit_mappings(net: QuantizedNetwork) -> dict[str, dict[nn.Parameter, Tensor]]:
    factors = [
        quantizer.layer_factor
        for quantizer in net.activation_quantizers().values()
        if quantizer.adaptive
    ]
    thresholds = [net.image_mapping.lower, net.image_mapping.upper] if factors else []
    # Neither depends on the network's scale: a factor is in bits, a threshold in units of the image's complexity.
    named = (("layer_factor", factors), ("image_threshold", thresholds))
    return {name: dict.fromkeys(found, torch.ones(1)) for name, found in named}


def _everything(net: QuantizedNetwork) -> dict[str, dict[nn.Parameter, Tensor]]:
    """Rounding of weights, in their steps; biases, in what a mean weight makes of the whole range; ranges."""
    corrections, biases = {}, {}
    for name, quantizer in net.weight_quantizers().items():
        if quantizer.correction is not None:
            layer = net.network.get_submodule(name)
            corrections[quantizer.correction] = quantizer.scales(layer.weight)
            width = getattr(layer.input_quantizer, "upper", 1.0) - getattr(
                layer.input_quantizer, "lower", 0.0
            )
            biases[quantizer.bias_correction] = _fineness(net) * width * layer.weight.abs().mean()
    return {"weight_correction": corrections, "bias": biases, **_activation_ranges(net)}


_TRAINED = {
    "weight_range": _weight_ranges,
    "activation_range": _activation_ranges,
    BIT_MAPPING: _bit_mappings,
    "distillation": _everything,
}


def _group(units: dict[nn.Parameter, Tensor], rate: float, scale_free: bool) -> dict:
    group = {"params": list(units), "lr": rate, "first_lr": rate}
    return (
        {**group, "units": [unit.detach().clone() for unit in units.values()]}
        if scale_free
        else group
    )
