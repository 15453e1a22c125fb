"""Which layers are quantized, at how many bits, and what they are replaced by."""

import pytest
import torch
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, finetune, quantize

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def calibrated(network, **options):
    return calibrate(quantize(network, IMAGES[:1], **options), [IMAGES])


def test_32_bits_leave_layers_alone(tiny):
    net = quantize(tiny, IMAGES[:1], layers={"body.0.*": {"w_bits": 32, "a_bits": 32}})
    assert net.plan.skipped["body.0.conv1"] == "32 bits"
    assert list(net.layers()) == [
        "body.1.conv1",
        "body.1.conv2",
    ]
    with pytest.raises(AdaBMError, match="no layer is left to quantize"):
        quantize(tiny, IMAGES[:1], w_bits=32, a_bits=32)
    ends = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)]
    network = nn.Sequential(*ends, nn.PixelShuffle(2))
    with pytest.raises(AdaBMError, match="fully_quantized: true takes head and tail too"):
        quantize(network, IMAGES[:1])
    weights_only = calibrated(tiny, w_bits=8, a_bits=32, recipe="static")
    with torch.no_grad():
        torch.testing.assert_close(weights_only(IMAGES), tiny(IMAGES), atol=0.02, rtol=0)


def test_exclude_and_layer_bits(tiny):
    net = calibrated(
        tiny,
        recipe="paper",
        exclude=("body.0",),
        layers={"body.1.conv2": {"w_bits": 8, "a_bits": 6}},
        fully_quantized=True,
    )
    assert "body.0.conv1" not in net.layers()
    assert net.plan.skipped["body.0.conv2"] == "excluded"
    layer = net.layers()["body.1.conv2"]
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (8, 6)
    assert net.layers()["body.1.conv1"].weight_quantizer.bits == 4
    assert net.layers()["conv_first"].input_quantizer.fixed


def test_bits_of_single_layers_are_not_allocated_anew(tiny):
    net = calibrated(
        tiny,
        recipe="best",
        layers={"body.1.conv2": {"w_bits": 8, "a_bits": 6}, "body.0.conv1": {"w_bits": 4}},
    )
    layers = net.layers()
    assert layers["body.1.conv2"].weight_quantizer.bits == 8
    assert layers["body.0.conv1"].weight_quantizer.bits == 4
    assert layers["body.1.conv2"].input_quantizer.bits_used().item() == 6


def test_shared_layer_becomes_one_quantized_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(8, 8, 3, padding=1)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Twice(), Twice(), nn.Conv2d(8, 3, 3, padding=1)
    )
    net = calibrated(network)
    assert net.network[1].a is net.network[1].b
    finetune(net, [IMAGES] * 3, iterations_per_epoch=1)


def test_non_adaptive_layers_keep_their_base_bits_and_count(tiny):
    net = calibrated(tiny, non_adaptive=["body.0.conv1"])
    quantizer = net.layers()["body.0.conv1"].input_quantizer
    assert not quantizer.adaptive
    assert not quantizer.fixed
    bits = net(IMAGES[:1], details=True).bits
    used = [q.last_bits.item() for q in net.activation_quantizers().values()]
    assert len(used) == 4
    assert bits.item() == pytest.approx(sum(used) / 4)


@pytest.mark.parametrize("key", ["exclude", "non_adaptive"])
def test_patterns_that_match_nothing_name_near_misses(key, tiny):
    message = rf"{key}: pattern 'body.0.cnv1' matches no layer; did you mean 'body.0.conv1'"
    with pytest.raises(AdaBMError, match=message):
        quantize(tiny, IMAGES[:1], **{key: ["body.0.cnv1"]})
