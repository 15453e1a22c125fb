"""Quantized linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer


@register_layer(nn.Linear)
class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` on quantized input and weight; the bias stays in full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ..., C_in)`` to ``(B, ..., C_out)``."""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
