"""Finds what doesn't follow a batch sample by sample, and so can't have bits of each image, as tables of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.structure.preparation import copy_of
from adabm_basicsr.quantization.structure.tracing import trace_network

TOLERANCE = (
    1e-3  # relative; the same rows of batches of one size come out alike, to the bit on CPUs
)


def find_unbatched(network: nn.Module, example: Tensor) -> set[str]:
    """Names of layers and products whose input doesn't hold the images of a batch one after another.

    What is found doesn't depend on weights: the layers of a checkpoint are those of the network that it is loaded into.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)``; it is run alone, and twice in batches of two.

    Returns:
        Those whose input isn't twice as long for two images, or begins otherwise if the second of them is another.

    Raises:
        AdaBMError: The network only takes one image at a time.
    """
    network, generator = _without_zeros(copy_of(network)), torch.Generator().manual_seed(0)
    first, *others = (torch.rand(example.shape, generator=generator).to(example) for _ in range(3))
    alone, one, other = (
        _inputs(network, images) for images in (first, *(torch.cat([first, x]) for x in others))
    )
    return {
        name
        for name in {*alone, *one, *other}
        if not _follow_samples(alone[name], one[name], other[name])
    }


@torch.no_grad()
def _without_zeros(network: nn.Module) -> nn.Module:
    """Fill parameters that are zero throughout, behind which nothing would tell images apart."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.is_meta and not parameter.any():
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    return network


def _inputs(network: nn.Module, images: Tensor) -> Mapping[str, list[Tensor]]:
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        generator = torch.cuda if images.is_cuda else torch.default_generator
        generator.manual_seed(0)  # what networks add at random is the same each time
        return trace_network(network, images).inputs


def _follow_samples(
    alone: Sequence[Tensor], one: Sequence[Tensor], other: Sequence[Tensor]
) -> bool:
    calls = zip(alone, one, other)
    return len(alone) == len(one) == len(other) and all(
        _begin_alike(len(a), x, y) for a, x, y in calls
    )


def _begin_alike(length: int, one: Tensor, other: Tensor) -> bool:
    """Whether both are twice as long, with a first half that is the same."""
    if not len(one) == len(other) == 2 * length:
        return False
    if one.is_meta or not one.numel():
        return True
    scale = float(other.nan_to_num().abs().max())
    return torch.allclose(
        one[:length], other[:length], rtol=TOLERANCE, atol=1e-6 * scale, equal_nan=True
    )
