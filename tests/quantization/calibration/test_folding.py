"""Scales of channels go into the weights, and the network computes what it did."""

import adabm_basicsr  # noqa: F401  (makes basicsr importable)

import basicsr.archs  # noqa: F401  isort: skip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from hypothesis import HealthCheck, given, settings
from random_networks import RandomNetwork, images, networks
from small_networks import Interpolating, conv
from torch import nn

from adabm_basicsr import AdaBMError, calibrate, quantize
from adabm_basicsr.quantization.calibration import folding
from adabm_basicsr.quantization.calibration.channel_noise import Noise, observe_channels
from adabm_basicsr.quantization.calibration.folding import fold_channel_scales
from adabm_basicsr.quantization.structure.channels import find_channels

IMAGES = images(4, (24, 24))
SR = {"num_in_ch": 3, "num_out_ch": 3}
NETWORKS = {
    "EDSR": lambda: EDSR(**SR, num_feat=8, num_block=2, upscale=4),
    "RRDBNet": lambda: RRDBNet(**SR, scale=4, num_feat=8, num_block=1, num_grow_ch=4),
    "SRVGGNetCompact": lambda: SRVGGNetCompact(**SR, num_feat=8, num_conv=3),
    "RCAN": lambda: RCAN(**SR, num_feat=8, num_group=2, num_block=1, squeeze_factor=4, upscale=2),
    "UNet": lambda: UNet(),
    "Distilling": lambda: Distilling(),
    "Interpolating": lambda: Interpolating(blocks=2),
}


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.deep = conv(3, 8), conv(8, 16)
        self.up, self.join = nn.ConvTranspose2d(16, 8, 2, 2, groups=2), conv(16, 8)
        self.last = conv(8, 3)

    def forward(self, image):
        x = F.relu(self.first(image), inplace=True)
        deep = F.leaky_relu_(self.deep(F.max_pool2d(x, 2)), 0.2)
        return self.last(F.relu(self.join(torch.cat([x, self.up(deep)], 1)))) + image


class Distilling(nn.Module):
    """Sets channels aside and joins them, as IMDN does, with its contrast attention."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = conv(3, 8), conv(8, 8), conv(6, 6)
        self.squeeze, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.fuse, self.last = nn.Conv2d(8, 8, 1), conv(8, 12)
        self.act = nn.LeakyReLU(0.05, inplace=True)

    def forward(self, image):
        first = self.first(image)
        kept, rest = self.act(self.a(first)).split([2, 6], 1)
        x = torch.cat([kept, self.b(rest)], 1)
        mean = x.mean((2, 3), keepdim=True)
        deviation = (x - mean).square().mean((2, 3), keepdim=True).sqrt()
        x = x * torch.sigmoid(self.expand(F.relu(self.squeeze(deviation + mean))))
        return F.pixel_shuffle(self.last(self.fuse(x) + first), 2)


def uneven(network):
    """The network with loud and quiet channels."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels > 3:
            loudness = 2 ** torch.randint(-3, 4, (module.out_channels,), generator=generator)
            module.weight.data.mul_(loudness.view(-1, 1, 1, 1))
    return network.eval()


def quantized(network, engine="onnxruntime", **options):
    options = {"w_bits": 8, "a_bits": 8, "recipe": "fast", "fully_quantized": True, **options}
    return quantize(network, IMAGES[:1], engine=engine, **options)


@torch.no_grad()
def in_full_precision(net, pixels):
    with net.full_precision():
        return net(pixels)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("engine", ["onnxruntime", "ncnn"])
def test_the_network_computes_what_it_did(kind, engine):
    torch.manual_seed(0)
    network = uneven(NETWORKS[kind]())
    net = quantized(network, engine)
    before = [parameter.clone() for parameter in net.base_parameters()]
    fold_channel_scales(net, IMAGES)
    unseen = images(1, (32, 40), seed=1)
    with torch.no_grad():
        expected = network(unseen)
    torch.testing.assert_close(in_full_precision(net, unseen), expected, rtol=1e-4, atol=1e-4)
    pairs = zip(before, net.base_parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


@settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck])
@given(networks())
def test_random_networks_compute_what_they_did(described):
    described = dict(described)
    described.pop("type")
    network = uneven(RandomNetwork(**described))
    try:
        net = quantized(network)
    except AdaBMError:
        return
    before = in_full_precision(net, IMAGES)
    tolerance, folding.TOLERANCE = folding.TOLERANCE, float("inf")
    try:
        fold_channel_scales(net, IMAGES)
    finally:
        folding.TOLERANCE = tolerance
    torch.testing.assert_close(in_full_precision(net, IMAGES), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def noise_of(net):
    """What the rounding of all channels does to the image, as folding estimates it."""
    with net.full_precision():
        channels, count = folding._numbered(find_channels(net, IMAGES[:1]), IMAGES.device)
        noise = Noise(net, channels, observe_channels(net, IMAGES))
        return float(noise(torch.ones(count + 1)))


@pytest.mark.parametrize("kind", ["EDSR", "SRVGGNetCompact", "Distilling"])
def test_rounding_changes_the_image_less(kind):
    torch.manual_seed(0)
    net = quantized(uneven(NETWORKS[kind]()))
    before = noise_of(net)
    fold_channel_scales(net, IMAGES)
    after = noise_of(net)
    assert after < 0.6 * before
    # A second time there is little left to gain.
    fold_channel_scales(net, IMAGES)
    assert 0.8 * after < noise_of(net) <= 1.01 * after


@pytest.mark.parametrize("engine", ["onnxruntime", "ncnn", "portable"])
def test_uneven_channels_are_quantized_better(engine, monkeypatch):
    def error():
        torch.manual_seed(0)
        network = uneven(NETWORKS["SRVGGNetCompact"]())
        net = calibrate(quantized(network, engine, w_bits=7), [IMAGES])
        with torch.no_grad():
            return (net(IMAGES) - network(IMAGES)).square().mean()

    folded = error()
    monkeypatch.setattr(folding, "_scale_weights", lambda channels, scales: None)
    assert folded < 0.8 * error()


class ByNumpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = conv(3, 8), conv(8, 8), conv(8, 3)

    def forward(self, image):
        x = self.first(image)
        np.tanh(x.numpy(), out=x.numpy())
        return self.last(F.relu(self.second(x)))


def test_what_could_not_be_followed_is_undone():
    torch.manual_seed(0)
    network = uneven(ByNumpy()).requires_grad_(False)
    net = quantized(network)
    fold_channel_scales(net, IMAGES)
    for name, parameter in network.named_parameters():
        assert torch.equal(net.network.get_parameter(name), parameter)


def test_engines_of_channel_scales_keep_their_weights():
    torch.manual_seed(0)
    network = uneven(NETWORKS["EDSR"]())
    net = calibrate(quantized(network, "openvino"), [IMAGES])
    for name, parameter in network.named_parameters():
        assert torch.equal(net.network.get_parameter(name), parameter)
