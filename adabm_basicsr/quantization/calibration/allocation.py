"""Which layers get more bits: those whose errors change the image most, within a mean that is kept.

How a small error ``e`` of a layer changes the image follows from one backward pass: for random
weights ``v`` of the image's pixels, ``(grad . e) ** 2`` with the gradient of ``v . image`` is, on
average, the squared error of the image. Where a network has no gradients, each quantizer is
switched on alone instead, and the change of the image is that error.

`measure_sensitivities` finds these errors, `share_out` turns them into bits, and `assign` gives the
bits to the layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.calibration.visits import layers_with_weights
from adabm_basicsr.quantization.config import MIN_BITS
from adabm_basicsr.quantization.distributed import map_shared
from adabm_basicsr.quantization.gradients import gradients_of_overwritten, gradients_work
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

REACH = 2  # bits that a layer may lie above or below those asked for
SEED = 0
PART = 64  # neighbouring values whose rounding errors may go together
GRAIN = 4  # errors are distinguished by quarters of a bit
TINY = 1e-30
WITHOUT_GRADIENTS = (
    "bits are shared out by trial runs, and fine-tuning is left out where it fails too"
)
TRIED = 2  # images that quantizers are tried on one by one

Key = TypeVar("Key")
Quantizer = TypeVar("Quantizer", bound=nn.Module)


# Errors of the image


class _Observed(NamedTuple):
    """A quantizer at work: its input ``value``, and the ``error`` that rounding would make."""

    quantizer: ActivationQuantizer
    value: Tensor
    error: Tensor


def image_errors(net: QuantizedNetwork, images: Tensor) -> dict[nn.Module, list[float]]:
    """Squared error of each image that each quantizer alone would make, at its bits and ranges.

    Args:
        net: A calibrated network.
        images: LR images, ``(B, C, H, W)`` in 0..1.

    Returns:
        By activation and weight quantizer, sums over the pixels of each image, in the square of
        their unit. Where gradients don't tell, they are of `TRIED` of the images alone.
    """
    weights: dict[WeightQuantizer, Tensor] = {}
    for _, layer, weight_quantizer in layers_with_weights(net):
        weights[weight_quantizer] = layer.weight
    quantizers: list[Any] = [*net.activation_quantizers().values(), *weights]

    def by_gradients(index: int) -> list[float]:
        image = images[index : index + 1]
        errors = _errors_by_gradients(net, weights, image, index)
        return [errors.get(quantizer, 0.0) for quantizer in quantizers]

    def by_trial(index: int) -> list[float]:
        return _errors_by_trial(net, quantizers, images[index : index + 1])

    _require_gradients(weights.values(), True)
    try:
        errors_of_image = by_gradients
        indices = range(len(images))
        if not _gradients_tell(net, weights, quantizers, images[:1]):
            errors_of_image = by_trial
            indices = range(0, len(images), -(-len(images) // TRIED))
        of_images = map_shared(errors_of_image, tracked(indices, "Sensitivities"), images.device)
    finally:
        _require_gradients(weights.values(), False)
    found: dict[nn.Module, list[float]] = {}
    for quantizer, errors in zip(quantizers, zip(*of_images, strict=True), strict=True):
        found[quantizer] = list(errors)
    return found


def _errors_by_gradients(
    net: QuantizedNetwork, weights: Mapping[WeightQuantizer, Tensor], image: Tensor, index: int
) -> dict[nn.Module, float]:
    """Errors of those quantizers that gradients reach."""
    with gradients_of_overwritten(net):
        out, inputs = _run_observed(net, image)
        if not out.requires_grad:
            return {}
        values = [observed.value for observed in inputs]
        sources = [*values, *weights.values()]
        gradients = torch.autograd.grad(out, sources, _probe(out, index), allow_unused=True)
    of_inputs = gradients[: len(inputs)]
    of_weights = gradients[len(inputs) :]
    errors: dict[nn.Module, float] = defaultdict(float)
    for observed, gradient in zip(inputs, of_inputs, strict=True):
        if gradient is not None:
            errors[observed.quantizer] += _squared(gradient, observed.error, PART)
    for (quantizer, weight), gradient in zip(weights.items(), of_weights, strict=True):
        if gradient is not None:
            # Which way a weight is rounded is chance: it errs by scale / sqrt(12) on average.
            error = quantizer.scales(weight) / math.sqrt(12)
            errors[quantizer] += _squared(gradient, error, 1)
    return errors


def _gradients_tell(
    net: QuantizedNetwork,
    weights: Mapping[WeightQuantizer, Tensor],
    quantizers: Sequence[Any],
    image: Tensor,
) -> bool:
    """Whether gradients reach all quantizers that change the image.

    A network may switch them off for a part of it.
    """
    reached: dict[nn.Module, float] = {}

    def attempt() -> bool:
        reached.update(_errors_by_gradients(net, weights, image, 0))
        return bool(reached)

    if not gradients_work(net, attempt, WITHOUT_GRADIENTS):
        return False
    missing = [quantizer for quantizer in quantizers if quantizer not in reached]
    return not missing or not any(_errors_by_trial(net, missing, image))


@torch.no_grad()
def _errors_by_trial(
    net: QuantizedNetwork, quantizers: Sequence[Any], image: Tensor
) -> list[float]:
    """Squared error of the image with each quantizer switched on alone."""
    errors = []
    with net.full_precision():
        full = net(image)
        for quantizer in quantizers:
            quantizer.enabled = True
            errors.append(float((net(image) - full).square().sum()))
            quantizer.enabled = False
    return errors


def _probe(out: Tensor, index: int) -> Tensor:
    """Random weights of the pixels of ``out``, those of the image of that index.

    They are the same whichever process runs the image.
    """
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(index + 1):
        probe = torch.randn(out.shape, generator=generator)
    return probe.to(out)


def _run_observed(net: QuantizedNetwork, image: Tensor) -> tuple[Tensor, list[_Observed]]:
    """Run an image in full precision and note each quantizer's input and error.

    Returns:
        The output, with gradients to the noted inputs; and the quantizers in execution order, once
        for each time that they ran.
    """
    seen = []

    def note(quantizer: ActivationQuantizer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Quantizers are switched off: what comes out is what came in.
        with torch.no_grad():
            error = quantizer.quantize(output) - output
        # Apart from what else the network does with the tensor, in a skip connection say. It may
        # not be made of the image: a table of positions isn't.
        own = output.view_as(output).requires_grad_()
        seen.append(_Observed(quantizer, own, error))
        return own

    hooks = []
    for quantizer in net.activation_quantizers().values():
        hooks.append(quantizer.register_forward_hook(note))
    try:
        with torch.enable_grad(), net.full_precision():
            output = net(image.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return output, seen


def _require_gradients(weights: Iterable[Tensor], required: bool) -> None:
    for weight in weights:
        weight.requires_grad_(required)


def _squared(gradient: Tensor, error: Tensor, part: int) -> float:
    """``(gradient . error) ** 2``, summed over parts whose errors are independent.

    It scatters less from probe to probe than that of the whole.

    Args:
        gradient: Of the weighted sum of pixels.
        error: Shape of ``gradient``.
        part: Number of neighbouring values in a part.
    """
    change = (gradient * error).flatten()
    missing = -len(change) % part
    parts = F.pad(change, (0, missing)).view(-1, part)
    return float(parts.sum(1).square().sum())


# Bits that follow from errors


def share_out(
    errors: Mapping[Key, float],
    sizes: Mapping[Key, float],
    bits: Mapping[Key, float],
    mean: float,
    bit_range: tuple[int, int] = (2, 8),
) -> dict[Key, int]:
    """Bits of least summed error whose mean, weighted by ``sizes``, is at most ``mean``.

    All start at the lowest; as long as bits are left, the one that needs it most gets another.

    Args:
        errors: Squared error that each quantizer makes at the ``bits`` it has; each bit more
            quarters it.
        sizes: Weight of each in the mean.
        bits: Bits that they have.
        mean: Bits to share out, per quantizer on average.
        bit_range: Smallest and largest bits.

    Returns:
        Bits of each, within `REACH` of ``mean``.
    """
    # The bits at which the errors of all would be equal.
    wanted = {}
    for key, error in errors.items():
        wanted[key] = _in_bits(error / sizes[key]) + bits[key]
    low = max(int(mean) - REACH, bit_range[0])
    high = min(math.ceil(mean) + REACH, bit_range[1])
    given = dict.fromkeys(errors, low)
    left = (mean - low) * sum(sizes[key] for key in errors) + 1e-6
    while True:
        takers = [key for key in errors if given[key] < high and sizes[key] <= left]
        if not takers:
            return given
        # Of equal ones the first.
        neediest = max(takers, key=lambda key: wanted[key] - given[key])
        given[neediest] += 1
        left -= sizes[neediest]


def _in_bits(error: float) -> float:
    """Half the binary logarithm, as each bit quarters a squared error.

    Differences below a quarter bit are chance.
    """
    quarters = round(GRAIN * math.log2(max(error, TINY)) / 2)
    return quarters / GRAIN


# Bits of a network


@dataclass
class Sensitivities:
    """What `assign` shares bits out by.

    Attributes:
        errors: Squared error of all images that each quantizer makes alone; see `image_errors`.
        bits: Bits at which it does.
        values: Number of values, over pixels and images, that the errors are sums of.
    """

    errors: dict[nn.Module, float]
    bits: dict[nn.Module, float]
    values: int


def measure_sensitivities(net: QuantizedNetwork, images: Tensor) -> Sensitivities:
    """Of all quantizers of a calibrated network, on LR images ``(B, C, H, W)`` in 0..1."""
    bits = _bits_of(net)
    with torch.no_grad(), net.full_precision():
        values = net(images[:1]).numel()
    errors = {}
    count = 0
    for quantizer, of_images in image_errors(net, images).items():
        errors[quantizer] = sum(of_images)
        count = len(of_images)
    return Sensitivities(errors, bits, count * values)


def equal_sensitivities(net: QuantizedNetwork) -> Sensitivities:
    """What does where all quantizers get the same bits anyway, without measuring."""
    bits = _bits_of(net)
    return Sensitivities(dict.fromkeys(bits, 1.0), bits, 1)


def _bits_of(net: QuantizedNetwork) -> dict[nn.Module, float]:
    """Bits that all quantizers have, without the image factor."""
    bits: dict[nn.Module, float] = {}
    for activation in net.activation_quantizers().values():
        bits[activation] = activation.bits_of_layer().item()
    for weight in net.weight_quantizers().values():
        bits[weight] = weight.bits
    return bits


@torch.no_grad()
def assign(net: QuantizedNetwork, found: Sensitivities, a_mean: float, w_mean: float) -> None:
    """Give each adaptive layer's input, and each weight of the body, bits of its own.

    Args:
        net: A calibrated network; bits change, ranges don't.
        found: Its sensitivities.
        a_mean: Mean bits of the inputs; of clips each counts as often as its layer runs.
        w_mean: Mean bits of the weights, each weight counted.
    """
    inputs = {quantizer: quantizer.frames for quantizer in _adaptive_inputs(net)}
    a_range = net.config.arithmetic.bit_range
    for activation, bits in _bits_by_sensitivity(found, inputs, a_mean, a_range).items():
        activation.layer_factor.fill_(bits - activation.bits)
    weights = {}
    for _, layer, weight_quantizer in layers_with_weights(net):
        if weight_quantizer.allocated is not None:
            weights[weight_quantizer] = layer.weight.numel()
    w_range = (MIN_BITS, net.config.arithmetic.max_w_bits)
    for weight_quantizer, bits in _bits_by_sensitivity(found, weights, w_mean, w_range).items():
        if weight_quantizer.allocated is not None:
            weight_quantizer.allocate(bits)


def _bits_by_sensitivity(
    found: Sensitivities,
    sizes: Mapping[Quantizer, int],
    mean: float,
    bit_range: tuple[int, int],
) -> dict[Quantizer, int]:
    if not sizes:
        return {}
    errors = {quantizer: found.errors[quantizer] for quantizer in sizes}
    bits = {quantizer: found.bits[quantizer] for quantizer in sizes}
    return share_out(errors, sizes, bits, mean, bit_range)


def base_bits(net: QuantizedNetwork) -> float:
    """Mean base bits of the adaptive layers, which is what they may use on average."""
    bits = 0
    frames = 0
    for quantizer in _adaptive_inputs(net):
        bits += quantizer.frames * quantizer.bits
        frames += quantizer.frames
    if not frames:
        return float(net.config.a_bits)
    return bits / frames


def _adaptive_inputs(net: QuantizedNetwork) -> list[ActivationQuantizer]:
    quantizers = net.activation_quantizers().values()
    return [quantizer for quantizer in quantizers if quantizer.adaptive]
