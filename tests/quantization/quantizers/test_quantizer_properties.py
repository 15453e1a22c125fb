"""Properties of quantizers at any range and bits.

Integer grids, weights, and gradients against finite differences.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_basicsr.quantization.bit_mapping import ImageBitMapping, image_complexity
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MANY = settings(max_examples=40, deadline=None)
BITS = st.integers(2, 8)
AROUND_ZERO = st.tuples(st.floats(-1e3, -1e-2), st.floats(1e-2, 1e3))
ANYWHERE = (
    st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
    .map(sorted)
    .filter(lambda ends: ends[1] - ends[0] > 1e-2)
)
SEEDS = st.integers(0, 10**6)


def tensors(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def integer_grid(lower, upper, bits):
    """Levels of integer arithmetic on the range, widened to hold zero."""
    levels, low, high = 2**bits - 1, min(lower, 0.0), max(upper, 0.0)
    scale = (high - low) / levels
    return scale * (torch.arange(levels + 1, dtype=torch.float64) - round(-low / scale))


def spread(lower, upper, count=300):
    margin = max(upper, 0.0) - min(lower, 0.0)
    return torch.linspace(lower - margin, upper + margin, count, dtype=torch.float64)


@given(ANYWHERE, BITS)
@MANY
def test_integer_levels_hold_zero_and_are_evenly_spaced(ends, bits):
    quantized = fake_quantize(spread(*ends), *tensors(*ends), bits, integer=True)
    grid = integer_grid(*ends, bits)
    distance = (quantized.unsqueeze(1) - grid).abs().min(1).values
    assert (distance <= 1e-9 * (grid[-1] - grid[0])).all()
    assert (
        fake_quantize(
            torch.zeros(1, dtype=torch.float64), *tensors(*ends), bits, integer=True
        ).item()
        == 0
    )


@given(ANYWHERE, BITS)
@MANY
def test_integer_quantizing_twice_changes_nothing(ends, bits):
    once = fake_quantize(spread(*ends), *tensors(*ends), bits, integer=True)
    torch.testing.assert_close(fake_quantize(once, *tensors(*ends), bits, integer=True), once)
    grid = integer_grid(*ends, bits)
    torch.testing.assert_close(fake_quantize(grid, *tensors(*ends), bits, integer=True), grid)


@given(ANYWHERE, BITS)
@MANY
def test_integer_quantizing_is_monotone_and_within_half_a_scale(ends, bits):
    x, grid = spread(*ends), integer_grid(*ends, bits)
    quantized = fake_quantize(x, *tensors(*ends), bits, integer=True)
    slack = 1e-9 * (grid[-1] - grid[0])
    assert (quantized.diff() >= -slack).all()
    assert ((quantized - x.clamp(grid[0], grid[-1])).abs() <= (grid[1] - grid[0]) / 2 + slack).all()


def soft_form(x, lower, upper, bits, integer):
    """Quantization, as a function of ``x``, ``lower``, ``upper`` and ``bits``, without rounding.

    Its rounding errors, in scales, stay what they are at these values.
    """
    levels = 2**bits - 1
    width = upper - lower
    first, last = lower, upper
    if integer:
        first, last = integer_grid(lower.item(), upper.item(), int(bits))[[0, -1]]
    # Of the ends to the integer grid; that counts as rounding, too.
    shifts = (first - lower, last - upper)
    clipped = x.clamp(first, last)
    residual = (fake_quantize(x, lower, upper, bits, integer) - clipped) / (width / levels)
    return lambda x, lower, upper, bits: (
        torch.minimum(torch.maximum(x, lower + shifts[0]), upper + shifts[1])
        + residual * (upper - lower) / (2**bits - 1)
    )


@pytest.mark.parametrize("integer", [False, True])
@given(ends=AROUND_ZERO, bits=BITS, seed=SEEDS)
@MANY
def test_gradients_are_the_finite_differences_of_the_soft_form(integer, ends, bits, seed):
    random = torch.Generator().manual_seed(seed)
    width = ends[1] - ends[0]
    x = ends[0] - width / 2 + 2 * width * torch.rand(40, generator=random, dtype=torch.float64)
    weight = torch.randn(40, generator=random, dtype=torch.float64)
    values = [x, *tensors(*ends, float(bits))]
    soft = soft_form(*values, integer)
    inputs = [value.clone().requires_grad_() for value in values]
    found = torch.autograd.grad((fake_quantize(*inputs, integer) * weight).sum(), inputs)
    for index, gradient in enumerate(found):
        small = 1e-7 * (1.0 if index == 3 else width)
        plus, minus = (
            [v + sign * small if i == index else v for i, v in enumerate(values)]
            for sign in (1, -1)
        )
        difference = (soft(*plus) - soft(*minus)) * weight / (2 * small)
        expected = difference if index == 0 else difference.sum().view(1)
        scale = width if index == 3 else 1.0
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)


@given(BITS, st.integers(1, 5), st.booleans(), SEEDS)
@MANY
def test_weights_come_back_from_their_grid_indices(bits, channels, integer, seed):
    weight = torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    weight[0] *= seed % 2  # a dead output channel
    quantizer = WeightQuantizer(bits, channels, integer=integer).requires_grad_(False)
    quantizer.upper.copy_(weight.abs().amax((1, 2, 3)))
    indices = quantizer.grid_indices(weight)
    quantized = quantizer(weight)
    assert indices.dtype is torch.uint8
    assert int(indices.max()) < 2**bits
    restored = quantizer.from_grid_indices(indices)
    torch.testing.assert_close(restored, quantized, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer(quantized), quantized, rtol=1e-5, atol=1e-6)
    scale = quantizer.scale.view(-1, 1, 1, 1)
    largest = weight.abs()
    if integer:
        # The lowest integer has no counterpart.
        largest = scale * (2 ** (bits - 1) - 1)
    assert ((quantized - weight.clamp(-largest - scale, largest)).abs() <= scale / 2 + 1e-5).all()
    assert not quantized[0].any() or seed % 2


@given(st.floats(-3, 3).filter(lambda m: abs(abs(m) - 0.5) > 1e-3))
@MANY
def test_layer_factor_is_hard_forward_and_soft_backward(m):
    quantizer = ActivationQuantizer(4, adaptive=True)
    quantizer.layer_factor.data.fill_(m)
    bits = quantizer.bits_of_layer()
    assert bits.item() == pytest.approx(4 + round(max(min(m, 1), -1)))
    found = torch.autograd.grad(bits.sum(), quantizer.layer_factor)[0].double()
    (value,) = tensors(quantizer.layer_factor.item())
    torch.testing.assert_close(
        found, (torch.tanh(value + 1e-6) - torch.tanh(value - 1e-6)) / 2e-6, rtol=1e-3, atol=1e-5
    )


@given(st.floats(1, 50), st.floats(1, 50), SEEDS)
@MANY
def test_image_factor_is_hard_forward_and_soft_backward(lower, width, seed):
    image = torch.rand(
        1, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    mapping = ImageBitMapping().double()
    mapping.lower.data.fill_(lower)
    mapping.upper.data.fill_(lower + width)
    complexity = image_complexity(image)
    factor = mapping(image)
    hard = int(complexity > lower + width) - int(complexity < lower)
    assert factor.item() == pytest.approx(hard)

    def soft(low, high):
        return torch.tanh((complexity - (high + low) / 2) * 2 / (high - low))

    found = torch.autograd.grad(factor.sum(), (mapping.lower, mapping.upper))
    low, high = tensors(lower, lower + width)
    of_low = (soft(low + 1e-6, high) - soft(low - 1e-6, high)) / 2e-6
    of_high = (soft(low, high + 1e-6) - soft(low, high - 1e-6)) / 2e-6
    for gradient, expected in zip(found, (of_low, of_high), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
