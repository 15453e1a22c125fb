"""Runs a batch in parts of one size, so that on a CPU it makes no difference, to the bit, which process runs them.

A convolution rounds otherwise in batches of another size, and a float sum in another order. Where learning rounds
weights and activations, that makes another network of it within a few steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.network import Details

AT_ONCE = 2  # samples; on a CPU more at once aren't faster


def run_in_parts(forward: nn.Module, images: Tensor) -> list[Details]:
    """Details of each part of a batch, ``(B, C, H, W)``; GPUs run it as a whole."""
    parts = [images] if images.is_cuda else images.split(AT_ONCE)
    return [
        forward(part, True) for part in parts
    ]  # by position: DataParallel can't share a keyword among fewer images


def join(parts: Sequence[Details]) -> Details:
    """The batch's details, apart from the graphs of its parts, which `gradients_of` goes through."""
    joined = [
        tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        for tensors in zip(*map(tensors_of, parts))
    ]
    output, bits, *features = (
        tensor.detach().requires_grad_(torch.is_grad_enabled()) for tensor in joined
    )
    return Details(output, bits, features)


def gradients_of(
    parts: Sequence[Details], joined: Details, parameters: Sequence[nn.Parameter]
) -> list[Tensor | None]:
    """Gradients of ``parameters``, in double precision, from those that a loss's backward pass gave ``joined``.

    None for a parameter that the loss doesn't depend on. Double precision makes the order of the sum insignificant.
    """
    sums: list[Tensor | None] = [None] * len(parameters)
    arrived = [tensor.grad for tensor in tensors_of(joined)]
    for part in parts:
        tensors = tensors_of(part)
        heads = [
            None if grad is None else grad[: len(tensor)] for tensor, grad in zip(tensors, arrived)
        ]
        arrived = [
            None if grad is None else grad[len(tensor) :] for tensor, grad in zip(tensors, arrived)
        ]
        pairs = [
            (t, head) for t, head in zip(tensors, heads) if head is not None and t.requires_grad
        ]
        if pairs:
            torch.autograd.backward(*zip(*pairs))
        for place, parameter in enumerate(parameters):
            if parameter.grad is not None:
                found, parameter.grad = parameter.grad.double(), None
                sums[place] = found if sums[place] is None else sums[place].add_(found)
    return sums


def tensors_of(details: Details) -> tuple[Tensor, ...]:
    """Output, bits and features."""
    return details.output, details.bits, *details.features
