"""Quantized linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer, spacing


@register_layer(nn.Linear)
class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` on quantized input and weight; the bias stays in full precision."""

    linear = True
    output_axis = -1

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(B, ..., C_in)`` to ``(B, ..., C_out)``."""
        return F.linear(x, weight, bias)

    @property
    def input_channels(self) -> int:
        """See `QuantizedLayer.input_channels`."""
        return self.in_features

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantizedLayer.channel_views`."""
        return scale, scale

    def columns(self, x: Tensor, count: int) -> Tensor:
        """See `QuantizedLayer.columns`."""
        rows = x.reshape(len(x), -1, x.shape[-1])
        distance = spacing(rows.shape[1], count, len(x))
        chosen = rows[:, ::distance].flatten(0, 1)
        return chosen.t().unsqueeze(0)
