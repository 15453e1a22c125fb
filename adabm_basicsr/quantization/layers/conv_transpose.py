"""Quantized transposed 2-d convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.layers.base import QuantizedLayer, register_layer


@register_layer(nn.ConvTranspose2d)
class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on quantized input and weight; the bias stays in full precision."""

    weight_axis = 1
    linear = True

    def compute(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None
    ) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

        Args:
            x: The input.
            weight: ``(C_in, C_out / groups, k, k)``.
            bias: ``(C_out,)`` or None.
            output_size: As in ``nn.ConvTranspose2d``.
        """
        output_padding = self._output_padding(
            x,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            num_spatial_dims=2,
            dilation=self.dilation,  # type: ignore[arg-type]
        )
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )

    @property
    def input_channels(self) -> int:
        """See `QuantizedLayer.input_channels`."""
        return self.in_channels

    @property
    def output_channels(self) -> int:
        """See `QuantizedLayer.output_channels`; the weight has those of one group."""
        return self.out_channels

    def channel_views(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantizedLayer.channel_views`."""
        return scale.view(1, -1, 1, 1), scale.view(-1, 1, 1, 1)
