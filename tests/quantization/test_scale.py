"""What is learned doesn't depend on the scale that a network computes in."""

import copy
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adabm_basicsr import calibrate, finetune, quantize
from adabm_basicsr.quantization.recipes import RECIPES

FACTOR = 100
# Of a single tiny network at 4 bits, self-PSNR scatters by 0.1 dB with the last digit of anything
# (a weight's range is kept in two bytes), up or down; what depended on the scale would show in the
# mean.
NETWORKS = 5


class Plain(nn.Module):
    """A network of convolutions and ReLUs, which passes a factor through, in residual blocks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)
                )
                for _ in range(4)
            ]
        )
        self.last = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        features = self.first(x)
        for block in self.blocks:
            features = features + block(features)
        return F.pixel_shuffle(self.last(features), 2) + F.interpolate(x, scale_factor=2)


def scaled(network, inside):
    """The same function with features ``FACTOR`` times as large, everywhere or inside blocks."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        if not inside:
            network.first.weight.mul_(FACTOR)
            network.first.bias.mul_(FACTOR)
            network.last.weight.div_(FACTOR)
        for block in network.blocks:
            block[0].bias.mul_(FACTOR)
            if inside:
                block[0].weight.mul_(FACTOR)
                block[2].weight.div_(FACTOR)
            else:
                block[2].bias.mul_(FACTOR)
    return network


def self_psnr(network, recipe):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(8, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    net = calibrate(
        quantize(network, images[:1], recipe=recipe, w_bits=4, a_bits=4, fully_quantized=True),
        [images],
    )
    if net.config.finetuning.phases:
        finetune(net, [images[:4], images[4:]] * 6, iterations_per_epoch=2)
    with torch.no_grad():
        output = net(images)
        with net.full_precision():
            teacher = net(images)
    return -10 * torch.log10((output - teacher).square().mean()).item()


@pytest.mark.parametrize("inside", [False, True], ids=["everywhere", "inside blocks"])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "paper"])
def test_scale_of_features_changes_nothing(recipe, inside):
    torch.manual_seed(0)
    networks = [Plain() for _ in range(NETWORKS)]
    plain = mean(self_psnr(copy.deepcopy(network), recipe) for network in networks)
    assert mean(
        self_psnr(scaled(network, inside), recipe) for network in networks
    ) == pytest.approx(plain, abs=0.1)


def test_scaled_network_is_the_same_function():
    torch.manual_seed(0)
    network, image = Plain(), torch.rand(1, 3, 16, 16)
    for inside in (False, True):
        torch.testing.assert_close(
            scaled(network, inside)(image), network(image), rtol=1e-3, atol=1e-4
        )
