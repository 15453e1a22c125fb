"""What has to be known of single architectures of BasicSR.

Everything else is found by running a network.
"""

from __future__ import annotations

import torch
from basicsr.archs.arch_util import DCNv2Pack
from basicsr.archs.basicvsrpp_arch import SecondOrderDeformableAlignment
from basicsr.archs.ecbsr_arch import ECB
from basicsr.archs.spynet_arch import SpyNet
from basicsr.archs.tof_arch import SPyNetTOF
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from adabm_basicsr.quantization.layers import DeformableProduct
from adabm_basicsr.quantization.structure.flow import register_flow_estimation
from adabm_basicsr.quantization.structure.preparation import register_preparation

_FACE = "it is a face network, which generates from more than the image"
_DISCRIMINATOR = "it is a discriminator, which judges images"

# Architectures of BasicSR that don't map one image to one image, and why they can't be quantized.
REFUSED = {
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


def _product_of(layer: DeformConv2d | DCNv2Pack) -> DeformableProduct:
    """The deformable convolution of a layer."""
    return DeformableProduct(
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        groups=layer.groups,
    )


class SampledAlignment(nn.Module):
    """What a `DCNv2Pack` computes: a deformable convolution at offsets from other features.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: DCNv2Pack) -> None:
        super().__init__()
        self.conv_offset = layer.conv_offset
        self.deformed = _product_of(layer)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` to ``(B, C_out, H, W)``, by features of that size."""
        first, second, mask = self.conv_offset(features).chunk(3, dim=1)
        offset = torch.cat([first, second], dim=1)
        return self.deformed(x, offset, mask.sigmoid())


class SampledFlowAlignment(nn.Module):
    """What a `SecondOrderDeformableAlignment` computes: offsets add to the flow from two frames.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: SecondOrderDeformableAlignment) -> None:
        super().__init__()
        self.conv_offset = layer.conv_offset
        self.max_residue_magnitude = layer.max_residue_magnitude
        self.deformed = _product_of(layer)

    def forward(self, x: Tensor, features: Tensor, flow_1: Tensor, flow_2: Tensor) -> Tensor:
        """Align features of two frames.

        Args:
            x: Those of both frames, ``(B, 2 * C, H, W)``.
            features: What offsets are computed from besides flows, ``(B, C_f, H, W)``.
            flow_1: Flow to the first frame, in pixels to the right and down, ``(B, 2, H, W)``.
            flow_2: Flow to the second.

        Returns:
            ``(B, C, H, W)``.
        """
        made = self.conv_offset(torch.cat([features, flow_1, flow_2], dim=1))
        residue_1, residue_2, mask = made.chunk(3, dim=1)
        offsets = []
        for residue, flow in ((residue_1, flow_1), (residue_2, flow_2)):
            offset = self.max_residue_magnitude * residue.tanh()
            # Offsets are down and to the right.
            moved = flow.flip(1).repeat(1, offset.shape[1] // 2, 1, 1)
            offsets.append(offset + moved)
        return self.deformed(x, torch.cat(offsets, dim=1), mask.sigmoid())


register_flow_estimation(SpyNet)
register_flow_estimation(SPyNetTOF)
register_preparation(DeformConv2d)(_product_of)
register_preparation(DCNv2Pack)(SampledAlignment)
register_preparation(SecondOrderDeformableAlignment)(SampledFlowAlignment)
