"""RDN: residual dense network (CVPR 2018, arXiv 1802.08797)."""

from __future__ import annotations

from typing import ClassVar

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.archs.upsampling import shuffle_factors


class DenseConv(nn.Module):
    """Convolution and ReLU whose result is appended to their input.

    Args:
        num_in_ch: Channels of the input.
        num_grow_ch: Channels that are appended.
    """

    def __init__(self, num_in_ch: int, num_grow_ch: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(num_in_ch, num_grow_ch, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_in_ch, H, W)`` to ``(B, num_in_ch + num_grow_ch, H, W)``."""
        return torch.cat((x, self.conv(x)), 1)


class ResidualDenseBlock(nn.Module):
    """Densely connected convolutions, fused by a 1x1 convolution and added to the input.

    Args:
        num_feat: Channels of input and output.
        num_conv: Convolutions before the fusion.
        num_grow_ch: Channels that each of them appends.
    """

    def __init__(self, num_feat: int, num_conv: int, num_grow_ch: int) -> None:
        super().__init__()
        convs = []
        channels = num_feat
        for _ in range(num_conv):
            convs.append(DenseConv(channels, num_grow_ch))
            channels += num_grow_ch
        self.convs = nn.Sequential(*convs)
        self.LFF = nn.Conv2d(channels, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` to the same shape."""
        return self.LFF(self.convs(x)) + x


@ARCH_REGISTRY.register()
class RDN(nn.Module):
    """Residual dense network with the parameter names of published checkpoints.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels between the blocks (G0).
        num_block: Residual dense blocks (D).
        num_conv: Convolutions in each of them, without the fusion (C).
        num_grow_ch: Channels that each convolution of a block appends (G), also those of the
            upsampler.
        upscale: 2, 3 or 4.
        img_range: Largest pixel value inside the network; outside it is 1.

    Raises:
        ValueError: ``upscale`` is not one of these.
    """

    # Roles that the published code gives to layers and that no run of the network shows: the local
    # fusions stay at the base bits, and the global fusion is quantized along with the blocks.
    # Options of the same name override them.
    quantization_defaults: ClassVar[dict[str, list[str]]] = {
        "non_adaptive": ["RDBs.*.LFF"],
        "body": ["GFF.*"],
    }

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        num_conv: int = 8,
        num_grow_ch: int = 64,
        upscale: int = 4,
        img_range: float = 255.0,
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.SFENet1 = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.SFENet2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.RDBs = nn.ModuleList()
        for _ in range(num_block):
            self.RDBs.append(ResidualDenseBlock(num_feat, num_conv, num_grow_ch))
        self.GFF = nn.Sequential(
            nn.Conv2d(num_block * num_feat, num_feat, 1),
            nn.Conv2d(num_feat, num_feat, 3, padding=1),
        )
        self.UPNet = _upsampler(num_feat, num_grow_ch, num_out_ch, upscale)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve an image.

        Args:
            x: ``(B, num_in_ch, H, W)`` in 0..1.

        Returns:
            ``(B, num_out_ch, upscale * H, upscale * W)`` in 0..1, not clipped.
        """
        shallow = self.SFENet1(x * self.img_range)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        fused = self.GFF(torch.cat(outputs, 1))
        return self.UPNet(fused + shallow) / self.img_range


def _upsampler(num_feat: int, num_grow_ch: int, num_out_ch: int, upscale: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = num_feat
    for factor in shuffle_factors(upscale):
        layers.append(nn.Conv2d(channels, num_grow_ch * factor**2, 3, padding=1))
        layers.append(nn.PixelShuffle(factor))
        channels = num_grow_ch
    layers.append(nn.Conv2d(channels, num_out_ch, 3, padding=1))
    return nn.Sequential(*layers)
