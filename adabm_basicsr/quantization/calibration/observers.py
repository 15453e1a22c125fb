"""Ranges and statistics from calibration data, and the searches that refine them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adabm_basicsr.quantization.distributed import mean_over_processes
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MOMENTUM = 0.9
PERCENTILE = 0.999
MAX_SAMPLES = (
    1 << 16
)  # values that a percentile or a search is made over: 65 lie beyond the percentile then
MAX_AT_ONCE = 1 << 21  # values that are quantized in one go while searching


class MovingAverage:
    """Exponential moving average; the first value sets it."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def update(self, new: Tensor) -> None:
        """Take in the value of another batch."""
        self.value = new if self.value is None else MOMENTUM * self.value + (1 - MOMENTUM) * new


def extremes(x: Tensor) -> Tensor:
    """Smallest and largest value of ``x``, shape ``(2,)``."""
    return torch.stack(torch.aminmax(x))


def sample(x: Tensor) -> Tensor:
    """At most `MAX_SAMPLES` values of ``x``, evenly taken: ``(N,)``."""
    values = x.flatten()
    return values[
        :: -(-len(values) // MAX_SAMPLES)
    ].clone()  # a part of it would keep all of ``x`` in memory


def sample_with_extremes(x: Tensor) -> Tensor:
    """`sample` with the smallest and the largest value, ``(N,)``."""
    return torch.cat([sample(x), extremes(x)])


def minmax_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """``[min, max]``, shape ``(2,)``."""
    return extremes(values)


def percentile_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """Range that leaves out the outermost 0.1 % at either end, shape ``(2,)``."""
    return torch.quantile(sample(values), values.new_tensor([1 - PERCENTILE, PERCENTILE]))


def omse_range(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The shrunk ``[min, max]`` of smallest squared error at the quantizer's base bits, shape ``(2,)``."""
    return search_range(sample(values), *extremes(values), quantizer.bits, quantizer.integer)


class Observer(NamedTuple):
    """A way to find a clipping range.

    Attributes:
        keep: What is kept of an input, ``(N,)``; a batch may come in parts.
        find_range: ``[lower, upper]`` of a batch, from all that was kept of it and the quantizer.
    """

    keep: Callable[[Tensor], Tensor]
    find_range: Callable[[Tensor, ActivationQuantizer], Tensor]


OBSERVERS = {
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
    steps: int = 100,
    shared: bool = False,
) -> Tensor:
    """Of ``[lower, upper] * (1 - 0.01 i)``, ``i = 0..steps - 1``, the range whose quantization of ``x`` errs least.

    Args:
        x: ``(R, N)``: each row is searched on its own; or a tensor of any shape, all of it one row, if the ends are
            scalars.
        lower: Lower end of each row, ``(R,)``, or scalar.
        upper: Upper end of each row, ``(R,)``, or scalar.
        bits: Bit-width of the quantization.
        integer: Whether zero is one of the levels, see `fake_quantize`.
        steps: Number of candidates, at most 100.
        shared: Whether each process (torch.distributed) has its own part of ``x``, all of one size.

    Returns:
        ``(2, R)``, or ``(2,)``: lower and upper end of smallest mean squared error; of equals the widest.
    """
    rows = x.reshape(lower.numel(), -1)
    shrink = 1 - 0.01 * torch.arange(steps, dtype=torch.float64)
    candidates = torch.stack([lower.flatten(), upper.flatten()]) * shrink.to(x).view(-1, 1, 1)
    errors = [
        _errors(rows, chunk, bits, integer)
        for chunk in candidates.split(max(MAX_AT_ONCE // x.numel(), 1))
    ]
    errors = torch.cat(errors)
    best = (mean_over_processes(errors) if shared else errors).argmin(0)  # (R,)
    ends = candidates.gather(0, best.expand(1, 2, -1)).squeeze(0)
    return ends if lower.numel() > 1 else ends.squeeze(1)


def _errors(rows: Tensor, candidates: Tensor, bits: Tensor | int, integer: bool) -> Tensor:
    """Mean squared error of each row, ``(R, N)``, at each of the candidates, ``(K, 2, R)``: ``(K, R)``."""
    low, high = candidates.unsqueeze(-1).unbind(1)
    return (
        fake_quantize(rows.unsqueeze(0), low, high, bits, integer)
        .sub_(rows)
        .square_()
        .mean(-1, dtype=torch.float64)
    )


def search_weight_range(weight: Tensor, quantizer: WeightQuantizer, bits: int) -> Tensor:
    """OMSE: of ``top * (1 - 0.01 i)``, ``i = 0..49``, the symmetric range of smallest squared error at ``bits`` bits.

    Args:
        weight: Weight of a layer.
        quantizer: Its quantizer, which tells whether each output channel has its own range.
        bits: Bits to search for, 2..8.

    Returns:
        Shape of the quantizer's ``upper``.
    """
    channels = len(quantizer.upper)
    rows = (
        weight.transpose(0, quantizer.axis).reshape(channels, -1)
        if channels > 1
        else weight.reshape(1, -1)
    )
    if (
        quantizer.integer
    ):  # the largest positive level lies below the end by a 2 ** bits - 1 th of the range
        top = rows.abs().amax(1) * (1 + 1 / (2**bits - 2))
    else:
        top = rows.amax(1)
        top = torch.where(
            top > 0, top, rows.abs().amax(1)
        )  # the paper takes max(w), which may not be positive
    return search_range(rows, -top, top, bits, quantizer.integer, steps=50)[1].reshape(channels)
