"""Ranges and statistics from calibration data, and the searches that refine them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer, fake_quantize

MOMENTUM = 0.9
PERCENTILE = 0.999
MAX_SAMPLES = 1 << 20  # values that a percentile is taken over; more would cost time, not change it
MAX_SEARCHED = 1 << 16  # values that a search is made over, which quantizes them a hundred times


class MovingAverage:
    """Exponential moving average; the first value sets it."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def update(self, new: Tensor) -> None:
        self.value = new if self.value is None else MOMENTUM * self.value + (1 - MOMENTUM) * new


def minmax_range(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """``[min, max]`` of ``x``, shape ``(2,)``."""
    return torch.stack(torch.aminmax(x))


def percentile_range(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """Range that leaves out the outermost 0.1 % at either end, shape ``(2,)``."""
    values = sampled(x, MAX_SAMPLES)
    return torch.quantile(values, values.new_tensor([1 - PERCENTILE, PERCENTILE]))


def omse_range(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The shrunk ``[min, max]`` of smallest squared error at the quantizer's base bits, shape ``(2,)``."""
    values = sampled(x, MAX_SEARCHED)
    return search_range(values, *minmax_range(x, quantizer), quantizer.bits, quantizer.integer)


def sampled(x: Tensor, count: int) -> Tensor:
    """At most ``count`` values of ``x``, evenly taken."""
    values = x.flatten()
    return values[:: -(-len(values) // count)]


OBSERVERS: dict[str, Callable[[Tensor, ActivationQuantizer], Tensor]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "omse": omse_range,
}


def search_range(
    x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor | int, integer: bool = False, steps: int = 100
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

    Returns:
        ``(2, R)``, or ``(2,)``: lower and upper end of smallest mean squared error; of equals the widest.
    """
    if lower.numel() == 1:
        x, lower, upper = x.reshape(1, -1), lower.reshape(()), upper.reshape(())
    ends = torch.stack([lower, upper])
    best, best_error = ends.clone(), None
    for step in range(steps):
        candidate = ends * (1 - 0.01 * step)
        low, high = candidate.unsqueeze(-1)
        error = (fake_quantize(x, low, high, bits, integer).sub_(x)).square_().mean(-1).reshape(lower.shape)
        if best_error is None:
            best_error = error
        better = error < best_error
        best, best_error = torch.where(better, candidate, best), torch.where(better, error, best_error)
    return best


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
    rows = weight.transpose(0, quantizer.axis).reshape(channels, -1) if channels > 1 else weight.reshape(1, -1)
    if quantizer.integer:  # the largest positive level lies below the end by a 2 ** bits - 1 th of the range
        top = rows.abs().amax(1) * (1 + 1 / (2**bits - 2))
    else:
        top = rows.amax(1)
        top = torch.where(top > 0, top, rows.abs().amax(1))  # the paper takes max(w), which may not be positive
    return search_range(rows, -top, top, bits, quantizer.integer, steps=50)[1].reshape(channels)
