"""Quantized convolutions, with all that torch's take: groups, dilation, padding modes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer, spacing


class QuantizedConvolution(QuantizedLayer):
    """A convolution over any number of axes, on quantized input and weight.

    The bias stays in full precision.
    """

    linear = True
    # Of the base layer, which says more of their types.
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: Any
    _conv_forward: Any
    _reversed_padding_repeated_twice: Any

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``, or with another axis before ``H``."""
        output: Tensor = self._conv_forward(x, weight, bias)
        return output

    @property
    def input_channels(self) -> int:
        """See `QuantizedLayer.input_channels`."""
        return self.in_channels

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantizedLayer.channel_views`; each group has input channels of its own."""
        others = [1] * len(self.kernel_size)
        of_input = scale.view(1, -1, *others)
        of_group = scale.view(self.groups, 1, -1)
        of_weight = of_group.expand(-1, self.out_channels // self.groups, -1)
        return of_input, of_weight.reshape(self.out_channels, -1, *others)

    def columns(self, x: Tensor, count: int) -> Tensor:
        """See `QuantizedLayer.columns`; only the patches that are wanted are copied."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        windows = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        for axis, size in enumerate(self.kernel_size):
            dilation = self.dilation[axis]
            extent = (size - 1) * dilation + 1
            windows = windows.unfold(axis + 2, extent, self.stride[axis])
            windows = windows[..., ::dilation]
        # (B, C_in, H', W', k, k)
        shape = windows.shape[2 : 2 + len(self.kernel_size)]
        distance = spacing(shape.numel(), count, len(x))
        chosen = torch.arange(0, shape.numel(), distance, device=x.device)
        places: list[Any] = [slice(None), slice(None), *torch.unravel_index(chosen, shape)]
        patches = windows[tuple(places)]
        # (B, C_in, N, k, k) to (G, C_in / G, k * k, B, N)
        grouped = patches.unflatten(1, (self.groups, -1)).flatten(4).permute(1, 2, 4, 0, 3)
        return grouped.flatten(3).flatten(1, 2)


@register_layer(nn.Conv2d)
class QuantizedConv2d(QuantizedConvolution, nn.Conv2d):
    """``nn.Conv2d`` on quantized input and weight."""


@register_layer(nn.Conv3d)
class QuantizedConv3d(QuantizedConvolution, nn.Conv3d):
    """``nn.Conv3d``, over frames, height and width, on quantized input and weight."""

    output_axis = -4
