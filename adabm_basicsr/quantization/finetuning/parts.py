"""Runs a batch in parts of one size.

On a CPU it then makes no difference, to the bit, which process runs them. A convolution rounds
otherwise in batches of another size, and a float sum in another order. Where learning rounds
weights and activations, that makes another network of it within a few iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.network import Details

AT_ONCE = 2  # samples; on a CPU more at once aren't faster


def run_in_parts(forward: nn.Module, images: Tensor) -> list[Details]:
    """Details of each part of a batch, ``(B, C, H, W)`` or ``(B, T, C, H, W)``.

    Clips run one by one, as one takes the memory of many images. GPUs run images as a whole.
    """
    parts = [images]
    if images.dim() == CLIP_AXES:
        parts = images.split(1)
    elif images.is_cpu:
        parts = images.split(AT_ONCE)
    # Details by position: DataParallel can't share a keyword among fewer images.
    return [forward(part, True) for part in parts]


def join(parts: Sequence[Details]) -> Details:
    """The whole batch's details.

    They are apart from the graphs of the parts, which `gradients_of` goes through.
    """
    joined = []
    for of_parts in zip(*map(tensors_of, parts), strict=False):
        tensor = of_parts[0]
        if len(of_parts) > 1:
            tensor = torch.cat(of_parts)
        joined.append(tensor.detach().requires_grad_(torch.is_grad_enabled()))
    output, bits, *features = joined
    return Details(output, bits, features)


def gradients_of(
    parts: Sequence[Details], joined: Details, parameters: Sequence[nn.Parameter]
) -> list[Tensor | None]:
    """Gradients of ``parameters``, from those that a loss's backward pass gave ``joined``.

    Args:
        parts: What `run_in_parts` returned.
        joined: What `join` made of them; its gradients are there.
        parameters: Without gradients of their own; they have none afterwards.

    Returns:
        In double precision, which makes the order of the sum insignificant; None for a parameter
        that the loss doesn't depend on.
    """
    sums: list[Tensor | None] = [None] * len(parameters)
    remaining = [tensor.grad for tensor in tensors_of(joined)]
    for part in parts:
        heads = []
        grads = []
        pairs = zip(tensors_of(part), remaining, strict=False)
        for place, (tensor, gradient) in enumerate(pairs):
            if gradient is None:
                continue
            samples = len(tensor)
            remaining[place] = gradient[samples:]
            if tensor.requires_grad:
                heads.append(tensor)
                grads.append(gradient[:samples])
        if heads:
            torch.autograd.backward(heads, grads)
        for place, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.double()
            parameter.grad = None
            earlier = sums[place]
            if earlier is None:
                sums[place] = gradient
            else:
                earlier.add_(gradient)
    return sums


def tensors_of(details: Details) -> tuple[Tensor, ...]:
    """Output, bits and features."""
    return details.output, details.bits, *details.features
