"""A scale and a zero point for each of a layer's input channels, so that all of them make use of the levels.

Integer arithmetic has both for free: the scales go into the weights, and a channel whose zero point differs is shifted
by whole numbers, as long as the integers of all channels fit into 8 bits together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

EQUALISATION = 0.75  # 0 leaves channels as they are, 1 gives all the same range, at the cost of the weights' precision
MIN_SCALE = 1e-3  # of the quietest channels against the loudest


@torch.no_grad()
def equalise(layer: QuantizedLayer, lower: Tensor, upper: Tensor) -> None:
    """Set scale and zero point of each input channel, and the clipping range, from what the channels range over.

    Args:
        layer: A layer whose input is quantized.
        lower: Smallest value of each channel, ``(C_in,)``.
        upper: Largest value of each channel, ``(C_in,)``.
    """
    quantizer = layer.input_quantizer
    own_zero_points = _has_own_zero_points(quantizer)
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    widths = upper - lower if own_zero_points else torch.maximum(-lower, upper)
    scale = (widths / widths.max().clamp(min=torch.finfo(widths.dtype).tiny)) ** EQUALISATION
    scale = _in_two_bytes(scale.clamp(min=MIN_SCALE))
    of_input, of_weight = layer.channel_views(scale)
    quantizer.channel_scale.copy_(of_input)
    quantizer.channel_shift.zero_()
    lower, upper = lower / scale, upper / scale
    if own_zero_points:
        widest = int((upper - lower).argmax())
        quantizer.channel_shift.copy_(_shifts(lower, upper, widest).view_as(of_input))
        lower, upper = lower[widest], upper[widest]
    quantizer.lower.fill_(lower.min())
    quantizer.upper.fill_(upper.max())
    if isinstance(layer.weight_quantizer, WeightQuantizer):
        layer.weight_quantizer.channel_scale.copy_(of_weight)


def _shifts(lower: Tensor, upper: Tensor, widest: int) -> Tensor:
    """Shift of each channel's range against that of the widest channel; 0 of channels that are always zero."""
    below = -lower / (upper - lower).clamp(
        min=MIN_WIDTH
    )  # share of its range that a channel needs below zero
    return _in_two_bytes(torch.where(upper > lower, below[widest] - below, 0))


def _in_two_bytes(values: Tensor) -> Tensor:
    """``values`` as bfloat16 holds them, so that packed files need no more for them."""
    return values.bfloat16().to(values)


def _has_own_zero_points(quantizer: ActivationQuantizer) -> bool:
    """Whether each channel may have a zero point of its own: with 8 bits, integers would need a ninth for it."""
    added = max(quantizer.image_bits[1], 0) if quantizer.adaptive else 0
    return min(quantizer.bits_of_layer().item() + added, quantizer.bit_range[1]) < FIXED_BITS


def shifts_of_columns(layer: QuantizedLayer, columns: Tensor) -> Tensor:
    """Shift of each channel's range, see `shifted`, for a layer's ``columns``, ``(G, K, N)``: ``(G, K, 1)``."""
    shift = layer.input_quantizer.channel_shift
    if shift is None:
        return columns.new_zeros(1)
    of_weight = layer.channel_views(shift.flatten())[1].expand_as(layer.weight)
    return of_weight.reshape(len(columns), -1, columns.shape[1])[:, 0].unsqueeze(2)
