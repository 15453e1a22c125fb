"""SRResNet: shapes, names, scale of pixels, and the published code's outputs."""

import numpy as np
import pytest
import torch
from architectures import assert_255_inside, assert_published_output
from basicsr.archs import build_network
from torch import nn

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork, build_base
from adabm_basicsr.errors import AdaBMError

pytestmark = pytest.mark.numeric

TINY = {"type": "SRResNet", "num_feat": 4, "num_block": 2, "upscale": 4}
QUANTIZER_LEAVES = ("lower_a", "upper_a", "upper_w", "measure_layer", "measure_l", "measure_u")


def build(**options):
    torch.manual_seed(0)
    return build_network({**TINY, **options}).eval()


@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize(
    "sizes", [{"num_block": 1, "num_feat": 4}, {"num_block": 3, "num_feat": 7}]
)
@pytest.mark.parametrize("channels", [(3, 3), (1, 2)])
def test_shapes(upscale, sizes, channels):
    net = build(upscale=upscale, num_in_ch=channels[0], num_out_ch=channels[1], **sizes)
    with torch.no_grad():
        output = net(torch.rand(2, channels[0], 9, 7))
    assert output.shape == (2, channels[1], 9 * upscale, 7 * upscale)
    assert len(net.body) == sizes["num_block"] + 2


def test_layers():
    net = build()
    convolutions = {
        name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)
    }
    assert all(layer.bias is None for layer in convolutions.values())
    assert [name for name, layer in convolutions.items() if layer.kernel_size == (9, 9)] == [
        "head.0",
        "tail.1",
    ]
    assert all(layer.num_parameters == 1 for layer in net.modules() if isinstance(layer, nn.PReLU))
    assert [name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)] == [
        *("body.0.bn1", "body.0.bn2", "body.1.bn1", "body.1.bn2", "body.3"),
    ]


def test_pixels_are_0_to_1_outside_and_0_to_255_inside():
    net = build()
    assert_255_inside(net, net.head, net.tail)


def test_wrong_upscale():
    with pytest.raises(
        AdaBMError, match=r"SRResNet cannot be built .*: upscale 8 is not supported; valid: 2, 3, 4"
    ):
        build_base({"type": "SRResNet", "upscale": 8})


def test_quantized_roles():
    layers = AdaBMNetwork(network=TINY, fully_quantized=True).plan.layers
    body = ["body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2"]
    assert [name for name, plan in layers.items() if plan.adaptive] == [*body, "body.2"]
    assert [name for name, plan in layers.items() if plan.fixed] == [
        "head.0",
        "tail.0.0",
        "tail.0.3",
        "tail.1",
    ]
    assert list(AdaBMNetwork(network=TINY).plan.layers) == body


@pytest.mark.shared
@pytest.mark.parametrize("tag", ["nonfq", "fq"])
def test_published_full_precision_output(shared, tag):
    outputs = np.load(shared / "reference" / "published_tiny_outputs.npz")
    state = torch.load(
        shared / "reference" / f"published_tiny_srresnet_{tag}.pt", weights_only=True
    )
    net = build(num_feat=8)
    net.load_state_dict(
        {key: value for key, value in state.items() if key.split(".")[-1] not in QUANTIZER_LEAVES}
    )
    assert_published_output(net, outputs, "srresnet", tag)
