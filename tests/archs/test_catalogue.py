"""ECBSR's hidden convolutions."""

import pytest
import torch
from basicsr.archs.ecbsr_arch import ECB

from adabm_basicsr.archs.catalogue import FusedECB


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
