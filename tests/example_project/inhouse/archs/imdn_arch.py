"""``IMDN``: information multi-distillation network (Hui et al., ACM MM 2019).

Parameters have the names that the published weights have.
"""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.05


def conv(num_in_ch: int, num_out_ch: int, size: int) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(num_in_ch, num_out_ch, size, padding=size // 2)


class ContrastChannelAttention(nn.Module):
    """Weighs channels by their contrast, the standard deviation plus the mean over the image.

    Args:
        num_feat: Channels.
        reduction: Factor by which the hidden layer has fewer.
    """

    def __init__(self, num_feat: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(num_feat // reduction, 1)
        self.conv_du = nn.Sequential(
            conv(num_feat, hidden, 1),
            nn.ReLU(inplace=True),
            conv(hidden, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``, each channel times a factor in 0..1."""
        mean = x.mean((2, 3), keepdim=True)
        deviation = (x - mean).square().mean((2, 3), keepdim=True).sqrt()
        return x * self.conv_du(deviation + mean)


class IMDModule(nn.Module):
    """Sets a quarter of the channels aside and refines the rest, three times; fuses all of them.

    Args:
        num_feat: Channels, a multiple of 4.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        kept = num_feat // 4
        self.split = (kept, num_feat - kept)
        self.c1 = conv(num_feat, num_feat, 3)
        self.c2 = conv(num_feat - kept, num_feat, 3)
        self.c3 = conv(num_feat - kept, num_feat, 3)
        self.c4 = conv(num_feat - kept, kept, 3)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
        self.cca = ContrastChannelAttention(num_feat)
        self.c5 = conv(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` -> the same shape."""
        kept, rest = [], x
        for layer in (self.c1, self.c2, self.c3):
            part, rest = self.act(layer(rest)).split(self.split, dim=1)
            kept.append(part)
        kept.append(self.c4(rest))
        return self.c5(self.cca(torch.cat(kept, dim=1))) + x


@ARCH_REGISTRY.register()
class IMDN(nn.Module):
    """Information multi-distillation network.

    Args:
        num_in_ch: Channels of the image.
        num_out_ch: Channels of the output.
        num_feat: Channels between the modules, a multiple of 4.
        num_modules: Number of distillation modules.
        upscale: Factor of height and width.

    Raises:
        ValueError: ``num_feat`` is not a multiple of 4.
    """

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int = 64,
        num_modules: int = 6,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        if num_feat % 4:
            raise ValueError(f"num_feat must be a multiple of 4, not {num_feat}")
        self.module_names = [f"IMDB{index}" for index in range(1, num_modules + 1)]
        self.fea_conv = conv(num_in_ch, num_feat, 3)
        for name in self.module_names:
            self.add_module(name, IMDModule(num_feat))
        self.c = nn.Sequential(
            conv(num_feat * num_modules, num_feat, 1), nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
        )
        self.LR_conv = conv(num_feat, num_feat, 3)
        self.upsampler = nn.Sequential(
            conv(num_feat, num_out_ch * upscale**2, 3), nn.PixelShuffle(upscale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve.

        Args:
            x: Images ``(B, num_in_ch, H, W)`` in 0..1.

        Returns:
            ``(B, num_out_ch, upscale * H, upscale * W)``.
        """
        first = features = self.fea_conv(x)
        outputs = []
        for name in self.module_names:
            features = getattr(self, name)(features)
            outputs.append(features)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, dim=1))) + first)
