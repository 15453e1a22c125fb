"""What a quantized network costs: FAB, BitOPs and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.bit_mapping import ImageBitMapping
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import mean_bits
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.macs import MacCounter


@dataclass
class Cost:
    """Cost of one forward pass, averaged over its samples.

    Attributes:
        fab: Feature average bit, the mean of the bits used over quantized layers not fixed at 8 bits.
        bitops: Sum over layers of MACs x weight bits x activation bits used; 32 x 32 for what isn't quantized.
        float_bitops: The same with 32 x 32 for all: what full precision costs, which measures no image's complexity.
    """

    fab: float
    bitops: float
    float_bitops: float


def weight_bits(layer: nn.Module) -> int:
    """Bits of a layer's weight; 32 where it isn't quantized."""
    quantizer = getattr(layer, "weight_quantizer", None)
    return quantizer.bits if isinstance(quantizer, WeightQuantizer) else FLOAT_BITS


def bit_product(module: nn.Module | None) -> float:
    """Weight bits x activation bits of a layer, or of a product's operands, averaged over the last forward pass."""
    if isinstance(module, QuantizedProduct):
        return float(torch.as_tensor(_used(module.left) * _used(module.right)).mean())
    if isinstance(module, QuantizedLayer):
        return weight_bits(module) * float(torch.as_tensor(_used(module.input_quantizer)).mean())
    return FLOAT_BITS * FLOAT_BITS


def _used(quantizer: nn.Module) -> Tensor | float:
    """Bits of the last forward pass, ``(B,)`` or ``(1,)``; 32 where the input isn't quantized."""
    last_bits = getattr(quantizer, "last_bits", None)
    return float(FLOAT_BITS) if last_bits is None else last_bits


class CostMeter(MacCounter):
    """Counts what forward passes of a network cost, exactly and for any image size. Use it as a context manager."""

    def read(self, samples: int = 1) -> Cost:
        """Cost per sample of the forward pass of ``samples`` images since the last reading."""
        bitops = sum(macs * bit_product(module) for (module, _), macs in self.macs.items())
        float_macs = sum(
            macs
            for (module, _), macs in self.macs.items()
            if not isinstance(module, ImageBitMapping)
        )
        float_bitops = float_macs * FLOAT_BITS**2
        self.macs.clear()
        return Cost(float(mean_bits(self.network).mean()), bitops / samples, float_bitops / samples)


def size_bytes(network: nn.Module) -> int:
    """Bytes that the network's parameters take: quantized weights at their bits, everything else at 32."""
    bits = {parameter: FLOAT_BITS for parameter in network.parameters()}
    for layer in network.modules():
        if isinstance(layer, QuantizedLayer):
            bits[layer.weight] = weight_bits(layer)
            quantizer = layer.weight_quantizer
            bits.pop(getattr(quantizer, "correction", None), None)  # rounded away with the weight
            if layer.bias is not None:
                bits.pop(getattr(quantizer, "bias_correction", None), None)  # one with the bias
    return sum(-(-parameter.numel() * bit // 8) for parameter, bit in bits.items())


def mean_weight_bits(net: QuantizedNetwork) -> float:
    """Mean bits per quantized weight, over layers that are not fixed at 8 bits.

    Over all layers if every one is fixed; 32 if no weight is quantized.
    """
    layers = net.layers()
    quantizers = net.weight_quantizers()
    counted = [name for name in quantizers if not net.plan.layers[name].fixed]
    if not counted:
        counted = list(quantizers)
    bits = 0
    weights = 0
    for name in counted:
        size = layers[name].get_parameter("weight").numel()
        bits += quantizers[name].bits * size
        weights += size
    if not weights:
        return float(FLOAT_BITS)
    return bits / weights
