"""Replaces the layers of a network by quantized ones: which, at how many bits, and why not others.

`plan_layers` decides, `replace_layers` does it, `restore_layers` undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import FIXED_BITS, FLOAT_BITS, QuantizationConfig
from adabm_basicsr.quantization.layers import (
    JOINS_KEY,
    PRODUCTS_KEY,
    QuantizedJoin,
    QuantizedLayer,
    QuantizedProduct,
    QuantizesJoins,
    QuantizesProducts,
    float_type,
    quantize_joins,
    quantize_products,
    quantized_type,
)
from adabm_basicsr.quantization.patterns import match, match_all
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.recipes import Arithmetic
from adabm_basicsr.quantization.structure.joins import INPUT, OUTPUT, Joins
from adabm_basicsr.quantization.structure.roles import Role, Structure

# What ends places behind layers and joins.
MAKERS = (f".{OUTPUT}", ".output")
KEPT_IN_FLOAT = "kept in float to reach the target"
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
    """What is quantized and what isn't, both in execution order.

    Attributes:
        layers: How each layer and product that is quantized is, by name.
        skipped: The reason for each that is left in full precision, by name.
    """

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
    own_bits = _own_bits(config, names)
    plan = Plan(layers={}, skipped={})
    for name, kind in structure.unsupported.items():
        plan.skipped[name] = f"no quantized type for {kind}"

    for name, role in structure.roles.items():
        may_adapt = name not in non_adaptive and name not in structure.unbatched
        layer_plan = _layer_plan(role, config, own_bits.get(name, {}), may_adapt)
        is_product = name in structure.products
        is_wanted = role is Role.BODY or config.fully_quantized or name in own_bits
        is_float = layer_plan.a_bits == FLOAT_BITS
        if not is_product and layer_plan.w_bits != FLOAT_BITS:
            is_float = False

        if name in excluded:
            plan.skipped[name] = "excluded"
        elif is_product and not config.attention_products:
            plan.skipped[name] = PRODUCTS_OFF
        elif not is_wanted:
            plan.skipped[name] = f"{role.value} (fully_quantized is off)"
        elif is_float:
            plan.skipped[name] = f"{FLOAT_BITS} bits"
        else:
            plan.layers[name] = layer_plan
    if not plan.layers:
        way_out = "look at exclude, w_bits and a_bits"
        if not config.fully_quantized:
            way_out = f"{way_out}; fully_quantized: true takes head and tail too"
        raise AdaBMError(f"no layer is left to quantize; {way_out}")
    return plan


def _own_bits(config: QuantizationConfig, names: list[str]) -> dict[str, dict[str, int]]:
    """Bits that the user gives to single layers, by the layer's name; the last match counts."""
    own_bits: dict[str, dict[str, int]] = {}
    for pattern, bits in config.layers.items():
        for name in match("layers", pattern, names):
            own_bits.setdefault(name, {}).update(bits)
    return own_bits


def _layer_plan(
    role: Role, config: QuantizationConfig, own_bits: Mapping[str, int], may_adapt: bool
) -> LayerPlan:
    arithmetic = config.arithmetic
    outer = role in (Role.HEAD, Role.TAIL)
    w_bits = own_bits.get("w_bits", _default_bits(config.w_bits, outer))
    if w_bits != FLOAT_BITS:
        w_bits = min(w_bits, arithmetic.max_w_bits)
    a_bits = own_bits.get("a_bits", _default_bits(config.a_bits, outer))
    # Bits that are given to a single layer stay as they are where others are shared out.
    keeps_w_bits = "w_bits" in own_bits
    keeps_a_bits = "a_bits" in own_bits and arithmetic.own_bits
    return LayerPlan(
        w_bits=w_bits,
        a_bits=a_bits,
        adaptive=may_adapt and arithmetic.adaptive and not outer and not keeps_a_bits,
        fixed=outer and a_bits == FIXED_BITS,
        allocated=arithmetic.own_bits and not outer and not keeps_w_bits,
    )


def _default_bits(bits: int, outer: bool) -> int:
    if outer and bits != FLOAT_BITS:
        return FIXED_BITS
    return bits


