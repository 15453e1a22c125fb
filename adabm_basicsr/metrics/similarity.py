"""Self-PSNR and LPIPS, which perceptual networks need beside PSNR."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from basicsr.utils import img2tensor
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, OptionError
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

LPIPS_NETS = ("alex", "vgg", "squeeze")


@METRIC_REGISTRY.register()
def calculate_self_psnr(img: np.ndarray, img2: np.ndarray, **kwargs: Any) -> float:
    """PSNR of a quantized network's output against its full-precision output, in dB.

    It is over all channels and pixels; no border is left out.

    Args:
        img: Output of the quantized network, ``(H, W, C)`` or ``(H, W)`` uint8.
        img2: Output of the full-precision network, likewise; the model fills it in, ground truth
            isn't needed.
        **kwargs: BasicSR's further options; none has a meaning here.
    """
    return pixel_psnr(_to_tensor(img) / 255, _to_tensor(img2) / 255)


@METRIC_REGISTRY.register()
def calculate_lpips(
    img: np.ndarray, img2: np.ndarray, crop_border: int, net: str = "alex", **kwargs: Any
) -> float:
    """LPIPS, a learned distance (arXiv 1801.03924), 0 for equal images; by the package ``lpips``.

    Args:
        img: ``(H, W, C)`` uint8, BGR.
        img2: Ground truth, likewise.
        crop_border: Pixels left out at each border.
        net: Network that compares: alex, vgg or squeeze. Its weights are fetched by torchvision
            once.
        **kwargs: BasicSR's further options; none has a meaning here.

    Raises:
        AdaBMError: ``lpips`` isn't installed, ``net`` is unknown, or its weights can't be fetched.
    """
    inside = slice(crop_border or None, -crop_border or None)
    images = []
    for image in (img, img2):
        cropped = _to_tensor(image)[..., inside, inside]
        images.append(cropped / 127.5 - 1)  # LPIPS takes -1..1
    with torch.no_grad():
        return float(_lpips(net)(*images))


@lru_cache
def _lpips(net: str) -> nn.Module:
    if net not in LPIPS_NETS:
        valid = ", ".join(LPIPS_NETS)
        raise OptionError(f"calculate_lpips: net: {net!r} is unknown; valid: {valid}")
    try:
        import lpips
    except ImportError as error:
        raise OptionError("calculate_lpips needs the package lpips: pip install lpips") from error
    try:
        return lpips.LPIPS(net=net, verbose=False).eval()
    except OSError as error:
        raise AdaBMError(
            f"calculate_lpips: the weights of {net} cannot be fetched: {error}"
        ) from error


def _to_tensor(image: np.ndarray) -> Tensor:
    """``(H, W, C)``, or ``(H, W)`` as BasicSR gives grey images, as ``(1, C, H, W)``."""
    height, width = image.shape[:2]
    with_channels = image.reshape(height, width, -1).astype(np.float32)
    return img2tensor(with_channels)[None]
