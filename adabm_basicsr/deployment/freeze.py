"""Bakes what was learned of the rounding into weights and biases, so that integers are all there is to store."""

from __future__ import annotations

import copy

import torch
from torch import nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage


@torch.no_grad()
def freeze(net: QuantizedNetwork) -> QuantizedNetwork:
    """A copy of a calibrated network whose weights lie on their levels; it computes the same, to the bit.

    Raises:
        AdaBMError: The network hasn't been calibrated, or a weight isn't finite.
    """
    if int(net.stage) < Stage.CALIBRATED:
        raise AdaBMError(
            "the network has not been quantized yet: calibrate it or load a quantized checkpoint"
        )
    frozen = copy.deepcopy(net).requires_grad_(False)
    untie(frozen)
    for name, quantizer in frozen.weight_quantizers().items():
        layer = frozen.network.get_submodule(name)
        set_grid_indices(layer, quantizer.grid_indices(layer.weight))
        if quantizer.bias_correction is not None and layer.bias is not None:
            layer.bias.copy_(quantizer.bias(layer.bias))
            quantizer.bias_correction.zero_()
        original = net.network.get_submodule(name)
        if not torch.equal(quantizer(layer.weight), original.weight_quantizer(original.weight)):
            raise AdaBMError(
                f"{name}: its weights can't be told from their levels; are they finite?"
            )
    return frozen


def untie(net: QuantizedNetwork) -> None:
    """Give each quantized layer parameters of its own: one that it shares with others stays as it is for these."""
    for name in net.weight_quantizers():
        layer = net.network.get_submodule(name)
        for key, parameter in layer.named_parameters(recurse=False):
            setattr(layer, key, nn.Parameter(parameter.detach().clone(), requires_grad=False))


@torch.no_grad()
def set_grid_indices(layer: nn.Module, levels: torch.Tensor) -> None:
    """Write what lies on ``levels``, see `WeightQuantizer.levels`, to a quantized layer's own weight."""
    quantizer = layer.weight_quantizer
    if quantizer.correction is not None:
        quantizer.correction.zero_()
    layer.weight.copy_(quantizer.from_grid_indices(levels))
