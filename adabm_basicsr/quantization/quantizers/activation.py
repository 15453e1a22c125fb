"""Quantizer of activations: a learnable clipping range, at the bit-width of `bit_mapping`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.bit_mapping import image_class, layer_factor
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.quantizers.fake_quantize import (
    fake_quantize,
    integer_grid,
    range_width,
)

# Signed integers of 8 bits.
LOWEST_SIGNED = -128
HIGHEST_SIGNED = 127
# Moves halves, which float32 holds exactly, to the side away from zero.
BEYOND_TIES = 1 + 2**-23
# No scale of eight significant bits is the distance of pixels, 1/255; but this one times the scale
# that a range of its reciprocal has is, to within a twentieth of a thousandth.
PIXEL_CHANNEL_SCALE = 215 / 256


class ActivationQuantizer(nn.Module):
    """Asymmetric quantization on a learnable ``[lower, upper]``, at a bit-width of its own.

    Args:
        bits: Base bits, 2..8.
        adaptive: Whether layer factor and image factor are added to the base bits.
        bit_range: Smallest and largest bit-width; the sum is clamped to it.
        fixed: Whether the layer is pinned to its bits (head and tail at 8 bits). It then doesn't
            count in FAB.
        integer: Whether zero is a grid point, see `fake_quantize`.

    Attributes:
        lower: Learnable lower end of the clipping range.
        upper: Learnable upper end, above ``lower``.
        layer_factor: Learnable scalar m of `bit_mapping.layer_factor`, of adaptive layers.
        layer_reach: How far the layer factor may go, in bits.
        image_bits: Bits that the simplest and the most complex class of images add to the layer's.
        level_ranges: Learnable factors on the range, one for each class of images; see
            `follow_image_classes`.
        channel_scale: Unit of the range of each channel, see `equalise`; None where all channels
            share one range.
        channel_shift: How far each channel's range lies above the common one, as a share of its
            width; see `shifted`.
        signed: Whether integers are signed and have no zero point, as some engines want it.
        narrow: Whether signed integers end at -127 rather than at -128.
        ties_away: Whether halves are rounded away from zero rather than to the even neighbour.
        image_factor: Factor of each sample, ``(B,)``; the network sets it for each forward pass, so
            that replicas and repeated calls see their own samples.
        last_bits: Bit-widths of the last forward pass, ``(B,)`` or ``(1,)``; of a network that
            takes clips the mean over all calls and frames.
        bits_of_calls: Bit-widths of each call of the pass that runs, of a network that takes clips;
            None otherwise, where the last call counts.
        frames: Calls in the last forward pass times frames that each saw side by side; 1 of
            networks that take images.
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
        self.signed = False
        self.narrow = False
        self.ties_away = False
        self.level_ranges: nn.Parameter | None = None
        self.channel_scale: Tensor | None
        self.channel_shift: Tensor | None
        self.register_buffer("channel_scale", None)
        self.register_buffer("channel_shift", None)
        self.image_factor: Tensor | None = None
        self.last_bits: Tensor | None = None
        self.bits_of_calls: list[Tensor] | None = None
        self.frames = 1

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x``; ``x`` itself while the quantizer is switched off.

        Args:
            x: ``(B * k, ...)``; the ``k`` parts of a sample (windows, say) follow one another.
        """
        if not self.enabled:
            return x
        return self.quantize(x)

    def quantize(self, x: Tensor) -> Tensor:
        """Quantize ``x`` as `forward` does, whether the quantizer is switched on or not."""
        bits = self.bits_used()
        self.last_bits = bits
        if self.bits_of_calls is not None:
            self.bits_of_calls.append(bits)
        lower, upper = self.ends(x)
        if self.narrow:
            x = torch.maximum(x, -upper)
        if self.ties_away:
            x = x * BEYOND_TIES
        scale = None
        if self.integer:
            scale = self.scale(x)
            if self.channel_scale is not None:
                scale = scale * self.channel_scale
        return fake_quantize(x, lower, upper, _per_sample(bits, x), self.integer, scale)

    # Bits

    def bits_of_layer(self) -> Tensor:
        """Base bits plus layer factor, shape ``(1,)``; the image factor is left out."""
        if not self.adaptive:
            return self.lower.new_full((1,), self.bits)
        return self.bits + layer_factor(self.layer_factor, self.layer_reach)

    def clamped_bits_of_layer(self) -> Tensor:
        """`bits_of_layer` within the bit-widths that may be used, shape ``(1,)``."""
        return self.bits_of_layer().clamp(*self.bit_range)

    def bits_used(self) -> Tensor:
        """Bit-width of each sample: base bits + layer factor + image factor, clamped.

        Returns:
            ``(B,)``, or ``(1,)`` where all samples share it.
        """
        bits = self.bits_of_layer()
        if self.adaptive and self.image_factor is not None:
            bits = bits + self.image_factor.clamp(*self.image_bits)
        return bits.clamp(*self.bit_range)

    def add_up_calls(self, samples: int) -> None:
        """Let `last_bits` and `frames` be those of all calls of a forward pass of clips.

        Args:
            samples: Number of clips.
        """
        if not self.bits_of_calls:
            return
        by_sample = []
        frames = 0
        for bits in self.bits_of_calls:
            # All frames of a clip follow one another.
            of_samples = bits.expand(max(len(bits), samples)).view(samples, -1)
            by_sample.append(of_samples)
            frames += of_samples.shape[1]
        self.last_bits = torch.cat(by_sample, dim=1).mean(1)
        self.frames = frames

    # Ranges

    def follow_image_classes(self) -> None:
        """Make room for a range of each class of images, in units of the common range."""
        self.level_ranges = nn.Parameter(torch.ones(3, device=self.lower.device))

    def equalise(self, channel_scale: Tensor) -> None:
        """Make room for a scale and a zero point of each channel.

        The range is then in units of the scale, and lies where the channel's zero point puts it.

        Args:
            channel_scale: Ones, broadcastable to the input.
        """
        # Views of one scale per channel can't be written to.
        self.channel_scale = channel_scale.clone()
        self.channel_shift = torch.zeros_like(self.channel_scale)

    def hold_pixels(self) -> None:
        """Take the range 0..1 of pixels, whose values of 8 bits are then grid points."""
        assert self.channel_scale is not None
        assert self.channel_shift is not None
        self.channel_scale.fill_(PIXEL_CHANNEL_SCALE)
        self.channel_shift.zero_()
        self.lower.fill_(0)
        self.upper.fill_(1 / PIXEL_CHANNEL_SCALE)

    @property
    def holds_pixels(self) -> bool:
        """Whether its range is that of `hold_pixels`."""
        if self.channel_scale is None:
            return False
        has_scale = bool((self.channel_scale == PIXEL_CHANNEL_SCALE).all())
        upper = torch.full_like(self.upper, 1 / PIXEL_CHANNEL_SCALE)
        return has_scale and not self.lower.any() and torch.equal(self.upper, upper)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the range in units of the input ``x``, broadcastable to it.

        They differ by sample where images have classes, and by channel where channels have grids.
        """
        return self._of_channels(*self.common_ends(x))

    def _of_channels(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the range of each channel in units of the input, from those of the common one."""
        if self.channel_scale is None or self.channel_shift is None:
            return lower, upper
        lower, upper = shifted(lower, upper, self.channel_shift)
        return lower * self.channel_scale, upper * self.channel_scale

    def common_ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the range in units of channel scales, before channels are shifted."""
        lower: Tensor = self.lower
        upper: Tensor = self.upper
        if self.level_ranges is not None and self.image_factor is not None:
            of_class = self.level_ranges[image_class(self.image_factor)]
            factor = _per_sample(of_class, x)
            lower = lower * factor
            upper = upper * factor
        return self.on_grid(lower, upper)

    def on_grid(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The range that integers have: of signed ones, which have 8 bits, the one around 0.

        The end that lies farther from 0 becomes 127, or -127.
        """
        if not self.signed:
            return lower, upper
        reach = torch.maximum(-lower, upper)
        return -reach * (-LOWEST_SIGNED / HIGHEST_SIGNED), reach

    def scale(self, x: Tensor) -> Tensor:
        """Distance of the grid points of integer quantizers, in units of channel scales.

        It has the eight significant bits of bfloat16, and so have channel scales. float32 then
        holds every grid point, and every edge between two, exactly: all that computes with them
        comes to the same grid point, unless a value lies on an edge.
        """
        lower, upper = self.common_ends(x)
        highest = 2 ** _per_sample(self.bits_used(), x) - 1
        scale, _ = integer_grid(lower, upper, highest)
        return scale.bfloat16().to(scale.dtype)

    def in_common_range(self, x: Tensor) -> Tensor:
        """``x`` in units of channel scales, each channel moved into the common range."""
        if self.channel_scale is None or self.channel_shift is None:
            return x
        lower, upper = self.common_ends(x)
        shifted_lower, _ = shifted(lower, upper, self.channel_shift)
        return x / self.channel_scale - (shifted_lower - lower.clamp(max=0))

    @property
    def clipping_range(self) -> tuple[float, float]:
        """Lowest and highest end over all channels and image classes, in units of the input.

        Integer quantizers widen the range to hold zero.
        """
        widest = 1.0
        if self.level_ranges is not None:
            widest = self.level_ranges.max().item()
        lower, upper = self._of_channels(self.lower * widest, self.upper * widest)
        lower, upper = self._holding_zero(lower, upper)
        return lower.min().item(), upper.max().item()

    def clipped_share(self, x: Tensor) -> float:
        """Share of the values of ``x`` outside the range of their channel and image class, 0..1.

        What lies outside by less than half a scale doesn't count: rounding moves values as far.
        """
        lower, upper = self._holding_zero(*self.ends(x))
        highest = 2 ** _per_sample(self.bits_used(), x) - 1
        half = range_width(lower, upper) / highest / 2
        is_clipped = (x < lower - half) | (x > upper + half)
        return is_clipped.double().mean().item()

    def _holding_zero(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The range that is used: that of integers holds zero."""
        if not self.integer:
            return lower, upper
        return lower.clamp(max=0), upper.clamp(min=0)


def mean_bits(network: nn.Module, device: torch.device | None = None) -> Tensor:
    """Bit-widths of the last forward pass, averaged over quantizers that aren't fixed at 8 bits.

    Args:
        network: A network with quantizers.
        device: Where to put them; where they are, or the CPU, by default.

    Returns:
        ``(B,)``, or ``(1,)`` where all samples share them; it carries gradients to the bit
        mappings. 32 if no activation is quantized, 8 if every quantized layer is fixed.
    """
    ran = []
    for module in network.modules():
        if isinstance(module, ActivationQuantizer) and module.last_bits is not None:
            ran.append(module)
    counted = [quantizer for quantizer in ran if not quantizer.fixed]
    if counted:
        bits = torch.broadcast_tensors(*[quantizer.last_bits for quantizer in counted])
        frames = [quantizer.frames for quantizer in counted]
        if max(frames) == 1:
            return torch.stack(bits).mean(0).to(device=device)
        # Each counts as often as it runs.
        weighted = [count * of_one for count, of_one in zip(frames, bits, strict=True)]
        return (torch.stack(weighted).sum(0) / sum(frames)).to(device=device)
    only = ran[0].bits if ran else FLOAT_BITS
    return torch.full((1,), float(only), device=device)


def shifted(lower: Tensor, upper: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The range of each channel: all are as wide and hold zero, but each has its own zero point.

    Args:
        lower: Lower end of the common range, which is widened to hold zero.
        upper: Upper end.
        shift: How far each channel's range lies above the common one, as a share of its width.
    """
    lower = lower.clamp(max=0)
    upper = upper.clamp(min=0)
    offset = ((upper - lower) * shift).clamp(-upper, -lower)
    return lower + offset, upper + offset


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """``values``, one or one per sample, as they broadcast to ``x``, whose samples have parts."""
    if len(values) > 1 and len(x) != len(values):
        values = values.repeat_interleave(len(x) // len(values))
    return values.view(-1, *[1] * (x.dim() - 1))
