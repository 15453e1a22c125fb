"""What each phase of fine-tuning trains, and Adam in units of each parameter's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.calibration.visits import layers_with_weights
from adabm_basicsr.quantization.network import QuantizedNetwork

BIT_MAPPING = "bit_mapping"
# The number of grid points that the learning rates of ranges and biases are for.
RATED_LEVELS = 2**4
# Share of the loss that an iteration may promise to take away; with 0.3 some networks diverged.
MAX_PROMISE = 0.15

# Parameters of a group, each with the unit that it is moved in.
Units = dict[nn.Parameter, Tensor]


class RelativeAdam(torch.optim.Adam):
    """Adam that moves each parameter in units of its own.

    What is learned then doesn't depend on the scale that a network computes in.

    Each group of parameters has ``units``: a tensor per parameter, of its shape or broadcastable to
    it. They stay what they were at the start, and are saved with the optimizer's state.
    """

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, loss: float = math.inf
    ) -> float | None:
        """One iteration: Adam's move, each component times its unit.

        Args:
            closure: As in ``torch.optim.Adam``.
            loss: What the gradients are of. Moves that by these would lower it by more than
                `MAX_PROMISE` of it are shortened: how far a network can go at once depends on how
                its layers' errors add up.

        Returns:
            What ``closure`` returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        parameters = []
        units = []
        for group in self.param_groups:
            parameters.extend(group["params"])
            units.extend(group["units"])
        moves = self._moves(parameters, units)
        shortened = _shortening(parameters, moves, loss)
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.add_(shortened * move)
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state; units come to the devices of their parameters, as moments do."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            units = zip(group["units"], group["params"], strict=True)
            group["units"] = [unit.to(parameter.device) for unit, parameter in units]

    def _moves(self, parameters: list[nn.Parameter], units: list[Tensor]) -> list[Tensor]:
        """What Adam would add to each parameter, whose value and gradient stay as they were.

        Adam sees gradients for a move by a unit, so that its epsilon is in such units too.
        """
        before = [parameter.clone() for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        moves = []
        try:
            for parameter, unit in zip(parameters, units, strict=True):
                # Adam's moves are of order one, and would be rounded away beside large values.
                parameter.zero_()
                if parameter.grad is not None:
                    parameter.grad = parameter.grad * unit
            super().step()
            for parameter, unit in zip(parameters, units, strict=True):
                moves.append(parameter * unit)
        finally:
            for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
                parameter.copy_(old)
                parameter.grad = gradient
        return moves


def _shortening(parameters: list[nn.Parameter], moves: list[Tensor], loss: float) -> Tensor | float:
    """Factor on the moves, such that they promise to take at most a share of the loss away.

    It stays on the device, as a GPU would be waited for to read it.
    """
    changes = []
    for parameter, move in zip(parameters, moves, strict=True):
        if parameter.grad is not None:
            changes.append((parameter.grad * move).sum().double())
    if not changes:
        return 1.0
    promised = -torch.stack(changes).sum()
    allowed = MAX_PROMISE * loss / promised
    return torch.where(promised > 0, allowed, 1.0).clamp(max=1.0)


def parameter_groups(
    net: QuantizedNetwork, phase: str, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What a phase trains, as groups of an optimizer.

    Args:
        net: The quantized network.
        phase: One of `PHASES`.
        rates: Learning rates by the names of groups: ``weight_range``, ``activation_range``,
            ``layer_factor``, ...

    Returns:
        A group for each name that the network has parameters of, with ``units`` if the recipe
        doesn't depend on scale.
    """
    find_trained = _TRAINED[phase]
    groups = []
    for name, units in find_trained(net).items():
        if not units:
            continue
        rate = rates[name]
        group: dict[str, Any] = {"params": list(units), "lr": rate, "first_lr": rate}
        if net.config.finetuning.relative_steps:
            group["units"] = [unit.detach().clone() for unit in units.values()]
        groups.append(group)
    return groups


def _weight_ranges(net: QuantizedNetwork) -> dict[str, Units]:
    """Ends of weight ranges, in units of themselves."""
    units: Units = {}
    for quantizer in net.weight_quantizers().values():
        units[quantizer.upper] = quantizer.upper
    return {"weight_range": units}


def _activation_ranges(net: QuantizedNetwork) -> dict[str, Units]:
    """Ends of activation ranges, in units of the range's width; and factors of image classes."""
    fineness = _fineness(net)
    units: Units = {}
    for quantizer in net.activation_quantizers().values():
        if quantizer.holds_pixels:
            # Any other range would round them.
            continue
        width = fineness * (quantizer.upper - quantizer.lower)
        units[quantizer.lower] = width
        units[quantizer.upper] = width
        if quantizer.level_ranges is not None:
            units[quantizer.level_ranges] = torch.full_like(width, fineness)
    return {"activation_range": units}


def _fineness(net: QuantizedNetwork) -> float:
    """Factor on what ranges and biases move by.

    Moves that suit four bits are as large as the distance of grid points at eight.
    """
    bits = min(net.config.w_bits, net.config.a_bits)
    return min(RATED_LEVELS / 2**bits, 1.0)


def _bit_mappings(net: QuantizedNetwork) -> dict[str, Units]:
    """Layer factors and image thresholds.

    Neither depends on the network's scale: a factor is in bits, a threshold in units of the image's
    complexity.
    """
    factors: Units = {}
    for quantizer in net.activation_quantizers().values():
        if quantizer.adaptive:
            factors[quantizer.layer_factor] = torch.ones_like(quantizer.layer_factor)
    thresholds: Units = {}
    mapping = net.image_mapping
    if factors and mapping is not None:
        thresholds[mapping.lower] = torch.ones_like(mapping.lower)
        thresholds[mapping.upper] = torch.ones_like(mapping.upper)
    return {"layer_factor": factors, "image_threshold": thresholds}


def _everything(net: QuantizedNetwork) -> dict[str, Units]:
    """Rounding and ranges of weights, biases and activation ranges.

    A weight's correction is in units of its scale, a weight's range in units of itself; a bias in
    what a mean weight makes of the whole range of the input.
    """
    fineness = _fineness(net)
    ranges: Units = {}
    corrections: Units = {}
    biases: Units = {}
    for _, layer, quantizer in layers_with_weights(net):
        if quantizer.correction is None or quantizer.bias_correction is None:
            continue
        ranges[quantizer.upper] = fineness * quantizer.upper
        corrections[quantizer.correction] = quantizer.scales(layer.weight)
        # Inputs in float have no range.
        lower = getattr(layer.input_quantizer, "lower", 0.0)
        upper = getattr(layer.input_quantizer, "upper", 1.0)
        mean_weight = layer.weight.abs().mean()
        biases[quantizer.bias_correction] = fineness * (upper - lower) * mean_weight
    trained = {"weight_range": ranges, "weight_correction": corrections, "bias": biases}
    trained.update(_activation_ranges(net))
    return trained


_TRAINED: dict[str, Callable[[QuantizedNetwork], dict[str, Units]]] = {
    "weight_range": _weight_ranges,
    "activation_range": _activation_ranges,
    BIT_MAPPING: _bit_mappings,
    "distillation": _everything,
}
