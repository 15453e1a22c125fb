"""Finds what doesn't follow a batch sample by sample, and so can't have bits of each image, as tables of positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.tracing import trace_network

TOLERANCE = 1e-3  # of the largest value; what batches of another size may change in float32


def find_unbatched(network: nn.Module, example: Tensor) -> set[str]:
    """Names of layers and products whose input doesn't hold the images of a batch one after another.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)``, as small as it takes.

    Returns:
        Those whose input for a second image beside the example doesn't begin with the example's own, or isn't twice
        as long.

    Raises:
        AdaBMError: The network only takes one image at a time.
    """
    other = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    alone, together = (trace_network(network, images).inputs for images in (example, torch.cat([example, other])))
    return {name for name, inputs in alone.items() if not _follow_samples(inputs, together[name])}


def _follow_samples(alone: list[Tensor], together: list[Tensor]) -> bool:
    return len(alone) == len(together) and all(map(_begins_with, together, alone))


def _begins_with(together: Tensor, alone: Tensor) -> bool:
    if len(together) != 2 * len(alone):
        return False
    error = (together[: len(alone)] - alone).abs().max()
    return alone.is_meta or bool(error <= TOLERANCE * alone.abs().max())
