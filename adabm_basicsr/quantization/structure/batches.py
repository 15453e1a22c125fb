"""Finds layers that don't work on a batch image by image, and so can't have bits of each image.

A layer on a table of positions, say, sees the same whatever the images are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.structure.preparation import copy_of
from adabm_basicsr.quantization.structure.tracing import trace_network

# Relative; the same rows of batches of one size come out alike, to the bit on CPUs.
TOLERANCE = 1e-3
# Of the largest value.
ABSOLUTE_TOLERANCE = 1e-6


def find_unbatched(network: nn.Module, example: Tensor) -> set[str]:
    """Names of layers and products whose input isn't the images of a batch one after another.

    What is found doesn't depend on weights: the layers of a checkpoint are those of the network
    that it is loaded into.

    Args:
        network: The network; left as it was.
        example: An input of it, ``(1, C, H, W)``; the network runs on one image of this shape, and
            twice on batches of two.

    Returns:
        Those whose input isn't twice as long for two images, or begins otherwise if the second
        image is another.

    Raises:
        AdaBMError: The network only takes one image at a time.
    """
    network = copy_of(network)
    _fill_zeros(network)
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(example.shape, generator=generator).to(example)
    second = torch.rand(example.shape, generator=generator).to(example)
    third = torch.rand(example.shape, generator=generator).to(example)
    alone = _inputs(network, first)
    with_second = _inputs(network, torch.cat([first, second]))
    with_third = _inputs(network, torch.cat([first, third]))

    unbatched = set()
    for name in {*alone, *with_second, *with_third}:
        if not _follows_batch(alone[name], with_second[name], with_third[name]):
            unbatched.add(name)
    return unbatched


@torch.no_grad()
def _fill_zeros(network: nn.Module) -> None:
    """Fill parameters that are zero throughout, behind which all images would look alike."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.is_meta and not parameter.any():
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))


def _inputs(network: nn.Module, images: Tensor) -> Mapping[str, list[Tensor]]:
    """What each layer and product took; what networks add at random is the same each time."""
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):
        if images.is_cuda:
            torch.cuda.manual_seed(0)
        else:
            torch.default_generator.manual_seed(0)
        return trace_network(network, images).inputs


def _follows_batch(
    alone: Sequence[Tensor], with_second: Sequence[Tensor], with_third: Sequence[Tensor]
) -> bool:
    """Whether all inputs of a layer, one for each call, hold the images one after another."""
    if not len(alone) == len(with_second) == len(with_third):
        return False
    for single, second, third in zip(alone, with_second, with_third, strict=True):
        if not _begin_alike(second, third, length=len(single)):
            return False
    return True


def _begin_alike(one: Tensor, other: Tensor, length: int) -> bool:
    """Whether both are twice as long as ``length``, with a first half that is the same."""
    if not len(one) == len(other) == 2 * length:
        return False
    if one.is_meta or not one.numel():
        return True
    largest = float(other.nan_to_num().abs().max())
    return torch.allclose(
        one[:length],
        other[:length],
        rtol=TOLERANCE,
        atol=ABSOLUTE_TOLERANCE * largest,
        equal_nan=True,
    )
