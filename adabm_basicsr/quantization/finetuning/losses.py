"""Losses of fine-tuning: how far a quantized network's images and block outputs are from full precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adabm_basicsr.quantization.distributed import rank_and_size, sum_over_processes

TINY = 1e-12  # keeps the gradient of a root at zero finite


def _mean_absolute(difference: Tensor) -> Tensor:
    return difference.abs().mean()


def _root_mean_square(difference: Tensor) -> Tensor:
    """Of each sample, averaged: gradients weigh samples alike, however large their errors are."""
    return (
        (difference.square().mean((1, 2, 3)) + TINY).sqrt().double().mean()
    )  # in any order the same


PIXEL_LOSSES = {"l1": _mean_absolute, "rms": _root_mean_square}


def feature_loss(student: list[Tensor], teacher: list[Tensor], parts: int = 1) -> Tensor:
    """Distance of block outputs, each divided by its L2 norm over the whole batch, that of all processes together.

    Args:
        student: Block outputs of the quantized network, each ``(B, ...)``.
        teacher: Those of the full-precision network.
        parts: Number of parts of the batch whose sums are added in double precision, see `run_in_parts`.

    Returns:
        Scalar: mean over blocks and this process's samples of the L2 distance, divided by the batch size; 0 without
        blocks.
    """
    processes = rank_and_size()[1]
    pairs = [
        pair for pair in zip(student, teacher) if pair[0].numel()
    ]  # a block may have been given nothing to do
    distances = [
        _NormalisedDistance.apply(*pair, parts).mean() / (processes * len(pair[0]))
        for pair in pairs
    ]
    return torch.stack(distances).mean() if distances else torch.zeros(())


class _NormalisedDistance(torch.autograd.Function):
    """L2 distance of each sample between two tensors, both divided by their norms: a few passes instead of a chain."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, parts: int) -> Tensor:
        norm = _norm(student, parts)
        difference = (student / norm).sub_(teacher / _norm(teacher, parts))
        distance = difference.flatten(1).norm(dim=1)
        ctx.save_for_backward(student, norm, difference, distance)
        ctx.parts = parts
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        student, norm, difference, distance = ctx.saved_tensors
        weight = torch.where(distance > 0, grad / distance, 0)  # equal features have no direction
        of_normalised = difference * weight.view(-1, *[1] * (student.dim() - 1))
        along = _dot(of_normalised, student, ctx.parts) / norm**2
        return of_normalised.addcmul_(student, -along).div_(norm), None, None


def _norm(values: Tensor, parts: int) -> Tensor:
    """L2 norm over the batches of all processes, to divide by: 1 for features that are all zero."""
    squares = torch.stack([part.norm().double() ** 2 for part in values.chunk(parts)])
    norm = sum_over_processes(squares.sum()).sqrt().to(values)
    return torch.where(norm > 0, norm, 1)


def _dot(first: Tensor, second: Tensor, parts: int) -> Tensor:
    """Sum of products over the batches of all processes."""
    pairs = zip(first.chunk(parts), second.chunk(parts))
    products = torch.stack([torch.dot(f.flatten(), s.flatten()).double() for f, s in pairs])
    return sum_over_processes(products.sum()).to(first)
