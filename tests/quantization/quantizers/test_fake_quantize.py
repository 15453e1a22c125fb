"""What makes fake quantization cheap doesn't change it."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from adabm_basicsr.quantization.quantizers import fake_quantize as module
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize, recomputed

torch.manual_seed(0)
X, GRAD = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
PER_CHANNEL = torch.rand(1, 6, 1, 1) + 0.5


def results(x, lower, upper, integer):
    """The quantized tensor and all gradients."""
    x, lower, upper = (t.clone().requires_grad_() for t in (x, lower, upper))
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


def test_integer_gradients_equal_those_of_the_plain_chain():
    """The integer grid ends where the range does, and its scale is the range's width."""
    x, lower, upper = (
        t.double().requires_grad_() for t in (X.clone(), torch.tensor([-0.75]), torch.tensor([1.5]))
    )
    # 5 and 10 grid points on either side of zero: the grid ends where the range does.
    scale = (upper - lower) / 15
    clipped = torch.minimum(torch.maximum(x, lower), upper)
    plain = clipped + scale * ((clipped / scale).round() - clipped / scale).detach()
    expected = torch.autograd.grad(plain, (x, lower, upper), GRAD.double())
    found = torch.autograd.grad(
        fake_quantize(x, lower, upper, 4, integer=True), (x, lower, upper), GRAD.double()
    )
    torch.testing.assert_close(found, expected)


def test_a_quantized_input_is_not_kept_for_the_backward_pass():
    weight = torch.randn(4, 6, 3, 3)
    gradients, kept = [], []
    for context in (
        lambda x_q: torch.autograd.graph.saved_tensors_hooks(kept_of(kept), lambda t: t),
        recomputed,
    ):
        x, w = X.clone().requires_grad_(), weight.clone().requires_grad_()
        x_q = fake_quantize(x, torch.tensor([-1.0]), torch.tensor([1.0]), 4)
        with context(x_q):
            out = F.conv2d(x_q, w)
        gradients.append(torch.autograd.grad(out.sum(), (x, w)))
    assert X.shape in kept  # else the test would show nothing
    torch.testing.assert_close(*gradients)

    x_q = fake_quantize(X.clone().requires_grad_(), torch.tensor([-1.0]), torch.tensor([1.0]), 4)
    with recomputed(x_q):
        out = F.conv2d(x_q, weight.requires_grad_())
    before, address = x_q.detach().clone(), x_q.data_ptr()
    assert out.grad_fn._saved_input.data_ptr() != address
    torch.testing.assert_close(out.grad_fn._saved_input, before, rtol=0, atol=0)


def kept_of(kept):
    def pack(tensor):
        kept.append(tensor.shape)
        return tensor

    return pack


def test_other_views_of_it_are_kept_as_they_are():
    square, weight = torch.randn(2, 6, 5, 5), torch.randn(4, 6, 3, 3)
    gradients = []
    for context in (lambda x_q: nullcontext(), recomputed):
        w = weight.clone().requires_grad_()
        x_q = fake_quantize(
            square.clone().requires_grad_(), torch.tensor([-1.0]), torch.tensor([1.0]), 4
        )
        with context(x_q):
            # As many values at the same address, in another order.
            out = F.conv2d(x_q.transpose(2, 3), w)
        gradients.append(
            torch.autograd.grad(out, w, torch.arange(9.0).view(1, 1, 3, 3).expand_as(out))
        )
    torch.testing.assert_close(*gradients)


def test_second_derivatives_are_refused():
    x = X.clone().requires_grad_()
    quantized = fake_quantize(x, torch.tensor([-1.0]), torch.tensor([1.0]), 4)
    gradient = torch.autograd.grad((quantized**2).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
