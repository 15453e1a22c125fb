"""How many bits a network may use on average: as many as were asked for, or as a target takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.allocation import Sensitivities, assign, base_bits
from adabm_basicsr.quantization.measures.cost import CostMeter, size_bytes
from adabm_basicsr.quantization.measures.psnr import self_psnr
from adabm_basicsr.quantization.network import QuantizedNetwork

LEAST = 2.0
MOST = 8.0
GRAIN = 8  # means are tried in eighths of a bit
DB_PER_BIT = 6.02
CLOSE = 0.75  # dB above a target that are not worth another try
FIRST_TRY = 5.0
MAX_TRIES = 6


def budgets(
    net: QuantizedNetwork, found: Sensitivities, images: Tensor
) -> Iterator[tuple[float, float]]:
    """Mean bits of inputs and weights to quantize ``net`` with, one pair after the other.

    The last one stays.

    Args:
        net: The network; what is yielded is to be assigned and calibrated before the next is asked
            for.
        found: Its sensitivities.
        images: LR images that a target is measured on, ``(B, C, H, W)`` in 0..1.

    Raises:
        AdaBMError: The target is out of reach.
    """
    target = net.config.target
    if "self_psnr" in target:
        yield from _until_close(net, target["self_psnr"], images)
    elif target:
        mean = _largest_within(net, found, target, images)
        yield mean, mean
    else:
        yield base_bits(net), float(net.config.w_bits)


def _largest_within(
    net: QuantizedNetwork, found: Sensitivities, target: Mapping[str, float], images: Tensor
) -> float:
    """The most mean bits at which a cost stays within its target, found by halving."""
    [(kind, wanted)] = target.items()
    shares = {}
    low = int(LEAST * GRAIN)
    high = int(MOST * GRAIN)
    while low <= high:
        middle = (low + high) // 2
        mean = middle / GRAIN
        assign(net, found, mean, mean)
        shares[middle] = cost_share(net, kind, images)
        if shares[middle] <= wanted:
            low = middle + 1
        else:
            high = middle - 1
    if high not in shares or shares[high] > wanted:
        least = min(shares.values())
        raise AdaBMError(
            f"target: {kind}: {wanted} is out of reach: at {LEAST:g} bits the share is {least:.3f}"
        )
    return high / GRAIN


@torch.no_grad()
def cost_share(net: QuantizedNetwork, kind: str, images: Tensor) -> float:
    """What the network costs at the bits it has, as a share of full precision.

    Args:
        net: A calibrated network.
        kind: ``bitops`` or ``size``.
        images: LR images that bits are counted on, ``(B, C, H, W)`` in 0..1.
    """
    if kind == "size":
        return size_bytes(net) / net.full_precision_bytes()
    with CostMeter(net) as meter:
        net(images)
        cost = meter.read()
    return cost.bitops / cost.float_bitops


def _until_close(
    net: QuantizedNetwork, wanted: float, images: Tensor
) -> Iterator[tuple[float, float]]:
    """Mean bits that come closer to a self-PSNR in dB, try by try."""
    mean = FIRST_TRY
    reached = {}
    for _ in range(MAX_TRIES):
        yield mean, mean
        reached[mean] = self_psnr(net, images)
        missing = wanted - reached[mean]
        if -CLOSE <= missing <= 0:
            return
        # Rounded up to an eighth of a bit.
        eighths = -(-missing * GRAIN // DB_PER_BIT)
        mean = min(max(mean + eighths / GRAIN, LEAST), MOST)
        if mean in reached:
            break
    enough = [tried for tried, psnr in reached.items() if psnr >= wanted]
    if not enough:
        best = max(reached.values())
        raise AdaBMError(
            f"target: self_psnr: {wanted} is out of reach: up to {max(reached):g} bits gave "
            f"{best:.2f} dB"
        )
    last_tried = list(reached)[-1]
    if min(enough) != last_tried:
        yield min(enough), min(enough)
