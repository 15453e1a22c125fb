"""What a quantized network costs: FAB, BitOPs and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer, is_quantizable, quantized_layers
from adabm_basicsr.quantization.structure import layer_macs


@dataclass
class Cost:
    """Cost of one forward pass, averaged over its samples.

    Attributes:
        fab: Feature average bit, the mean of the bits used over quantized layers not fixed at 8 bits.
        bitops: Sum over layers of MACs x weight bits x activation bits used.
    """

    fab: float
    bitops: float


def weight_bits(layer: nn.Module) -> int:
    """Bits of a layer's weight; 32 where it isn't quantized."""
    quantizer = getattr(layer, "weight_quantizer", None)
    return quantizer.bits if isinstance(quantizer, WeightQuantizer) else FLOAT_BITS


def activation_bits(layer: nn.Module) -> Tensor | int:
    """Bits of a layer's input in the last forward pass: ``(B,)`` or ``(1,)``; 32 where it isn't quantized."""
    quantizer = getattr(layer, "input_quantizer", None)
    return quantizer.last_bits if isinstance(quantizer, ActivationQuantizer) else FLOAT_BITS


def mean_bits(network: nn.Module) -> Tensor:
    """Bits of the last forward pass, averaged over quantized layers not fixed at 8 bits.

    Returns:
        ``(B,)``, or ``(1,)`` where all samples share them; it carries gradients to the bit mappings. 32 if no
        activation is quantized, 8 if every quantized layer is fixed.
    """
    quantizers = [layer.input_quantizer for _, layer in quantized_layers(network)]
    quantizers = [q for q in quantizers if isinstance(q, ActivationQuantizer) and q.last_bits is not None]
    counted = [q.last_bits for q in quantizers if not q.fixed]
    if counted:
        return torch.stack(torch.broadcast_tensors(*counted)).mean(0)
    return torch.tensor([float(quantizers[0].bits if quantizers else FLOAT_BITS)])


class CostMeter:
    """Counts what forward passes of a network cost, exactly and for any image size. Use it as a context manager.

    Args:
        network: A network with or without quantized layers; hooks on its layers count their MACs.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._macs: dict[nn.Module, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> CostMeter:
        layers = [module for module in self.network.modules() if is_quantizable(module)]
        self._handles = [layer.register_forward_hook(self._count) for layer in layers]
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        self._macs[layer] = self._macs.get(layer, 0) + layer_macs(layer, args[0], output)

    def read(self, samples: int = 1) -> Cost:
        """Cost per sample of the forward pass of ``samples`` images since the last reading."""
        total = 0.0
        for layer, macs in self._macs.items():
            bits = activation_bits(layer)
            total += macs * weight_bits(layer) * (float(bits.mean()) if isinstance(bits, Tensor) else bits)
        self._macs.clear()
        return Cost(float(mean_bits(self.network).mean()), total / samples)


def size_bytes(network: nn.Module) -> int:
    """Bytes that the network's parameters take: quantized weights at their bits, everything else at 32."""
    bits = {parameter: FLOAT_BITS for parameter in network.parameters()}
    for layer in network.modules():
        if isinstance(layer, QuantizedLayer):
            bits[layer.weight] = weight_bits(layer)
    return sum(-(-parameter.numel() * bit // 8) for parameter, bit in bits.items())
