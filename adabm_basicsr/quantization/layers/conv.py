"""Quantized 2-d convolution: groups, dilation, stride and every padding mode, as nn.Conv2d itself handles them."""

from __future__ import annotations

from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer


@register_layer(nn.Conv2d)
class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """``nn.Conv2d`` on quantized input and weight; the bias stays in full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
        return self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
