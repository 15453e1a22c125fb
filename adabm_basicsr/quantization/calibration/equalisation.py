"""A scale and a zero point for each of a layer's input channels, so that all use every grid point.

Integer arithmetic has both for free. The scales go into the weights. A channel whose zero point
differs is shifted by whole numbers, as long as the integers of all channels fit into 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.quantizers.activation import (
    PIXEL_CHANNEL_SCALE,
    ActivationQuantizer,
)
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH

# 0 leaves channels as they are; 1 gives all the same range, and costs the weights' precision.
EQUALISATION = 0.75
MIN_SCALE = 1e-3  # of the quietest channels against the loudest


@torch.no_grad()
def equalise(layer: QuantizedLayer, lower: Tensor, upper: Tensor) -> None:
    """Set scale and zero point of each input channel, and the range, from what channels range over.

    scale = (width / largest width) ** 0.75, where the width is that of the channel's range.

    Args:
        layer: A layer whose input quantizer has room for them.
        lower: Smallest value of each channel, ``(C_in,)``.
        upper: Largest value of each channel, ``(C_in,)``.
    """
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, ActivationQuantizer)
    channel_scale = quantizer.channel_scale
    channel_shift = quantizer.channel_shift
    assert channel_scale is not None
    assert channel_shift is not None
    lower = lower.clamp(max=0)
    upper = upper.clamp(min=0)
    own_zero_points = _has_own_zero_points(quantizer)
    widths = upper - lower if own_zero_points else torch.maximum(-lower, upper)

    smallest = torch.finfo(widths.dtype).tiny
    scale = (widths / widths.max().clamp(min=smallest)) ** EQUALISATION
    scale = _in_two_bytes(scale.clamp(min=MIN_SCALE))
    of_input, of_weight = layer.channel_views(scale)
    channel_scale.copy_(of_input)
    weight_scale = getattr(layer.weight_quantizer, "channel_scale", None)
    if weight_scale is not None:
        weight_scale.copy_(of_weight)

    lower = lower / scale
    upper = upper / scale
    channel_shift.zero_()
    if own_zero_points:
        widest = int((upper - lower).argmax())
        shifts = _shifts(lower, upper, widest)
        channel_shift.copy_(shifts.view_as(of_input))
        lower = lower[widest]
        upper = upper[widest]
    quantizer.lower.fill_(lower.min())
    quantizer.upper.fill_(upper.max())


@torch.no_grad()
def keep_pixels(layer: QuantizedLayer) -> None:
    """Give a layer that takes the image the grid of its pixels, which aren't rounded then.

    Args:
        layer: A layer of 8 bits whose input quantizer has room for scales of channels.
    """
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, ActivationQuantizer)
    quantizer.hold_pixels()
    weight_scale = getattr(layer.weight_quantizer, "channel_scale", None)
    if weight_scale is not None:
        weight_scale.fill_(PIXEL_CHANNEL_SCALE)


def _shifts(lower: Tensor, upper: Tensor, widest: int) -> Tensor:
    """Shift of each channel's range against that of the widest channel, ``(C_in,)``.

    It is a share of the range's width, and 0 of channels that are always zero.
    """
    width = (upper - lower).clamp(min=MIN_WIDTH)
    # The share of its range that a channel needs below zero.
    below = -lower / width
    shifts = torch.where(upper > lower, below[widest] - below, 0)
    return _in_two_bytes(shifts)


def _in_two_bytes(values: Tensor) -> Tensor:
    """``values`` as bfloat16 holds them, so that packed files need no more for them."""
    return values.bfloat16().to(values)


def _has_own_zero_points(quantizer: ActivationQuantizer) -> bool:
    """Whether each channel may have a zero point of its own.

    With 8 bits, integers would need a ninth for it.
    """
    most = quantizer.bits_of_layer().item()
    if quantizer.adaptive:
        most += max(quantizer.image_bits[1], 0)
    return min(most, quantizer.bit_range[1]) < FIXED_BITS


def shifts_of_columns(layer: QuantizedLayer, columns: Tensor) -> Tensor:
    """Shift of each channel's range, see `shifted`, for the columns of a layer.

    Args:
        layer: The layer.
        columns: What `QuantizedLayer.columns` gives, ``(G, K, N)``.

    Returns:
        ``(G, K, 1)``, or ``(1,)`` where no channel is shifted.
    """
    shift = getattr(layer.input_quantizer, "channel_shift", None)
    if shift is None:
        return columns.new_zeros(1)
    groups, weights, _ = columns.shape
    _, of_weight = layer.channel_views(shift.flatten())
    of_rows = of_weight.expand_as(layer.weight).reshape(groups, -1, weights)
    # The same for all output channels of a group.
    return of_rows[:, 0].unsqueeze(2)
