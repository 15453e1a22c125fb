"""Reconstruction: makes each layer's *output* come out right after quantization.

Calibration finds ranges from what goes into a layer. `reconstruct` then looks at what comes out. It
runs the network once on some LR images and stops at each layer, in execution order. What arrives
there comes from layers that are fitted and quantized already. A layer that runs several times is
fitted to all of its inputs together, before it runs for the last time. On its input the layer is
compared with itself in full precision, twice, without gradients:

1. **Range of the input.** Of thirteen shrunk copies of the calibrated range, the one with which the
   layer's output errs least is taken, and widened by a fifth. At 8 bits a range shrinks only as far
   as nothing is clipped, and that of pooled values is doubled. Complex images are fitted apart
   where each image class has a range of its own.
2. **Rounding of the weights.** They are rounded one input after the other, and each rounding error
   is passed on to the weights that are still to be rounded, such that the output changes least.
   This is GPTQ (arXiv 2210.17323) on the inputs as they arrive: see `round_compensated`.

For both, the layer is written as a product, ``output = rows @ columns``: ``rows`` are its weights,
and ``columns`` the inputs that each output value is a weighted sum of. Results go to ``lower``,
``upper`` and ``level_ranges`` of the input's quantizer, and to ``correction`` of the weight's,
which is added to weights before they are rounded. Scales and zero points of input channels are set
before, by ``equalisation``; they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.bit_mapping import image_class
from adabm_basicsr.quantization.calibration.equalisation import shifts_of_columns
from adabm_basicsr.quantization.calibration.visits import layers_with_weights, visit_in_order
from adabm_basicsr.quantization.config import FIXED_BITS, MIN_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.layers.base import spacing
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer, shifted
from adabm_basicsr.quantization.quantizers.fake_quantize import fake_quantize
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

MAX_COLUMNS = 1 << 13  # positions that a layer is reconstructed on
MAX_SEARCHED_COLUMNS = 1 << 10
SHRINKS = [1 - 0.06 * i for i in range(13)]
# With four grid points the best range is often narrower still (docs/ablation.md).
SHRINKS_OF_TWO_BITS = [0.94**i for i in range(36)]
# Clipping errs one way and adds up over layers and images, rounding averages out: the search in one
# layer clips too much.
MARGIN = 1.2
# Factor on 8-bit ranges where images have one value for each channel, as pooling gives. So few
# values show little of what other images have, and one that is clipped changes the whole image;
# rounding them costs next to nothing.
HEADROOM_OF_POOLED = 2.0
DAMPING = 0.01  # of the mean squared input, keeps the rounding of rarely used inputs tame
BLOCK = 64  # weights whose errors are passed on at once
COMPLEX = 2  # the image class of complex images
# Quantizes columns on a range from lower to upper end.
Quantize = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def reconstruct(net: QuantizedNetwork, images: Tensor, rounding: bool = True) -> None:
    """Fit clipping ranges and rounding of all layers, in execution order.

    Layers that are no weighted sums keep their ranges, and their weights are rounded to the
    nearest.

    Args:
        net: A network whose ranges are calibrated; changed in place.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1.
        rounding: Whether to fit the rounding of weights too.
    """
    layers = []
    for layer in net.layers().values():
        if isinstance(layer, QuantizedLayer):
            layers.append(layer)

    count = MAX_COLUMNS if rounding else 2 * MAX_SEARCHED_COLUMNS

    def keep(layer: QuantizedLayer, x: Tensor, calls: int) -> _Inputs | None:
        with _by_ourselves(x):
            return _inputs(layer, x.float(), count // calls, len(images))

    def fit(layer: QuantizedLayer, of_calls: list[_Inputs | None]) -> None:
        inputs = _join([inputs for inputs in of_calls if inputs is not None])
        if inputs is not None:
            with _by_ourselves(inputs.columns):
                _fit_layer(layer, inputs, rounding)

    description = "Rounding of layers" if rounding else "Ranges of layers"
    visit_in_order(net, layers, images, keep, fit, description)


@contextmanager
def _by_ourselves(x: Tensor) -> Iterator[None]:
    """Within this context neither a network's own products nor its autocast are of ours."""
    with torch._C.DisableTorchFunction(), torch.autocast(x.device.type, enabled=False):
        yield


