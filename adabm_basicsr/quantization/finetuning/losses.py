"""Losses of fine-tuning: how far images and block outputs are from those of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adabm_basicsr.quantization.distributed import rank_and_size, sum_over_processes

TINY = 1e-12  # keeps the gradient of a root at zero finite


def _mean_absolute(difference: Tensor) -> Tensor:
    return difference.abs().mean()


def _root_mean_square(difference: Tensor) -> Tensor:
    """Of each sample, averaged: gradients weigh samples alike, however large their errors are."""
    of_sample = tuple(range(1, difference.dim()))
    of_samples = (difference.square().mean(of_sample) + TINY).sqrt()
    # In double precision the mean is the same in any order.
    return of_samples.double().mean()


PIXEL_LOSSES = {"l1": _mean_absolute, "rms": _root_mean_square}


def feature_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    parts: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """How far the outputs of blocks are from those of the teacher.

    mean over blocks and samples of || f / ||f|| - f_t / ||f_t|| ||_2 / B, where ||f|| is the L2
    norm over the whole batch of B samples, that of all processes together.

    Args:
        student: Block outputs f of the quantized network, each ``(B, ...)``.
        teacher: Those of the teacher, f_t.
        parts: Number of parts of the batch whose sums are added in double precision, see
            `run_in_parts`.
        device: Where to put the loss without blocks, the CPU by default.

    Returns:
        Scalar: the mean over this process's samples; 0 without blocks.
    """
    processes = rank_and_size()[1]
    distances = []
    for of_student, of_teacher in zip(student, teacher, strict=False):
        if not of_student.numel():
            # A block that was given nothing to do.
            continue
        distance = _NormalisedDistance.apply(of_student, of_teacher, parts)
        batch_size = processes * len(of_student)
        distances.append(distance.mean() / batch_size)
    if not distances:
        return torch.zeros((), device=device)
    return torch.stack(distances).mean()


class _NormalisedDistance(torch.autograd.Function):
    """L2 distance of each sample between two tensors that are both divided by their norms.

    A few passes over memory instead of a chain of operations. With n the norm of the student f, d
    the difference of the normalised tensors and g the gradient of d, the gradient of f is
    (g - f (g . f) / n^2) / n.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, parts: int) -> Tensor:
        norm = _norm(student, parts)
        normalised_teacher = teacher / _norm(teacher, parts)
        difference = (student / norm).sub_(normalised_teacher)
        distance = difference.flatten(1).norm(dim=1)
        ctx.save_for_backward(student, norm, difference, distance)
        ctx.parts = parts
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        student, norm, difference, distance = ctx.saved_tensors
        # Equal features have no direction.
        weight = torch.where(distance > 0, grad / distance, 0)
        of_difference = difference * weight.view(-1, *[1] * (student.dim() - 1))
        along = _dot(of_difference, student, ctx.parts) / norm**2
        of_student = of_difference.addcmul_(student, -along).div_(norm)
        return of_student, None, None


def _norm(values: Tensor, parts: int) -> Tensor:
    """L2 norm over the batches of all processes, to divide by: 1 for features that are all zero."""
    squares = torch.stack([part.norm().double() ** 2 for part in values.chunk(parts)])
    total = sum_over_processes(squares.sum())
    norm = total.sqrt().to(values)
    return torch.where(norm > 0, norm, 1)


def _dot(first: Tensor, second: Tensor, parts: int) -> Tensor:
    """Sum of products over the batches of all processes."""
    products = []
    for a, b in zip(first.chunk(parts), second.chunk(parts), strict=True):
        products.append(torch.dot(a.flatten(), b.flatten()).double())
    total = sum_over_processes(torch.stack(products).sum())
    return total.to(first)
