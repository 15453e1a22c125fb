"""Each input channel gets a scale and a zero point, such that integers of eight bits hold all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adabm_basicsr import calibrate, quantize
from adabm_basicsr.quantization.calibration.equalisation import (
    equalise,
    keep_pixels,
    shifts_of_columns,
)
from adabm_basicsr.quantization.layers import quantized_type
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, shifted
from adabm_basicsr.quantization.quantizers.fake_quantize import integer_grid
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

CHANNELS = 4
ends = st.lists(st.floats(-100, 100, width=32), min_size=CHANNELS, max_size=CHANNELS)


def layer_of(bits, adaptive=False):
    layer = nn.Conv2d(CHANNELS, 3, 3)
    input_quantizer = ActivationQuantizer(bits, adaptive=adaptive, integer=True)
    layer = quantized_type(layer).from_float(
        layer, input_quantizer, WeightQuantizer(4, 3, integer=True)
    )
    of_input, of_weight = layer.channel_views(torch.ones(CHANNELS))
    layer.input_quantizer.equalise(of_input)
    layer.weight_quantizer.add_corrections(layer.weight, of_weight, 3)
    return layer


def equalised(bits, lower, upper, adaptive=False):
    layer = layer_of(bits, adaptive)
    lower, upper = torch.tensor(lower), torch.tensor(upper)
    equalise(layer, torch.minimum(lower, upper), torch.maximum(lower, upper))
    return layer


@settings(deadline=None)
@given(st.integers(2, 8), ends, ends)
def test_ranges_hold_what_each_channel_takes_and_zero(bits, first, second):
    quantizer = equalised(bits, first, second).input_quantizer
    lower, upper = (end.flatten() for end in quantizer.ends(torch.zeros(1, CHANNELS, 1, 1)))
    first, second = torch.tensor(first), torch.tensor(second)
    # Scales and shifts are kept in two bytes.
    slack = 0.01 * (upper - lower) + 1e-6
    assert (lower <= torch.minimum(first, second) + slack).all()
    assert (upper >= torch.maximum(first, second) - slack).all()
    assert (lower <= 0).all()
    assert (upper >= 0).all()


@settings(deadline=None)
@given(st.integers(2, 8), ends, ends, st.floats(0.2, 2))
def test_integers_of_all_channels_fit_into_eight_bits(bits, first, second, widened):
    quantizer = equalised(bits, first, second).input_quantizer
    common = quantizer.lower * widened, quantizer.upper * widened
    top = torch.tensor(2.0**bits - 1)
    scale, zeros = integer_grid(*shifted(*common, quantizer.channel_shift.flatten()), top)
    # Counted from the lowest value of all channels.
    assert (zeros.max() - zeros.min()) + top <= 255
    assert bits == 8 or max(zeros.max(), (top - zeros).max()) <= 127
    if torch.count_nonzero(torch.tensor([first, second])):
        # One for all, in their units.
        torch.testing.assert_close(scale, scale[:1].expand(CHANNELS), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("bits", "adaptive", "shifts"), [(7, False, True), (8, False, False), (7, True, False)]
)
def test_channels_share_a_zero_point_where_any_image_gets_eight_bits(bits, adaptive, shifts):
    quantizer = equalised(
        bits, [0.0, -1.0, -2.0, 0.0], [1.0, 1.0, 0.0, 3.0], adaptive
    ).input_quantizer
    assert bool(quantizer.channel_shift.any()) == shifts


def test_channels_of_either_sign_get_all_grid_points():
    quantizer = equalised(4, [0.0, -1.0, 0.0, -1.0], [1.0, 0.0, 1.0, 0.0]).input_quantizer
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    x = torch.linspace(0, 1, 16).view(1, 1, 16, 1) * signs.view(1, -1, 1, 1)
    # Sixteen values each; with one range for all they would have eight.
    torch.testing.assert_close(quantizer(x), x, atol=0.005, rtol=0)
    quantizer.channel_shift.zero_()
    assert not torch.allclose(quantizer(x), x, atol=0.1)


def test_a_range_shrinks_towards_zero():
    quantizer = equalised(4, [0.0, -1.0, -1.0, 0.0], [1.0, 0.0, 1.0, 0.0]).input_quantizer
    before = quantizer.ends(torch.zeros(1, CHANNELS, 1, 1))
    quantizer.lower.data.mul_(0.5)
    quantizer.upper.data.mul_(0.5)
    after = quantizer.ends(torch.zeros(1, CHANNELS, 1, 1))
    for end, was in zip(after, before, strict=True):
        torch.testing.assert_close(end, was / 2)


def gradients(quantizer, x):
    quantizer(x).sum().backward()
    return quantizer.lower.grad, quantizer.upper.grad


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_one_range_where_channels_are_alike(bits):
    # As behind a ReLU: the lower end is zero, where ranges may not move.
    x = torch.rand(2, CHANNELS, 5, 5) * 1.5
    quantizer = equalised(bits, [0.0] * CHANNELS, [1.0] * CHANNELS).input_quantizer
    plain = ActivationQuantizer(bits, integer=True)
    torch.testing.assert_close(gradients(quantizer, x), gradients(plain, x))


def test_gradients_reach_the_common_range_through_every_channel():
    quantizer = equalised(4, [0.0, -1.0, -2.0, 0.0], [1.0, 0.0, 2.0, 3.0]).input_quantizer
    ends = quantizer.ends(torch.zeros(1, CHANNELS, 1, 1))
    # Of each channel beyond its larger end.
    clipped_above = 1.5 * ends[1].where(ends[1] > 0, ends[0])
    lower, upper = gradients(quantizer, clipped_above.detach())
    assert lower.isfinite().all()
    assert upper.isfinite().all()
    assert upper.item() > 0


def test_channels_that_are_always_zero_have_the_common_range():
    quantizer = equalised(4, [0.0, -1.0, -2.0, 0.0], [1.0, 0.0, 2.0, 0.0]).input_quantizer
    assert quantizer.channel_shift.flatten()[3] == 0
    assert quantizer.channel_shift.any()


def test_each_weight_gets_the_shift_of_its_channel():
    layer = equalised(4, [0.0, -1.0, -2.0, 0.0], [1.0, 0.0, 2.0, 3.0])
    shifts = torch.zeros(CHANNELS, 3, 3) + layer.input_quantizer.channel_shift.view(-1, 1, 1)
    columns = layer.columns(torch.rand(1, CHANNELS, 5, 5), 9)
    torch.testing.assert_close(shifts_of_columns(layer, columns), shifts.view(1, -1, 1))


def test_layers_of_a_single_input_channel():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, padding=1)
    squeeze = nn.Conv2d(4, 1, 3, padding=1)
    expand = nn.Conv2d(1, 4, 3, padding=1)
    last = nn.Conv2d(4, 3, 3, padding=1)
    network = nn.Sequential(first, nn.Sequential(squeeze, nn.PReLU(), expand), last)
    images = torch.rand(4, 3, 16, 16)
    net = calibrate(quantize(network, images[:1], w_bits=6, a_bits=6, body=["1"]), [images])
    with torch.no_grad():
        teacher = network(images)
        assert (net(images) - teacher).square().mean() < 1e-2 * teacher.square().mean()


def test_pixels_of_eight_bits_are_not_rounded():
    layer = layer_of(8)
    keep_pixels(layer)
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, CHANNELS, 16, 16) / 255
    quantized = layer.input_quantizer(pixels)
    # By far less than the distance of two of them.
    assert (quantized - pixels).abs().max() < 0.02 / 255
    assert layer.input_quantizer.holds_pixels
    weight = layer.weight.detach()
    scale = layer.weight_quantizer.channel_scale
    torch.testing.assert_close(weight * scale * (layer.input_quantizer.channel_scale**-1), weight)
