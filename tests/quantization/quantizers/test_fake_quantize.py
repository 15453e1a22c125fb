"""Rounding to a grid at any range and bits, its gradients, and what makes it cheap."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adabm_basicsr.quantization.bit_mapping import straight_through
from adabm_basicsr.quantization.quantizers import fake_quantize as module
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize, recomputed

MANY = settings(max_examples=50, deadline=None)
BITS = st.integers(2, 8)
SEEDS = st.integers(0, 10**6)
# Pairs of the lower end and the upper end of a range.
RANGES = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
AROUND_ZERO = st.tuples(st.floats(-1e3, -1e-2), st.floats(1e-2, 1e3))

torch.manual_seed(0)
X = torch.randn(2, 6, 5, 7)
GRAD = torch.randn(2, 6, 5, 7)
PER_CHANNEL = torch.rand(1, 6, 1, 1) + 0.5


def double(value):
    return torch.tensor([value], dtype=torch.float64)


def grid_of(ends, bits, integer):
    """All grid points, in ascending order."""
    lower, upper = ends
    highest = 2**bits - 1
    indices = torch.arange(highest + 1, dtype=torch.float64)
    if not integer:
        return lower + indices * (upper - lower) / highest
    # Widened to hold zero.
    lower = min(lower, 0.0)
    upper = max(upper, 0.0)
    width = upper - lower
    # In this order the zero point of symmetric ends lies exactly between two whole numbers.
    zero_point = round(-lower / width * highest)
    return width / highest * (indices - zero_point)


def spread(ends, count=300):
    """Values from well below a range to well above it."""
    lower, upper = ends
    margin = max(upper, 0.0) - min(lower, 0.0)
    return torch.linspace(lower - margin, upper + margin, count, dtype=torch.float64)


def quantize(x, ends, bits, integer):
    lower, upper = ends
    return fake_quantize(x, double(lower), double(upper), bits, integer)


# The grid


@pytest.mark.parametrize("integer", [False, True])
@given(ends=RANGES, bits=BITS)
@MANY
def test_results_are_grid_points(integer, ends, bits):
    grid = grid_of(ends, bits, integer)
    quantized = quantize(spread(ends), ends, bits, integer)
    distance = (quantized.unsqueeze(1) - grid).abs().min(1).values
    assert (distance <= 1e-9 * (grid[-1] - grid[0])).all()
    torch.testing.assert_close(quantize(grid, ends, bits, integer), grid)


@pytest.mark.parametrize("integer", [False, True])
@given(ends=RANGES, bits=BITS)
@MANY
def test_quantizing_is_monotone_and_within_half_a_scale(integer, ends, bits):
    x = spread(ends)
    grid = grid_of(ends, bits, integer)
    quantized = quantize(x, ends, bits, integer)
    scale = grid[1] - grid[0]
    slack = 1e-9 * (grid[-1] - grid[0])
    assert (quantized.diff() >= -slack).all()
    error = quantized - x.clamp(grid[0], grid[-1])
    assert (error.abs() <= scale / 2 + slack).all()


@pytest.mark.parametrize("integer", [False, True])
@given(ends=RANGES, bits=BITS)
@MANY
def test_quantizing_twice_changes_nothing(integer, ends, bits):
    once = quantize(spread(ends), ends, bits, integer)
    torch.testing.assert_close(quantize(once, ends, bits, integer), once)


@given(RANGES, BITS)
@MANY
def test_zero_is_a_grid_point_of_integers(ends, bits):
    assert quantize(double(0.0), ends, bits, integer=True).item() == 0


# Gradients


@given(RANGES, BITS, SEEDS)
@MANY
def test_fused_gradient_equals_that_of_the_plain_chain(ends, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    values = spread(ends, 60).view(2, 30)
    weight = torch.randn(2, 30, generator=generator, dtype=torch.float64)

    def chain(x, lower, upper, bits):
        highest = 2**bits - 1
        scaled = (x.clamp(lower, upper) - lower) / (upper - lower) * highest
        return straight_through(scaled, scaled.round()) / highest * (upper - lower) + lower

    gradients = []
    for function in (chain, fake_quantize):
        x = values.clone().requires_grad_()
        lower = double(ends[0]).requires_grad_()
        upper = double(ends[1]).requires_grad_()
        per_sample = torch.full((2, 1), float(bits), dtype=torch.float64, requires_grad=True)
        loss = (function(x, lower, upper, per_sample) * weight).sum()
        gradients.append(torch.autograd.grad(loss, (x, lower, upper, per_sample)))
    for plain, fused in zip(*gradients, strict=True):
        tolerance = 1e-6 * (1 + float(plain.abs().max()))
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=tolerance)


def soft_form(x, lower, upper, bits, integer):
    """A function of all four that rounds as at these values, whatever it is called with.

    Rounding errors stay what they are here, in scales. That the ends of a range move to the integer
    grid counts as rounding, too.
    """
    first, last = lower, upper
    if integer:
        grid = grid_of((lower.item(), upper.item()), int(bits), integer)
        first, last = grid[0], grid[-1]
    of_first = first - lower
    of_last = last - upper
    scale = (upper - lower) / (2**bits - 1)
    clipped = x.clamp(first, last)
    error = (fake_quantize(x, lower, upper, bits, integer) - clipped) / scale

    def soft(x, lower, upper, bits):
        clipped = torch.minimum(torch.maximum(x, lower + of_first), upper + of_last)
        return clipped + error * (upper - lower) / (2**bits - 1)

    return soft


@pytest.mark.parametrize("integer", [False, True])
@given(ends=AROUND_ZERO, bits=BITS, seed=SEEDS)
@MANY
def test_gradients_are_the_finite_differences_of_the_soft_form(integer, ends, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    lower, upper = ends
    width = upper - lower
    x = lower - width / 2 + 2 * width * torch.rand(40, generator=generator, dtype=torch.float64)
    weight = torch.randn(40, generator=generator, dtype=torch.float64)
    values = [x, double(lower), double(upper), double(float(bits))]
    soft = soft_form(*values, integer)
    inputs = [value.clone().requires_grad_() for value in values]
    found = torch.autograd.grad((fake_quantize(*inputs, integer) * weight).sum(), inputs)
    of_x, *others = found
    small = 1e-7 * width

    def difference(index, small):
        plus, minus = list(values), list(values)
        plus[index] = values[index] + small
        minus[index] = values[index] - small
        return (soft(*plus) - soft(*minus)) * weight / (2 * small)

    torch.testing.assert_close(of_x, difference(0, small), rtol=1e-4, atol=1e-4)
    for index, (gradient, change, tolerance) in enumerate(
        zip(others, (small, small, 1e-7), (1e-4, 1e-4, 1e-4 * width), strict=True), start=1
    ):
        expected = difference(index, change).sum().view(1)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=tolerance)


def test_integer_gradients_equal_those_of_the_plain_chain():
    """The ends of the integer grid count as where the range ends."""
    x = X.double().requires_grad_()
    lower = double(-0.75).requires_grad_()
    upper = double(1.5).requires_grad_()
    # 5 grid points below zero and 10 above: the grid ends where the range does.
    scale = (upper - lower) / 15
    clipped = torch.minimum(torch.maximum(x, lower), upper)
    error = (clipped / scale).round() - clipped / scale
    plain = clipped + scale * error.detach()
    fused = fake_quantize(x, lower, upper, 4, integer=True)
    expected = torch.autograd.grad(plain, (x, lower, upper), GRAD.double())
    found = torch.autograd.grad(fused, (x, lower, upper), GRAD.double())
    torch.testing.assert_close(found, expected)


def test_dead_range_gives_its_value_and_no_nan():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    ends = torch.zeros(1, requires_grad=True)
    quantized = fake_quantize(x, ends, ends, 4)
    quantized.sum().backward()
    assert quantized.tolist() == [0, 0, 0]
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(ends.grad).all()


def test_second_derivatives_are_rejected():
    x = X.clone().requires_grad_()
    quantized = fake_quantize(x, torch.tensor([-1.0]), torch.tensor([1.0]), 4)
    gradient = torch.autograd.grad((quantized**2).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# What makes it cheap


def results(x, lower, upper, integer):
    """The quantized tensor and all gradients."""
    x = x.clone().requires_grad_()
    lower = lower.clone().requires_grad_()
    upper = upper.clone().requires_grad_()
    bits = torch.tensor([3.0, 4.0], requires_grad=True)
    out = fake_quantize(x, lower, upper, bits.view(2, 1, 1, 1), integer)
    return [out, *torch.autograd.grad(out, (x, lower, upper, bits), GRAD)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("upper", [torch.ones(1), PER_CHANNEL], ids=["tensor", "channels"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("piece", [1, 20, 100])
def test_pieces_add_up_to_the_whole(monkeypatch, layout, upper, integer, piece):
    whole = results(X, -0.8 * upper, upper, integer)
    monkeypatch.setattr(module, "PIECE", piece)
    in_pieces = results(X.contiguous(memory_format=layout), -0.8 * upper, upper, integer)
    torch.testing.assert_close(in_pieces, whole)
    assert in_pieces[0].is_contiguous(memory_format=layout)


def quantized_x(x):
    return fake_quantize(x.clone().requires_grad_(), torch.tensor([-1.0]), torch.tensor([1.0]), 4)


def test_a_quantized_input_is_not_kept_for_the_backward_pass():
    weight = torch.randn(4, 6, 3, 3, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    x_q = quantized_x(X)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain = F.conv2d(x_q, weight)
    assert X.shape in kept  # else the test would show nothing

    x_q = quantized_x(X)
    with recomputed(x_q):
        out = F.conv2d(x_q, weight)
    values = x_q.detach().clone()
    address = x_q.data_ptr()
    assert out.grad_fn._saved_input.data_ptr() != address
    torch.testing.assert_close(out.grad_fn._saved_input, values, rtol=0, atol=0)
    expected = torch.autograd.grad(plain.sum(), weight)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), weight), expected)


def test_gradients_through_what_is_recomputed():
    weight = torch.randn(4, 6, 3, 3)
    gradients = []
    for context in (lambda x_q: nullcontext(), recomputed):
        x = X.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        x_q = fake_quantize(x, torch.tensor([-1.0]), torch.tensor([1.0]), 4)
        with context(x_q):
            out = F.conv2d(x_q, w)
        gradients.append(torch.autograd.grad(out.sum(), (x, w)))
    torch.testing.assert_close(*gradients)


def test_other_views_of_it_are_kept_as_they_are():
    square = torch.randn(2, 6, 5, 5)
    weight = torch.randn(4, 6, 3, 3)
    gradients = []
    for context in (lambda x_q: nullcontext(), recomputed):
        w = weight.clone().requires_grad_()
        x_q = quantized_x(square)
        with context(x_q):
            # As many values at the same address, in another order.
            out = F.conv2d(x_q.transpose(2, 3), w)
        upstream = torch.arange(9.0).view(1, 1, 3, 3).expand_as(out)
        gradients.append(torch.autograd.grad(out, w, upstream))
    torch.testing.assert_close(*gradients)
