"""Quantization of weights: symmetric, with a learnable range and, where a recipe asks for it, corrected rounding."""

from __future__ import annotations

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
    """

    def __init__(self, bits: int, channels: int = 1, axis: int = 0, integer: bool = False) -> None:
        super().__init__()
        self._bits = bits
        self.axis = axis
        self.integer = integer
        self.enabled = True
        self.upper = nn.Parameter(torch.ones(channels))
        self.register_buffer("allocated", None)
        self.register_buffer("channel_scale", None)
        self.correction: nn.Parameter | None = None
        self.bias_correction: nn.Parameter | None = None
        self._latest: tuple[list, list[Tensor], Tensor] | None = (
            None  # what was quantized last, and the result
        )

    @property
    def bits(self) -> int:
        """Bit-width: the one that was allocated, if `allocate` was called, or the one that was asked for."""
        return self._bits if self.allocated is None else int(self.allocated)

    def allocate(self) -> None:
        """Make room for bits that follow the layer's sensitivity."""
        self.allocated = torch.tensor(self._bits, dtype=torch.uint8, device=self.upper.device)

    def reconstruct(self, weight: Tensor, channel_scale: Tensor, output_channels: int) -> None:
        """Make room for an equalisation of input channels and for corrections of weight and bias.

        Args:
            weight: The layer's weight.
            channel_scale: Ones, broadcastable to ``weight``: the scale of each input channel's activations.
            output_channels: Length of the layer's bias.
        """
        self.channel_scale = (
            channel_scale.clone()
        )  # views of one scale per channel can't be written to
        self.correction = nn.Parameter(
            torch.zeros_like(weight)
        )  # before rounding: it decides which way that goes
        self.bias_correction = nn.Parameter(weight.new_zeros(output_channels))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight of any shape; the weight itself while the quantizer is switched off."""
        if not self.enabled:
            return weight
        parts = [
            t for t in (weight, self.upper, self.channel_scale, self.correction) if t is not None
        ]
        learned = torch.is_grad_enabled() and any(t.requires_grad for t in parts)
        if learned or torch.is_inference_mode_enabled() or any(t.is_inference() for t in parts):
            return self._quantize(weight, self._upper(weight))
        # Operations that write to a tensor raise its version, except those on its `.data`.
        state = [self.bits, self.integer, *((t.data_ptr(), t._version) for t in parts)]
        if self._latest is None or self._latest[0] != state:
            held = [
                t.detach() for t in parts
            ]  # keeps their memory from being given to another tensor
            self._latest = state, held, self._quantize(weight, self._upper(weight))
        return self._latest[-1]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_latest": None}  # copies quantize their own

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The layer's bias, corrected for what quantization shifts; ``(C_out,)``."""
        if self.bias_correction is None or not self.enabled:
            return bias
        return self.bias_correction if bias is None else bias + self.bias_correction

    @property
    def scale(self) -> Tensor:
        """Distance of the levels of each output channel, ``(channels,)``; in units of the scaled input channels."""
        return 2 * self.upper / (2**self.bits - 1)

    def scales(self, weight: Tensor) -> Tensor:
        """Distance of the levels around each weight, the shape of ``weight``."""
        step = self._scale_of(weight) / (1.0 if self.channel_scale is None else self.channel_scale)
        return step.detach().expand_as(weight)

    @torch.no_grad()
    def grid_indices(self, weight: Tensor) -> Tensor:
        """Which of its levels each weight takes, the lowest being 0: uint8 of the shape of ``weight``."""
        scaled = self(weight) * (1.0 if self.channel_scale is None else self.channel_scale)
        steps = self._scale_of(weight).clamp(
            min=torch.finfo(weight.dtype).tiny
        )  # 0 where all weights are
        levels = (scaled / steps - self.lowest).round()
        return levels.clamp(0, 2**self.bits - 1).to(torch.uint8)

    def from_grid_indices(self, indices: Tensor) -> Tensor:
        """Weights that lie on ``levels``; quantizing them gives what `levels` was asked of, to the bit."""
        scaled = (indices.float() + self.lowest) * self._scale_of(indices)
        return scaled if self.channel_scale is None else scaled / self.channel_scale

    @property
    def lowest(self) -> float:
        """The lowest level in steps; integers are a whole number of them away from zero."""
        return -(2.0 ** (self.bits - 1)) if self.integer else -(2**self.bits - 1) / 2

    def _scale_of(self, weight: Tensor) -> Tensor:
        return self.scale.view_as(self._upper(weight))

    def learns_range_alone(self, weight: Tensor) -> bool:
        """Whether ``upper`` is all that gradients are asked for."""
        others = [t for t in (weight, self.correction) if t is not None]
        return (
            self.enabled and self.upper.requires_grad and not any(t.requires_grad for t in others)
        )

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
