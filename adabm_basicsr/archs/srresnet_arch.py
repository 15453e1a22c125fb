"""SRResNet with batch normalisation, as first published (CVPR 2017, arXiv 1609.04802).

BasicSR's MSRResNet has no batch normalisation.
"""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.archs.upsampling import shuffle_factors


def _conv(num_in_ch: int, num_out_ch: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(num_in_ch, num_out_ch, kernel_size, padding=kernel_size // 2, bias=False)


class ResidualBlockBN(nn.Module):
    """Two convolutions with batch normalisation, PReLU in between, added to the input.

    Args:
        num_feat: Channels of input and output.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = _conv(num_feat, num_feat, 3)
        self.bn1 = nn.BatchNorm2d(num_feat)
        self.act = nn.PReLU()
        self.conv2 = _conv(num_feat, num_feat, 3)
        self.bn2 = nn.BatchNorm2d(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_feat, H, W)`` to the same shape."""
        features = self.act(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(features)) + x


@ARCH_REGISTRY.register()
class SRResNet(nn.Module):
    """SRResNet with the parameter names of published checkpoints.

    It has batch normalisation, and its convolutions no biases.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels between the blocks.
        num_block: Residual blocks.
        upscale: 2, 3 or 4.
        img_range: Largest pixel value inside the network; outside it is 1.

    Raises:
        ValueError: ``upscale`` is not one of these.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        img_range: float = 255.0,
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.head = nn.Sequential(_conv(num_in_ch, num_feat, 9), nn.PReLU())
        blocks = [ResidualBlockBN(num_feat) for _ in range(num_block)]
        self.body = nn.Sequential(*blocks, _conv(num_feat, num_feat, 3), nn.BatchNorm2d(num_feat))
        upsampler: list[nn.Module] = []
        for factor in shuffle_factors(upscale):
            upsampler.append(_conv(num_feat, num_feat * factor**2, 3))
            upsampler.append(nn.PixelShuffle(factor))
            upsampler.append(nn.PReLU())
        self.tail = nn.Sequential(nn.Sequential(*upsampler), _conv(num_feat, num_out_ch, 9))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve an image.

        Args:
            x: ``(B, num_in_ch, H, W)`` in 0..1.

        Returns:
            ``(B, num_out_ch, upscale * H, upscale * W)`` in 0..1, not clipped.
        """
        shallow = self.head(x * self.img_range)
        return self.tail(self.body(shallow) + shallow) / self.img_range
