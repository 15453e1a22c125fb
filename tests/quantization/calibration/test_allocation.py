"""Bits go where they help most, within the mean that was asked for."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration.allocation import image_errors, share_out
from adabm_basicsr.quantization.calibration.visits import layers_with_weights

IMAGES = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Skips(nn.Module):
    """Layers of very different weight in the result.

    One of them feeds a skip connection that isn't quantized.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)])
        for _ in range(4):
            self.layers.append(nn.Conv2d(8, 8, 3, padding=1))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.layers[0](x)
        for factor, layer in zip((1.0, 0.1, 0.5, 0.01), self.layers[1:], strict=True):
            x = x + factor * torch.relu(layer(x))
        return self.last(x)


class Ungrateful(Skips):
    """One of its layers runs without gradients."""

    def forward(self, x):
        x = self.layers[0](x)
        with torch.no_grad():
            weight = torch.sigmoid(self.layers[1](x))
        for layer in self.layers[2:]:
            x = x + weight * torch.relu(layer(x))
        return self.last(x)


class Blind(Skips):
    """All of it does."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def calibrated(network):
    torch.manual_seed(0)
    options = {
        "fully_quantized": True,
        "body": ["layers.*", "last"],
        "ingredients": {"allocate": False},
    }
    net = quantize(network(), IMAGES[:1], recipe="best", w_bits=6, a_bits=6, **options)
    return calibrate(net, [IMAGES])


@pytest.fixture
def net():
    return calibrated(Skips)


def switched_on_alone(net, quantizer):
    """Squared error of the image with no other quantizer."""
    everything = [*net.activation_quantizers().values(), *net.weight_quantizers().values()]
    with torch.no_grad():
        with net.full_precision():
            full = net(IMAGES)
        for other in everything:
            other.enabled = other is quantizer
        error = (net(IMAGES) - full).square().sum()
    for other in everything:
        other.enabled = True
    return float(error)


@pytest.mark.parametrize("network", [Skips, Ungrateful, Blind])
def test_errors_are_those_that_each_quantizer_makes_alone(network):
    net = calibrated(network)
    found = image_errors(net, IMAGES)
    for quantizers in (net.activation_quantizers(), net.weight_quantizers()):
        ratios = {}
        for name, quantizer in quantizers.items():
            ratios[name] = sum(found[quantizer]) / switched_on_alone(net, quantizer)
        in_bits = torch.tensor(list(ratios.values())).log2() / 2
        assert (in_bits - in_bits.mean()).abs().max() < 0.75, ratios


def test_errors_leave_the_network_as_it_was(net):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first = image_errors(net, IMAGES)
    assert image_errors(net, IMAGES) == first
    assert not any(p.requires_grad for p in net.base_parameters())
    torch.testing.assert_close(dict(net.state_dict()), before)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 1000)), min_size=1, max_size=12),
    st.floats(2, 8),
    st.integers(2, 8),
)
def test_shared_out_bits_keep_the_mean_and_the_range(layers, mean, measured_at):
    errors = {i: error for i, (error, _) in enumerate(layers)}
    sizes = {i: size for i, (_, size) in enumerate(layers)}
    bits = share_out(errors, sizes, dict.fromkeys(errors, measured_at), mean)
    assert all(max(mean - 3, 2) <= b <= min(mean + 3, 8) for b in bits.values())
    used = sum(bits[i] * sizes[i] for i in bits)
    left = mean * sum(sizes.values()) - used
    assert left >= -1e-3
    # Nobody could take another.
    highest = min(math.ceil(mean) + 2, 8)
    for i in bits:
        assert bits[i] >= highest or sizes[i] > left - 1e-3


def test_shared_out_bits_are_the_best_of_all():
    errors = {i: 4.0**e for i, e in enumerate((0, 1, 2, 0))}
    bits = share_out(errors, dict.fromkeys(errors, 1), dict.fromkeys(errors, 4), 4)

    def total(choice):
        return sum(errors[i] * 4.0 ** (4 - b) for i, b in enumerate(choice))

    best = min((c for c in itertools.product(range(2, 7), repeat=4) if sum(c) <= 16), key=total)
    assert total(bits.values()) == total(best)


def test_bits_asked_for_are_the_mean_of_what_is_used(tiny):
    options = {"recipe": "best", "w_bits": 4, "a_bits": 5, "fully_quantized": True}
    # Half of the images get a bit less.
    options["ingredients"] = {"image_bits": [-1, 0], "image_percentiles": [0.5, 0.9]}
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    assert float(net.bits_for(IMAGES).mean()) <= 5
    more_complex_than_any = torch.rand(1, 3, 24, 24).round()
    assert float(net.bits_for(more_complex_than_any)) <= 5
    used = 0
    allowed = 0
    for _, layer, quantizer in layers_with_weights(net):
        if quantizer.allocated is not None:
            used += quantizer.bits * layer.weight.numel()
            allowed += 4 * layer.weight.numel()
    assert 0 < used <= allowed


def test_bits_that_complex_images_add_are_taken_off_the_layers(tiny):
    options = {"recipe": "best", "w_bits": 4, "a_bits": 5, "ingredients": {"image_bits": [0, 1]}}
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    bits = net.bits_for(IMAGES)
    assert bits.min() < bits.max()
    assert 4.5 < float(bits.mean()) <= 5
