"""Bits go where they help most, within the mean that was asked for."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration.allocation import image_errors, share_out

IMAGES = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class Skips(nn.Module):
    """Layers of very different weight in the result, one of which feeds a skip connection that isn't quantized."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)
        )
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.layers[0](x)
        for factor, layer in zip((1.0, 0.1, 0.5, 0.01), self.layers[1:]):
            x = x + factor * torch.relu(layer(x))
        return self.last(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    options = {
        "fully_quantized": True,
        "body": ["layers.*", "last"],
        "ingredients": {"allocate": False},
    }
    return calibrate(
        quantize(Skips(), IMAGES[:1], recipe="best", w_bits=6, a_bits=6, **options), [IMAGES]
    )


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


def test_errors_are_those_that_each_quantizer_makes_alone(net):
    found = image_errors(net, IMAGES)
    for quantizers in (net.activation_quantizers(), net.weight_quantizers()):
        ratios = [found[q] / switched_on_alone(net, q) for q in quantizers.values()]
        spread = torch.tensor(ratios).log2() / 2  # in bits
        assert (spread - spread.mean()).abs().max() < 0.75, dict(zip(quantizers, ratios))


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
    total = sum(sizes.values())
    assert sum(bits[i] * sizes[i] for i in bits) <= mean * total + 1e-3
    left = mean * total - sum(bits[i] * sizes[i] for i in bits)
    assert all(bits[i] >= min(-int(-mean // 1) + 2, 8) or sizes[i] > left - 1e-3 for i in bits)


def test_shared_out_bits_are_the_best_of_all():
    errors = {i: 4.0**e for i, e in enumerate((0, 1, 2, 0))}
    bits = share_out(errors, dict.fromkeys(errors, 1), dict.fromkeys(errors, 4), 4)

    def total(choice):
        return sum(errors[i] * 4.0 ** (4 - b) for i, b in enumerate(choice))

    best = min((c for c in itertools.product(range(2, 7), repeat=4) if sum(c) <= 16), key=total)
    assert total(bits.values()) == total(best)


def test_bits_asked_for_are_the_mean_of_what_is_used(tiny):
    options = {"recipe": "best", "w_bits": 4, "a_bits": 5, "fully_quantized": True}
    options["ingredients"] = {"image_percentiles": [0.5, 0.9]}  # half of the images get a bit less
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    assert float(net.bits_for(IMAGES).mean()) <= 5
    assert (
        float(net.bits_for(torch.rand(1, 3, 24, 24).round())) <= 5
    )  # an image more complex than any of them
    sizes = [net.network.get_submodule(name).weight.numel() for name in net.weight_quantizers()]
    pairs = [
        (q.bits, size)
        for q, size in zip(net.weight_quantizers().values(), sizes)
        if q.allocated is not None
    ]
    assert sum(bits * size for bits, size in pairs) <= 4 * sum(size for _, size in pairs)


def test_bits_that_complex_images_add_are_taken_off_the_layers(tiny):
    options = {"recipe": "best", "w_bits": 4, "a_bits": 5, "ingredients": {"image_bits": [0, 1]}}
    net = calibrate(quantize(tiny, IMAGES[:1], **options), [IMAGES])
    bits = net.bits_for(IMAGES)
    assert bits.min() < bits.max() and 4.5 < float(bits.mean()) <= 5
