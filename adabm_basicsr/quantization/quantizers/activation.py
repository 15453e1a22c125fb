"""The core idea of AdaBM (CVPR 2024, arXiv 2404.03296): bits that follow the image and the layer.

    bits of an activation = base bits + layer factor + image factor,   both factors in {-1, 0, +1}

The layer factor is a learnable scalar per layer (Layer2Bit), the image factor a pair of learnable thresholds on the
complexity of the image (Image2Bit). Both are hard in the forward pass and soft in the backward pass, so that they are
learned by gradient descent along with the clipping ranges of the quantizers. Recipes that allocate bits measure the
layer factor instead, let it go further, and give the image's level a clipping range of its own; see `allocation`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.quantizers.fake_quantize import (
    fake_quantize,
    integer_grid,
    range_width,
)

GREY = (0.299, 0.587, 0.114)
COMPLEXITY_SCALE = 1000.0


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
        """Level of each image: ``(B, C, H, W)`` in 0..1 to ``(B,)`` in {-1, 0, +1}; 0 of one that isn't finite."""
        complexity = image_complexity(image)
        hard = (complexity > self.upper).to(complexity.dtype) - (complexity < self.lower).to(
            complexity.dtype
        )
        width = range_width(
            self.lower, self.upper
        )  # equal thresholds come from constant calibration images
        soft = torch.tanh((complexity - (self.upper + self.lower) / 2) * 2 / width)
        return straight_through(soft.nan_to_num(), hard)


class ActivationQuantizer(nn.Module):
    """Asymmetric quantization on a learnable ``[lower, upper]``, at bits of its own.

    Args:
        bits: Base bit-width, 2..8.
        adaptive: Whether layer factor and image factor are added to the base bits.
        bit_range: Smallest and largest bits that may be used; the sum is clamped to it.
        fixed: Whether the layer is pinned to its bits (head and tail at 8 bits); it then doesn't count in FAB.
        integer: Whether zero is one of the levels, see `fake_quantize`.

    Attributes:
        lower: Learnable lower end of the clipping range.
        upper: Learnable upper end, above ``lower``.
        layer_factor: Learnable scalar m of Layer2Bit, of adaptive layers.
        layer_reach: How far the layer factor may go, in bits.
        image_bits: Bits that images of the lowest and of the highest level add to the layer's.
        level_ranges: Learnable factors on the range, for the levels -1, 0 and +1 of the image; see `follow_levels`.
        channel_scale: What the range of each channel is in units of, see `equalise`; None where all share one range.
        channel_shift: How far each channel's range lies above the common one, as a share of its width; see `shifted`.
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
        self.layer_reach = 1
        self.image_bits = (-1, 1)
        self.level_ranges: nn.Parameter | None = None
        self.register_buffer("channel_scale", None)
        self.register_buffer("channel_shift", None)
        # Set by the network for each forward pass, so that replicas and repeated calls see their own samples.
        self.image_factor: Tensor | None = None
        self.last_bits: Tensor | None = None

    def equalise(self, channel_scale: Tensor) -> None:
        """Make room for a scale and a zero point per channel, ones that broadcast to the input.

        The range is then in units of the scale, and lies for each channel where its zero point puts it.
        """
        self.channel_scale = (
            channel_scale.clone()
        )  # views of one scale per channel can't be written to
        self.channel_shift = torch.zeros_like(self.channel_scale)

    def follow_levels(self) -> None:
        """Make room for a range of each image level."""
        self.level_ranges = nn.Parameter(
            torch.ones(3, device=self.lower.device)
        )  # in units of the common range

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range in units of the input ``x``, broadcastable to it: of each sample or channel where these differ."""
        lower, upper = self.common_ends(x)
        if self.channel_scale is None:
            return lower, upper
        return tuple(end * self.channel_scale for end in shifted(lower, upper, self.channel_shift))

    def common_ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range, in units of the channels' scales and before their shifts; of each sample where these differ."""
        if self.level_ranges is None or self.image_factor is None:
            return self.lower, self.upper
        scale = _per_sample(self.level_ranges[self.image_factor.detach().long() + 1], x)
        return self.lower * scale, self.upper * scale

    def step(self, x: Tensor) -> Tensor:
        """Distance of the levels that `quantize` brings ``x`` to, of integer quantizers; in units of channel scales.

        It has the eight significant bits of bfloat16, and so have channel scales: float32 then holds every level, and
        every edge between two, exactly, and all that computes with them comes to the same level but where a value lies
        on an edge.
        """
        scale = integer_grid(*self.common_ends(x), 2 ** _per_sample(self.bits_used(), x) - 1)[0]
        return scale.bfloat16().to(scale.dtype)

    def in_common_range(self, x: Tensor) -> Tensor:
        """``x`` in units of the channels' scales, each channel moved to where its range is the common one."""
        if self.channel_scale is None:
            return x
        common = self.common_ends(x)
        return x / self.channel_scale - (
            shifted(*common, self.channel_shift)[0] - common[0].clamp(max=0)
        )

    @property
    def clipping_range(self) -> tuple[float, float]:
        """Ends of the common range, in units of the channel scale, before shifts; integers widen it to hold zero."""
        lower, upper = self.lower.item(), self.upper.item()
        holds_zero = self.integer or self.channel_shift is not None
        return (min(lower, 0.0), max(upper, 0.0)) if holds_zero else (lower, upper)

    def bits_of_layer(self) -> Tensor:
        """Base bits plus layer factor (Layer2Bit), shape ``(1,)``; the image factor is left out."""
        if not self.adaptive:
            return self.lower.new_full((1,), self.bits)
        hard = self.layer_factor.clamp(-self.layer_reach, self.layer_reach).round()
        return self.bits + straight_through(torch.tanh(self.layer_factor), hard)

    def clamped_bits_of_layer(self) -> Tensor:
        """`bits_of_layer` within the bits that may be used, shape ``(1,)``."""
        return self.bits_of_layer().clamp(*self.bit_range)

    def bits_used(self) -> Tensor:
        """Bits of each sample of the current forward pass: ``(B,)``, or ``(1,)`` where all samples share them."""
        bits = self.bits_of_layer()
        if self.adaptive and self.image_factor is not None:
            bits = bits + self.image_factor.clamp(*self.image_bits)
        return bits.clamp(*self.bit_range)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` of shape ``(B * k, ...)``; a sample's ``k`` parts (windows, say) follow one another."""
        return self.quantize(x) if self.enabled else x

    def quantize(self, x: Tensor) -> Tensor:
        """`forward`, whether the quantizer is switched on or not."""
        self.last_bits = bits = self.bits_used()
        step = self.step(x) if self.integer else None
        if step is not None and self.channel_scale is not None:
            step = step * self.channel_scale
        return fake_quantize(x, *self.ends(x), _per_sample(bits, x), self.integer, step)


def shifted(lower: Tensor, upper: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The range of each channel: all are equally wide and hold zero, but each has a zero point of its own.

    Args:
        lower: Lower end of the common range, which is widened to hold zero.
        upper: Upper end.
        shift: How far each channel's range lies above the common one, as a share of its width.
    """
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    offset = ((upper - lower) * shift).clamp(-upper, -lower)
    return lower + offset, upper + offset


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """``values``, one or one per sample, as they broadcast to ``x``, which may hold several parts of each sample."""
    if len(values) > 1 and len(x) != len(values):
        values = values.repeat_interleave(len(x) // len(values))
    return values.view(-1, *[1] * (x.dim() - 1))