def replace_layers(
    network: nn.Module, plan: Plan, structure: Structure, joins: Joins, config: QuantizationConfig
) -> None:
    """Swap the planned layers of ``network`` in place for quantized ones with the same parameters.

    A layer that stands at several places of the network (shared between branches) becomes one
    quantized layer.

    Args:
        network: The network.
        plan: What to quantize.
        structure: What was found in the network.
        joins: Sums and concatenations, and places of values.
        config: The options that the plan was made from.
    """
    quantized: dict[nn.Module, QuantizedLayer] = {}
    for name, layer_plan in plan.layers.items():
        if name in structure.products:
            continue
        layer = network.get_submodule(name)
        quantized[layer] = _quantize_layer(layer, layer_plan, config)
        quantized[layer].copies_input = name in structure.overwritten
        quantized[layer].rounds_bias = config.integers_of.whole_biases
    for parent in list(network.modules()):
        # named_children() would list a shared child only once.
        for key, child in list(parent._modules.items()):
            if child in quantized:
                setattr(parent, key, quantized[child])
    if config.attention_products:
        _replace_products(network, plan, structure.products, config)
    _replace_joins(network, joins)
    _share_quantizers(network, plan, joins, config)


def restore_layers(network: Any) -> None:
    """Undo `replace_layers`: each module is again of the type that it had, with its parameters.

    Args:
        network: The network; changed in place.
    """
    for module in network.modules():
        if isinstance(module, QuantizesJoins):
            delattr(module, JOINS_KEY)
            module.__class__ = float_type(type(module))
        if isinstance(module, QuantizedLayer):
            del module.input_quantizer
            del module.weight_quantizer
            module._modules.pop(OUTPUT, None)
            module.__dict__.pop("copies_input", None)
            module.__dict__.pop("rounds_bias", None)
            module.__class__ = float_type(type(module))
        elif isinstance(module, QuantizesProducts):
            delattr(module, PRODUCTS_KEY)
            module.__class__ = float_type(type(module))


def _replace_products(
    network: nn.Module, plan: Plan, products: Sequence[str], config: QuantizationConfig
) -> None:
    """Quantize the products of all modules.

    Args:
        network: The network.
        plan: What to quantize.
        products: Names in the order in which each module computes its products.
        config: The options that the plan was made from.
    """
    by_owner: dict[str, list[QuantizedProduct]] = {}
    # A module that ran twice computed each of its products twice.
    for name in dict.fromkeys(products):
        layer_plan = plan.layers.get(name)
        left = _input_quantizer(layer_plan, config)
        right = _input_quantizer(layer_plan, config)
        owner = name.rpartition(PRODUCTS_KEY)[0].rstrip(".")
        by_owner.setdefault(owner, []).append(QuantizedProduct(left, right))
    for owner, quantized in by_owner.items():
        quantize_products(network.get_submodule(owner), quantized)


def _replace_joins(network: nn.Module, joins: Joins) -> None:
    """Make all modules compute their joins by quantized ones, without quantizers as yet."""
    by_owner: dict[str, list[QuantizedJoin]] = {}
    for name, operands in joins.operands.items():
        owner = name.rpartition(JOINS_KEY)[0].rstrip(".")
        by_owner.setdefault(owner, []).append(QuantizedJoin(operands))
    for owner, quantized in by_owner.items():
        quantize_joins(network.get_submodule(owner), quantized)


def _share_quantizers(
    network: nn.Module, plan: Plan, joins: Joins, config: QuantizationConfig
) -> None:
    """Give all places of a value one quantizer: that of a layer's input, if there is one."""
    own = LayerPlan(FIXED_BITS, FIXED_BITS, adaptive=False, fixed=True)
    for places in _quantized_values(network, plan, joins):
        quantizer = _input_quantizer(own, config)
        for place in places:
            if place.endswith(INPUT):
                quantizer = network.get_submodule(place)  # type: ignore[assignment]
                break
        for place in places:
            owner, _, key = place.rpartition(".")
            setattr(network.get_submodule(owner), key, quantizer)