class _Inputs(NamedTuple):
    """What a layer's output values are weighted sums of, each time that it ran.

    Attributes:
        columns: Inputs in units of their channels' scales, ``(G, K, N)``.
        classes: Class of the image of each column, ``(N,)``; None where all classes share a range.
        pooled: Whether each image has a single column.
    """

    columns: Tensor
    classes: Tensor | None
    pooled: bool


def _inputs(layer: QuantizedLayer, x: Tensor, count: int, images: int) -> _Inputs | None:
    """About ``count`` columns of an input; None of layers that are no weighted sums."""
    if not x.numel():
        # A selection of which nothing was taken.
        return None
    of_input, _ = _channel_scales(layer)
    columns = layer.columns(x / of_input, count)
    if columns is None:
        return None
    classes = _image_classes(layer.input_quantizer, columns)
    return _Inputs(columns, classes, pooled=columns.shape[-1] <= images)


def _join(of_calls: list[_Inputs]) -> _Inputs | None:
    """All columns in one; None if there are none."""
    if not of_calls:
        return None
    columns = torch.cat([inputs.columns for inputs in of_calls], dim=-1)
    classes = [inputs.classes for inputs in of_calls if inputs.classes is not None]
    pooled = all(inputs.pooled for inputs in of_calls)
    return _Inputs(columns, torch.cat(classes) if classes else None, pooled)


def _image_classes(quantizer: nn.Module, columns: Tensor) -> Tensor | None:
    """Class of the image of each column, ``(N,)``; None where all classes share a range."""
    if not isinstance(quantizer, ActivationQuantizer):
        return None
    if quantizer.level_ranges is None or quantizer.image_factor is None:
        return None
    classes = image_class(quantizer.image_factor)
    columns_of_image = columns.shape[-1] // len(classes)
    return classes.repeat_interleave(columns_of_image)


def _fit_layer(layer: QuantizedLayer, inputs: _Inputs, rounding: bool) -> None:
    columns = inputs.columns
    _, of_weight = _channel_scales(layer)
    groups, weights, _ = columns.shape
    rows = (layer.weight * of_weight).reshape(groups, -1, weights)  # (G, O, K)
    if isinstance(layer.input_quantizer, ActivationQuantizer):
        shifts = shifts_of_columns(layer, columns)
        columns = _fit_input(layer.input_quantizer, rows, inputs, shifts)
    if rounding:
        _fit_rounding(layer, rows, columns, of_weight)


def _channel_scales(layer: QuantizedLayer) -> tuple[Tensor | float, Tensor | float]:
    """Scale of each input channel, as it broadcasts against the input and against the weight."""
    scale = getattr(layer.input_quantizer, "channel_scale", None)
    if scale is None:
        return 1.0, 1.0
    return layer.channel_views(scale.flatten())


# Range of the input


