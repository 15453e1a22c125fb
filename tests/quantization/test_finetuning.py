"""Losses and steps of fine-tuning."""

import pytest
import torch
from torch import nn

from adabm_basicsr.quantization.finetuning import MAX_PROMISE, RelativeAdam, feature_loss


def test_feature_loss_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    student = [torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    teacher = [s.detach() + 0.1 * torch.randn_like(s) for s in student]
    distances = [(s / s.norm() - t / t.norm()).flatten(1).norm(dim=1).mean() / 2 for s, t in zip(student, teacher)]
    expected, found = torch.stack(distances).mean(), feature_loss(student, teacher)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student), torch.autograd.grad(expected, student))


def test_equal_features_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = feature_loss([student], [student.detach()])
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_a_sample_without_features_gives_a_finite_gradient():
    student = torch.randn(2, 3, 4, 4)
    student[0] = 0
    student.requires_grad_()
    (1000 * feature_loss([student], [student.detach() * torch.rand(2, 3, 4, 4)])).backward()
    assert torch.isfinite(student.grad).all() and student.grad[1].any()


@pytest.mark.parametrize("rate", [0.001, 0.1, 10.0])
def test_no_step_promises_to_take_more_than_a_share_of_the_loss_away(rate):
    weight, unit = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double()), torch.tensor([1.0, 0.1, 10.0]).double()
    optimizer = RelativeAdam([{"params": [weight], "units": [unit]}], lr=rate)
    before, loss = weight.detach().clone(), weight.square().sum()
    loss.backward()
    optimizer.step(loss=float(loss.detach()))
    moved = weight.detach() - before
    promised = -float((weight.grad * moved).sum())
    whole = rate * unit * -before.sign()  # Adam's first step
    assert promised <= MAX_PROMISE * float(loss) * (1 + 1e-5)
    torch.testing.assert_close(moved / whole, (moved / whole).mean().expand(3))  # shortened, not turned
    if rate == 0.001:
        torch.testing.assert_close(moved, whole)
