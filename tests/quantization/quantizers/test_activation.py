"""Properties of the quantizers and bit mappings."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_basicsr.quantization.bit_mapping import (
    ImageBitMapping,
    image_complexity,
    straight_through,
)
from adabm_basicsr.quantization.quantizers import weight as weight_quantizer
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

RANGES = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
BITS = st.integers(2, 8)


def ends(limits):
    return torch.tensor([limits[0]], dtype=torch.float64), torch.tensor(
        [limits[1]], dtype=torch.float64
    )


def values(limits, count=200):
    low, high = limits
    margin = high - low
    return torch.linspace(low - margin, high + margin, count, dtype=torch.float64)


@given(RANGES, BITS)
@settings(max_examples=50, deadline=None)
def test_quantizing_twice_changes_nothing(limits, bits):
    once = fake_quantize(values(limits), *ends(limits), bits)
    torch.testing.assert_close(fake_quantize(once, *ends(limits), bits), once)


@given(RANGES, BITS)
@settings(max_examples=50, deadline=None)
def test_monotone_on_the_grid_and_within_half_a_scale(limits, bits):
    x, (lower, upper) = values(limits), ends(limits)
    quantized = fake_quantize(x, lower, upper, bits)
    scale = (upper - lower) / (2**bits - 1)
    slack = 1e-9 * (upper - lower)
    assert (quantized.diff() >= -slack).all()
    assert ((quantized - x.clamp(lower, upper)).abs() <= scale / 2 + slack).all()
    indices = (quantized - lower) / scale
    torch.testing.assert_close(indices, indices.round(), atol=1e-6, rtol=0)
    assert len(torch.unique(indices.round())) <= 2**bits


@given(RANGES, BITS)
@settings(max_examples=30, deadline=None)
def test_exact_at_the_grid(limits, bits):
    lower, upper = ends(limits)
    grid = lower + torch.arange(2**bits, dtype=torch.float64) * (upper - lower) / (2**bits - 1)
    torch.testing.assert_close(fake_quantize(grid, lower, upper, bits), grid)


@given(RANGES, BITS, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_fused_gradient_equals_that_of_the_plain_chain(limits, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    x0 = values(limits, 60).view(2, 30)
    weight = torch.randn(2, 30, generator=generator, dtype=torch.float64)

    def chain(x, lower, upper, bits):
        levels = 2**bits - 1
        scaled = (x.clamp(lower, upper) - lower) / (upper - lower) * levels
        return straight_through(scaled, scaled.round()) / levels * (upper - lower) + lower

    gradients = []
    for quantize in (chain, fake_quantize):
        lower, upper = (end.requires_grad_() for end in ends(limits))
        per_sample = torch.full((2, 1), float(bits), dtype=torch.float64, requires_grad=True)
        x = x0.clone().requires_grad_()
        (quantize(x, lower, upper, per_sample) * weight).sum().backward()
        gradients.append([x.grad, lower.grad, upper.grad, per_sample.grad])
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(
            fused, plain, rtol=1e-6, atol=1e-6 * (1 + float(plain.abs().max()))
        )


def test_dead_range_gives_its_value_and_no_nan():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    ends = torch.zeros(1, requires_grad=True)
    quantized = fake_quantize(x, ends, ends, 4)
    quantized.sum().backward()
    assert quantized.tolist() == [0, 0, 0]
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(ends.grad).all()


def test_complexity_of_a_constant_image_is_zero_and_of_a_ramp_its_slope():
    assert image_complexity(torch.full((2, 3, 8, 8), 0.7)).tolist() == pytest.approx(
        [0, 0], abs=1e-3
    )
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) / 100
    # Slope 0.01 in one direction, half of it at the two replicated border columns.
    inner = image_complexity(ramp)
    assert inner.item() == pytest.approx(1000 * 0.01 / 2 * (15 / 16), rel=1e-4)


def test_complexity_takes_any_number_of_channels():
    grey = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    for channels in (3, 4, 6):
        torch.testing.assert_close(
            image_complexity(grey.expand(-1, channels, -1, -1)), image_complexity(grey)
        )


def test_image_factor_follows_the_thresholds_with_a_soft_gradient():
    mapping = ImageBitMapping()
    images = torch.stack([torch.full((3, 8, 8), 0.5), torch.rand(3, 8, 8)])
    complexity = image_complexity(images)
    mapping.lower.data.fill_(1.0)
    mapping.upper.data.fill_(float(complexity[1]) / 2)
    factor = mapping(images)
    assert factor.tolist() == [-1, 1]
    factor.sum().backward()
    assert mapping.lower.grad != 0
    assert mapping.upper.grad != 0


def test_bits_used_add_layer_and_image_and_stay_in_range():
    quantizer = ActivationQuantizer(7, adaptive=True, bit_range=(2, 8))
    quantizer.layer_factor.data.fill_(0.9)
    quantizer.image_factor = torch.tensor([-1.0, 0.0, 1.0])
    assert quantizer.bits_used().tolist() == [7, 8, 8]
    assert quantizer.bits_of_layer().item() == 8


def test_each_sample_is_quantized_at_its_own_bits():
    quantizer = ActivationQuantizer(4, adaptive=True)
    quantizer.image_factor = torch.tensor([-1.0, 1.0])
    x = torch.rand(4, 3, 5, 5)  # two parts of each of two samples
    out = quantizer(x)
    for part, bits in enumerate((3, 3, 5, 5)):
        torch.testing.assert_close(
            out[part], fake_quantize(x[part], quantizer.lower, quantizer.upper, bits)
        )


def test_switched_off_quantizers_pass_everything_through():
    x = torch.randn(2, 3)
    for quantizer in (ActivationQuantizer(4), WeightQuantizer(4)):
        quantizer.enabled = False
        assert quantizer(x) is x


def test_a_weight_is_quantized_once_until_something_changes(monkeypatch):
    calls = []
    monkeypatch.setattr(
        weight_quantizer, "fake_quantize", lambda *args: calls.append(1) or fake_quantize(*args)
    )
    quantizer, weight = WeightQuantizer(3).requires_grad_(False), torch.randn(4, 4)
    first = quantizer(weight)
    assert quantizer(weight) is first
    assert len(calls) == 1
    quantizer.upper.mul_(0.5)
    assert not torch.equal(quantizer(weight), first)
    weight.mul_(2)
    torch.testing.assert_close(
        quantizer(weight), fake_quantize(weight, -quantizer.upper, quantizer.upper, 3)
    )
    quantizer.load_state_dict({"upper": torch.tensor([3.0])})
    torch.testing.assert_close(
        quantizer(weight), fake_quantize(weight, torch.tensor(-3.0), torch.tensor(3.0), 3)
    )
    assert len(calls) == 4
    quantizer.allocate()
    quantizer.allocated.fill_(5)
    assert len(torch.unique(quantizer(weight))) > 8
    other = copy.deepcopy(quantizer)
    other.upper.mul_(0.5)
    assert not torch.equal(other(weight), quantizer(weight))


def test_a_weight_whose_range_is_learned_is_quantized_anew():
    quantizer, weight = WeightQuantizer(3), torch.randn(4, 4)
    with torch.no_grad():
        quantizer(weight)
    assert quantizer(weight).requires_grad


def test_what_was_quantized_for_inference_does_not_hinder_learning():
    quantizer, weight = WeightQuantizer(3).requires_grad_(False), torch.randn(4, 4)
    with torch.inference_mode():
        quantizer(weight)
    x = torch.randn(4, 4, requires_grad=True)
    (x @ quantizer(weight)).sum().backward()
    assert x.grad.any()


def test_weights_that_come_and_go_are_not_confused():
    quantizer = WeightQuantizer(8).requires_grad_(False)
    for value in range(50):
        weight = torch.full((4, 4), value / 50)
        torch.testing.assert_close(quantizer(weight), weight, atol=0.01, rtol=0)


def test_each_image_class_has_its_own_range_and_bits():
    quantizer = ActivationQuantizer(4, adaptive=True, integer=True)
    quantizer.follow_image_classes()
    quantizer.image_bits = (-1, 0)
    quantizer.level_ranges.data.copy_(torch.tensor([1.0, 1.0, 3.0]))
    quantizer.image_factor = torch.tensor([-1.0, 0.0, 1.0])
    out = quantizer(torch.full((6, 2, 1), 1.8))  # two parts of each sample
    torch.testing.assert_close(
        out[:, 0, 0], torch.tensor([1.0, 1.0, 1.0, 1.0, 1.8, 1.8]), atol=0.005, rtol=0
    )
    assert quantizer.last_bits.tolist() == [3, 4, 4]
    out.sum().backward()
    assert quantizer.level_ranges.grad[2].item() != 0
    assert quantizer.level_ranges.grad.isfinite().all()


def test_allocated_bits_come_back_with_the_state():
    quantizer, weight = WeightQuantizer(4, 2, integer=True), torch.randn(2, 8)
    quantizer.allocate()
    quantizer.allocated.fill_(6)
    other = WeightQuantizer(4, 2, integer=True)
    other.allocate()
    assert other.bits == 4
    other.load_state_dict(quantizer.state_dict())
    assert other.bits == 6
    assert torch.equal(other(weight), quantizer(weight))


def test_corrected_bias_is_only_used_while_quantizing():
    quantizer = WeightQuantizer(4, 2, integer=True)
    quantizer.reconstruct(torch.ones(2, 8), torch.ones(1, 8), output_channels=2)
    quantizer.bias_correction.data.fill_(0.5)
    assert quantizer.bias(None).tolist() == [0.5, 0.5]
    assert quantizer.bias(torch.ones(2)).tolist() == [1.5, 1.5]
    quantizer.enabled = False
    assert quantizer.bias(None) is None


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_float32_holds_grid_points_and_the_edges_between_them(bits):
    quantizer = ActivationQuantizer(bits, integer=True)
    quantizer.equalise(torch.tensor([1.0, 0.376953125]).view(1, 2, 1, 1))
    quantizer.lower.data.fill_(-0.7712345)
    quantizer.upper.data.fill_(1.1)
    scale = quantizer.scale(torch.zeros(1)).item() * quantizer.channel_scale[0, 1, 0, 0].item()
    edges = torch.arange(2**bits, dtype=torch.float64).sub(0.5) * scale
    assert torch.equal(edges.float().double(), edges)
    x = torch.linspace(-1, 2, 5000).view(1, 1, -1, 1).expand(1, 2, -1, 1)
    indices = quantizer(x)[0, 1].double() / scale
    assert torch.equal(indices, indices.round())
    assert len(indices.unique()) == 2**bits
