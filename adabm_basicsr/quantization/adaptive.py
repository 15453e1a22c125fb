"""The core idea of AdaBM (CVPR 2024, arXiv 2404.03296): bits that follow the image and the layer.

    bits of an activation = base bits + layer factor + image factor,   both factors in {-1, 0, +1}

The layer factor is a learnable scalar per layer (Layer2Bit), the image factor a pair of learnable thresholds on the
complexity of the image (Image2Bit). Both are hard in the forward pass and soft in the backward pass, so that they are
learned by gradient descent along with the clipping ranges of the quantizers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GREY = (0.299, 0.587, 0.114)
COMPLEXITY_SCALE = 1000.0
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
            scale_grad = rounding / _width(lower, upper)
            if need_lower:
                grad_lower = torch.where(below, grad, -scale_grad).sum_to_size(lower.shape)
            if need_upper:
                grad_upper = torch.where(above, grad, scale_grad).sum_to_size(upper.shape)
            if need_levels:
                grad_levels = -(rounding / levels).sum_to_size(levels.shape)
        return grad_x, grad_lower, grad_upper, grad_levels, None


def _width(lower: Tensor, upper: Tensor) -> Tensor:
    return (upper - lower).clamp(min=MIN_WIDTH)


def _quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: Tensor, integer: bool) -> Tensor:
    if integer:
        scale, zero_point = _integer_grid(lower, upper, levels)
        return x.div(scale).round_().clamp_(-zero_point, levels - zero_point).mul_(scale)
    # The order of the operations is the published one: another would round a few values the other way.
    width = _width(lower, upper)
    return x.clamp(lower, upper).sub_(lower).div_(width).mul_(levels).round_().div_(levels).mul_(width).add_(lower)


def _integer_grid(lower: Tensor, upper: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of integer arithmetic: the range is widened to hold zero, which is one of the levels."""
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    scale = _width(lower, upper) / levels
    return scale, (-lower / scale).round()


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


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """``hard`` in the forward pass, the gradient of ``soft`` in the backward pass."""
    return soft - soft.detach() + hard.detach()


def image_complexity(image: Tensor) -> Tensor:
    """Mean magnitude of the image gradient, the measure that chooses the image factor.

    Args:
        image: ``(B, C, H, W)`` in 0..1. Three channels are weighed as grey, any other number is averaged.

    Returns:
        ``(B,)``: 1000 times the mean absolute response of the normalised Sobel pair (over 8, replicate padding).
    """
    channels = image.shape[1]
    weights = image.new_tensor(GREY) if channels == 3 else image.new_full((channels,), 1 / channels)
    grey = (image * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
    sobel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([sobel, sobel.t()]).unsqueeze(1)
    gradient = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return COMPLEXITY_SCALE * gradient.abs().mean((1, 2, 3))


class ImageBitMapping(nn.Module):
    """Image2Bit: learnable thresholds on the complexity of an image choose its bit factor.

    Attributes:
        lower: Learnable scalar; less complex images get one bit less.
        upper: Learnable scalar above ``lower``; more complex images get one bit more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(1))
        self.upper = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        """Bit factor of each image: ``(B, C, H, W)`` in 0..1 to ``(B,)`` in {-1, 0, +1}."""
        complexity = image_complexity(image)
        hard = (complexity > self.upper).to(complexity.dtype) - (complexity < self.lower).to(complexity.dtype)
        width = _width(self.lower, self.upper)  # equal thresholds come from constant calibration images
        soft = torch.tanh((complexity - (self.upper + self.lower) / 2) * 2 / width)
        return straight_through(soft, hard)


class WeightQuantizer(nn.Module):
    """Symmetric weight quantization on ``[-upper, upper]`` with a learnable ``upper``.

    Args:
        bits: Bit-width of the weight, 2..8.
        channels: Length of ``upper``: 1 for a range per tensor, else the number of output channels.
        axis: Axis of the output channels in the weight.
        integer: Whether weights are signed integers times a scale, see `fake_quantize`.
    """

    def __init__(self, bits: int, channels: int = 1, axis: int = 0, integer: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.axis = axis
        self.integer = integer
        self.enabled = True
        self.upper = nn.Parameter(torch.ones(channels))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape; the weight itself while the quantizer is switched off."""
        if not self.enabled:
            return weight
        upper = self.upper.view([-1 if axis == self.axis else 1 for axis in range(weight.dim())])
        return fake_quantize(weight, -upper, upper, self.bits, self.integer)


class ActivationQuantizer(nn.Module):
    """Asymmetric per-tensor quantization on a learnable ``[lower, upper]``, at bits of its own.

    Args:
        bits: Base bit-width, 2..8.
        adaptive: Whether layer factor and image factor are added to the base bits.
        bit_range: Smallest and largest bits that may be used; the sum is clamped to it.
        fixed: Whether the layer is pinned to its bits (head and tail at 8 bits); it then doesn't count in FAB.
        integer: Whether zero is one of the levels, see `fake_quantize`.
    """

    def __init__(
        self,
        bits: int,
        adaptive: bool = False,
        bit_range: tuple[int, int] = (2, 8),
        fixed: bool = False,
        integer: bool = False,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.adaptive = adaptive
        self.bit_range = bit_range
        self.fixed = fixed
        self.integer = integer
        self.enabled = True
        self.lower = nn.Parameter(torch.zeros(1))
        self.upper = nn.Parameter(torch.ones(1))
        if adaptive:
            self.layer_factor = nn.Parameter(torch.zeros(1))
        # Set by the network for each forward pass, so that replicas and repeated calls see their own samples.
        self.image_factor: Tensor | None = None
        self.last_bits: Tensor | None = None

    def bits_of_layer(self) -> Tensor:
        """Base bits plus layer factor (Layer2Bit), shape ``(1,)``; the image factor is left out."""
        if not self.adaptive:
            return self.lower.new_full((1,), self.bits)
        hard = self.layer_factor.clamp(-1, 1).round()
        return self.bits + straight_through(torch.tanh(self.layer_factor), hard)

    def bits_used(self) -> Tensor:
        """Bits of each sample of the current forward pass: ``(B,)``, or ``(1,)`` where all samples share them."""
        bits = self.bits_of_layer()
        if self.adaptive and self.image_factor is not None:
            bits = bits + self.image_factor
        return bits.clamp(*self.bit_range)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` of shape ``(B * k, ...)``; a sample's ``k`` parts (windows, say) follow one another."""
        if not self.enabled:
            return x
        self.last_bits = bits = self.bits_used()
        if len(bits) > 1 and len(x) != len(bits):
            bits = bits.repeat_interleave(len(x) // len(bits))
        return fake_quantize(x, self.lower, self.upper, bits.view(-1, *[1] * (x.dim() - 1)), self.integer)
