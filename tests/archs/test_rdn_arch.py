"""RDN: shapes, names, scale of pixels, and the published code's outputs."""

import numpy as np
import pytest
import torch
from architectures import assert_255_inside, assert_published_output
from basicsr.archs import build_network

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork, build_base
from adabm_basicsr.errors import AdaBMError

pytestmark = pytest.mark.numeric

TINY = {"type": "RDN", "num_feat": 4, "num_block": 2, "num_conv": 3, "num_grow_ch": 6, "upscale": 2}


def build(**options):
    torch.manual_seed(0)
    return build_network({**TINY, **options}).eval()


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(
    "sizes", [{"num_block": 1, "num_conv": 1}, {"num_block": 3, "num_grow_ch": 5, "num_feat": 7}]
)
@pytest.mark.parametrize("channels", [(3, 3), (1, 2)])
def test_shapes(upscale, sizes, channels):
    net = build(upscale=upscale, num_in_ch=channels[0], num_out_ch=channels[1], **sizes)
    with torch.no_grad():
        output = net(torch.rand(2, channels[0], 9, 7))
    assert output.shape == (2, channels[1], 9 * upscale, 7 * upscale)
    assert len(net.RDBs) == sizes["num_block"]


def test_defaults_are_those_of_the_published_networks():
    with torch.device("meta"):
        shapes = {
            key: tuple(value.shape)
            for key, value in build_network({"type": "RDN"}).state_dict().items()
        }
    assert shapes["RDBs.15.convs.7.conv.0.weight"] == (64, 512, 3, 3)
    assert shapes["RDBs.15.LFF.weight"] == (64, 576, 1, 1)
    assert shapes["GFF.0.weight"] == (64, 1024, 1, 1)
    assert shapes["GFF.1.weight"] == (64, 64, 3, 3)
    assert [shapes[f"UPNet.{index}.weight"][:2] for index in (0, 2, 4)] == [
        (256, 64),
        (256, 64),
        (3, 64),
    ]


def test_upsampler_works_on_the_channels_that_blocks_append():
    shapes = {
        key: tuple(value.shape[:2])
        for key, value in build(upscale=4).UPNet.state_dict().items()
        if "w" in key
    }
    assert shapes == {"0.weight": (24, 4), "2.weight": (24, 6), "4.weight": (3, 6)}


def test_pixels_are_0_to_1_outside_and_0_to_255_inside():
    net = build()
    assert_255_inside(net, net.SFENet1, net.UPNet)


def test_dense_and_residual_connections():
    block = build().RDBs[0]
    x = torch.rand(1, 4, 6, 6)
    with torch.no_grad():
        dense = block.convs(x)
        assert dense.shape[1] == 4 + 3 * 6
        assert torch.equal(dense[:, :4], x)
        assert (dense[:, 4:] >= 0).all()
        block.LFF.weight.zero_()
        block.LFF.bias.zero_()
        assert torch.equal(block(x), x)


def test_wrong_upscale():
    with pytest.raises(
        AdaBMError, match=r"RDN cannot be built from .*: upscale 5 is not supported; valid: 2, 3, 4"
    ):
        build_base({"type": "RDN", "upscale": 5})


def test_quantized_roles():
    net = AdaBMNetwork(network=TINY, fully_quantized=True)
    layers = net.plan.layers
    adaptive = [name for name, plan in layers.items() if plan.adaptive]
    assert adaptive == [f"RDBs.{i}.convs.{j}.conv.0" for i in range(2) for j in range(3)] + [
        "GFF.0",
        "GFF.1",
    ]
    assert [name for name, plan in layers.items() if plan.fixed] == [
        "SFENet1",
        "SFENet2",
        "UPNet.0",
        "UPNet.2",
    ]
    assert set(AdaBMNetwork(network=TINY).plan.layers) == {*adaptive, "RDBs.0.LFF", "RDBs.1.LFF"}


@pytest.mark.shared
@pytest.mark.parametrize("tag", ["nonfq", "fq"])
def test_published_full_precision_output(shared, tag):
    outputs = np.load(shared / "reference" / "published_tiny_outputs.npz")
    state = torch.load(shared / "reference" / f"published_tiny_rdn_{tag}.pt", weights_only=True)
    net = build(num_feat=8, num_conv=6, num_grow_ch=32)
    net.load_state_dict(
        {key: value for key, value in state.items() if key.endswith((".weight", ".bias"))}
    )
    assert_published_output(net, outputs, "rdn", tag)
