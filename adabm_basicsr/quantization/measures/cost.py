"""What a quantized network costs: FAB, BitOPs and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from adabm_basicsr.quantization.bit_mapping import ImageBitMapping
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, QuantizedProduct
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import mean_bits
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.macs import MacCounter

BITS_PER_BYTE = 8


@dataclass
class Cost:
    """Cost of one forward pass, averaged over its samples.

    Attributes:
        fab: Feature average bit: the mean bit-width over quantized layers not fixed at 8 bits; 32
            for images in full precision.
        bitops: Sum over layers of MACs x weight bits x bit-width of activations; 32 x 32 for what
            isn't quantized, and for images in full precision.
        float_bitops: The same with 32 x 32 for all: what full precision costs, which measures no
            image's complexity.
    """

    fab: float
    bitops: float
    float_bitops: float


class CostMeter(MacCounter):
    """Counts what forward passes of a network cost, exactly and for any image size.

    Use it as a context manager.
    """

    def read(self, samples: int = 1) -> Cost:
        """Cost per sample of the forward pass of ``samples`` images since the last reading."""
        in_full = 0.0
        if isinstance(self.network, QuantizedNetwork):
            in_full = self.network.full_precision_share
        bitops: float = 0
        float_macs = 0
        for (module, _), macs in self.macs.items():
            bitops += macs * _mixed(bit_product(module), FLOAT_BITS**2, in_full)
            # The network's own is the complexity of an image.
            if not isinstance(module, (ImageBitMapping, QuantizedNetwork)):
                float_macs += macs
        self.macs.clear()
        return Cost(
            fab=_mixed(float(mean_bits(self.network).mean()), FLOAT_BITS, in_full),
            bitops=bitops / samples,
            float_bitops=float_macs * FLOAT_BITS**2 / samples,
        )


@torch.no_grad()
def cost_of(net: QuantizedNetwork, images: torch.Tensor) -> Cost:
    """Cost of a calibrated network per image.

    Args:
        net: The network.
        images: LR images that it is counted on, ``(B, C, H, W)`` in 0..1.
    """
    with CostMeter(net) as meter:
        net(images)
        return meter.read(len(images))


def _mixed(of_quantized: float, of_full: float, in_full: float) -> float:
    """Mean over images, of which the share ``in_full`` runs in full precision."""
    return (1 - in_full) * of_quantized + in_full * of_full


def weight_bits(layer: nn.Module) -> int:
    """Bits of a layer's weight; 32 where it isn't quantized."""
    quantizer = getattr(layer, "weight_quantizer", None)
    if isinstance(quantizer, WeightQuantizer):
        return quantizer.bits
    return FLOAT_BITS


def bit_product(module: nn.Module | None) -> float:
    """Weight bits x activation bits of a layer, or of a product's operands.

    Averaged over the samples of the last forward pass.
    """
    if isinstance(module, QuantizedProduct):
        products = _last_bits(module.left) * _last_bits(module.right)
        return float(torch.as_tensor(products).mean())
    if isinstance(module, QuantizedLayer):
        activation_bits = _last_bits(module.input_quantizer)
        return weight_bits(module) * float(torch.as_tensor(activation_bits).mean())
    return FLOAT_BITS * FLOAT_BITS


def _last_bits(quantizer: nn.Module) -> torch.Tensor | float:
    """Bits of the last forward pass, ``(B,)`` or ``(1,)``; 32 where the input isn't quantized."""
    last_bits: torch.Tensor | None = getattr(quantizer, "last_bits", None)
    if last_bits is None:
        return float(FLOAT_BITS)
    return last_bits


def size_bytes(network: nn.Module) -> int:
    """Bytes that the network's parameters take: weights at their bits, everything else at 32.

    With images in full precision, quantized weights are there in float too.
    """
    has_both = isinstance(network, QuantizedNetwork) and network.full_precision_above is not None
    bits = dict.fromkeys(network.parameters(), FLOAT_BITS)
    for layer in network.modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        bits[layer.weight] = weight_bits(layer)
        quantizer = layer.weight_quantizer
        if not isinstance(quantizer, WeightQuantizer):
            continue
        # A correction is rounded away with the weight, and one of the bias becomes one with it.
        if quantizer.correction is not None:
            del bits[quantizer.correction]
        if has_both:
            bits[layer.weight] += FLOAT_BITS
        elif quantizer.bias_correction is not None and layer.bias is not None:
            del bits[quantizer.bias_correction]
    total = 0
    for parameter, parameter_bits in bits.items():
        total += -(-parameter.numel() * parameter_bits // BITS_PER_BYTE)
    return total


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
