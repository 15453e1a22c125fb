"""The quantizer of weights: what it keeps, its grid indices, allocated bits and corrections."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_basicsr.quantization.quantizers import weight as weight_module
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer


def test_a_quantizer_that_is_switched_off_passes_everything_through():
    quantizer = WeightQuantizer(4)
    quantizer.enabled = False
    weight = torch.randn(2, 3)
    assert quantizer(weight) is weight


def test_a_weight_is_quantized_once_until_something_changes(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return fake_quantize(*args)

    monkeypatch.setattr(weight_module, "fake_quantize", counted)
    quantizer = WeightQuantizer(3).requires_grad_(False)
    weight = torch.randn(4, 4)
    first = quantizer(weight)
    assert quantizer(weight) is first
    assert len(calls) == 1
    quantizer.upper.mul_(0.5)
    assert not torch.equal(quantizer(weight), first)
    weight.mul_(2)
    expected = fake_quantize(weight, -quantizer.upper, quantizer.upper, 3)
    torch.testing.assert_close(quantizer(weight), expected)
    quantizer.load_state_dict({"upper": torch.tensor([3.0])})
    expected = fake_quantize(weight, torch.tensor(-3.0), torch.tensor(3.0), 3)
    torch.testing.assert_close(quantizer(weight), expected)
    assert len(calls) == 4


def test_other_bits_and_copies_are_quantized_anew():
    quantizer = WeightQuantizer(3).requires_grad_(False)
    weight = torch.linspace(-1, 1, 16).view(4, 4)
    assert len(torch.unique(quantizer(weight))) == 8
    quantizer.hold_own_bits()
    quantizer.allocate(5)
    assert len(torch.unique(quantizer(weight))) == 16
    other = copy.deepcopy(quantizer)
    other.upper.mul_(0.5)
    assert not torch.equal(other(weight), quantizer(weight))


def test_a_weight_whose_range_is_learned_is_quantized_anew():
    quantizer = WeightQuantizer(3)
    weight = torch.randn(4, 4)
    with torch.no_grad():
        quantizer(weight)
    assert quantizer(weight).requires_grad


def test_what_was_quantized_for_inference_does_not_hinder_learning():
    quantizer = WeightQuantizer(3).requires_grad_(False)
    weight = torch.randn(4, 4)
    with torch.inference_mode():
        quantizer(weight)
    x = torch.randn(4, 4, requires_grad=True)
    (x @ quantizer(weight)).sum().backward()
    assert x.grad.any()


def test_weights_that_come_and_go_are_distinguished():
    quantizer = WeightQuantizer(8).requires_grad_(False)
    for value in range(50):
        weight = torch.full((4, 4), value / 50)
        torch.testing.assert_close(quantizer(weight), weight, atol=0.01, rtol=0)


def test_allocated_bits_come_back_with_the_state():
    quantizer = WeightQuantizer(4, 2, integer=True)
    weight = torch.randn(2, 8)
    quantizer.hold_own_bits()
    quantizer.allocate(6)
    other = WeightQuantizer(4, 2, integer=True)
    other.hold_own_bits()
    assert other.bits == 4
    other.load_state_dict(quantizer.state_dict())
    assert other.bits == 6
    assert torch.equal(other(weight), quantizer(weight))


def test_corrected_bias_is_only_used_while_quantizing():
    quantizer = WeightQuantizer(4, 2, integer=True)
    quantizer.add_corrections(torch.ones(2, 8), torch.ones(1, 8), output_channels=2)
    quantizer.bias_correction.data.fill_(0.5)
    assert quantizer.bias(None).tolist() == [0.5, 0.5]
    assert quantizer.bias(torch.ones(2)).tolist() == [1.5, 1.5]
    quantizer.enabled = False
    assert quantizer.bias(None) is None


@given(st.integers(2, 8), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_weights_come_back_from_their_grid_indices(bits, channels, integer, seed):
    weight = torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    first_is_dead = seed % 2 == 0
    if first_is_dead:
        weight[0] = 0
    quantizer = WeightQuantizer(bits, channels, integer=integer).requires_grad_(False)
    quantizer.upper.copy_(weight.abs().amax((1, 2, 3)))
    indices = quantizer.grid_indices(weight)
    quantized = quantizer(weight)
    assert indices.dtype is torch.uint8
    assert int(indices.max()) < 2**bits
    again = quantizer.from_grid_indices(indices)
    torch.testing.assert_close(again, quantized, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer(quantized), quantized, rtol=1e-5, atol=1e-6)

    scale = quantizer.scale.view(-1, 1, 1, 1)
    # The lowest integer has no counterpart.
    largest = scale * (2 ** (bits - 1) - 1) if integer else weight.abs()
    error = quantized - weight.clamp(-largest - scale, largest)
    assert (error.abs() <= scale / 2 + 1e-5).all()
    assert not (first_is_dead and quantized[0].any())
