"""Uniform quantization on a learnable range, simulated in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_WIDTH = 1e-12  # a dead layer has lower == upper; it then quantizes to that value instead of to NaN


class _FakeQuantize(torch.autograd.Function):
    """Uniform quantization on [lower, upper] with straight-through rounding, as one step that saves only its input.

    With ``x_c`` the clipped input and ``x_q`` the result, the gradient of the plain chain of operations is
    ``d x_q / d upper = [x > upper] + (x_q - x_c) / (upper - lower)``, the mirror image of it for ``lower``, and
    ``d x_q / d levels = -(x_q - x_c) / levels``: everything follows from the input again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: Tensor, integer: bool) -> Tensor:
        ctx.save_for_backward(x, lower, upper, levels)
        ctx.integer = integer
        return _quantize(x, lower, upper, levels, integer)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, lower, upper, levels = ctx.saved_tensors
        need_x, need_lower, need_upper, need_levels, _ = ctx.needs_input_grad
        x_q = _quantize(x, lower, upper, levels, ctx.integer) if need_lower or need_upper or need_levels else None
        if ctx.integer:  # moving the ends to the integer grid counts as rounding: straight through
            scale, zero_point = _integer_grid(lower, upper, levels)
            lower, upper = -zero_point * scale, (levels - zero_point) * scale
        below, above = x < lower, x > upper
        grad_x = grad.masked_fill(below | above, 0) if need_x else None
        grad_lower = grad_upper = grad_levels = None
        if x_q is not None:
            rounding = grad * (x_q - x.clamp(lower, upper))
            scale_grad = rounding / range_width(lower, upper)
            if need_lower:
                grad_lower = torch.where(below, grad, -scale_grad).sum_to_size(lower.shape)
            if need_upper:
                grad_upper = torch.where(above, grad, scale_grad).sum_to_size(upper.shape)
            if need_levels:
                grad_levels = -(rounding / levels).sum_to_size(levels.shape)
        return grad_x, grad_lower, grad_upper, grad_levels, None


def range_width(lower: Tensor, upper: Tensor) -> Tensor:
    """``upper - lower``, but never zero."""
    return (upper - lower).clamp(min=MIN_WIDTH)


def _quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: Tensor, integer: bool) -> Tensor:
    if integer:
        scale, zero_point = _integer_grid(lower, upper, levels)
        return x.div(scale).round_().clamp_(-zero_point, levels - zero_point).mul_(scale)
    # The order of the operations is the published one: another would round a few values the other way.
    width = range_width(lower, upper)
    return x.clamp(lower, upper).sub_(lower).div_(width).mul_(levels).round_().div_(levels).mul_(width).add_(lower)


def _integer_grid(lower: Tensor, upper: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of integer arithmetic: the range is widened to hold zero, which is one of the levels."""
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    width = range_width(lower, upper)
    return width / levels, (-lower / width * levels).round()  # in this order symmetric ends give 0.5 exactly


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor | float, integer: bool = False) -> Tensor:
    """Quantize ``x`` to ``2 ** bits`` levels between ``lower`` and ``upper`` and return it as float.

    Gradients reach ``x`` inside the range (straight through the rounding), ``lower`` and ``upper`` through both
    clipping and scale, and ``bits`` through the number of levels.

    Args:
        x: Tensor of any shape.
        lower: Lower end of the clipping range, broadcastable to ``x``.
        upper: Upper end of the clipping range, broadcastable to ``x``, above ``lower``.
        bits: Bit-width, a number or a tensor broadcastable to ``x`` (one per sample: shape ``(B, 1, 1, 1)``).
        integer: Whether zero must be one of the levels, as integer arithmetic needs it: the grid is then
            ``scale * (q - zero_point)`` with whole ``q`` and ``zero_point`` in ``0 .. 2 ** bits - 1``. Symmetric ends
            give the signed integers ``-2 ** (bits - 1) .. 2 ** (bits - 1) - 1`` without a zero point.

    Returns:
        Tensor of the shape of ``x`` whose values lie on the grid ``lower + k * (upper - lower) / (2 ** bits - 1)``,
        shifted by less than a step where ``integer`` asks for it.
    """
    levels = 2 ** torch.as_tensor(bits, dtype=x.dtype, device=x.device) - 1
    return _FakeQuantize.apply(x, lower, upper, levels, integer)
