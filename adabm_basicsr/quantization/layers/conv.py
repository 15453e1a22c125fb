"""Quantized 2-d convolution, with all that nn.Conv2d takes: groups, dilation, padding modes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer, spacing


@register_layer(nn.Conv2d)
class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """``nn.Conv2d`` on quantized input and weight; the bias stays in full precision."""

    linear = True

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
        return self._conv_forward(x, weight, bias)

    @property
    def input_channels(self) -> int:
        """See `QuantizedLayer.input_channels`."""
        return self.in_channels

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantizedLayer.channel_views`; each group has input channels of its own."""
        of_input = scale.view(1, -1, 1, 1)
        of_group = scale.view(self.groups, 1, -1)
        of_weight = of_group.expand(-1, self.out_channels // self.groups, -1)
        return of_input, of_weight.reshape(self.out_channels, -1, 1, 1)

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
        height, width = windows.shape[2:4]
        distance = spacing(height * width, count, len(x))
        chosen = torch.arange(0, height * width, distance, device=x.device)
        patches = windows[:, :, chosen // width, chosen % width]
        # (B, C_in, N, k, k) to (G, C_in / G, k, k, B, N)
        grouped = patches.unflatten(1, (self.groups, -1)).permute(1, 2, 4, 5, 0, 3)
        return grouped.flatten(4).flatten(1, 3)
