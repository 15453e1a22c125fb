"""Which layers get more bits: those whose errors change the image most, within a mean that is kept.

How a small error ``e`` of a layer changes the image follows from one backward pass: for random weights ``v`` of the
image's pixels, ``(grad . e) ** 2`` with the gradient of ``v . image`` is, on average, the squared error of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.adaptive import ActivationQuantizer
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.weight_quantizer import WeightQuantizer

REACH = 2  # bits that a layer may lie above or below those asked for
SEED = 0
PART = 64  # neighbouring values whose rounding errors may go together
GRAIN = 4  # steps per bit in which errors are told apart
TINY = 1e-30


def image_errors(net: QuantizedNetwork, images: Tensor) -> dict[nn.Module, float]:
    """Squared error of the image that each quantizer would make alone, at the bits and ranges it has.

    Args:
        net: A calibrated network.
        images: LR images, ``(B, C, H, W)`` in 0..1.

    Returns:
        By activation and weight quantizer; only their ratios matter.
    """
    weights = {q: net.network.get_submodule(name).weight for name, q in net.weight_quantizers().items()}
    # Which way a weight is rounded is chance: a twelfth of a step's square is what it errs by on average.
    weight_errors = {q: q.steps(weight) / math.sqrt(12) for q, weight in weights.items()}
    errors = dict.fromkeys([*net.activation_quantizers().values(), *weights], 0.0)
    generator = torch.Generator().manual_seed(SEED)
    _require_gradients(weights.values(), True)
    try:
        for image in images.split(1):
            out, seen = _observed(net, image)
            probe = torch.randn(out.shape, generator=generator).to(out)
            sources = [x for _, x, _ in seen] + list(weights.values())
            gradients = torch.autograd.grad(out, sources, probe, allow_unused=True)
            for (quantizer, _, error), gradient in zip(seen, gradients):
                errors[quantizer] += _squared(gradient, error, PART)
            for quantizer, gradient in zip(weights, gradients[len(seen) :]):
                errors[quantizer] += _squared(gradient, weight_errors[quantizer], 1)
    finally:
        _require_gradients(weights.values(), False)
    return errors


def _observed(net: QuantizedNetwork, image: Tensor) -> tuple[Tensor, list[tuple[ActivationQuantizer, Tensor, Tensor]]]:
    """Output for one image, and each quantizer with its input and its error, once for each time that it runs."""
    seen = []

    def observe(quantizer: ActivationQuantizer, args: tuple, output: Tensor) -> Tensor:
        with torch.no_grad():
            error = quantizer.quantize(output) - output
        own = output.view_as(output)  # apart from what else the network does with the tensor, in a skip connection say
        seen.append((quantizer, own, error))
        return own

    hooks = [quantizer.register_forward_hook(observe) for quantizer in net.activation_quantizers().values()]
    try:
        with torch.enable_grad(), net.full_precision():
            return net(image.clone().requires_grad_()), seen
    finally:
        for hook in hooks:
            hook.remove()


def _require_gradients(weights: Iterable[Tensor], required: bool) -> None:
    for weight in weights:
        weight.requires_grad_(required)


def _squared(gradient: Tensor | None, error: Tensor, part: int) -> float:
    """``(gradient . error) ** 2``, of parts whose errors are independent: it scatters less from probe to probe."""
    if gradient is None:
        return 0.0
    change = (gradient * error).flatten()
    return float(F.pad(change, (0, -len(change) % part)).view(-1, part).sum(1).square().sum())


def share_out(
    errors: Mapping[object, float],
    sizes: Mapping[object, float],
    bits: Mapping[object, int],
    mean: float,
    bit_range: tuple[int, int] = (2, 8),
) -> dict[object, int]:
    """Bits of least summed error whose mean, weighted by ``sizes``, is at most ``mean``.

    Args:
        errors: Squared error that each quantizer makes at the ``bits`` it has; each bit more quarters it.
        sizes: Weight of each in the mean.
        bits: Bits that they have.
        mean: Bits to share out, per quantizer on average.
        bit_range: Smallest and largest bits.

    Returns:
        Bits of each, within `REACH` of ``mean``.
    """
    wanted = {key: _in_bits(errors[key] / sizes[key]) + bits[key] for key in errors}  # the bits that equal errors take
    low = max(int(mean) - REACH, bit_range[0])
    high = min(-int(-mean // 1) + REACH, bit_range[1])
    given = dict.fromkeys(errors, low)
    left = (mean - low) * sum(sizes[key] for key in errors) + 1e-6

    while open_keys := [key for key in errors if given[key] < high and sizes[key] <= left]:
        best = max(open_keys, key=lambda key: wanted[key] - given[key])  # of equals the first
        given[best] += 1
        left -= sizes[best]
    return given


def _in_bits(error: float) -> float:
    """Half the binary logarithm, as each bit quarters a squared error; differences below a quarter bit are chance."""
    return round(GRAIN * math.log2(max(error, TINY)) / 2) / GRAIN


@torch.no_grad()
def allocate(net: QuantizedNetwork, images: Tensor, spared: float = 0.0) -> None:
    """Give each layer's weight and input bits of its own, with the means that were asked for.

    Args:
        net: A calibrated network; bits change, ranges don't.
        images: LR images, ``(B, C, H, W)`` in 0..1.
        spared: Bits that simple images spare on average; layers get them on top of the mean.
    """
    errors = image_errors(net, images)
    inputs = [q for q in net.activation_quantizers().values() if q.adaptive]
    weights = {q: layer.weight.numel() for layer, q in _allocated(net)}
    if inputs:
        bits = {q: q.bits_of_layer().item() for q in inputs}
        mean = sum(q.bits for q in inputs) / len(inputs)
        own = {q: errors[q] for q in inputs}
        given = share_out(own, dict.fromkeys(inputs, 1), bits, mean + spared)
        for quantizer, layer_bits in given.items():
            quantizer.layer_factor.fill_(layer_bits - quantizer.bits)
    if weights:
        mean = float(net.config.w_bits)
        own = {q: errors[q] for q in weights}
        for quantizer, given in share_out(own, weights, {q: q.bits for q in weights}, mean).items():
            quantizer.allocated.fill_(given)


def _allocated(net: QuantizedNetwork) -> list[tuple[nn.Module, WeightQuantizer]]:
    quantizers = net.weight_quantizers()
    return [(net.network.get_submodule(name), q) for name, q in quantizers.items() if q.allocated is not None]
