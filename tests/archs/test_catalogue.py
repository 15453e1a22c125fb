"""What is rewritten before quantization: ECBSR's hidden convolutions, and deformable ones."""

import pytest
import torch
from basicsr.archs.arch_util import DCNv2Pack
from basicsr.archs.basicvsrpp_arch import SecondOrderDeformableAlignment
from basicsr.archs.ecbsr_arch import ECB
from torch import nn
from torchvision.ops import DeformConv2d

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.archs.catalogue import FusedECB, SampledAlignment, SampledFlowAlignment


@pytest.mark.parametrize("act_type", ["prelu", "relu", "rrelu", "softplus", "linear"])
@pytest.mark.parametrize(
    ("channels", "with_idt"), [((3, 8), False), ((8, 8), True), ((8, 8), False)]
)
def test_fused_block_computes_the_same(act_type, channels, with_idt):
    torch.manual_seed(0)
    block = ECB(*channels, depth_multiplier=2.0, act_type=act_type, with_idt=with_idt).eval()
    x = torch.randn(2, channels[0], 12, 13)
    with torch.no_grad():
        torch.testing.assert_close(FusedECB(block).eval()(x), block(x), rtol=0, atol=0)
        if act_type != "rrelu":  # random in training
            torch.testing.assert_close(block.train()(x), FusedECB(block)(x), rtol=1e-3, atol=1e-4)


def filled(layer):
    """With weights where fresh ones are zero, so that offsets aren't."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer.eval()


def test_deformable_alignment_computes_the_same():
    layer = filled(DCNv2Pack(8, 6, 3, padding=1, deformable_groups=4))
    x, features = torch.randn(2, 2, 8, 9, 10).unbind(1)
    with torch.no_grad():
        torch.testing.assert_close(SampledAlignment(layer)(x, features), layer(x, features))


def test_alignment_by_flows_computes_the_same():
    layer = filled(SecondOrderDeformableAlignment(16, 8, 3, padding=1, deformable_groups=16))
    x, features, flows = (
        torch.randn(2, 16, 9, 10),
        torch.randn(2, 24, 9, 10),
        torch.randn(2, 4, 9, 10),
    )
    taken = (x, features, *flows.chunk(2, dim=1))
    with torch.no_grad():
        torch.testing.assert_close(SampledFlowAlignment(layer)(*taken), layer(*taken))


class Deformed(nn.Module):
    """An image network with a deformable convolution of torchvision's."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.deform = DeformConv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, image):
        features = self.first(image)
        return self.last(self.deform(features, self.offsets(features)))


def test_columns_of_a_deformable_convolution_are_quantized():
    network = filled(Deformed())
    images = torch.rand(2, 3, 16, 16)
    net = calibrate(
        quantize(network, images[:1], w_bits=8, a_bits=8, fully_quantized=True), [images]
    )
    assert list(net.layers()) == ["first", "offsets", "deform.product", "last"]
    with torch.no_grad():
        torch.testing.assert_close(net(images), network(images), rtol=0, atol=0.02)