def _fit_input(
    quantizer: ActivationQuantizer, rows: Tensor, inputs: _Inputs, shifts: Tensor
) -> Tensor:
    """Fit the ranges of a layer's input to the error of its output.

    Args:
        quantizer: That of the input; its ranges change.
        rows: Weights, ``(G, O, K)``.
        inputs: What it takes.
        shifts: Shift of each channel's range, ``(G, K, 1)`` or ``(1,)``.

    Returns:
        The quantized columns, ``(G, K, N)``.
    """

    def quantize(values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        bits = quantizer.clamped_bits_of_layer()
        lower, upper = quantizer.on_grid(lower, upper)
        lower, upper = shifted(lower, upper, shifts)
        return fake_quantize(values, lower, upper, bits, quantizer.integer)

    columns, classes, _ = inputs
    _fit_ranges(quantizer, rows, inputs, quantize)
    if classes is None or quantizer.level_ranges is None:
        return quantize(columns, quantizer.lower, quantizer.upper)
    factors = quantizer.level_ranges[classes]
    return quantize(columns, quantizer.lower * factors, quantizer.upper * factors)


def _fit_ranges(
    quantizer: ActivationQuantizer,
    rows: Tensor,
    inputs: _Inputs,
    quantize: Quantize,
) -> None:
    """Shrink the range to where the layer's output errs least, on complex images for themselves.

    8 bits keep the range of all images. Clipping gains little on these there, and loses much on
    others: a part of a simple image, such as what moves in front of a still street, may be more
    complex than any of the small images here that are as simple as the whole.
    """
    columns, classes, pooled = inputs
    if quantizer.clamped_bits_of_layer() >= FIXED_BITS:
        if pooled and not quantizer.holds_pixels:
            quantizer.lower.mul_(HEADROOM_OF_POOLED)
            quantizer.upper.mul_(HEADROOM_OF_POOLED)
        return
    shrinks = SHRINKS
    if quantizer.clamped_bits_of_layer() <= MIN_BITS:
        shrinks = SHRINKS_OF_TWO_BITS
    find_shrink = partial(
        _shrink,
        ends=(quantizer.lower.clone(), quantizer.upper.clone()),
        shrinks=shrinks,
        rows=rows,
        quantize=quantize,
    )
    if classes is None or quantizer.level_ranges is None:
        shrink = find_shrink(columns)
        quantizer.lower.mul_(shrink)
        quantizer.upper.mul_(shrink)
        return
    is_complex = classes == COMPLEX
    of_complex = columns[..., is_complex]
    of_others = columns[..., ~is_complex]
    if not of_others.shape[-1]:
        of_others = columns
    shrink = find_shrink(of_others)
    quantizer.lower.mul_(shrink)
    quantizer.upper.mul_(shrink)
    if of_complex.shape[-1]:
        shrink_of_complex = find_shrink(of_complex)
        quantizer.level_ranges[COMPLEX] = shrink_of_complex / shrink


def _shrink(
    columns: Tensor,
    ends: tuple[Tensor, Tensor],
    shrinks: Sequence[float],
    rows: Tensor,
    quantize: Quantize,
) -> float:
    """Factor on the range: of ``shrinks`` the one of smallest mean squared error of the output."""
    lower, upper = ends
    columns = columns[..., :: spacing(columns.shape[-1], MAX_SEARCHED_COLUMNS)]
    errors = []
    for shrink in shrinks:
        quantized = quantize(columns, lower * shrink, upper * shrink)
        change = rows @ (quantized - columns)
        errors.append(change.square().mean())
    best = torch.stack(errors).argmin()
    return MARGIN * shrinks[int(best)]


# Rounding of the weights


def _fit_rounding(
    layer: QuantizedLayer, rows: Tensor, columns: Tensor, of_weight: Tensor | float
) -> None:
    """Correct each weight such that it is rounded to where `round_compensated` wants it.

    Args:
        layer: The layer; the correction of its weight quantizer changes.
        rows: Weights in units of their channels' scales, ``(G, O, K)``.
        columns: Quantized inputs, ``(G, K, N)``.
        of_weight: These scales, broadcastable to the layer's weight.
    """
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, WeightQuantizer) or quantizer.correction is None:
        return
    groups, outputs, _ = rows.shape
    scales = quantizer.scale.expand(groups * outputs).view(groups, -1, 1)
    moments = columns @ columns.transpose(1, 2)
    rounded = round_compensated(rows, moments, scales, quantizer.lowest, quantizer.highest)
    wanted = rounded.view_as(layer.weight) / of_weight
    quantizer.correction.copy_(wanted - layer.weight)


def round_compensated(
    rows: Tensor, moments: Tensor, scales: Tensor, lowest: float, highest: float
) -> Tensor:
    """Round weights to grid points such that ``rows @ columns`` changes least (GPTQ).

    Weight by weight, those of loud inputs first:

    1. Round the weight ``k`` of every row to the nearest grid point.
    2. What the rounding takes away, add to the weights that are still to be rounded, in the
       proportion that makes up for it best on these inputs.

    With ``U`` the upper Cholesky factor of the inverse of ``moments``, 2 subtracts
    ``(w_k - q_k) / U_kk * U_kj`` from each later weight ``j``.

    Args:
        rows: Weights of each group and output channel, ``(G, O, K)``.
        moments: ``columns @ columns.T`` of the inputs, ``(G, K, K)``.
        scales: Distance of the grid points, ``(G, O, 1)``; 0 of an output channel whose weights are
            all zero.
        lowest: The lowest grid point in units of the scale: a whole number, or halfway
            between two.
        highest: The highest one.

    Returns:
        The rounded weights, ``(G, O, K)``.
    """
    order = _loud_first(moments)  # (G, K), while errors can move on
    rows = rows.gather(2, order.unsqueeze(1).expand_as(rows))
    moments = moments.gather(1, order.unsqueeze(2).expand_as(moments))
    moments = moments.gather(2, order.unsqueeze(1).expand_as(moments))
    passed_on = _passed_on(moments)
    scales = scales.clamp(min=torch.finfo(scales.dtype).tiny)
    offset = lowest % 1
    rounded = torch.empty_like(rows)
    count = rows.shape[2]
    # Later weights get the errors of a block at once, those in the block one after the other.
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        errors = torch.empty_like(rows[..., start:end])
        for k in range(start, end):
            position = rows[..., k : k + 1] / scales
            nearest = (position - offset).round().add(offset).clamp(lowest, highest)
            rounded[..., k : k + 1] = nearest * scales
            difference = rows[..., k] - rounded[..., k]
            error = difference / passed_on[:, k, k].unsqueeze(1)
            errors[..., k - start] = error
            later_in_block = passed_on[:, k, k + 1 : end].unsqueeze(1)
            rows[..., k + 1 : end] -= error.unsqueeze(2) * later_in_block
        rows[..., end:] -= errors @ passed_on[:, start:end, end:]
    original_order = order.argsort(1).unsqueeze(1).expand_as(rounded)
    return rounded.gather(2, original_order)


