"""Ranges and statistics from calibration data, and the searches that refine them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adabm_basicsr.quantization.adaptive import fake_quantize

MOMENTUM = 0.9
PERCENTILE = 0.999
MAX_SAMPLES = 1 << 20  # values that a percentile or search is taken over; more would cost time, not change it


class MovingAverage:
    """Exponential moving average; the first value sets it."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def update(self, new: Tensor) -> None:
        self.value = new if self.value is None else MOMENTUM * self.value + (1 - MOMENTUM) * new


def minmax_range(x: Tensor, bits: int) -> Tensor:
    """``[min, max]`` of ``x``, shape ``(2,)``."""
    return torch.stack(torch.aminmax(x))


def percentile_range(x: Tensor, bits: int) -> Tensor:
    """Range that leaves out the outermost 0.1 % at either end, shape ``(2,)``."""
    values = _sampled(x)
    return torch.quantile(values, values.new_tensor([1 - PERCENTILE, PERCENTILE]))


def omse_range(x: Tensor, bits: int) -> Tensor:
    """The shrunk ``[min, max]`` of smallest squared error at ``bits`` bits, shape ``(2,)``."""
    return search_range(_sampled(x), *minmax_range(x, bits), bits)


def _sampled(x: Tensor) -> Tensor:
    values = x.flatten()
    return values[:: -(-len(values) // MAX_SAMPLES)]


OBSERVERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "omse": omse_range,
}


def search_range(x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor | int, steps: int = 100) -> Tensor:
    """Of ``[lower, upper] * (1 - 0.01 i)``, ``i = 0..steps - 1``, the range whose quantization of ``x`` errs least.

    Args:
        x: Tensor of any shape.
        lower: Scalar tensor.
        upper: Scalar tensor.
        bits: Bit-width of the quantization.
        steps: Number of candidates, at most 100.

    Returns:
        ``(2,)``: lower and upper end of smallest mean squared error; of equals the widest.
    """
    shrink = x.new_tensor([1 - 0.01 * step for step in range(steps)])
    candidates = torch.stack([lower.reshape(()), upper.reshape(())]) * shrink.unsqueeze(1)
    errors = torch.stack([(fake_quantize(x, *ends, bits).sub_(x)).square_().mean() for ends in candidates])
    return candidates[errors.argmin()]


def search_weight_range(weight: Tensor, bits: int) -> Tensor:
    """OMSE: of ``max(w) * (1 - 0.01 i)``, ``i = 0..49``, the symmetric range of smallest squared error; ``(1,)``."""
    top = weight.max()
    top = top if top > 0 else weight.abs().max()  # the paper takes max(w); a weight without positive values has none
    return search_range(weight, -top, top, bits, steps=50)[1:]
