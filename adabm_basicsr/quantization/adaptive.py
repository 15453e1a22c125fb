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

from adabm_basicsr.quantization.fake_quantize import fake_quantize, range_width

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
        """Bit factor of each image: ``(B, C, H, W)`` in 0..1 to ``(B,)`` in {-1, 0, +1}."""
        complexity = image_complexity(image)
        hard = (complexity > self.upper).to(complexity.dtype) - (complexity < self.lower).to(complexity.dtype)
        width = range_width(self.lower, self.upper)  # equal thresholds come from constant calibration images
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
        self.register_buffer("channel_scale", None)
        self.register_buffer("correction", None)
        self._latest: tuple[list, list[Tensor], Tensor] | None = None  # what was quantized last, and the result

    def reconstruct(self, weight: Tensor, channel_scale: Tensor) -> None:
        """Make room for an equalisation of input channels and for a correction of the weight before rounding.

        Args:
            weight: The layer's weight.
            channel_scale: Ones, broadcastable to ``weight``: the scale of each input channel's activations.
        """
        self.channel_scale = channel_scale.clone()  # views of one scale per channel can't be written to
        self.correction = torch.zeros_like(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape; the weight itself while the quantizer is switched off."""
        if not self.enabled:
            return weight
        parts = [t for t in (weight, self.upper, self.channel_scale, self.correction) if t is not None]
        learned = torch.is_grad_enabled() and any(t.requires_grad for t in parts)
        if learned or torch.is_inference_mode_enabled() or any(t.is_inference() for t in parts):
            return self._quantize(weight, self._upper(weight))
        # Operations that write to a tensor raise its version, except those on its `.data`.
        state = [self.bits, self.integer, *((t.data_ptr(), t._version) for t in parts)]
        if self._latest is None or self._latest[0] != state:
            held = [t.detach() for t in parts]  # keeps their memory from being given to another tensor
            self._latest = state, held, self._quantize(weight, self._upper(weight))
        return self._latest[-1]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_latest": None}  # copies quantize their own

    def slope(self, weight: Tensor) -> Tensor:
        """How each quantized weight changes with its ``upper``, the shape of ``weight``."""
        with torch.enable_grad():
            upper = self._upper(weight).detach().expand_as(weight).requires_grad_()
            return torch.autograd.grad(self._quantize(weight.detach(), upper).sum(), upper)[0]

    def _upper(self, weight: Tensor) -> Tensor:
        return self.upper.view([-1 if axis == self.axis else 1 for axis in range(weight.dim())])

    def _quantize(self, weight: Tensor, upper: Tensor) -> Tensor:
        if self.channel_scale is None:
            return fake_quantize(weight, -upper, upper, self.bits, self.integer)
        scaled = (weight + self.correction) * self.channel_scale
        return fake_quantize(scaled, -upper, upper, self.bits, self.integer) / self.channel_scale


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
        self.register_buffer("channel_scale", None)
        # Set by the network for each forward pass, so that replicas and repeated calls see their own samples.
        self.image_factor: Tensor | None = None
        self.last_bits: Tensor | None = None

    def equalise(self, channel_scale: Tensor) -> None:
        """Make room for a scale per channel, broadcastable to the input; the range is then in units of it."""
        self.channel_scale = channel_scale.clone()  # views of one scale per channel can't be written to

    def ends(self) -> tuple[Tensor, Tensor]:
        """The range in units of the input: ``lower`` and ``upper``, of each channel if channels are equalised."""
        if self.channel_scale is None:
            return self.lower, self.upper
        ends = self.lower * self.channel_scale, self.upper * self.channel_scale
        return torch.minimum(*ends), torch.maximum(*ends)  # a negative scale turns its channel round

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
        return fake_quantize(x, *self.ends(), bits.view(-1, *[1] * (x.dim() - 1)), self.integer)
