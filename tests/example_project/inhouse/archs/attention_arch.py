"""``PooledAttentionSR``: what is awkward to quantize in one small network.

It computes in 0..255, its attention works at low resolution and is interpolated back, and it
shares convolutions: one is called twice in a forward pass, another stands in two branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

PIXEL_RANGE = 255.0


class PooledAttention(nn.Module):
    """Spatial attention found at a quarter of the resolution.

    Args:
        num_feat: Channels of the features.
        num_hidden: Channels at low resolution.
    """

    def __init__(self, num_feat: int, num_hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(num_feat, num_hidden, 1)
        self.reduce = nn.Conv2d(num_hidden, num_hidden, 3, stride=2, padding=1)
        self.refine = nn.Conv2d(num_hidden, num_hidden, 3, padding=1)
        self.expand = nn.Conv2d(num_hidden, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` -> the same shape, each value times a factor in 0..1."""
        low = F.avg_pool2d(self.reduce(self.squeeze(x)), 2, ceil_mode=True)
        low = self.refine(F.relu(self.refine(low)))  # the same weights twice
        mask = F.interpolate(low, x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(mask))


class Branch(nn.Module):
    """A convolution of its own, then one that it shares with another branch.

    Args:
        num_feat: Channels.
        dilation: Spacing of the own convolution's taps.
        shared: The shared convolution, ``num_feat`` to ``num_feat`` channels.
    """

    def __init__(self, num_feat: int, dilation: int, shared: nn.Conv2d) -> None:
        super().__init__()
        self.own = nn.Conv2d(num_feat, num_feat, 3, padding=dilation, dilation=dilation)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` -> the same shape."""
        return self.shared(F.relu(self.own(x)))


class AttentionBlock(nn.Module):
    """A residual block of a near and a far branch, which share weights, and attention.

    Args:
        num_feat: Channels.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        shared = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.near = Branch(num_feat, 1, shared)
        self.far = Branch(num_feat, 2, shared)
        self.attention = PooledAttention(num_feat, max(num_feat // 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` -> the same shape."""
        return x + self.attention(self.near(x) + self.far(x))


@ARCH_REGISTRY.register()
class PooledAttentionSR(nn.Module):
    """Blocks with pooled attention, on top of the bilinearly enlarged image.

    Args:
        num_in_ch: Channels of the image and of the output.
        num_feat: Channels of the features.
        num_block: Number of blocks.
        upscale: Factor of height and width.
    """

    def __init__(
        self, num_in_ch: int = 3, num_feat: int = 32, num_block: int = 4, upscale: int = 2
    ) -> None:
        super().__init__()
        self.upscale = upscale
        self.first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.blocks = nn.Sequential(*[AttentionBlock(num_feat) for _ in range(num_block)])
        self.after_blocks = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.last = nn.Conv2d(num_feat, num_in_ch * upscale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve.

        Args:
            x: Images ``(B, num_in_ch, H, W)`` in 0..1.

        Returns:
            ``(B, num_in_ch, upscale * H, upscale * W)`` in about 0..1.
        """
        x = x * PIXEL_RANGE
        features = self.first(x)
        features = features + self.after_blocks(self.blocks(features))
        detail = F.pixel_shuffle(self.last(features), self.upscale)
        enlarged = F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return (enlarged + detail) / PIXEL_RANGE