@torch.no_grad()
def rounding_gains(net: QuantizedNetwork, images: Tensor) -> dict[WeightQuantizer, float]:
    """What `round_compensated` leaves of the squared error that rounding to the nearest makes.

    It doesn't depend on the bits.

    Args:
        net: A network whose weights are rounded in this way.
        images: One batch of LR images, ``(B, C, H, W)`` in 0..1.

    Returns:
        A share by weight quantizer; weights that are rounded to the nearest are missing.
    """
    fitted = {}
    for _, layer, quantizer in layers_with_weights(net):
        if quantizer.correction is not None:
            fitted[layer] = quantizer
    gains = {}

    def keep(layer: QuantizedLayer, x: Tensor, calls: int) -> _Inputs | None:
        with _by_ourselves(x):
            return _inputs(layer, x.float(), 2 * MAX_COLUMNS // calls, len(images))

    def measure(layer: QuantizedLayer, of_calls: list[_Inputs | None]) -> None:
        inputs = _join([inputs for inputs in of_calls if inputs is not None])
        if inputs is not None:
            with _by_ourselves(inputs.columns):
                gains[fitted[layer]] = _gain(inputs.columns)

    with net.full_precision():
        visit_in_order(net, fitted, images, keep, measure, "Gains of rounding")
    return gains


def _gain(columns: Tensor) -> float:
    """What is left of a squared error, on other columns than those that rounding is fitted to.

    An error ``d`` of the weight ``k`` changes all later ones by ``d / U_kk`` times the row ``k`` of
    ``U``, see `round_compensated`. Errors of different weights are independent.

    Args:
        columns: Inputs of a layer, ``(G, K, N)``.
    """
    fitted = columns[..., ::2] @ columns[..., ::2].transpose(1, 2)
    order = _loud_first(fitted).unsqueeze(2)
    fitted = fitted.gather(1, order.expand_as(fitted))
    fitted = fitted.gather(2, order.transpose(1, 2).expand_as(fitted))
    changes = _passed_on(fitted)
    changes = changes / changes.diagonal(dim1=1, dim2=2).unsqueeze(2)  # (G, K, K)
    others = columns[..., 1::2]
    others = others.gather(1, order.expand_as(others))
    compensated = (changes @ others).square().sum()
    nearest = others.square().sum().clamp(min=torch.finfo(others.dtype).tiny)
    return float(compensated / nearest)


def _loud_first(moments: Tensor) -> Tensor:
    """Inputs by their loudness, ``(G, K)``; equal ones as they come, on every device."""
    loudness = moments.diagonal(dim1=1, dim2=2)
    return loudness.argsort(dim=1, descending=True, stable=True)


def _passed_on(moments: Tensor) -> Tensor:
    """How an error in one weight is best made up for by the later ones, ``(G, K, K)``.

    It is the upper Cholesky factor of the inverse of ``moments``, which are damped.
    """
    smallest = torch.finfo(moments.dtype).tiny
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=smallest)
    identity = torch.eye(moments.shape[1]).to(moments)
    damped = moments / mean.view(-1, 1, 1) + DAMPING * identity
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
