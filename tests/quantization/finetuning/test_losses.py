"""Losses of fine-tuning."""

import torch

from adabm_basicsr.quantization.finetuning.losses import feature_loss


def test_feature_loss_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    student = [torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    teacher = [s.detach() + 0.1 * torch.randn_like(s) for s in student]
    distances = []
    for s, t in zip(student, teacher, strict=True):
        difference = s / s.norm() - t / t.norm()
        distances.append(difference.flatten(1).norm(dim=1).mean() / 2)
    expected = torch.stack(distances).mean()
    found = feature_loss(student, teacher)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, student))


def test_equal_features_have_no_loss_and_no_gradient():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = feature_loss([student], [student.detach()])
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_a_sample_without_features_gives_a_finite_gradient():
    student = torch.randn(2, 3, 4, 4)
    student[0] = 0
    student.requires_grad_()
    (1000 * feature_loss([student], [student.detach() * torch.rand(2, 3, 4, 4)])).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[1].any()


def test_features_that_are_all_zero_have_a_loss():
    student, zeros = torch.rand(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 3, 4, 4)
    assert feature_loss([zeros], [zeros]).item() == 0
    assert feature_loss([zeros], [student.detach()]).isfinite()
    loss = feature_loss([student], [zeros])
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
