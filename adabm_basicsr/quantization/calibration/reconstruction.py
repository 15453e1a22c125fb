"""Makes each layer's output, rather than its input and weight, come out right after quantization.

Two steps, from calibration data alone: the clipping range is searched for the smallest error of the layer's output, and
weights are rounded one after the other, each rounding error passed on to those that are still to be rounded (GPTQ,
arXiv 2210.17323). What each input channel has for itself is set before; see `equalisation`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adabm_basicsr.quantization.calibration.equalisation import shifts_of_columns
from adabm_basicsr.quantization.calibration.visits import visit_in_order
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.layers.base import spacing
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, shifted
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MAX_COLUMNS = 1 << 13  # positions that a layer is reconstructed on
MAX_SEARCHED_COLUMNS = 1 << 10
SHRINKS = [1 - 0.06 * step for step in range(13)]
# Clipping errs one way and adds up over layers and images, rounding averages out: one layer's search clips too much.
MARGIN = 1.2
HEADROOM = 1.1  # of 8-bit ranges above what these images need
DAMPING = 0.01  # of the mean squared input, keeps the rounding of rarely used inputs tame
BLOCK = 64  # weights whose errors are passed on at once
Quantize = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # of columns, on a range from lower to upper end


@torch.no_grad()
def reconstruct(net: QuantizedNetwork, images: Tensor, rounding: bool = True) -> None:
    """Fit clipping ranges and rounding of all layers, in execution order, each on its already quantized input.

    Args:
        net: A network whose ranges are calibrated; changed in place.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1.
        rounding: Whether to fit the rounding of weights too.
    """
    layers = [layer for layer in net.layers().values() if isinstance(layer, QuantizedLayer)]

    def fit(layer: QuantizedLayer, x: Tensor) -> None:
        with (
            torch._C.DisableTorchFunction()
        ):  # the products in it aren't the network's, though it may quantize its own
            _fit(layer, x, rounding)

    visit_in_order(
        net, layers, images, fit, "Rounding of layers" if rounding else "Ranges of layers"
    )


def _fit(layer: QuantizedLayer, x: Tensor, rounding: bool) -> None:
    if not x.numel():  # a selection of which nothing was taken
        return
    activation, weight = layer.input_quantizer, layer.weight_quantizer
    scale = getattr(activation, "channel_scale", None)
    of_input, of_weight = (1.0, 1.0) if scale is None else layer.channel_views(scale.flatten())
    columns = layer.columns(x / of_input, MAX_COLUMNS if rounding else 2 * MAX_SEARCHED_COLUMNS)
    if columns is None:
        return
    rows = (layer.weight * of_weight).reshape(len(columns), -1, columns.shape[1])
    if isinstance(activation, ActivationQuantizer):
        columns = _fit_input(activation, rows, columns, shifts_of_columns(layer, columns))
    if rounding and isinstance(weight, WeightQuantizer):
        steps = weight.scale.expand(rows.shape[0] * rows.shape[1]).view(len(rows), -1, 1)
        rounded = round_compensated(
            rows, columns @ columns.transpose(1, 2), steps, weight.bits, weight.lowest
        )
        weight.correction.copy_(rounded.view_as(layer.weight) / of_weight - layer.weight)


def _fit_input(
    quantizer: ActivationQuantizer, rows: Tensor, columns: Tensor, shifts: Tensor
) -> Tensor:
    """Fit the ranges of a layer's input to the error of its output; returns the quantized ``columns``."""

    def quantize(values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        bits = quantizer.clamped_bits_of_layer()
        return fake_quantize(values, *shifted(lower, upper, shifts), bits, quantizer.integer)

    levels = _levels(quantizer, columns)
    _fit_ranges(quantizer, rows, columns, levels, quantize)
    factors = 1.0 if levels is None else quantizer.level_ranges[levels + 1]
    return quantize(columns, quantizer.lower * factors, quantizer.upper * factors)


def _levels(quantizer: ActivationQuantizer, columns: Tensor) -> Tensor | None:
    """Level of the image of each column, ``(N,)``; None where all levels share a range."""
    if quantizer.level_ranges is None or quantizer.image_factor is None:
        return None
    levels = quantizer.image_factor.detach().long()
    return levels.repeat_interleave(columns.shape[-1] // len(levels))


def _fit_ranges(
    quantizer: ActivationQuantizer,
    rows: Tensor,
    columns: Tensor,
    levels: Tensor | None,
    quantize: Quantize,
) -> None:
    """Shrink the range to where the layer's output errs least, on images of each level for itself."""
    whole = quantizer.lower.clone(), quantizer.upper.clone()
    common = columns if levels is None else columns[..., levels < 1]
    shrink = _shrink(quantizer, whole, rows, common if common.shape[-1] else columns, quantize)
    quantizer.lower.mul_(shrink)
    quantizer.upper.mul_(shrink)
    if levels is not None and (levels == 1).any():
        quantizer.level_ranges[2] = (
            _shrink(quantizer, whole, rows, columns[..., levels == 1], quantize) / shrink
        )


def _shrink(
    quantizer: ActivationQuantizer, ends: tuple[Tensor, Tensor], rows, columns, quantize: Quantize
) -> float:
    """Factor on the range; at 8 bits only as far as nothing is clipped.

    There clipping gains little on these images, and loses more on others whose rare values lie outside.
    """
    if quantizer.clamped_bits_of_layer() < FIXED_BITS:
        return MARGIN * _best_shrink(ends, rows, columns, quantize)
    used = [
        float(end / of_range)
        for end, of_range in zip(torch.aminmax(columns), ends)
        if of_range != 0
    ]
    return (
        min(max(used, default=1.0) * HEADROOM, 1.0) if quantizer.level_ranges is not None else 1.0
    )


def _best_shrink(
    ends: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor, quantize: Quantize
) -> float:
    columns, errors = columns[..., :: spacing(columns.shape[-1], MAX_SEARCHED_COLUMNS)], []
    for shrink in SHRINKS:
        quantized = quantize(columns, ends[0] * shrink, ends[1] * shrink)
        errors.append((rows @ (quantized - columns)).square().mean())
    return SHRINKS[int(torch.stack(errors).argmin())]


def round_compensated(
    rows: Tensor, moments: Tensor, steps: Tensor, bits: int, lowest: float
) -> Tensor:
    """Round weights to levels that lie ``steps`` apart such that ``rows @ columns`` changes least.

    Args:
        rows: Weights of each group and output channel, ``(G, O, K)``.
        moments: ``columns @ columns.T`` of the inputs, ``(G, K, K)``.
        steps: Distance of the levels, ``(G, O, 1)``; 0 of an output channel whose weights are all zero.
        bits: Bit-width; there are ``2 ** bits`` levels.
        lowest: The lowest level, in steps: a whole number of them, or halfway between two.

    Returns:
        The rounded weights, ``(G, O, K)``.
    """
    order = moments.diagonal(dim1=1, dim2=2).argsort(
        1, descending=True
    )  # loud inputs first, while errors can move on
    rows = rows.gather(2, order.unsqueeze(1).expand_as(rows))
    moments = moments.gather(1, order.unsqueeze(2).expand_as(moments))
    moments = moments.gather(2, order.unsqueeze(1).expand_as(moments))
    passed_on = _passed_on(moments)
    steps = steps.clamp(min=torch.finfo(steps.dtype).tiny)
    highest, offset = lowest + 2**bits - 1, lowest % 1
    rounded = torch.empty_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        end = min(start + BLOCK, rows.shape[2])
        errors = torch.empty_like(rows[..., start:end])
        for k in range(start, end):
            level = (
                (rows[..., k : k + 1] / steps - offset).round().add(offset).clamp(lowest, highest)
            )
            rounded[..., k : k + 1] = level * steps
            error = (rows[..., k] - rounded[..., k]) / passed_on[:, k, k].unsqueeze(1)
            errors[..., k - start] = error
            rows[..., k + 1 : end] -= error.unsqueeze(2) * passed_on[:, k, k + 1 : end].unsqueeze(1)
        rows[..., end:] -= errors @ passed_on[:, start:end, end:]
    return rounded.gather(2, order.argsort(1).unsqueeze(1).expand_as(rounded))


def _passed_on(moments: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse: how an error in one weight is best made up for by the later ones."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(moments.dtype).tiny)
    damped = moments / mean.view(-1, 1, 1) + DAMPING * torch.eye(moments.shape[1]).to(moments)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
