"""Replaces the layers of a network by quantized ones: which, at how many bits, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer
from adabm_basicsr.quantization.config import FIXED_BITS, FLOAT_BITS, QuantizationConfig, match
from adabm_basicsr.quantization.layers import quantized_type
from adabm_basicsr.quantization.structure import Role, Structure


@dataclass
class LayerPlan:
    """How one layer is quantized.

    Attributes:
        w_bits: Bits of its weight; 32 for full precision.
        a_bits: Base bits of its input; 32 for full precision.
        adaptive: Whether its bits follow layer and image.
        fixed: Whether it is pinned to 8 bits (head and tail); it doesn't count in FAB then.
    """

    w_bits: int
    a_bits: int
    adaptive: bool
    fixed: bool


@dataclass
class Plan:
    """Layers to quantize, and the reason for each that is left in full precision; both in execution order."""

    layers: dict[str, LayerPlan]
    skipped: dict[str, str]


def plan_layers(structure: Structure, config: QuantizationConfig) -> Plan:
    """Decide for every layer of ``structure`` whether and how ``config`` quantizes it.

    Raises:
        AdaBMError: A pattern matches nothing, or no layer is left to quantize.
    """
    names = list(structure.roles)
    excluded = {name for pattern in config.exclude for name in match("exclude", pattern, names)}
    own_bits: dict[str, dict[str, int]] = {}
    for pattern, bits in config.layers.items():
        for name in match("layers", pattern, names):
            own_bits[name] = {**own_bits.get(name, {}), **bits}
    plan = Plan({}, {name: f"no quantized type for {kind}" for name, kind in structure.unsupported.items()})
    for name, role in structure.roles.items():
        if name in excluded:
            plan.skipped[name] = "excluded"
        elif role is not Role.BODY and not config.fully_quantized and name not in own_bits:
            plan.skipped[name] = f"{role.value} (fully_quantized is off)"
        else:
            layer_plan = _layer_plan(role, config, own_bits.get(name, {}))
            if layer_plan.w_bits == layer_plan.a_bits == FLOAT_BITS:
                plan.skipped[name] = f"{FLOAT_BITS} bits"
            else:
                plan.layers[name] = layer_plan
    if not plan.layers:
        raise AdaBMError("no layer is left to quantize; look at exclude, w_bits and a_bits")
    return plan


def _layer_plan(role: Role, config: QuantizationConfig, own_bits: dict[str, int]) -> LayerPlan:
    outer = role in (Role.HEAD, Role.TAIL)
    w_bits = own_bits.get("w_bits", _default_bits(config.w_bits, outer))
    a_bits = own_bits.get("a_bits", _default_bits(config.a_bits, outer))
    return LayerPlan(w_bits, a_bits, config.preset.adaptive and not outer, outer and a_bits == FIXED_BITS)


def _default_bits(bits: int, outer: bool) -> int:
    return FIXED_BITS if outer and bits != FLOAT_BITS else bits


def replace_layers(network: nn.Module, plan: Plan, config: QuantizationConfig) -> None:
    """Swap the planned layers of ``network`` in place for quantized ones that share their parameters.

    A layer that stands at several places of the network (shared between branches) becomes one quantized layer.
    """
    quantized: dict[nn.Module, nn.Module] = {}
    for name, layer_plan in plan.layers.items():
        layer = network.get_submodule(name)
        quantized[layer] = _quantize_layer(layer, layer_plan, config)
    for parent in list(network.modules()):
        for key, child in parent._modules.items():  # named_children() would list a shared child only once
            if child in quantized:
                setattr(parent, key, quantized[child])


def _quantize_layer(layer: nn.Module, plan: LayerPlan, config: QuantizationConfig) -> nn.Module:
    weight_quantizer = nn.Identity() if plan.w_bits == FLOAT_BITS else WeightQuantizer(plan.w_bits)
    input_quantizer = (
        nn.Identity()
        if plan.a_bits == FLOAT_BITS
        else ActivationQuantizer(plan.a_bits, plan.adaptive, config.preset.bit_range, plan.fixed)
    )
    return quantized_type(layer).from_float(layer, input_quantizer, weight_quantizer)
