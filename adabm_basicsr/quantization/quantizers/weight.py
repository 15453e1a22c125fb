"""Quantizer of weights: symmetric, with a learnable range and corrections of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize


class WeightQuantizer(nn.Module):
    """Symmetric weight quantization on ``[-upper, upper]`` with a learnable ``upper``.

    Args:
        bits: Bit-width of the weight, 2..8.
        channels: Length of ``upper``: 1 for a range per tensor, else the number of output channels.
        axis: Axis of the output channels in the weight.
        integer: Whether weights are signed integers times a scale, see `fake_quantize`.

    Attributes:
        narrow: Whether integers are as many below zero as above it, ``-127 .. 127`` of 8 bits, as
            some engines want it.
        upper: Learnable upper end of the range, ``(channels,)``, above 0.
        bits: Bit-width: the one that was allocated, or else the one that was asked for. A plain
            number: who looks it up on a GPU doesn't wait for one.
        allocated: Bit-width that was shared out to the layer, as checkpoints keep it, a uint8
            scalar; None where recipes don't share bits out, see `hold_own_bits`.
        channel_scale: What each input channel of the weight is multiplied by before rounding; None
            without `reconstruct`.
        correction: Learnable summand of each weight before rounding, which decides which way the
            weight is rounded; None without `reconstruct`.
        bias_correction: Learnable summand of the layer's bias, ``(C_out,)``; None without
            `reconstruct`.
    """

    def __init__(self, bits: int, channels: int = 1, axis: int = 0, integer: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self._asked_bits = bits
        self.axis = axis
        self.integer = integer
        self.enabled = True
        self.narrow = False
        self.upper = nn.Parameter(torch.ones(channels))
        self.allocated: Tensor | None
        self.channel_scale: Tensor | None
        self.register_buffer("allocated", None)
        self.register_buffer("channel_scale", None)
        self.correction: nn.Parameter | None = None
        self.bias_correction: nn.Parameter | None = None
        self._latest: _Quantized | None = None

    @property
    def lowest(self) -> float:
        """The lowest grid point in units of the scale; of integers a whole number."""
        if not self.integer:
            return -(2**self.bits - 1) / 2
        if self.narrow:
            return -self.highest
        return -(2.0 ** (self.bits - 1))

    @property
    def highest(self) -> float:
        """The highest grid point in units of the scale."""
        if self.integer:
            return 2.0 ** (self.bits - 1) - 1
        return (2**self.bits - 1) / 2

    @property
    def scale(self) -> Tensor:
        """Distance of the grid points of each output channel, ``(channels,)``.

        It is in units of the input channels' scales, where the layer has such.
        """
        return 2 * self.upper / (2**self.bits - 1)

    def hold_own_bits(self) -> None:
        """Make room for bits that follow the layer's sensitivity; they are those asked for yet."""
        self.bits = self._asked_bits
        self.allocated = self.upper.new_full((), self.bits, dtype=torch.uint8)

    @torch.no_grad()
    def allocate(self, bits: int) -> None:
        """Share out ``bits`` to the layer, which has room for them."""
        assert self.allocated is not None
        self.bits = bits
        self.allocated.fill_(bits)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.read_back()

    def read_back(self) -> None:
        """Take up bits that were written to ``allocated``."""
        if self.allocated is not None and not self.allocated.is_meta:
            self.bits = int(self.allocated)

    def add_corrections(self, weight: Tensor, channel_scale: Tensor, output_channels: int) -> None:
        """Make room for scales of input channels and for corrections of weight and bias.

        Args:
            weight: The layer's weight.
            channel_scale: Ones, broadcastable to ``weight``.
            output_channels: Length of the layer's bias.
        """
        # Views of one scale per channel can't be written to.
        self.channel_scale = channel_scale.clone()
        self.correction = nn.Parameter(torch.zeros_like(weight))
        self.bias_correction = nn.Parameter(weight.new_zeros(output_channels))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape; the weight itself while the quantizer is switched off.

        Outside of learning the result is kept, and made anew once something changes.
        """
        if not self.enabled:
            return weight
        sources = [weight, self.upper]
        for optional in (self.channel_scale, self.correction):
            if optional is not None:
                sources.append(optional)
        if not _can_be_kept(sources):
            return self._quantize(weight, self._upper(weight))
        # Operations that write to a tensor raise its version, except those on its `.data`.
        versions = [(tensor.data_ptr(), tensor._version) for tensor in sources]
        state = [self.bits, self.integer, *versions]
        if self._latest is None or self._latest.state != state:
            # Holding the tensors keeps their memory from being given to others.
            held = [tensor.detach() for tensor in sources]
            result = self._quantize(weight, self._upper(weight))
            self._latest = _Quantized(state, held, result)
        return self._latest.result

    def __getstate__(self) -> dict[str, Any]:
        """All but what was quantized last: copies quantize their own."""
        state = self.__dict__.copy()
        state["_latest"] = None
        return state

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The layer's bias, corrected for what quantization shifts; ``(C_out,)``."""
        if self.bias_correction is None or not self.enabled:
            return bias
        if bias is None:
            return self.bias_correction
        return bias + self.bias_correction

    def scales(self, weight: Tensor) -> Tensor:
        """Distance of the grid points around each weight, the shape of ``weight``."""
        scale = self._scale_of(weight)
        if self.channel_scale is not None:
            scale = scale / self.channel_scale
        return scale.detach().expand_as(weight)

    @torch.no_grad()
    def grid_indices(self, weight: Tensor) -> Tensor:
        """Which grid point each weight is rounded to.

        Returns:
            uint8 of the shape of ``weight``, 0 for the lowest grid point.
        """
        scaled = self(weight)
        if self.channel_scale is not None:
            scaled = scaled * self.channel_scale
        # The scale is 0 where all weights are.
        scale = self._scale_of(weight).clamp(min=torch.finfo(weight.dtype).tiny)
        indices = (scaled / scale - self.lowest).round()
        return indices.clamp(0, self.highest - self.lowest).to(torch.uint8)

    def from_grid_indices(self, indices: Tensor) -> Tensor:
        """Weights at grid points; quantizing them gives what `grid_indices` saw, to the bit.

        Args:
            indices: Result of `grid_indices`.
        """
        scaled = (indices.float() + self.lowest) * self._scale_of(indices)
        if self.channel_scale is None:
            return scaled
        return scaled / self.channel_scale

    def learns_range_alone(self, weight: Tensor) -> bool:
        """Whether ``upper`` is all that gradients are asked for."""
        if not self.enabled or weight.requires_grad:
            return False
        if self.correction is not None and self.correction.requires_grad:
            return False
        return self.upper.requires_grad

    def slope(self, weight: Tensor) -> Tensor:
        """How each quantized weight changes with its ``upper``, the shape of ``weight``."""
        with torch.enable_grad():
            upper = self._upper(weight).detach().expand_as(weight).requires_grad_()
            quantized = self._quantize(weight.detach(), upper)
            return torch.autograd.grad(quantized.sum(), upper)[0]

    def _upper(self, weight: Tensor) -> Tensor:
        """``upper`` as it broadcasts to ``weight``."""
        shape = [1] * weight.dim()
        shape[self.axis] = -1
        return self.upper.view(shape)

    def _scale_of(self, weight: Tensor) -> Tensor:
        """`scale` as it broadcasts to ``weight``."""
        return self.scale.view_as(self._upper(weight))

    def _quantize(self, weight: Tensor, upper: Tensor) -> Tensor:
        if self.channel_scale is None or self.correction is None:
            return self._round(weight, upper)
        scaled = (weight + self.correction) * self.channel_scale
        return self._round(scaled, upper) / self.channel_scale

    def _round(self, scaled: Tensor, upper: Tensor) -> Tensor:
        """Bring weights in units of the channels' scales to grid points."""
        if self.narrow:
            scale = 2 * upper / (2**self.bits - 1)
            scaled = torch.maximum(scaled, self.lowest * scale)
        return fake_quantize(scaled, -upper, upper, self.bits, self.integer)


class _Quantized(NamedTuple):
    """A quantized weight, and what it was made of.

    Attributes:
        state: Differs once something has changed.
        held: The tensors that it was made of.
        result: The quantized weight.
    """

    state: list[object]
    held: list[Tensor]
    result: Tensor


def _can_be_kept(sources: Sequence[Tensor]) -> bool:
    """Whether what is made of ``sources`` may serve again: nothing is learned now."""
    if torch.is_inference_mode_enabled():
        return False
    for tensor in sources:
        is_learned = tensor.requires_grad and torch.is_grad_enabled()
        # Tensors of inference mode have no versions.
        if is_learned or tensor.is_inference():
            return False
    return True
