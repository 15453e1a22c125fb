"""Puts weights on their grid points, so that integers are all there is to store of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.preparation import copy_of


class WeightedLayer(NamedTuple):
    """A layer whose weight is quantized.

    Attributes:
        name: Its name in the network.
        layer: The layer.
        quantizer: Of its weight.
    """

    name: str
    layer: QuantizedLayer
    quantizer: WeightQuantizer

    def quantized_weight(self) -> Tensor:
        """What the layer computes with."""
        return self.quantizer(self.layer.weight)


@torch.no_grad()
def freeze(net: QuantizedNetwork) -> QuantizedNetwork:
    """A copy of a calibrated network whose weights lie on their grid points.

    What was learned of the rounding goes over into weights and biases. Of networks that run images
    in full precision these stay as they are, and what is added to weights brings them to their grid
    points. The copy computes the same, to the bit.

    Raises:
        ExportError: The network hasn't been calibrated, or a weight isn't finite.
    """
    if net.reached < Stage.CALIBRATED:
        raise ExportError(
            "the network has not been quantized yet: calibrate it or load a quantized checkpoint"
        )
    frozen = copy_of(net).requires_grad_(False)
    untie(frozen)
    keeps_float = net.full_precision_above is not None
    for own, original in zip(weighted_layers(frozen), weighted_layers(net), strict=True):
        name, layer, quantizer = own
        indices = quantizer.grid_indices(layer.weight)
        set_grid_indices(layer, quantizer, indices, keeps_float)
        has_bias = layer.bias is not None and not keeps_float
        if quantizer.bias_correction is not None and has_bias:
            layer.bias.copy_(quantizer.bias(layer.bias))
            quantizer.bias_correction.zero_()
        if not torch.equal(own.quantized_weight(), original.quantized_weight()):
            raise ExportError(f"{name}: its weights have no grid points; are they finite?")
    return frozen


def weighted_layers(net: QuantizedNetwork) -> list[WeightedLayer]:
    """Layers whose weight is quantized, in execution order."""
    found = []
    for name, layer in net.layers().items():
        if isinstance(layer, QuantizedLayer) and isinstance(
            layer.weight_quantizer, WeightQuantizer
        ):
            found.append(WeightedLayer(name, layer, layer.weight_quantizer))
    return found


def untie(net: QuantizedNetwork) -> None:
    """Give each quantized layer parameters of its own.

    A parameter that it shares with other layers stays as it is for these.
    """
    for _, layer, _ in weighted_layers(net):
        for key, parameter in layer.named_parameters(recurse=False):
            own = parameter.detach().clone()
            setattr(layer, key, nn.Parameter(own, requires_grad=False))


@torch.no_grad()
def set_grid_indices(
    layer: QuantizedLayer, quantizer: WeightQuantizer, indices: Tensor, keeps_float: bool = False
) -> None:
    """Write weights to a quantized layer that owns its weight.

    Args:
        layer: The layer.
        quantizer: Of its weight.
        indices: Of their grid points, see `WeightQuantizer.grid_indices`; the weight's shape.
        keeps_float: Whether the weight stays what it is, for images in full precision. What is
            added to it before rounding brings it to the grid points; if nothing is, they are those
            that it is rounded to.
    """
    if keeps_float:
        if quantizer.correction is not None:
            quantizer.correction.copy_(quantizer.from_grid_indices(indices) - layer.weight)
        return
    if quantizer.correction is not None:
        quantizer.correction.zero_()
    layer.weight.copy_(quantizer.from_grid_indices(indices))
