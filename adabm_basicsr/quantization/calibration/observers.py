"""Clipping ranges from calibration data, and the searches that refine them.

An observer says what is kept of the values that a quantizer sees, and which range follows from it.
Searches try ranges that shrink by a hundredth each, and take the one whose rounding errs least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.quantization.config import MIN_BITS
from adabm_basicsr.quantization.distributed import mean_over_processes
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MOMENTUM = 0.9
PERCENTILE = 0.999
# Values that a percentile or a search is made over: 65 lie beyond the percentile then.
MAX_SAMPLES = 1 << 16
# Values that are quantized in one go while searching.
MAX_AT_ONCE = 1 << 21
SHRINK = 0.01  # by which each candidate of a search is narrower, as a share of the widest
ACTIVATION_CANDIDATES = 100
WEIGHT_CANDIDATES = 50
# With four grid points, the best range is often less than half as wide as the largest weight asks
# for. At three bits and more, such narrow ranges lose (docs/ablation.md).
WEIGHT_CANDIDATES_OF_TWO_BITS = 95


def moving_average(values: Sequence[Tensor]) -> Tensor:
    """Exponential moving average over batches: new = 0.1 * batch + 0.9 * old.

    Args:
        values: What was found in each batch, at least one; the first sets the average.

    Returns:
        Shape of a value.
    """
    average = values[0]
    for value in values[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * value
    return average


def extremes(x: Tensor) -> Tensor:
    """Smallest and largest value of ``x``, shape ``(2,)``."""
    return torch.stack(torch.aminmax(x))


def sample(x: Tensor) -> Tensor:
    """At most `MAX_SAMPLES` values of ``x``, evenly taken: ``(N,)``."""
    values = x.flatten()
    spacing = -(-len(values) // MAX_SAMPLES)
    # A copy, as a view would keep all of ``x`` in memory.
    return values[::spacing].clone()


def sample_with_extremes(x: Tensor) -> Tensor:
    """`sample` with the smallest and the largest value, ``(N,)``."""
    return torch.cat([sample(x), extremes(x)])


def minmax_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """``[min, max]``, shape ``(2,)``."""
    return extremes(values)


def percentile_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """Range that leaves out the outermost 0.1 % at either end, shape ``(2,)``."""
    shares = values.new_tensor([1 - PERCENTILE, PERCENTILE])
    return torch.quantile(sample(values), shares)


def omse_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The shrunk ``[min, max]`` of smallest squared error at the base bits, shape ``(2,)``."""
    lower, upper = extremes(values)
    return search_range(sample(values), lower, upper, quantizer.bits, quantizer.integer)


class Observer(NamedTuple):
    """A way to find a clipping range.

    Attributes:
        keep: What is kept of an input, ``(N,)``; a batch may come in parts.
        find_range: ``[lower, upper]`` of a batch, from all that was kept of it and the quantizer.
    """

    keep: Callable[[Tensor], Tensor]
    find_range: Callable[[Tensor, ActivationQuantizer], Tensor]


# By the names that recipes have for observers.
FIND_RANGE = {
    "minmax": Observer(extremes, minmax_range),
    "percentile": Observer(sample, percentile_range),
    "omse": Observer(sample_with_extremes, omse_range),
}


def search_range(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    bits: Tensor | int,
    integer: bool = False,
    candidates: int = ACTIVATION_CANDIDATES,
    shared: bool = False,
) -> Tensor:
    """The range whose quantization of ``x`` errs least, of some that shrink towards zero.

    Candidates are ``[lower, upper] * (1 - 0.01 i)``, ``i = 0 .. candidates - 1``.

    Args:
        x: ``(R, N)``: each row is searched on its own; or a tensor of any shape, all of it one row,
            if the ends are scalars.
        lower: Lower end of each row, ``(R,)``, or scalar.
        upper: Upper end of each row, ``(R,)``, or scalar.
        bits: Bit-width of the quantization.
        integer: Whether zero is a grid point, see `fake_quantize`.
        candidates: Their number, at most 100.
        shared: Whether each process (torch.distributed) has its own part of ``x``, all of one size.

    Returns:
        ``(2, R)``, or ``(2,)``: lower and upper end of smallest mean squared error; of equal ones
        the widest.
    """
    rows = x.reshape(lower.numel(), -1)
    shrink = 1 - SHRINK * torch.arange(candidates, dtype=torch.float64)
    widest = torch.stack([lower.flatten(), upper.flatten()])  # (2, R)
    ranges = widest * shrink.to(x).view(-1, 1, 1)  # (candidates, 2, R)
    at_once = max(MAX_AT_ONCE // x.numel(), 1)
    errors_of_chunks = []
    for chunk in ranges.split(at_once):
        errors_of_chunks.append(_errors(rows, chunk, bits, integer))
    errors = torch.cat(errors_of_chunks)  # (candidates, R)
    if shared:
        errors = mean_over_processes(errors)
    best = errors.argmin(0)  # (R,)
    ends = ranges.gather(0, best.expand(1, 2, -1)).squeeze(0)  # (2, R)
    if lower.numel() > 1:
        return ends
    return ends.squeeze(1)


def _errors(rows: Tensor, ranges: Tensor, bits: Tensor | int, integer: bool) -> Tensor:
    """Mean squared error of each row on each range.

    Args:
        rows: ``(R, N)``.
        ranges: ``(K, 2, R)``.
        bits: Bit-width.
        integer: Whether zero is a grid point.

    Returns:
        ``(K, R)``, in double precision.
    """
    lower, upper = ranges.unsqueeze(-1).unbind(1)  # (K, R, 1) each
    quantized = fake_quantize(rows.unsqueeze(0), lower, upper, bits, integer)
    squares = quantized.sub_(rows).square_()
    return squares.mean(-1, dtype=torch.float64)


def search_weight_range(weight: Tensor, quantizer: WeightQuantizer, bits: int) -> Tensor:
    """OMSE: the symmetric range of a weight whose quantization errs least.

    Candidates for ``upper`` are ``top * (1 - 0.01 i)``, ``i = 0 .. 49``, of integers of two bits
    ``i = 0 .. 94``. The paper's top is max(w). The largest signed integer lies a little below the
    end of the range, so that the top of integer quantizers lies as far beyond max |w|.

    Args:
        weight: Weight of a layer.
        quantizer: Its quantizer, which says whether each output channel has its own range.
        bits: Bits to search for, 2..8.

    Returns:
        Shape of the quantizer's ``upper``.
    """
    channels = len(quantizer.upper)
    if channels > 1:
        rows = weight.transpose(0, quantizer.axis).reshape(channels, -1)
    else:
        rows = weight.reshape(1, -1)
    largest = rows.abs().amax(1)
    candidates = WEIGHT_CANDIDATES
    if quantizer.integer:
        top = largest * (1 + 1 / (2**bits - 2))
        if bits == MIN_BITS:
            candidates = WEIGHT_CANDIDATES_OF_TWO_BITS
    else:
        top = rows.amax(1)
        # Weights without positive values have no such top.
        top = torch.where(top > 0, top, largest)
    ends = search_range(rows, -top, top, bits, quantizer.integer, candidates)
    return ends[1].reshape(channels)
