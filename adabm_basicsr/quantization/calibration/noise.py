"""How much each quantizer of a network changes the image, and what all of them come to together.

Rounding errors of different quantizers are independent of each other, so their squared errors at
the output add up, nearly: what a network loses is the sum of what each of its quantizers loses
alone. One more bit of a quantizer quarters its squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

import torch
from torch import Tensor, nn

from adabm_basicsr.quantization.calibration.allocation import image_errors
from adabm_basicsr.quantization.calibration.reconstruction import rounding_gains
from adabm_basicsr.quantization.measures.psnr import HIGHEST_PIXEL, MIN_ERROR
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer

HARMONICS = 8  # of the sawtooth that rounding is
# Squared error of the image, for pixels in 0..1: of each quantizer by image.
Errors = dict[nn.Module, list[float]]


@torch.no_grad()
def measure_errors(
    net: QuantizedNetwork, images: Tensor, gains: Mapping[WeightQuantizer, float]
) -> Errors:
    """Mean squared error of each image that each quantizer alone makes, at its bits and ranges.

    Args:
        net: A calibrated network.
        images: LR images, ``(B, C, H, W)`` in 0..1.
        gains: What is left of the errors of weights, see `measure_gains`.

    Returns:
        By activation and weight quantizer, for pixels in 0..1.
    """
    with net.full_precision():
        values = net(images[:1]).numel()
    found = {}
    for quantizer, errors in image_errors(net, images).items():
        gain = 1.0
        if isinstance(quantizer, WeightQuantizer):
            gain = gains.get(quantizer, 1.0)
        found[quantizer] = [gain * error / values for error in errors]
    return found


def measure_gains(net: QuantizedNetwork, images: Tensor) -> dict[WeightQuantizer, float]:
    """What is left of the squared error of rounded weights where a recipe fits their rounding."""
    if not net.config.calibration.reconstruct:
        return {}
    return rounding_gains(net, images)


def add_up(errors: Iterable[Sequence[float]]) -> list[float]:
    """Squared error of each image that several quantizers make together: their sum."""
    return [sum(of_image) for of_image in zip(*errors, strict=True)]


def mean_psnr(errors: Iterable[float]) -> float:
    """Mean PSNR in dB of images with such mean squared errors (pixels in 0..1), in 8 bits."""
    return mean(psnr_of(error) for error in errors)


def psnr_of(error: float) -> float:
    """PSNR in dB of an image with a mean squared error (pixels in 0..1), as `pixel_psnr` has it.

    Both images are rounded to 8 bits there. Where pixels differ by ``d`` before, they differ by one
    of the two whole numbers around ``d`` afterwards: its square is ``f * (1 - f)`` larger than
    ``d ** 2``, where ``f`` is the fraction of ``d``. What that comes to for normal errors of
    variance ``v`` is ``1/6 - sum(exp(-2 (pi k) ** 2 v) / (pi k) ** 2)`` over ``k = 1, 2, ...``.
    """
    variance = error * HIGHEST_PIXEL**2
    of_rounding = 1 / 6
    for k in range(1, HARMONICS + 1):
        squared = (math.pi * k) ** 2
        of_rounding -= math.exp(-2 * squared * variance) / squared
    # The sum is cut off: it must not take away from small errors.
    rounded = variance + max(of_rounding, 0.0)
    return 10 * math.log10(HIGHEST_PIXEL**2 / max(rounded, MIN_ERROR))
