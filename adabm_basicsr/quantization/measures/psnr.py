"""How close a quantized network's images are to those of full precision."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.network import QuantizedNetwork

HIGHEST_PIXEL = 255
MIN_ERROR = 1e-10  # equal images have a PSNR of 148 dB rather than infinitely many


@torch.no_grad()
def self_errors(net: QuantizedNetwork, images: Tensor) -> Tensor:
    """Mean squared error of each image against full precision, both rounded to 8 bits.

    Args:
        net: A calibrated network.
        images: ``(B, C, H, W)`` in 0..1.

    Returns:
        ``(B,)``, for pixels in 0..255.
    """
    with net.full_precision():
        full = net(images)
    return pixel_errors(net(images), full)


def self_psnr(net: QuantizedNetwork, images: Tensor) -> float:
    """Mean PSNR in dB of the quantized against the full-precision output, rounded to 8 bits.

    Args:
        net: A calibrated network.
        images: ``(B, C, H, W)`` in 0..1.
    """
    return float(psnr_of_errors(self_errors(net, images)).mean())


def pixel_psnr(images: Tensor, others: Tensor) -> float:
    """Mean PSNR in dB between two batches of images, rounded to 8 bits; all channels, no border.

    Args:
        images: ``(B, C, H, W)`` in 0..1.
        others: The same.
    """
    return float(psnr_of_errors(pixel_errors(images, others)).mean())


def psnr_of_errors(errors: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of pixels in 0..255, of any shape."""
    return 10 * torch.log10(HIGHEST_PIXEL**2 / errors.clamp(min=MIN_ERROR))


def pixel_errors(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error between two batches of images, rounded to 8 bits.

    Args:
        images: ``(B, C, H, W)`` in 0..1.
        others: The same.

    Returns:
        ``(B,)``, for pixels in 0..255.
    """
    differences = _pixels(images) - _pixels(others)
    return differences.square().mean(tuple(range(1, differences.dim())))


def _pixels(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * HIGHEST_PIXEL).round()
