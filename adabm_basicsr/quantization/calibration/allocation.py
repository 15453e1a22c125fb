"""Which layers get more bits: those whose errors change the image most, within a mean that is kept.

How a small error ``e`` of a layer changes the image follows from one backward pass: for random weights ``v`` of the
image's pixels, ``(grad . e) ** 2`` with the gradient of ``v . image`` is, on average, the squared error of the image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.distributed import map_shared
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked
from adabm_basicsr.quantization.quantizers.activation import ActivationQuantizer
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

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
    weights = {
        q: net.network.get_submodule(name).weight for name, q in net.weight_quantizers().items()
    }
    quantizers = [*net.activation_quantizers().values(), *weights]

    def of_image(index: int) -> list[float]:
        errors = _errors_of_image(net, weights, images[index : index + 1], index)
        return [errors.get(quantizer, 0.0) for quantizer in quantizers]

    _require_gradients(weights.values(), True)
    try:
        found = map_shared(of_image, tracked(range(len(images)), "Sensitivities"), images.device)
    finally:
        _require_gradients(weights.values(), False)
    return dict(zip(quantizers, map(sum, zip(*found))))


def _errors_of_image(
    net: QuantizedNetwork, weights: Mapping[WeightQuantizer, Tensor], image: Tensor, index: int
) -> dict[nn.Module, float]:
    out, seen = _observed(net, image)
    sources = [x for _, x, _ in seen] + list(weights.values())
    gradients = torch.autograd.grad(out, sources, _probe(out, index), allow_unused=True)
    errors = defaultdict(float)
    for (quantizer, _, error), gradient in zip(seen, gradients):
        errors[quantizer] += _squared(gradient, error, PART)
    for (quantizer, weight), gradient in zip(weights.items(), gradients[len(seen) :]):
        # Which way a weight is rounded is chance: a twelfth of a step's square is what it errs by on average.
        errors[quantizer] += _squared(gradient, quantizer.scales(weight) / math.sqrt(12), 1)
    return errors


def _probe(out: Tensor, index: int) -> Tensor:
    """Random weights of the pixels of ``out`` for the image of that index, whichever process runs it."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(out.shape, generator=generator) for _ in range(index + 1)][-1].to(out)


def _observed(
    net: QuantizedNetwork, image: Tensor
) -> tuple[Tensor, list[tuple[ActivationQuantizer, Tensor, Tensor]]]:
    """Output for one image, and each quantizer with its input and its error, once for each time that it runs."""
    seen = []

    def observe(quantizer: ActivationQuantizer, args: tuple, output: Tensor) -> Tensor:
        with torch.no_grad():
            error = quantizer.quantize(output) - output
        # Apart from what else the network does with the tensor, in a skip connection say. It may not be made of the
        # image: a table of positions isn't.
        own = output.view_as(output).requires_grad_()
        seen.append((quantizer, own, error))
        return own

    hooks = [
        quantizer.register_forward_hook(observe)
        for quantizer in net.activation_quantizers().values()
    ]
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
    wanted = {
        key: _in_bits(errors[key] / sizes[key]) + bits[key] for key in errors
    }  # the bits that equal errors take
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


@dataclass
class Sensitivities:
    """What `assign` shares bits out by.

    Attributes:
        errors: Squared error of the image that each quantizer makes alone; see `image_errors`.
        bits: Bits at which it does.
    """

    errors: dict[nn.Module, float]
    bits: dict[nn.Module, float]


def measure_sensitivities(net: QuantizedNetwork, images: Tensor) -> Sensitivities:
    """Of all quantizers of a calibrated network, on LR images ``(B, C, H, W)`` in 0..1."""
    inputs = {q: q.bits_of_layer().item() for q in net.activation_quantizers().values()}
    return Sensitivities(
        image_errors(net, images),
        {**inputs, **{q: q.bits for q in net.weight_quantizers().values()}},
    )


@torch.no_grad()
def assign(net: QuantizedNetwork, found: Sensitivities, a_mean: float, w_mean: float) -> None:
    """Give each adaptive layer's input, and each weight of the body, bits of its own.

    Args:
        net: A calibrated network; bits change, ranges don't.
        found: Its sensitivities.
        a_mean: Mean bits of the inputs.
        w_mean: Mean bits of the weights, each weight counted.
    """
    inputs = [q for q in net.activation_quantizers().values() if q.adaptive]
    for quantizer, bits in _shared_out(found, dict.fromkeys(inputs, 1), a_mean).items():
        quantizer.layer_factor.fill_(bits - quantizer.bits)
    layers = [net.network.get_submodule(name) for name in net.weight_quantizers()]
    weights = {layer.weight_quantizer: layer.weight.numel() for layer in layers}
    weights = {
        quantizer: size for quantizer, size in weights.items() if quantizer.allocated is not None
    }
    for quantizer, bits in _shared_out(found, weights, w_mean).items():
        quantizer.allocated.fill_(bits)


def _shared_out(
    found: Sensitivities, sizes: dict[nn.Module, int], mean: float
) -> dict[nn.Module, int]:
    return share_out({q: found.errors[q] for q in sizes}, sizes, found.bits, mean) if sizes else {}


def base_bits(net: QuantizedNetwork) -> float:
    """Mean base bits of the adaptive layers, which is what they may use on average."""
    inputs = [q.bits for q in net.activation_quantizers().values() if q.adaptive]
    return sum(inputs) / len(inputs) if inputs else float(net.config.a_bits)
