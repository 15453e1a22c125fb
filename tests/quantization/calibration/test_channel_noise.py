"""Estimates of what rounding does to the image, against what it does."""

import adabm_basicsr  # noqa: F401  (makes basicsr importable)

import basicsr.archs  # noqa: F401  isort: skip
import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from random_networks import images
from small_networks import conv
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration import calibrate as steps
from adabm_basicsr.quantization.calibration.channel_noise import Noise, observe_channels
from adabm_basicsr.quantization.structure.channels import find_channels

IMAGES = images(4, (24, 24))
SR = {"num_in_ch": 3, "num_out_ch": 3}
VARIANCE = 1 / 12  # of a rounding error, in the square of its step


class WithoutGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = conv(3, 8), conv(8, 8), conv(8, 3)

    def forward(self, image):
        with torch.no_grad():
            return self.last(F.relu(self.second(F.relu(self.first(image)))))


NETWORKS = {
    "EDSR": lambda: EDSR(**SR, num_feat=8, num_block=2, upscale=4),
    "SRVGGNetCompact": lambda: SRVGGNetCompact(**SR, num_feat=8, num_conv=3),
    "WithoutGradients": WithoutGradients,
}


def quantized(kind, engine):
    torch.manual_seed(0)
    network = NETWORKS[kind]().eval()
    options = {"w_bits": 8, "a_bits": 8, "recipe": "static", "fully_quantized": True}
    return network, quantize(network, IMAGES[:1], engine=engine, **options)


def noise_of(net):
    with torch.no_grad(), net.full_precision():
        channels = find_channels(net, IMAGES[:1])
        ids = torch.cat([torch.cat(list(of_layer)) for of_layer in channels.values()])
        noise = Noise(net, channels, observe_channels(net, IMAGES))
        return noise(torch.ones(int(ids.max()) + 2))


@pytest.mark.parametrize("engine", ["onnxruntime", "ncnn"])
@pytest.mark.parametrize("kind", ["EDSR", "SRVGGNetCompact"])
def test_the_estimate_is_what_rounding_does(kind, engine, monkeypatch):
    network, net = quantized(kind, engine)
    monkeypatch.setattr(steps, "fold_channel_scales", lambda net, images: None)
    estimate = VARIANCE * float(noise_of(net))
    calibrate(net, [IMAGES])
    with torch.no_grad():
        error = float((net(IMAGES) - network(IMAGES)).square().sum())
    # Sums and the image that is made are rounded too.
    assert estimate / 2 < error < 3 * estimate


def test_layers_count_alike_without_gradients(caplog):
    _, net = quantized("WithoutGradients", "onnxruntime")
    assert float(noise_of(net)) > 0
    assert "the channels of all layers count alike where their scales are chosen" in caplog.text
