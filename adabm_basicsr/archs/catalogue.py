"""What has to be known of single architectures of BasicSR.

Everything else is found by running a network.
"""

from __future__ import annotations

from basicsr.archs.ecbsr_arch import ECB
from torch import Tensor, nn

from adabm_basicsr.quantization.structure.preparation import register_preparation

_VIDEO = "it is a video network, which takes sequences of frames"
_FACE = "it is a face network, which generates from more than the image"
_DISCRIMINATOR = "it is a discriminator, which judges images"

# Architectures of BasicSR that don't map one image to one image, and why they can't be quantized.
REFUSED = {
    "BasicVSR": _VIDEO,
    "IconVSR": _VIDEO,
    "BasicVSRPlusPlus": _VIDEO,
    "EDVR": _VIDEO,
    "DUF": _VIDEO,
    "TOFlow": _VIDEO,
    "SpyNet": "it estimates optical flow between two frames",
    "DFDNet": _FACE,
    "HiFaceGAN": _FACE,
    "StyleGAN2Generator": _FACE,
    "StyleGAN2Discriminator": _DISCRIMINATOR,
    "HiFaceGANDiscriminator": _DISCRIMINATOR,
    "VGGStyleDiscriminator": _DISCRIMINATOR,
    "UNetDiscriminatorSN": _DISCRIMINATOR,
    "VGGFeatureExtractor": "it extracts features for a loss",
}


class FusedECB(nn.Module):
    """The one convolution, and the activation, that an `ECB` computes in evaluation mode.

    Args:
        block: The block whose five branches are added up.
    """

    def __init__(self, block: ECB) -> None:
        super().__init__()
        weight, bias = block.rep_params()
        self.conv = nn.Conv2d(
            block.in_channels, block.out_channels, 3, padding=1, device=weight.device
        )
        self.conv.weight = nn.Parameter(weight.detach())
        self.conv.bias = nn.Parameter(bias.detach())
        self.act = nn.Identity() if block.act_type == "linear" else block.act

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H, W)``."""
        return self.act(self.conv(x))


register_preparation(ECB)(FusedECB)
