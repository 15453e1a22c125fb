"""Replaces the layers of a network by quantized ones: which, at how many bits, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import FIXED_BITS, FLOAT_BITS, QuantizationConfig
from adabm_basicsr.quantization.layers import (
    PRODUCTS_KEY,
    QuantizedLayer,
    QuantizedProduct,
    quantize_products,
    quantized_type,
)
from adabm_basicsr.quantization.patterns import match, match_all
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.roles import Role, Structure

PRODUCTS_OFF = "product of activations (attention_products is off)"


@dataclass
class LayerPlan:
    """How one layer is quantized.

    Attributes:
        w_bits: Bits of its weight; 32 for full precision.
        a_bits: Base bits of its input; 32 for full precision.
        adaptive: Whether its bits follow layer and image.
        fixed: Whether it is pinned to 8 bits (head and tail); it doesn't count in FAB then.
        allocated: Whether the bits of its weight follow its sensitivity.
    """

    w_bits: int
    a_bits: int
    adaptive: bool
    fixed: bool
    allocated: bool = False


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
    excluded = set(match_all("exclude", config.exclude, names))
    non_adaptive = set(match_all("non_adaptive", config.non_adaptive, names))
    own_bits: dict[str, dict[str, int]] = {}
    for pattern, bits in config.layers.items():
        for name in match("layers", pattern, names):
            own_bits[name] = {**own_bits.get(name, {}), **bits}
    plan = Plan(
        {}, {name: f"no quantized type for {kind}" for name, kind in structure.unsupported.items()}
    )
    for name, role in structure.roles.items():
        may_adapt = name not in non_adaptive and name not in structure.unbatched
        layer_plan = _layer_plan(role, config, own_bits.get(name, {}), may_adapt)
        reason = _reason_to_skip(name, layer_plan, structure, config, excluded, name in own_bits)
        if reason:
            plan.skipped[name] = reason
        else:
            plan.layers[name] = layer_plan
    if not plan.layers:
        raise AdaBMError("no layer is left to quantize; look at exclude, w_bits and a_bits")
    return plan


def _reason_to_skip(
    name: str,
    plan: LayerPlan,
    structure: Structure,
    config: QuantizationConfig,
    excluded: set[str],
    asked_for: bool,
) -> str | None:
    role = structure.roles[name]
    if name in excluded:
        return "excluded"
    if name in structure.products and not config.attention_products:
        return PRODUCTS_OFF
    if role is not Role.BODY and not config.fully_quantized and not asked_for:
        return f"{role.value} (fully_quantized is off)"
    bits = [plan.a_bits] if name in structure.products else [plan.w_bits, plan.a_bits]
    return f"{FLOAT_BITS} bits" if set(bits) == {FLOAT_BITS} else None


def _layer_plan(
    role: Role, config: QuantizationConfig, own_bits: dict[str, int], adaptive: bool
) -> LayerPlan:
    outer = role in (Role.HEAD, Role.TAIL)
    w_bits = own_bits.get("w_bits", _default_bits(config.w_bits, outer))
    a_bits = own_bits.get("a_bits", _default_bits(config.a_bits, outer))
    allocates = (
        config.arithmetic.own_bits
    )  # bits that are given to a single layer stay as they are then
    adaptive = (
        adaptive
        and config.arithmetic.adaptive
        and not outer
        and not (allocates and "a_bits" in own_bits)
    )
    allocated = allocates and not outer and "w_bits" not in own_bits
    return LayerPlan(w_bits, a_bits, adaptive, outer and a_bits == FIXED_BITS, allocated)


def _default_bits(bits: int, outer: bool) -> int:
    return FIXED_BITS if outer and bits != FLOAT_BITS else bits


def replace_layers(
    network: nn.Module, plan: Plan, structure: Structure, config: QuantizationConfig
) -> None:
    """Swap the planned layers of ``network`` in place for quantized ones that share their parameters.

    A layer that stands at several places of the network (shared between branches) becomes one quantized layer.

    Args:
        network: The network.
        plan: What to quantize.
        structure: What was found in the network.
        config: The options that the plan was made from.
    """
    quantized: dict[nn.Module, nn.Module] = {}
    for name, layer_plan in plan.layers.items():
        if name not in structure.products:
            layer = network.get_submodule(name)
            quantized[layer] = _quantize_layer(layer, layer_plan, config)
            quantized[layer].copies_input = name in structure.overwritten
    for parent in list(network.modules()):
        for (
            key,
            child,
        ) in parent._modules.items():  # named_children() would list a shared child only once
            if child in quantized:
                setattr(parent, key, quantized[child])
    if config.attention_products:
        _replace_products(network, plan, structure.products, config)


def _replace_products(
    network: nn.Module, plan: Plan, products: Sequence[str], config: QuantizationConfig
) -> None:
    """Quantize the products of all modules; ``products`` are named in the order in which each computes them."""
    owners: dict[str, list[QuantizedProduct]] = {}
    for name in dict.fromkeys(
        products
    ):  # a module that ran twice computed each of its products twice
        quantizers = [_input_quantizer(plan.layers.get(name), config) for _ in range(2)]
        owner = name.rpartition(PRODUCTS_KEY)[0].rstrip(".")
        owners.setdefault(owner, []).append(QuantizedProduct(*quantizers))
    for owner, quantized in owners.items():
        quantize_products(network.get_submodule(owner), quantized)


def _quantize_layer(layer: nn.Module, plan: LayerPlan, config: QuantizationConfig) -> nn.Module:
    kind = quantized_type(layer)
    integer = config.arithmetic.integer
    weight_quantizer: nn.Module = nn.Identity()
    if plan.w_bits != FLOAT_BITS:
        channels = layer.weight.shape[kind.weight_axis] if integer else 1
        weight_quantizer = WeightQuantizer(plan.w_bits, channels, kind.weight_axis, integer)
        if plan.allocated:
            weight_quantizer.allocate()
    quantized = kind.from_float(layer, _input_quantizer(plan, config), weight_quantizer)
    if config.arithmetic.channel_grids:
        _make_room(quantized)
    return quantized


def _make_room(layer: QuantizedLayer) -> None:
    """Buffers that reconstruction fills: scales of the input channels, corrections of weight and bias."""
    if layer.input_channels is None:
        return
    of_input, of_weight = layer.channel_views(layer.weight.new_ones(layer.input_channels))
    if isinstance(layer.input_quantizer, ActivationQuantizer):
        layer.input_quantizer.equalise(of_input)
    if isinstance(layer.weight_quantizer, WeightQuantizer):
        layer.weight_quantizer.reconstruct(layer.weight, of_weight, layer.output_channels)


def _input_quantizer(plan: LayerPlan | None, config: QuantizationConfig) -> nn.Module:
    if plan is None or plan.a_bits == FLOAT_BITS:
        return nn.Identity()
    arithmetic = config.arithmetic
    quantizer = ActivationQuantizer(
        plan.a_bits, plan.adaptive, arithmetic.bit_range, plan.fixed, arithmetic.integer
    )
    quantizer.image_bits = arithmetic.image_bits
    if arithmetic.own_bits:
        quantizer.layer_reach = arithmetic.bit_range[1] - arithmetic.bit_range[0]
    if arithmetic.image_ranges and plan.adaptive:
        quantizer.follow_image_classes()
    return quantizer
