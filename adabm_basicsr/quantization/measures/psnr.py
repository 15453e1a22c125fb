"""How close a quantized network's images are to those of full precision."""

from __future__ import annotations

import torch
from torch import Tensor

from adabm_basicsr.quantization.network import QuantizedNetwork


@torch.no_grad()
def self_psnr(net: QuantizedNetwork, images: Tensor) -> float:
    """Mean PSNR in dB of the quantized against the full-precision output over ``images``, rounded to 8 bits."""
    with net.full_precision():
        full = net(images)
    return pixel_psnr(net(images), full)


def pixel_psnr(images: Tensor, others: Tensor) -> float:
    """Mean PSNR in dB between two batches of images in 0..1, rounded to 8 bits; all channels, no border."""
    error = (_pixels(images) - _pixels(others)).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((10 * torch.log10(255**2 / error)).mean())


def _pixels(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()
