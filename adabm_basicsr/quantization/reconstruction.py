"""Makes each layer's output, rather than its input and weight, come out right after quantization.

Three steps, in closed form and from calibration data alone: input channels are equalised, so that the quiet ones get
levels too; the clipping range is searched for the smallest error of the layer's output; and weights are rounded one
after the other, each rounding error passed on to those that are still to be rounded (GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.adaptive import ActivationQuantizer, WeightQuantizer
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.fake_quantize import fake_quantize
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork, visit_in_order

EQUALISATION = 0.75  # 0 leaves channels as they are, 1 gives all the same range, at the cost of the weights' precision
MIN_SCALE = 1e-3  # of the quietest channels against the loudest
MAX_COLUMNS = 1 << 14  # positions that a layer is reconstructed on
MAX_SEARCHED_COLUMNS = 1 << 11
SHRINKS = [1 - 0.05 * step for step in range(16)]
DAMPING = 0.01  # of the mean squared input, keeps the rounding of rarely used inputs tame
BLOCK = 64  # weights whose errors are passed on at once


@torch.no_grad()
def equalise(layer: QuantizedLayer, lower: Tensor, upper: Tensor) -> None:
    """Set channel scales and clipping range of a layer from what its input channels range over.

    Args:
        layer: A layer whose input is quantized.
        lower: Smallest value of each channel, ``(C_in,)``.
        upper: Largest value of each channel, ``(C_in,)``.
    """
    loudness = torch.maximum(lower.abs(), upper.abs())
    scale = (loudness / loudness.max().clamp(min=torch.finfo(loudness.dtype).tiny)) ** EQUALISATION
    # Channels that are mostly negative are turned round, so that all need the same half of the range.
    scale = torch.where(upper >= -lower, 1.0, -1.0) * scale.clamp(min=MIN_SCALE)
    of_input, of_weight = layer.channel_views(scale)
    quantizer = layer.input_quantizer
    quantizer.channel_scale.copy_(of_input)
    quantizer.lower.fill_(torch.minimum(lower / scale, upper / scale).min())
    quantizer.upper.fill_(torch.maximum(lower / scale, upper / scale).max())
    if isinstance(layer.weight_quantizer, WeightQuantizer):
        layer.weight_quantizer.channel_scale.copy_(of_weight)


@torch.no_grad()
def reconstruct(net: QuantizedNetwork, images: Tensor) -> None:
    """Fit clipping ranges and rounding of all layers, in execution order, each on its already quantized input.

    Args:
        net: A network whose ranges are calibrated; changed in place.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1.
    """
    layers = [layer for layer in net.layers().values() if isinstance(layer, QuantizedLayer)]
    visit_in_order(net, layers, images, _fit_layer)


def _fit_layer(layer: QuantizedLayer, x: Tensor) -> None:
    with torch._C.DisableTorchFunction():  # the products below aren't the network's, though it may quantize its own
        _fit(layer, x)


def _fit(layer: QuantizedLayer, x: Tensor) -> None:
    activation, weight = layer.input_quantizer, layer.weight_quantizer
    scale = getattr(activation, "channel_scale", None)
    of_input, of_weight = (1.0, 1.0) if scale is None else layer.channel_views(scale.flatten())
    columns = _columns(layer, x / of_input)
    if columns is None:
        return
    rows = (layer.weight * of_weight).reshape(len(columns), -1, columns.shape[1])
    if isinstance(activation, ActivationQuantizer):
        bits = activation.bits_of_layer().clamp(*activation.bit_range)
        if activation.bits < FIXED_BITS:
            _fit_range(activation, rows, _thinned(columns, MAX_SEARCHED_COLUMNS), bits)
        columns = fake_quantize(columns, activation.lower, activation.upper, bits, activation.integer)
    if isinstance(weight, WeightQuantizer):
        steps = (2 * weight.upper / (2**weight.bits - 1)).view(len(rows), -1, 1)
        rounded = round_compensated(rows, columns @ columns.transpose(1, 2), steps, weight.bits)
        weight.correction.copy_(rounded.view_as(layer.weight) / of_weight - layer.weight)


def _columns(layer: QuantizedLayer, x: Tensor) -> Tensor | None:
    """About `MAX_COLUMNS` columns; image by image, as those of a batch are many times as large as the batch."""
    parts = []
    for image in x.split(1):
        columns = layer.columns(image)
        if columns is None:
            return None
        parts.append(_thinned(columns, -(-MAX_COLUMNS // len(x))).contiguous())
    return torch.cat(parts, dim=-1)


def _thinned(columns: Tensor, count: int) -> Tensor:
    return columns[..., :: -(-columns.shape[-1] // count)]


def _fit_range(quantizer: ActivationQuantizer, rows: Tensor, columns: Tensor, bits: Tensor) -> None:
    """Shrink the range to where the layer's output errs least.

    Not at 8 bits: there it gains little on these images, and loses more on others whose rare values lie outside.
    """
    lower, upper = quantizer.lower.clone(), quantizer.upper.clone()
    errors = []
    for shrink in SHRINKS:
        quantized = fake_quantize(columns, lower * shrink, upper * shrink, bits, quantizer.integer)
        errors.append((rows @ (quantized - columns)).square().mean())
    best = SHRINKS[int(torch.stack(errors).argmin())]
    quantizer.lower.mul_(best)
    quantizer.upper.mul_(best)


def round_compensated(rows: Tensor, moments: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Round weights to multiples of ``steps`` such that ``rows @ columns`` changes least.

    Args:
        rows: Weights of each group and output channel, ``(G, O, K)``.
        moments: ``columns @ columns.T`` of the inputs, ``(G, K, K)``.
        steps: Distance of the levels, ``(G, O, 1)``.
        bits: Bit-width; levels are ``-2 ** (bits - 1) .. 2 ** (bits - 1) - 1`` steps.

    Returns:
        The rounded weights, ``(G, O, K)``.
    """
    order = moments.diagonal(dim1=1, dim2=2).argsort(1, descending=True)  # loud inputs first, while errors can move on
    rows = rows.gather(2, order.unsqueeze(1).expand_as(rows))
    moments = moments.gather(1, order.unsqueeze(2).expand_as(moments))
    moments = moments.gather(2, order.unsqueeze(1).expand_as(moments))
    passed_on = _passed_on(moments)
    limit = 2 ** (bits - 1)
    rounded = torch.empty_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        end = min(start + BLOCK, rows.shape[2])
        errors = torch.empty_like(rows[..., start:end])
        for k in range(start, end):
            level = (rows[..., k : k + 1] / steps).round().clamp(-limit, limit - 1)
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
