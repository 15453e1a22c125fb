"""Image complexity, image factor and layer factor: hard in the forward pass, soft backwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_basicsr.quantization.bit_mapping import (
    ImageBitMapping,
    image_complexity,
    layer_factor,
    straight_through,
)

MANY = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 10**6)
SMALL = 1e-6


def double(value):
    return torch.tensor([value], dtype=torch.float64)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = torch.tensor([0.3], requires_grad=True)
    out = straight_through(x**2, x.round())
    out.backward()
    assert out.item() == 0
    assert x.grad.item() == pytest.approx(0.6)


def test_complexity_of_a_constant_image_is_zero():
    constant = torch.full((2, 3, 8, 8), 0.7)
    assert image_complexity(constant).tolist() == pytest.approx([0, 0], abs=1e-3)


def test_complexity_of_a_ramp_is_its_slope():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) / 100
    # The slope is 0.01 in one direction, and half of it at the two replicated border columns.
    expected = 1000 * 0.01 / 2 * (15 / 16)
    assert image_complexity(ramp).item() == pytest.approx(expected, rel=1e-4)


def test_complexity_takes_any_number_of_channels():
    grey = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    for channels in (3, 4, 6):
        repeated = grey.expand(-1, channels, -1, -1)
        torch.testing.assert_close(image_complexity(repeated), image_complexity(grey))


def test_image_factor_follows_the_thresholds_with_a_soft_gradient():
    mapping = ImageBitMapping()
    simple = torch.full((3, 8, 8), 0.5)
    images = torch.stack([simple, torch.rand(3, 8, 8)])
    complexity = image_complexity(images)
    mapping.lower.data.fill_(1.0)
    mapping.upper.data.fill_(float(complexity[1]) / 2)
    factor = mapping(images)
    assert factor.tolist() == [-1, 1]
    factor.sum().backward()
    assert mapping.lower.grad != 0
    assert mapping.upper.grad != 0


@given(st.floats(-3, 3).filter(lambda m: abs(abs(m) - 0.5) > 1e-3))
@MANY
def test_layer_factor_is_hard_forward_and_soft_backward(value):
    m = torch.tensor([value], requires_grad=True)
    factor = layer_factor(m)
    assert factor.item() == pytest.approx(round(max(min(value, 1), -1)))
    (found,) = torch.autograd.grad(factor.sum(), m)
    at = double(m.item())
    difference = torch.tanh(at + SMALL) - torch.tanh(at - SMALL)
    torch.testing.assert_close(found.double(), difference / (2 * SMALL), rtol=1e-3, atol=1e-5)


@given(st.integers(1, 6), st.floats(-10, 10))
@MANY
def test_layer_factor_goes_as_far_as_its_reach(reach, value):
    factor = layer_factor(torch.tensor([value]), reach).item()
    assert factor == round(factor)
    assert abs(factor) <= reach
    assert abs(factor - max(min(value, reach), -reach)) <= 0.5


@given(st.floats(1, 50), st.floats(1, 50), SEEDS)
@MANY
def test_image_factor_is_hard_forward_and_soft_backward(lower, width, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, 6, 6, generator=generator, dtype=torch.float64)
    mapping = ImageBitMapping().double()
    mapping.lower.data.fill_(lower)
    mapping.upper.data.fill_(lower + width)
    complexity = image_complexity(image)
    factor = mapping(image)
    expected = 0
    if complexity > lower + width:
        expected = 1
    elif complexity < lower:
        expected = -1
    assert factor.item() == pytest.approx(expected)

    def soft(low, high):
        return torch.tanh((complexity - (high + low) / 2) * 2 / (high - low))

    of_lower, of_upper = torch.autograd.grad(factor.sum(), (mapping.lower, mapping.upper))
    low, high = double(lower), double(lower + width)
    by_lower = (soft(low + SMALL, high) - soft(low - SMALL, high)) / (2 * SMALL)
    by_upper = (soft(low, high + SMALL) - soft(low, high - SMALL)) / (2 * SMALL)
    torch.testing.assert_close(of_lower, by_lower, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(of_upper, by_upper, rtol=1e-3, atol=1e-6)
