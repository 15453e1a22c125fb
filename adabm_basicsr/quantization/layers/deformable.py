"""Deformable convolution (DCNv2) as sampling and a product.

Each output value is a weighted sum of values that are sampled between pixels, at offsets that the
network computes. Written in two steps, ``columns`` and their product with the weight, the second is
a 1x1 convolution: it is quantized like any other, and the columns are its input. Offsets and masks
stay in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = int | Sequence[int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """What ``torchvision.ops.deform_conv2d`` computes, on any device.

    Args:
        input: ``(B, C_in, H, W)``.
        offset: See `sample_columns`.
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)`` or None.
        stride: Distance of the output's positions, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the weight's positions, in pixels.
        mask: See `sample_columns`.

    Returns:
        ``(B, C_out, H', W')``.
    """
    size = weight.shape[2:]
    columns = sample_columns(input, offset, mask, size, stride, padding, dilation)
    rows = weight.flatten(1).view(len(weight), -1, 1, 1)
    return F.conv2d(columns, rows, bias, groups=input.shape[1] // weight.shape[1])


def sample_columns(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:
    """The values that a deformable convolution weighs, by bilinear interpolation.

    Args:
        x: ``(B, C, H, W)``; outside of it are zeros.
        offset: How far each position is moved down and to the right, in pixels: of each of ``G``
            groups of channels and of the kernel's ``K`` positions, ``(B, G * K * 2, H', W')``.
        mask: Factors on the values, ``(B, G * K, H', W')``; None for 1.
        kernel_size: Height and width of the kernel; their product is ``K``.
        stride: Distance of the output's positions, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the kernel's positions, in pixels.

    Returns:
        ``(B, C * K, H', W')``, the kernel's positions of a channel one after the other.
    """
    batch, channels, height, width = x.shape
    taps, starts_y, starts_x = _positions(offset, kernel_size, stride, padding, dilation)
    moves = offset.view(batch, -1, taps, 2, *offset.shape[2:])
    groups = moves.shape[1]
    rows = _between(starts_y + moves[:, :, :, 0], height)
    sides = _between(starts_x + moves[:, :, :, 1], width)
    if mask is not None:
        factors = mask.view_as(rows[0].share)
        rows = [_Nearest(row.place, row.share * factors) for row in rows]

    pixels = x.reshape(batch, groups, channels // groups, height * width)
    columns = None
    for row in rows:
        for side in sides:
            places = (row.place * width + side.place).flatten(2).unsqueeze(2)
            values = pixels.gather(3, places.expand(-1, -1, channels // groups, -1))
            values = values * (row.share * side.share).flatten(2).unsqueeze(2)
            columns = values if columns is None else columns + values
    assert columns is not None
    return columns.reshape(batch, channels * taps, *offset.shape[2:])


class _Nearest(NamedTuple):
    """One of the two pixels, along an axis, that a value lies between.

    Attributes:
        place: Its index, that of the nearest pixel for one outside of the image.
        share: Its share in the value, 0..1; 0 outside of the image.
    """

    place: Tensor
    share: Tensor


def _between(position: Tensor, size: int) -> list[_Nearest]:
    """The pixels before and behind a position on an axis of that size, in pixels."""
    before = position.detach().floor()
    fraction = position - before
    nearest = []
    for place, share in ((before, 1 - fraction), (before + 1, fraction)):
        inside = (place >= 0) & (place < size)
        nearest.append(_Nearest(place.clamp(0, size - 1).long(), share * inside))
    return nearest


def _positions(
    offset: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, Tensor, Tensor]:
    """Where a kernel takes its values if nothing is moved.

    Returns:
        Number of the kernel's positions, and rows and columns in the image, broadcastable to ``(K,
        H', W')``.
    """
    starts = []
    for axis, size in enumerate(_pair(kernel_size)):
        count = offset.shape[2 + axis]
        outputs = torch.arange(count, device=offset.device) * _pair(stride)[axis]
        inside = torch.arange(size, device=offset.device) * _pair(dilation)[axis]
        starts.append(inside.view(-1, 1) + outputs - _pair(padding)[axis])  # (k, count)
    of_rows, of_columns = starts
    taps = len(of_rows) * len(of_columns)
    y = of_rows.repeat_interleave(len(of_columns), 0).view(taps, -1, 1)
    x = of_columns.repeat(len(of_rows), 1).view(taps, 1, -1)
    return taps, y.to(offset.dtype), x.to(offset.dtype)


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


class DeformableProduct(nn.Module):
    """A deformable convolution whose weight is that of a 1x1 convolution of sampled columns.

    Args:
        weight: ``(C_out, C_in / groups, k, k)``.
        bias: ``(C_out,)`` or None.
        stride: Distance of the output's positions, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the weight's positions, in pixels.
        groups: Groups of channels of the weight.

    Attributes:
        product: The 1x1 convolution, which can be quantized.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> None:
        super().__init__()
        self.kernel_size = tuple(weight.shape[2:])
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        columns = weight[0].numel() * groups
        has_bias = bias is not None
        self.product = nn.Conv2d(
            columns, len(weight), 1, groups=groups, bias=has_bias, device=weight.device
        )
        rows = weight.detach().reshape(len(weight), -1, 1, 1)
        self.product.weight = nn.Parameter(rows.clone())
        if bias is not None:
            self.product.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H', W')``; see `sample_columns`."""
        columns = sample_columns(
            x, offset, mask, self.kernel_size, self.stride, self.padding, self.dilation
        )
        output: Tensor = self.product(columns)
        return output
