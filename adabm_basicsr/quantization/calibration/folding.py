"""Scales of channels, folded into the weights, where integers have one scale for a whole tensor.

A quiet channel beside a loud one would use few grid points. All layers that make the quiet one
divide it by its scale, and all that take it multiply it by that scale: the network in full
precision computes the same, and channels share the grid better. Scales are those whose rounding
changes the image least, see `Noise`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adabm_basicsr.quantization.calibration.channel_noise import Noise, observe_channels
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.channels import (
    FIXED_CLASS,
    LayerChannels,
    find_channels,
    layer_type,
)

ITERATIONS = 100
LEARNING_RATE = 0.1  # of the logarithms of scales
MAX_LOG_SCALE = math.log(2**6)
TINY = 1e-30
# How far the output may change, where an operation was too subtle to be followed.
TOLERANCE = 1e-3


@torch.no_grad()
def fold_channel_scales(net: QuantizedNetwork, images: Tensor) -> None:
    """Scale the channels of layers so that their rounding changes the image least.

    Args:
        net: The quantized network; weights and biases change in place, and what it computes in full
            precision doesn't.
        images: LR images, ``(B, C, H, W)`` in 0..1.
    """
    with net.full_precision():
        channels, count = _numbered(find_channels(net, images[:1]), images.device)
        noise = Noise(net, channels, observe_channels(net, images))
        scales = _scales_of_least_noise(noise, count, images.device)
        before = net(images[:1])
        kept = [parameter.clone() for parameter in net.base_parameters()]
        _scale_weights(channels, scales)
        change = (net(images[:1]) - before).abs().max()
        if not change <= TOLERANCE * before.abs().max():
            # Something that PyTorch doesn't tell of, such as a detour by NumPy.
            for parameter, value in zip(net.base_parameters(), kept, strict=True):
                parameter.copy_(value)


def _numbered(
    channels: Mapping[Any, LayerChannels], device: torch.device
) -> tuple[dict[Any, LayerChannels], int]:
    """The same with classes numbered from 0, and their number; fixed channels stay -1.

    They were found on the CPU, and what they choose from is on ``device``.
    """
    ids = [torch.tensor([FIXED_CLASS])]
    for of_layer in channels.values():
        ids.extend(of_layer)
    classes = torch.cat(ids).unique()
    numbered = {}
    for layer, of_layer in channels.items():
        inputs = torch.searchsorted(classes, of_layer.inputs) - 1
        outputs = torch.searchsorted(classes, of_layer.outputs) - 1
        numbered[layer] = LayerChannels(inputs.to(device), outputs.to(device))
    return numbered, len(classes) - 1


def _scales_of_least_noise(noise: Noise, count: int, device: torch.device) -> Tensor:
    """Scale of each of ``count`` classes of channels, and 1 for fixed ones: ``(count + 1,)``."""
    with torch.enable_grad():
        logs = torch.zeros(count, device=device, requires_grad=True)
        optimizer = torch.optim.Adam([logs], LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
        best = logs.detach().clone()
        least = math.inf
        for _ in range(ITERATIONS):
            current = noise(_with_fixed(logs))
            if not current.requires_grad:
                # No layer has channels that can be scaled.
                break
            if current.item() < least:
                least = current.item()
                best = logs.detach().clone()
            optimizer.zero_grad()
            # Its logarithm, so that learning doesn't depend on the network's own scale.
            current.clamp(min=TINY).log().backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                logs.clamp_(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    return _with_fixed(best)


def _with_fixed(logs: Tensor) -> Tensor:
    """Scales from their logarithms, and the scale of fixed channels behind them."""
    return torch.cat([logs.exp(), logs.new_ones(1)])


def _scale_weights(channels: Mapping[Any, LayerChannels], scales: Tensor) -> None:
    """Divide what layers make by the scales of its channels, multiply what they take by them."""
    for layer, (inputs, outputs) in channels.items():
        kind = layer_type(layer)
        of_inputs = scales[inputs].to(layer.weight)
        of_rows = scales[outputs].to(layer.weight)
        _, of_columns = kind.channel_views(layer, of_inputs)
        shape = [1] * layer.weight.dim()
        shape[kind.weight_axis] = -1
        layer.weight.mul_(of_columns).div_(of_rows.view(shape))
        if layer.bias is not None:
            # Groups of a transposed convolution share rows.
            layer.bias.div_(of_rows.repeat(len(layer.bias) // len(of_rows)))
