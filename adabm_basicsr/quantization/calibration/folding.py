"""Scales of channels, folded into the weights, where integers have one scale for a whole tensor.

A quiet channel beside a loud one would use few grid points. All layers that make the quiet one
divide it by its scale, which is below 1, and all that take it multiply it by that scale: the
network in full precision is the same, and channels use the same range. Scales are powers of two,
so it is the same to the last bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.structure.channels import (
    FIXED_CLASS,
    LayerChannels,
    find_channels,
    layer_type,
)

# 0 leaves channels as they are; 1 gives all the same range, and costs other layers that take the
# same channels in other proportions, and the weights' precision.
EQUALISATION = 0.5
MIN_EXPONENT = -6  # of the quietest channels' scales
# How far the output may change, where an operation was too subtle to be followed.
TOLERANCE = 1e-3


@torch.no_grad()
def fold_channel_scales(net: QuantizedNetwork, images: Tensor) -> None:
    """Bring the ranges of channels that a layer takes closer to each other.

    Args:
        net: The quantized network; weights and biases change in place, and what it computes in full
            precision doesn't.
        images: LR images, ``(B, C, H, W)`` in 0..1.
    """
    with net.full_precision():
        channels = find_channels(net, images[:1])
        widths = _channel_widths(net, images)
        scales = _scales_of_classes(channels, widths)
        before = net(images[:1])
        _scale_weights(channels, scales)
        change = (net(images[:1]) - before).abs().max()
        if not change <= TOLERANCE * before.abs().max():
            # Something that PyTorch doesn't tell of, such as a detour by NumPy.
            _scale_weights(channels, {of: 1 / scale for of, scale in scales.items()})


def _channel_widths(net: QuantizedNetwork, images: Tensor) -> dict[Any, Tensor]:
    """How wide the range of each channel is that a quantized layer takes, ``(C_in,)``.

    It is that of the integers: from the smallest to the largest value, or twice the largest
    magnitude.
    """
    has_zero_points = net.config.integers_of.zero_points
    widths: dict[Any, Tensor] = {}
    handles = []

    def note(layer: Any, args: tuple[Tensor, ...]) -> None:
        channels = args[0].transpose(0, layer.output_axis).flatten(1)
        lower = channels.amin(1).clamp(max=0)
        upper = channels.amax(1).clamp(min=0)
        width = upper - lower if has_zero_points else 2 * torch.maximum(upper, -lower)
        # It may run several times.
        widths[layer] = torch.maximum(widths.get(layer, width), width)

    for layer in net.layers().values():
        is_quantized = isinstance(getattr(layer, "input_quantizer", None), ActivationQuantizer)
        if is_quantized and layer_type(layer) is not None:
            handles.append(layer.register_forward_pre_hook(note))
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    return widths


def _scales_of_classes(
    channels: Mapping[Any, LayerChannels], widths: Mapping[Any, Tensor]
) -> dict[int, float]:
    """Scale of each class of channels: a power of two, at most 1.

    It follows from the width of the channel's range as a share of the widest channel's, in the
    (geometric) mean over all layers that take it.
    """
    exponents: dict[int, list[float]] = defaultdict(list)
    for layer, (inputs, _) in channels.items():
        if layer not in widths or not widths[layer].max() > 0:
            continue
        shares = widths[layer] / widths[layer].max()
        of_channels = shares.log2().clamp(min=MIN_EXPONENT / EQUALISATION)
        for of, exponent in zip(inputs.tolist(), of_channels.tolist(), strict=True):
            exponents[of].append(exponent)
    exponents.pop(FIXED_CLASS, None)
    scales = {}
    for of, found in exponents.items():
        scales[of] = 2.0 ** round(EQUALISATION * mean(found))
    return scales


def _scale_weights(channels: Mapping[Any, LayerChannels], scales: Mapping[int, float]) -> None:
    """Divide what layers make by the scales of its channels, multiply what they take by them."""
    for layer, (inputs, outputs) in channels.items():
        kind = layer_type(layer)
        of_inputs = _scales_of_channels(inputs, scales).to(layer.weight)
        of_rows = _scales_of_channels(outputs, scales).to(layer.weight)
        _, of_columns = kind.channel_views(layer, of_inputs)
        shape = [1] * layer.weight.dim()
        shape[kind.weight_axis] = -1
        layer.weight.mul_(of_columns).div_(of_rows.view(shape))
        if layer.bias is not None:
            # Groups of a transposed convolution share rows.
            layer.bias.div_(of_rows.repeat(len(layer.bias) // len(of_rows)))


def _scales_of_channels(classes: Tensor, scales: Mapping[int, float]) -> Tensor:
    return torch.tensor([scales.get(of, 1.0) for of in classes.tolist()])
