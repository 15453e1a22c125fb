"""How many bits a network may use on average: as many as were asked for, or as a target takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.allocation import Sensitivities, assign, base_bits
from adabm_basicsr.quantization.calibration.quality import Goal
from adabm_basicsr.quantization.measures.cost import cost_of, size_bytes
from adabm_basicsr.quantization.network import QuantizedNetwork

LEAST = 2.0
MOST = 8.0
GRAIN = 8  # means are tried in eighths of a bit
DB_PER_BIT = 6.02
CLOSE = 0.75  # dB above a target that are not worth another try
FIRST_TRY = 5.0  # where sensitivities don't tell
MAX_TRIES = 6


def budgets(
    net: QuantizedNetwork, found: Sensitivities, images: Tensor, goal: Goal | None
) -> Iterator[tuple[float, float]]:
    """Mean bits of inputs and weights to quantize ``net`` with, one pair after the other.

    The last one stays.

    Args:
        net: The network; what is yielded is to be assigned and calibrated before the next is asked
            for.
        found: Its sensitivities.
        images: LR images that costs are measured on, ``(B, C, H, W)`` in 0..1.
        goal: The quality that was asked for; None without a target of quality.

    Raises:
        AdaBMError: A target of cost is out of reach. Of quality the nearest is yielded.
    """
    target = net.config.target
    if goal is not None:
        yield from _until_close(net, found, goal)
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


def cost_share(net: QuantizedNetwork, kind: str, images: Tensor) -> float:
    """What the network costs at the bits it has, as a share of full precision.

    Args:
        net: A calibrated network.
        kind: ``bitops`` or ``size``.
        images: LR images that bits are counted on, ``(B, C, H, W)`` in 0..1.
    """
    if kind == "size":
        return size_bytes(net) / net.full_precision_bytes()
    cost = cost_of(net, images)
    return cost.bitops / cost.float_bitops


def _first_try(net: QuantizedNetwork, found: Sensitivities, wanted: float) -> float:
    """Mean bits that a self-PSNR in dB takes, as far as sensitivities tell.

    Errors of activations add up. Those of weights, whose roundings make up for one another, are
    smaller at as many bits.
    """
    error = 0.0
    for activation in net.activation_quantizers().values():
        error += found.errors[activation]
    if not error:
        return FIRST_TRY
    psnr = -10 * math.log10(error / found.values)
    return _in_range(base_bits(net) + (wanted - psnr) / DB_PER_BIT)


def _in_range(mean: float) -> float:
    """Mean bits that may be used: rounded up to an eighth of a bit."""
    return min(max(math.ceil(mean * GRAIN) / GRAIN, LEAST), MOST)


def _until_close(
    net: QuantizedNetwork, found: Sensitivities, goal: Goal
) -> Iterator[tuple[float, float]]:
    """Mean bits that come closer to a quality, try by try; the most where none reaches it.

    Once layers are kept in float, because the most didn't reach it, the others have the most.
    """
    if net.kept_in_float:
        yield MOST, MOST
        return
    mean = _first_try(net, found, goal.self_psnr(net))
    missing = {}
    for _ in range(MAX_TRIES):
        yield mean, mean
        missing[mean] = goal.missing(net)
        if -CLOSE <= missing[mean] <= 0:
            return
        mean = _in_range(mean + missing[mean] / DB_PER_BIT)
        if mean in missing:
            break
    enough = [tried for tried, short in missing.items() if short <= 0]
    last = min(enough, default=MOST)
    if last != list(missing)[-1]:
        yield last, last
