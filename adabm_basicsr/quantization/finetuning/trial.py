"""Tries out whether a network can be fine-tuned, before it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.finetuning.parts import gradients_of, join
from adabm_basicsr.quantization.gradients import (
    gradients_of_overwritten,
    gradients_work,
    nothing_recomputed,
)
from adabm_basicsr.quantization.network import QuantizedNetwork


def can_finetune(
    net: QuantizedNetwork, phases: Sequence[Sequence[nn.Parameter]], images: Tensor
) -> bool:
    """Whether gradients reach what some phase trains; a warning says why not.

    Args:
        net: A calibrated network; left as it was.
        phases: Parameters that each phase trains.
        images: LR patches, ``(B, C, H, W)`` in 0..1; the first is run, once for each phase.
    """
    required = {parameter: parameter.requires_grad for parameter in net.parameters()}

    def attempt() -> bool:
        reached = False
        for parameters in phases:
            for parameter in required:
                parameter.requires_grad_(False)
            for parameter in parameters:
                parameter.requires_grad_(True)
            if _reaches(net, parameters, images[:1]):
                reached = True
        return reached

    try:
        return gradients_work(net, attempt, "it isn't fine-tuned, and stays as calibration left it")
    finally:
        for parameter, was_required in required.items():
            parameter.requires_grad_(was_required)


@torch.enable_grad()
def _reaches(net: QuantizedNetwork, parameters: Sequence[nn.Parameter], image: Tensor) -> bool:
    """Whether the output has a gradient to any of ``parameters``."""
    with gradients_of_overwritten(net):
        parts = [net(image, True)]
        joined = join(parts)
        total = joined.output.sum()
        for feature in joined.features:
            total = total + feature.sum()
        total.backward()
        with nothing_recomputed(net):
            gradients = gradients_of(parts, joined, parameters)
    return any(gradient is not None for gradient in gradients)
