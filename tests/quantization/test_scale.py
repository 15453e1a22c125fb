"""What is learned doesn't depend on the scale that a network computes in."""

import copy
from dataclasses import replace
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.recipes import RECIPES

# Of those that learn relative to scale; "best" does what "fast" does, for longer.
SCALE_FREE = ("static", "fast")
# A power of two changes the exponents of numbers alone: sums, products, roots and roundings come
# out as before, times that power, on every CPU. So what is learned is the same to the bit.
POWERS = (2.0**-7, 2.0**7)
# Another factor changes last digits, of weights and of what is kept in two bytes, such as weight
# ranges (by up to 0.4 %). That decides between choices that are as good: two ranges of a layer, two
# layers that a bit more would serve alike. Ranges are tried 6 % apart, so the error of a layer may
# change by 20 log10(1.06) = 0.5 dB.
FACTOR, POWER_IN_FACTOR = 100, 64
CHOICE = 0.5
NETWORKS = 3
ITERATIONS = 12


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
                for _ in range(2)
            ]
        )
        self.last = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        features = self.first(x)
        for block in self.blocks:
            features = features + block(features)
        return F.pixel_shuffle(self.last(features), 2) + F.interpolate(x, scale_factor=2)


def plain_networks(count):
    torch.manual_seed(0)
    return [Plain() for _ in range(count)]


def scaled(network, factor, inside):
    """The same function, its features ``factor`` times as large everywhere or inside blocks."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        if not inside:
            network.first.weight.mul_(factor)
            network.first.bias.mul_(factor)
            network.last.weight.div_(factor)
        for block in network.blocks:
            block[0].bias.mul_(factor)
            if inside:
                block[0].weight.mul_(factor)
                block[2].weight.div_(factor)
            else:
                block[2].bias.mul_(factor)
    return network


def smooth_images():
    coarse = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)


def learned(network, recipe):
    """A copy of ``network``, calibrated and fine-tuned."""
    images = smooth_images()
    network = copy.deepcopy(network)
    net = calibrate(
        quantize(network, images[:1], recipe=recipe, w_bits=4, a_bits=4, fully_quantized=True),
        [images],
    )
    if not net.config.finetuning.phases:
        return net
    tuner = Finetuner(net, FinetuneSettings(), iterations_per_epoch=2, total_iterations=ITERATIONS)
    for iteration in range(ITERATIONS):
        batch = images[4:] if iteration % 2 else images[:4]
        tuner.step(batch, iteration + 1)
    return net


def digits(net):
    """Every number of the network without its exponent."""
    return {key: torch.frexp(value.double()).mantissa for key, value in net.state_dict().items()}


@torch.no_grad()
def assert_learned_alike(first, second):
    expected, found = (net(smooth_images(), details=True) for net in (first, second))
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=0)
    torch.testing.assert_close(found.bits, expected.bits, rtol=0, atol=0)
    torch.testing.assert_close(digits(second), digits(first), rtol=0, atol=0)


def self_psnr(network, recipe):
    net, images = learned(network, recipe), smooth_images()
    with torch.no_grad():
        output = net(images)
        with net.full_precision():
            teacher = net(images)
    return -10 * torch.log10((output - teacher).square().mean()).item()


@pytest.mark.parametrize("inside", [False, True], ids=["everywhere", "inside blocks"])
@pytest.mark.parametrize("recipe", SCALE_FREE)
def test_powers_of_two_change_nothing_to_the_bit(recipe, inside):
    (network,) = plain_networks(1)
    plain = learned(network, recipe)
    for power in POWERS:
        found = learned(scaled(network, power, inside), recipe)
        assert_learned_alike(plain, found)
    rest = learned(scaled(network, FACTOR / POWER_IN_FACTOR, inside), recipe)
    found = learned(scaled(network, FACTOR, inside), recipe)
    assert_learned_alike(rest, found)


@pytest.mark.parametrize("recipe", SCALE_FREE)
def test_any_factor_changes_choices_that_are_as_good_alone(recipe):
    networks = plain_networks(NETWORKS)
    plain = mean(self_psnr(network, recipe) for network in networks)
    for inside in (False, True):
        found = mean(self_psnr(scaled(network, FACTOR, inside), recipe) for network in networks)
        assert found == pytest.approx(plain, abs=CHOICE), inside


@pytest.mark.parametrize("recipe", ["fast", "thorough"])
def test_others_learn_as_best_does_for_another_time(recipe):
    best = RECIPES["best"]
    as_long = replace(best.finetuning, iterations=RECIPES[recipe].finetuning.iterations)
    assert replace(best, finetuning=as_long) == RECIPES[recipe]


def test_scaled_network_is_the_same_function():
    (network,), image = plain_networks(1), torch.rand(1, 3, 16, 16)
    for factor in (*POWERS, FACTOR):
        for inside in (False, True):
            torch.testing.assert_close(
                scaled(network, factor, inside)(image), network(image), rtol=1e-3, atol=1e-4
            )
