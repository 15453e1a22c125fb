"""Quantized 2-d convolution: groups, dilation, stride and every padding mode, as nn.Conv2d itself handles them."""

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
        """See `QuantizedLayer.channel_views`; each group of the weight has its own input channels."""
        of_weight = scale.view(self.groups, 1, -1).expand(-1, self.out_channels // self.groups, -1)
        return scale.view(1, -1, 1, 1), of_weight.reshape(self.out_channels, -1, 1, 1)

    def columns(self, x: Tensor, count: int) -> Tensor:
        """See `QuantizedLayer.columns`; only the patches that are wanted are copied."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        windows = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        for axis, (size, dilation, stride) in enumerate(
            zip(self.kernel_size, self.dilation, self.stride), start=2
        ):
            windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
        height, width = windows.shape[2:4]  # (B, C_in, H', W', k, k)
        chosen = torch.arange(
            0, height * width, spacing(height * width, count, len(x)), device=x.device
        )
        patches = windows[:, :, chosen // width, chosen % width]  # (B, C_in, N, k, k)
        return (
            patches.unflatten(1, (self.groups, -1))
            .permute(1, 2, 4, 5, 0, 3)
            .flatten(4)
            .flatten(1, 3)
        )