def _quantized_values(network: nn.Module, plan: Plan, joins: Joins) -> list[list[str]]:
    """Places of the values that are integers anyway, before or behind a layer that is quantized.

    A join is quantized unless one of its operands stays in float.
    """
    quantized: set[str] = set()
    for name in plan.layers:
        layer = network.get_submodule(name)
        if isinstance(layer, QuantizedLayer) and isinstance(
            layer.input_quantizer, ActivationQuantizer
        ):
            quantized.update((f"{name}.{INPUT}", f"{name}.{OUTPUT}"))
    for name, operands in joins.operands.items():
        own = [f"{name}.operands.{place}" for place in range(operands)]
        if not any(_stays_in_float(place, joins, quantized) for place in own):
            quantized.update((*own, f"{name}.output"))
    found = []
    for places in joins.values:
        kept = [place for place in places if place in quantized]
        if any(place.endswith(MAKERS) for place in kept):
            # Joins take it as it is made.
            kept = [place for place in kept if place.endswith((INPUT, *MAKERS))]
        if kept:
            found.append(kept)
    return found


def _stays_in_float(place: str, joins: Joins, quantized: set[str]) -> bool:
    """Whether a layer or join that isn't quantized makes the value that is taken at a place.

    Nor may another layer that is quantized take it.
    """
    for places in joins.values:
        if place in places:
            is_made = any(made.endswith(MAKERS) for made in places)
            return is_made and quantized.isdisjoint(places)
    return False


def _quantize_layer(layer: Any, plan: LayerPlan, config: QuantizationConfig) -> QuantizedLayer:
    kind = quantized_type(layer)
    assert kind is not None  # others aren't planned
    arithmetic = config.arithmetic
    weight_quantizer: WeightQuantizer | nn.Identity = nn.Identity()
    if plan.w_bits != FLOAT_BITS:
        axis = kind.weight_axis
        channels = layer.weight.shape[axis] if arithmetic.integer else 1
        weight_quantizer = WeightQuantizer(plan.w_bits, channels, axis, arithmetic.integer)
        weight_quantizer.narrow = config.integers_of.narrow
        if plan.allocated:
            weight_quantizer.hold_own_bits()
    quantized = kind.from_float(layer, _input_quantizer(plan, config), weight_quantizer)
    _make_room(quantized, arithmetic)
    return quantized


def _make_room(layer: QuantizedLayer, arithmetic: Arithmetic) -> None:
    """Add what reconstruction fills: scales of input channels, corrections of weight and bias."""
    if layer.input_channels is None:
        return
    ones = layer.weight.new_ones(layer.input_channels)
    of_input, of_weight = layer.channel_views(ones)
    if arithmetic.channel_grids and isinstance(layer.input_quantizer, ActivationQuantizer):
        layer.input_quantizer.equalise(of_input)
    if arithmetic.corrections and isinstance(layer.weight_quantizer, WeightQuantizer):
        layer.weight_quantizer.add_corrections(layer.weight, of_weight, layer.output_channels)


def _input_quantizer(
    plan: LayerPlan | None, config: QuantizationConfig
) -> ActivationQuantizer | nn.Identity:
    """Quantizer of a layer's input or of a product's operand; None stands for full precision."""
    if plan is None or plan.a_bits == FLOAT_BITS:
        return nn.Identity()
    arithmetic = config.arithmetic
    lowest, highest = arithmetic.bit_range
    quantizer = ActivationQuantizer(
        plan.a_bits,
        adaptive=plan.adaptive,
        bit_range=(lowest, highest),
        fixed=plan.fixed,
        integer=arithmetic.integer,
    )
    quantizer.signed = not config.integers_of.zero_points
    quantizer.narrow = config.integers_of.narrow
    quantizer.ties_away = config.integers_of.ties_away
    quantizer.image_bits = arithmetic.image_bits
    if arithmetic.own_bits:
        quantizer.layer_reach = highest - lowest
    if arithmetic.image_ranges and plan.adaptive:
        quantizer.follow_image_classes()
    return quantizer
